/* Kernels of the SSE handlers: the guest's instruction, carried out by the host's own.
 *
 * Owns:    the asm blocks, and how the guest's MXCSR meets the host's.
 * Never:   guest memory, faults; leaves the host's MXCSR changed behind a block; unmasks an exception on the host.
 * Threads: pure but for the MXCSR words, which are the vCPU's own.
 *
 * mx points at four words: mx[0] the guest's MXCSR; scratch: mx[1] read after the operation, mx[2] the host's, mx[3] the
 * guest's with all exceptions masked. Locals would do, but a local whose address is taken costs the handler its tail call.
 *
 * Two ways through a floating-point kernel:
 *   quick    the guest's control bits are the default ones, as the host's are: no LDMXCSR. Right if all flags that stand in the
 *            host's register afterwards stand in the guest's already (PE nearly always does). Else nothing was written, and
 *   exact    one block: load the guest's MXCSR without flags, operate, read the flags, restore the host's, cleared.
 */
#ifndef VIRGA_SSE_KERNELS_H
#define VIRGA_SSE_KERNELS_H
#include <emmintrin.h>
#include <stdint.h>
#include <string.h>

typedef __m128i v128;

#define MXCSR_FLAGS 0x3Fu
#define MXCSR_PRECOMPUTATION 0x07u          /* IE, DE, ZE */
#define MXCSR_UE 0x10u
#define MXCSR_UM 0x800u
#define MXCSR_MASKS 0x1F80u
#define MXCSR_FZ 0x8000u
#define MXCSR_DEFAULT 0x1F80u

#define V_INLINE static inline __attribute__((always_inline))

V_INLINE v128 load128(const void *p) { return _mm_loadu_si128(p); }
V_INLINE v128 load64(const void *p) { return _mm_loadl_epi64(p); }
V_INLINE v128 load32(const void *p) { uint32_t v; memcpy(&v, p, 4); return _mm_cvtsi32_si128(v); }
V_INLINE v128 load16(const void *p) { uint16_t v; memcpy(&v, p, 2); return _mm_cvtsi32_si128(v); }
V_INLINE v128 from64(uint64_t v) { return _mm_cvtsi64_si128(v); }
V_INLINE uint64_t to64(v128 v) { return _mm_cvtsi128_si64(v); }
V_INLINE v128 join(uint64_t lo, uint64_t hi) { return _mm_set_epi64x(hi, lo); }
V_INLINE void store128(void *p, v128 v) { _mm_storeu_si128(p, v); }

/* --- integer: two operands */
#define SSE_OP(name) \
    V_INLINE void k_##name(void *d, v128 s) { \
        v128 a = load128(d); \
        __asm__(#name " %1, %0" : "+x"(a) : "x"(s)); \
        store128(d, a); }
/* Moves are kernels too: an XMM register is always stored whole, because a 16-byte load behind two smaller stores waits
 * until they have left the store buffer, a dozen cycles. */
SSE_OP(movss)
SSE_OP(movsd)
SSE_OP(movhlps)
SSE_OP(movlhps)
#define SSE_OP_MM(name) \
    V_INLINE uint64_t mm_##name(uint64_t d, uint64_t s) { \
        v128 a = from64(d); \
        __asm__(#name " %1, %0" : "+x"(a) : "x"(from64(s))); \
        return to64(a); }
/* packs, horizontal sums: d and s are the halves of one XMM operand, whose low half is the result */
#define SSE_OP_MM_JOIN(name) \
    V_INLINE uint64_t mm_##name(uint64_t d, uint64_t s) { \
        v128 a = join(d, s); \
        __asm__(#name " %1, %0" : "+x"(a) : "x"(a)); \
        return to64(a); }
/* punpckh of 64 bits: the high half of what punpckl makes */
#define SSE_OP_MM_HIGH(name, low) \
    V_INLINE uint64_t mm_##name(uint64_t d, uint64_t s) { \
        v128 a = from64(d); \
        __asm__(#low " %1, %0" : "+x"(a) : "x"(from64(s))); \
        return to64(_mm_unpackhi_epi64(a, a)); }
#define SSE_OP_MM_PSHUFB(name) \
    V_INLINE uint64_t mm_##name(uint64_t d, uint64_t s) { \
        v128 a = from64(d); \
        __asm__(#name " %1, %0" : "+x"(a) : "x"(from64(s & 0x8787878787878787ull))); \
        return to64(a); }
#define SSE_BLENDV(name) \
    V_INLINE void k_##name(void *d, v128 s, const void *mask) { \
        v128 a = load128(d); \
        register v128 m __asm__("xmm0") = load128(mask); \
        __asm__(#name " %%xmm0, %1, %0" : "+x"(a) : "x"(s), "x"(m)); \
        store128(d, a); }

/* --- with an immediate: a table of 256 stubs of 8 bytes each, `insn $i, %xmm1, %xmm0; ret` */
#define SSE_STUBS(name, insn, operands) \
    __asm__(".pushsection .text\n.balign 8\nvirga_stubs_" #name ":\n.set .Lvirga_i, 0\n.rept 256\n" \
            insn " $.Lvirga_i, " operands "\nret\n.balign 8\n.set .Lvirga_i, .Lvirga_i + 1\n.endr\n.popsection"); \
    extern const char stubs_##name[] __asm__("virga_stubs_" #name) __attribute__((visibility("hidden")));
/* a stub returns through the stack: first past the red zone */
#define CALL_STUB(reg) "lea -128(%%rsp), %%rsp; call *" reg "; lea 128(%%rsp), %%rsp"

#define SSE_OP_IMM(name) \
    SSE_STUBS(name, #name, "%xmm1, %xmm0") \
    V_INLINE v128 i_##name(v128 d, v128 s, uint32_t imm) { \
        register v128 a __asm__("xmm0") = d; \
        register v128 b __asm__("xmm1") = s; \
        __asm__(CALL_STUB("%2") : "+x"(a) : "x"(b), "r"(stubs_##name + (imm & 0xFF) * 8)); \
        return a; } \
    V_INLINE void k_##name(void *d, v128 s, uint32_t imm) { store128(d, i_##name(load128(d), s, imm)); }
#define SSE_INSERT(name, source) \
    SSE_STUBS(name, #name, source ", %xmm0") \
    V_INLINE void k_##name(void *d, uint64_t s, uint32_t imm) { \
        register v128 a __asm__("xmm0") = load128(d); \
        __asm__(CALL_STUB("%2") : "+x"(a) : "a"(s), "r"(stubs_##name + (imm & 0xFF) * 8)); \
        store128(d, a); }
SSE_INSERT(pinsrb, "%eax")
SSE_INSERT(pinsrw, "%eax")
SSE_INSERT(pinsrd, "%eax")
SSE_INSERT(pinsrq, "%rax")
#define SSE_SHIFT_BYTES(name) \
    SSE_STUBS(name, #name, "%xmm0") \
    V_INLINE void k_##name##_i(void *d, uint32_t imm) { \
        register v128 a __asm__("xmm0") = load128(d); \
        __asm__(CALL_STUB("%1") : "+x"(a) : "r"(stubs_##name + (imm & 0xFF) * 8)); \
        store128(d, a); }

/* --- floating point. Lanes of the result that may be tiny */
enum { LANES_NONE, LANES_PS, LANES_PD, LANES_SS, LANES_SD, LANES_HALF_PS };

static int lanes_tiny(v128 r, int lanes) {
    uint32_t s[4]; uint64_t d[2]; int n = lanes == LANES_PS ? 4 : lanes == LANES_HALF_PS ? 2 : lanes == LANES_SS;
    store128(s, r); store128(d, r);
    for (int i = 0; i < n; i++)
        if ((s[i] & 0x7F800000) == 0 && (s[i] & 0x7FFFFF) != 0) return 1;
    n = lanes == LANES_PD ? 2 : lanes == LANES_SD;
    for (int i = 0; i < n; i++)
        if ((d[i] & 0x7FF0000000000000) == 0 && (d[i] & 0xFFFFFFFFFFFFF) != 0) return 1;
    return 0;
}

/* Before an exact operation: the host's register, cleared, to mx[2]; what the guest's operation runs under to mx[3].
 * FZ counts only while underflow is masked (SDM 1 10.2.3.3). */
V_INLINE void fp_prepare(uint32_t *mx) {
    __asm__ volatile("stmxcsr %0" : "=m"(mx[2]));
    mx[2] &= ~MXCSR_FLAGS;
    mx[3] = (mx[0] | MXCSR_MASKS) & ~MXCSR_FLAGS & ~(mx[0] & MXCSR_UM ? 0 : MXCSR_FZ);
}

/* After it, flags in mx[1]: 1: the result may be written; 0: an unmasked exception (SDM 1 11.5.3). An unmasked
 * pre-computation exception hides the others; unmasked underflow needs only a tiny result, not an inexact one. */
static __attribute__((noinline)) int fp_settle(uint32_t *mx, v128 r, int lanes) {
    uint32_t flags = mx[1] & MXCSR_FLAGS, unmasked = ~(mx[0] >> 7) & MXCSR_FLAGS;
    if (flags & unmasked & MXCSR_PRECOMPUTATION) {
        mx[0] |= flags & MXCSR_PRECOMPUTATION;
        return 0;
    }
    if ((unmasked & MXCSR_UE) && lanes != LANES_NONE && lanes_tiny(r, lanes)) flags |= MXCSR_UE;
    mx[0] |= flags;
    return !(flags & unmasked);
}

#define FP_IS_DEFAULT(mx) __builtin_expect(((mx)[0] & ~MXCSR_FLAGS) == MXCSR_DEFAULT, 1)
#define FP_NOTHING_NEW(mx) __builtin_expect(((mx)[1] & ~(mx)[0]) == 0, 1)

/* body: asm template of the operation; out and in: its operand lists, without mx */
#define FP_BLOCK(mx, body, out, in...) do { \
        fp_prepare(mx); \
        __asm__ volatile("ldmxcsr %[run]; " body "; stmxcsr %[after]; ldmxcsr %[host]" \
                         : out, [after] "=m"((mx)[1]) : [run] "m"((mx)[3]), [host] "m"((mx)[2]), in); } while (0)
#define FP_QUICK(mx, body, out, in...) \
        __asm__ volatile(body "; stmxcsr %[after]" : out, [after] "=m"((mx)[1]) : in)

/* q_: the quick way, 0 if it was none; k_: the exact one, 0 for an unmasked exception */
#define SSE_FP(name, lanes) \
    V_INLINE int q_##name(uint32_t *mx, void *d, v128 s) { \
        v128 a = load128(d); \
        if (!FP_IS_DEFAULT(mx)) return 0; \
        FP_QUICK(mx, #name " %[s], %[a]", [a] "+x"(a), [s] "x"(s)); \
        if (!FP_NOTHING_NEW(mx)) return 0; \
        store128(d, a); \
        return 1; } \
    V_INLINE int k_##name(uint32_t *mx, void *d, v128 s) { \
        v128 a = load128(d); \
        FP_BLOCK(mx, #name " %[s], %[a]", [a] "+x"(a), [s] "x"(s)); \
        if (!fp_settle(mx, a, lanes)) return 0; \
        store128(d, a); \
        return 1; }

#define SSE_FP_IMM(name, lanes) \
    SSE_STUBS(name, #name, "%xmm1, %xmm0") \
    V_INLINE int q_##name(uint32_t *mx, void *d, v128 s, uint32_t imm) { \
        register v128 a __asm__("xmm0") = load128(d); \
        register v128 b __asm__("xmm1") = s; \
        const char *stub = stubs_##name + (imm & 0xFF) * 8; \
        if (!FP_IS_DEFAULT(mx)) return 0; \
        FP_QUICK(mx, CALL_STUB("%[stub]"), [a] "+x"(a), [b] "x"(b), [stub] "r"(stub)); \
        if (!FP_NOTHING_NEW(mx)) return 0; \
        store128(d, a); \
        return 1; } \
    V_INLINE int k_##name(uint32_t *mx, void *d, v128 s, uint32_t imm) { \
        register v128 a __asm__("xmm0") = load128(d); \
        register v128 b __asm__("xmm1") = s; \
        const char *stub = stubs_##name + (imm & 0xFF) * 8; \
        FP_BLOCK(mx, CALL_STUB("%[stub]"), [a] "+x"(a), [b] "x"(b), [stub] "r"(stub)); \
        if (!fp_settle(mx, a, lanes)) return 0; \
        store128(d, a); \
        return 1; }

/* COMISS and its kin: flags as `lahf; seto al` leave them */
#define SSE_COMPARE(name) \
    V_INLINE int q_##name(uint32_t *mx, uint32_t *aflags, const void *d, v128 s) { \
        uint64_t f; \
        v128 a = load128(d); \
        if (!FP_IS_DEFAULT(mx)) return 0; \
        FP_QUICK(mx, #name " %[s], %[x]; lahf; seto %%al", [f] "=&a"(f), [x] "x"(a), [s] "x"(s)); \
        if (!FP_NOTHING_NEW(mx)) return 0; \
        *aflags = (uint16_t)f; \
        return 1; } \
    V_INLINE int k_##name(uint32_t *mx, uint32_t *aflags, const void *d, v128 s) { \
        uint64_t f; \
        v128 a = load128(d); \
        FP_BLOCK(mx, #name " %[s], %[x]; lahf; seto %%al", [f] "=&a"(f), [x] "x"(a), [s] "x"(s)); \
        if (!fp_settle(mx, a, LANES_NONE)) return 0; \
        *aflags = (uint16_t)f; \
        return 1; }

/* to a general register of 32 (w empty) or 64 bits (w = q) */
#define SSE_TO_INT(name, bits, insn) \
    V_INLINE int q_##name##_r##bits(uint32_t *mx, uint64_t *d, v128 s) { \
        uint##bits##_t r; \
        if (!FP_IS_DEFAULT(mx)) return 0; \
        FP_QUICK(mx, insn " %[s], %[r]", [r] "=&r"(r), [s] "x"(s)); \
        if (!FP_NOTHING_NEW(mx)) return 0; \
        *d = r; \
        return 1; } \
    V_INLINE int k_##name##_r##bits(uint32_t *mx, uint64_t *d, v128 s) { \
        uint##bits##_t r; \
        FP_BLOCK(mx, insn " %[s], %[r]", [r] "=&r"(r), [s] "x"(s)); \
        if (!fp_settle(mx, s, LANES_NONE)) return 0; \
        *d = r; \
        return 1; }
#define SSE_FROM_INT(name, bits, insn) \
    V_INLINE int q_##name##_r##bits(uint32_t *mx, void *d, uint##bits##_t s) { \
        v128 a = load128(d); \
        if (!FP_IS_DEFAULT(mx)) return 0; \
        FP_QUICK(mx, insn " %[s], %[a]", [a] "+x"(a), [s] "r"(s)); \
        if (!FP_NOTHING_NEW(mx)) return 0; \
        store128(d, a); \
        return 1; } \
    V_INLINE int k_##name##_r##bits(uint32_t *mx, void *d, uint##bits##_t s) { \
        v128 a = load128(d); \
        FP_BLOCK(mx, insn " %[s], %[a]", [a] "+x"(a), [s] "r"(s)); \
        if (!fp_settle(mx, a, LANES_NONE)) return 0; \
        store128(d, a); \
        return 1; }

/* between MMX and XMM: the instruction of two XMM operands that does the same on the low half */
#define SSE_FROM_MM(name, insn, keep_high) \
    V_INLINE int k_##name(uint32_t *mx, void *d, uint64_t s) { \
        v128 a; \
        FP_BLOCK(mx, #insn " %[s], %[a]", [a] "=x"(a), [s] "x"(from64(s))); \
        if (!fp_settle(mx, a, LANES_NONE)) return 0; \
        if (keep_high) *(uint64_t *)d = to64(a); else store128(d, a); \
        return 1; }
#define SSE_TO_MM(name, insn) \
    V_INLINE int k_##name(uint32_t *mx, uint64_t *d, v128 s) { \
        v128 a; \
        FP_BLOCK(mx, #insn " %[s], %[a]", [a] "=x"(a), [s] "x"(s)); \
        if (!fp_settle(mx, a, LANES_NONE)) return 0; \
        *d = to64(a); \
        return 1; }

V_INLINE void k_ptest(uint32_t *aflags, const void *d, v128 s) {
    uint64_t f;
    __asm__("ptest %2, %1; lahf; seto %%al" : "=&a"(f) : "x"(load128(d)), "x"(s) : "cc");
    *aflags = (uint16_t)f;
}

V_INLINE uint64_t shuffle_words(uint64_t s, uint32_t imm) {
    uint64_t r = 0;
    for (int i = 0; i < 4; i++) r |= (s >> (imm >> 2 * i & 3) * 16 & 0xFFFF) << 16 * i;
    return r;
}

V_INLINE uint64_t align_right(uint64_t d, uint64_t s, uint32_t imm) {
    uint32_t n = (imm & 0xFF) * 8;
    return n >= 128 ? 0 : (uint64_t)(((unsigned __int128)d << 64 | s) >> n);
}

/* --- PCMPxSTRx. len: lengths as the instruction takes them, brought into -16..16, which is where they saturate */
V_INLINE int32_t string_length(uint64_t reg, int wide) {
    int64_t n = wide ? (int64_t)reg : (int32_t)reg;
    return n > 16 || n < -16 ? 16 : (int32_t)n;
}
#define SSE_STRING(name) \
    SSE_STUBS(name, #name, "%xmm1, %xmm0") \
    static __attribute__((noinline)) void k_##name(uint32_t *aflags, const void *d, v128 s, uint32_t imm, int32_t la, int32_t lb, \
                                                   uint64_t *index, void *mask) { \
        register v128 a __asm__("xmm0") = load128(d); \
        register v128 b __asm__("xmm1") = s; \
        uint64_t f = (uint32_t)la, c = 0; \
        __asm__(CALL_STUB("%[stub]") "; lahf; seto %%al" : "+x"(a), "+a"(f), "+c"(c) \
                : "x"(b), "d"(lb), [stub] "r"(stubs_##name + (imm & 0xFF) * 8) : "cc"); \
        *aflags = (uint16_t)f; \
        if (index) *index = (uint32_t)c; \
        if (mask) store128(mask, a); }

/* --- RCPPS, RSQRTPS: the makers' approximations differ and are not published, so that a guest that moves would see
 * other bits. Here: the exact value of the reciprocal, rounded to the nearest float of 12 fraction bits (ties up): the
 * relative error is at most 2^-13, the manual's limit 1.5 * 2^-12. Denormal operands count as 0, tiny results are 0. */
V_INLINE uint32_t float_quiet(uint32_t x) { return x | 0x400000; }
static uint32_t float_reciprocal(uint32_t x) {
    uint32_t sign = x & 0x80000000, e = x >> 23 & 0xFF, f = x & 0x7FFFFF;
    if (e == 0xFF) return f ? float_quiet(x) : sign;
    if (e == 0) return sign | 0x7F800000;
    /* m = 2^23..2^24-1 stands for 1..2; q = 2^13 / m in units of 2^-13, so 2^12 < q <= 2^13 */
    uint64_t m = f | 0x800000, q = ((1ull << 37) / m + 1) >> 1;
    int32_t r = 253 - (int32_t)e;
    if (q >= 1u << 13) { r++; q >>= 1; }
    if (r <= 0) return sign;
    return sign | (uint32_t)r << 23 | (uint32_t)(q - (1u << 12)) << 11;
}
static uint32_t float_root_reciprocal(uint32_t x) {
    uint32_t sign = x & 0x80000000, e = x >> 23 & 0xFF, f = x & 0x7FFFFF;
    if (e == 0xFF && f) return float_quiet(x);
    if (e == 0) return sign | 0x7F800000;
    if (sign) return 0xFFC00000;
    if (e == 0xFF) return 0;
    /* x = m * 2^k, k even, m in [1, 4) with 23 fraction bits; q = floor(2^14 / sqrt m) by the largest q with q^2 m <= 2^51 */
    int32_t k = (int32_t)e - 127;
    uint64_t m = (uint64_t)(f | 0x800000) << (k & 1), q = 0;
    k -= k & 1;
    for (uint64_t bit = 1u << 14; bit; bit >>= 1)
        if ((q | bit) * (q | bit) * m <= 1ull << 51) q |= bit;
    q = (q + 1) >> 1;                                        /* in units of 2^-13: 2^12 <= q <= 2^13 */
    int32_t r = 126 - k / 2;
    if (q >= 1u << 13) { r++; q >>= 1; }
    return (uint32_t)r << 23 | (uint32_t)(q - (1u << 12)) << 11;
}
V_INLINE void k_rcp(void *d, v128 s, int lanes) {
    uint32_t v[4]; store128(v, s);
    for (int i = 0; i < lanes; i++) ((uint32_t *)d)[i] = float_reciprocal(v[i]);
}
V_INLINE void k_rsqrt(void *d, v128 s, int lanes) {
    uint32_t v[4]; store128(v, s);
    for (int i = 0; i < lanes; i++) ((uint32_t *)d)[i] = float_root_reciprocal(v[i]);
}

/* The way on for a handler whose quick way was none: a tail call of its complete twin, which the compiler must not inline,
 * because its calls would cost the quick way a stack frame. */
static __attribute__((noipa)) void go_on(void *cpu, void *op, void (*complete)(void *, void *)) { complete(cpu, op); }

/* What x86-64-v2 with AES and PCLMULQDQ lacks on this host, or NULL. */
static const char *host_lacks(void) {
    if (!__builtin_cpu_supports("sse3")) return "SSE3";
    if (!__builtin_cpu_supports("ssse3")) return "SSSE3";
    if (!__builtin_cpu_supports("sse4.1")) return "SSE4.1";
    if (!__builtin_cpu_supports("sse4.2")) return "SSE4.2";
    if (!__builtin_cpu_supports("popcnt")) return "POPCNT";
    if (!__builtin_cpu_supports("aes")) return "AES-NI";
    if (!__builtin_cpu_supports("pclmul")) return "PCLMULQDQ";
    return 0;
}
#endif
