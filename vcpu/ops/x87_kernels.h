/* Kernels of the x87 handlers.
 *
 * Owns:    the thunk (the guest's state on the host's x87 for one instruction) and the quick operations.
 * Never:   guest memory; a trap on the host: an unmasked exception is raised by the next *waiting* instruction only, and
 *          behind the guest's one there is none, FNSAVE being no such. The state loaded must have nothing pending.
 * Threads: pure. The host's x87 is empty, with FCW = 37FH (the ABI's), before and after each function.
 */
#ifndef VIRGA_X87_KERNELS_H
#define VIRGA_X87_KERNELS_H
#include <stdint.h>
#include <string.h>

/* FNSAVE's image outside 16-bit mode, SDM 1 figure 8-9 */
typedef struct {
    uint32_t fcw, fsw, ftw, fip, fcs, fdp, fds;
    uint8_t regs[80];                           /* ST(0) to ST(7), 10 bytes each */
} x87_image;

/* every instruction D8..DF: 8 x 64 with a register operand, 8 x 8 with memory at (%rdi); 4 bytes a stub */
__asm__(".pushsection .text\n.balign 8\nvirga_x87_register:\n"
        ".set .Lvirga_o, 0xD8\n.rept 8\n.set .Lvirga_m, 0xC0\n.rept 64\n"
        ".byte .Lvirga_o, .Lvirga_m\nret\n.balign 4\n.set .Lvirga_m, .Lvirga_m + 1\n.endr\n.set .Lvirga_o, .Lvirga_o + 1\n.endr\n"
        "virga_x87_memory:\n"
        ".set .Lvirga_o, 0xD8\n.rept 8\n.set .Lvirga_m, 7\n.rept 8\n"
        ".byte .Lvirga_o, .Lvirga_m\nret\n.balign 4\n.set .Lvirga_m, .Lvirga_m + 8\n.endr\n.set .Lvirga_o, .Lvirga_o + 1\n.endr\n"
        ".popsection");
extern const char virga_x87_register[] __attribute__((visibility("hidden")));
extern const char virga_x87_memory[] __attribute__((visibility("hidden")));

/* flags: in and out as `lahf; seto al` leave them (FCMOVcc reads, FCOMI writes them) */
static __attribute__((noinline)) uint32_t x87_run(const char *stub, x87_image *image, void *memory, uint32_t flags) {
    uint64_t f = flags & 0xFF01;
    __asm__ volatile("frstor (%[image]); addb $0x7F, %%al; sahf; lea -128(%%rsp), %%rsp; call *%[stub]; lea 128(%%rsp), %%rsp;"
                     "lahf; seto %%al; fnsave (%[image])"
                     : "+&a"(f) : [image] "r"(image), [stub] "r"(stub), "D"(memory) : "memory", "cc");
    return f & 0xFFFF;
}

static uint32_t x87_run_register(uint32_t opcode, uint32_t modrm, x87_image *image, uint32_t flags) {
    return x87_run(virga_x87_register + (opcode * 64 + (modrm & 63)) * 4, image, 0, flags);
}
static void x87_run_memory(uint32_t opcode, uint32_t modrm, x87_image *image, void *memory) {
    x87_run(virga_x87_memory + (opcode * 8 + (modrm >> 3 & 7)) * 4, image, memory, 0);
}

/* --- quick operations: every exception masked. w: FCW, and behind it FSW. 1: done, FSW has its C1 and nothing else changed.
 * 0: an exception whose flag is not set in FSW yet: nothing was written, the thunk does it again.
 * (Flags that the host's status word still holds from before can only send an operation to the thunk, whose FNSAVE clears
 * them.) d, a, b: registers in memory, 10 bytes; t: 16 bytes of scratch. */
#define X87_FLAGS 0x7F
#define X87_C1 0x200
#define X87_CODES 0x4700
#define X87_FCW_HOST 0x37F
static const uint16_t x87_fcw_host = X87_FCW_HOST;

#define REG80(p) "m"(*(const uint8_t (*)[10])(p))
/* outputs: sw in AX, and, in parentheses, others; the guest's FCW is loaded only where it differs */
#define X87_LIST(...) __VA_ARGS__
#define X87_BLOCK(w, sw, body, outs, in...) do { \
        if (__builtin_expect((w)[0] == X87_FCW_HOST, 1)) \
            __asm__ volatile(body : [sw] "=&a"(sw) X87_LIST outs : in); \
        else \
            __asm__ volatile("fldcw %[cw]; " body "; fldcw %[host]" \
                             : [sw] "=&a"(sw) X87_LIST outs : [cw] "m"((w)[0]), [host] "m"(x87_fcw_host), in); } while (0)
#define X87_CHECK(sw, w) \
    if (__builtin_expect((sw) & X87_FLAGS & ~(w)[1], 0)) return 0; \
    (w)[1] = ((w)[1] & ~X87_C1) | ((sw) & X87_C1);

/* The result stands in the host's ST(0) until the check is done: into d, or away. Nothing between uses x87. */
#define X87_KEEP(sw, w, d) \
    if (__builtin_expect((sw) & X87_FLAGS & ~(w)[1], 0)) { __asm__ volatile("fstp %st(0)"); return 0; } \
    __asm__ volatile("fstpt %0" : "=m"(*(uint8_t (*)[10])(d))); \
    (w)[1] = ((w)[1] & ~X87_C1) | ((sw) & X87_C1); \
    return 1;

/* op a, b: the bytes of the popping form that leaves ST(1) op ST(0), with a in ST(1) */
#define X87_ARITHMETIC(name, bytes) \
    static inline int q_##name(uint16_t *w, uint8_t *d, const uint8_t *a, const uint8_t *b) { \
        uint16_t sw; \
        X87_BLOCK(w, sw, "fldt %[a]; fldt %[b]; .byte " bytes "; fnstsw %[sw]", (), [a] REG80(a), [b] REG80(b)); \
        X87_KEEP(sw, w, d) }
X87_ARITHMETIC(fadd, "0xDE, 0xC1")
X87_ARITHMETIC(fmul, "0xDE, 0xC9")
X87_ARITHMETIC(fsub, "0xDE, 0xE9")
X87_ARITHMETIC(fsubr, "0xDE, 0xE1")
X87_ARITHMETIC(fdiv, "0xDE, 0xF9")
X87_ARITHMETIC(fdivr, "0xDE, 0xF1")

#define X87_UNARY(name) \
    static inline int q_##name(uint16_t *w, uint8_t *d) { \
        uint16_t sw; \
        X87_BLOCK(w, sw, "fldt %[a]; " #name "; fnstsw %[sw]", (), [a] REG80(d)); \
        X87_KEEP(sw, w, d) }
X87_UNARY(fsqrt)
X87_UNARY(frndint)

/* ST(0) to memory in another format: the popping store of `bytes` bytes into t */
#define X87_STORE(name, insn, bytes) \
    static inline int q_##name(uint16_t *w, const uint8_t *a, uint8_t *t) { \
        uint16_t sw; \
        X87_BLOCK(w, sw, "fldt %[a]; " insn " %[t]; fnstsw %[sw]", (, [t] "=m"(*(uint8_t (*)[bytes])t)), [a] REG80(a)); \
        X87_CHECK(sw, w) \
        return 1; }
X87_STORE(fst_m32, "fstps", 4)
X87_STORE(fst_m64, "fstpl", 8)
X87_STORE(fist_m16, "fistps", 2)
X87_STORE(fist_m32, "fistpl", 4)
X87_STORE(fist_m64, "fistpll", 8)
X87_STORE(fisttp_m16, "fisttps", 2)
X87_STORE(fisttp_m32, "fisttpl", 4)
X87_STORE(fisttp_m64, "fisttpll", 8)

/* a compared with b: the condition codes into FSW */
#define X87_COMPARE(name) \
    static inline int q_##name(uint16_t *w, const uint8_t *a, const uint8_t *b) { \
        uint16_t sw; \
        __asm__ volatile("fldt %[b]; fldt %[a]; " #name "pp; fnstsw %[sw]" : [sw] "=a"(sw) : [a] REG80(a), [b] REG80(b)); \
        if (sw & X87_FLAGS & ~w[1]) return 0; \
        w[1] = (w[1] & ~X87_CODES) | (sw & X87_CODES); \
        return 1; }
X87_COMPARE(fcom)
X87_COMPARE(fucom)

/* the same into the flags. C1 stays: so do the makers, whatever the manual says */
#define X87_COMPARE_FLAGS(name) \
    static inline int q_##name(uint16_t *w, const uint8_t *a, const uint8_t *b, uint32_t *aflags) { \
        uint16_t sw, f; \
        __asm__ volatile("fldt %[b]; fldt %[a]; " #name "p %%st(1), %%st; lahf; movzwl %%ax, %%edx; fnstsw %%ax; fstp %%st(0)" \
                         : "=&a"(sw), "=&d"(f) : [a] REG80(a), [b] REG80(b) : "cc"); \
        if (sw & X87_FLAGS & ~w[1]) return 0; \
        *aflags = f & 0x4700; \
        return 1; }
X87_COMPARE_FLAGS(fcomi)
X87_COMPARE_FLAGS(fucomi)

/* --- memory formats to 80 bits, where nothing can be signalled: normal numbers and zeros. 0: the thunk does it */
static inline int widen64(uint64_t v, uint64_t *mantissa, uint16_t *sign_exponent) {
    uint32_t e = v >> 52 & 0x7FF;
    uint64_t f = v << 11 & 0x7FFFFFFFFFFFF800;
    if (e == 0x7FF || (e == 0 && f)) return 0;
    *mantissa = e ? f | 1ull << 63 : 0;
    *sign_exponent = (uint16_t)(v >> 48 & 0x8000) | (e ? e + 15360 : 0);
    return 1;
}
static inline int widen32(uint32_t v, uint64_t *mantissa, uint16_t *sign_exponent) {
    uint32_t e = v >> 23 & 0xFF;
    uint64_t f = (uint64_t)(v & 0x7FFFFF) << 40;
    if (e == 0xFF || (e == 0 && f)) return 0;
    *mantissa = e ? f | 1ull << 63 : 0;
    *sign_exponent = (uint16_t)(v >> 16 & 0x8000) | (e ? e + 16256 : 0);
    return 1;
}
static inline void widen_integer(int64_t v, uint64_t *mantissa, uint16_t *sign_exponent) {
    uint64_t u = v < 0 ? -(uint64_t)v : (uint64_t)v;
    int shift = u ? __builtin_clzll(u) : 0;
    *mantissa = u << shift;
    *sign_exponent = u ? (v < 0 ? 0x8000 : 0) | (uint16_t)(16383 + 63 - shift) : 0;
}
#endif
