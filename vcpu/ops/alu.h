/* Integer kernels on an x86-64 host: the host's own instruction computes result and flags. Owner: CORE.
 *
 * f points to CpuState.aflags: the low 16 bits are AH:AL as `lahf; seto %al` leave them.
 * Carry goes in by `bt $8`, which is CF's place. Every kernel is one asm statement, so nothing stands between the
 * instruction and the capture of its flags. */
#pragma once
#include <stdint.h>

#define FLAGS_OUT(f, ax) (*(uint16_t *)(f) = (uint16_t)(ax))

#define ALU_BINARY(NAME, INS, T)                                                                        \
    static inline T NAME(uint32_t *f, T a, T b) {                                                       \
        uint32_t ax;                                                                                    \
        __asm__(INS " %2, %1; lahf; seto %%al" : "=a"(ax), "+q"(a) : "qm"(b) : "cc");                   \
        FLAGS_OUT(f, ax); return a; }                                                                   \
    static inline void lock_##NAME(uint32_t *f, T *p, T b) {                                            \
        uint32_t ax;                                                                                    \
        __asm__ volatile("lock; " INS " %2, %1; lahf; seto %%al" : "=a"(ax), "+m"(*p) : "q"(b) : "cc", "memory"); \
        FLAGS_OUT(f, ax); }
#define ALU_CARRY(NAME, INS, T)                                                                         \
    static inline T NAME(uint32_t *f, T a, T b) {                                                       \
        uint32_t ax;                                                                                    \
        __asm__("btl $8, %3; " INS " %2, %1; lahf; seto %%al" : "=a"(ax), "+q"(a) : "qm"(b), "q"(*f) : "cc"); \
        FLAGS_OUT(f, ax); return a; }                                                                   \
    static inline void lock_##NAME(uint32_t *f, T *p, T b) {                                            \
        uint32_t ax;                                                                                    \
        __asm__ volatile("btl $8, %3; lock; " INS " %2, %1; lahf; seto %%al"                            \
                         : "=a"(ax), "+m"(*p) : "q"(b), "q"(*f) : "cc", "memory");                      \
        FLAGS_OUT(f, ax); }
#define ALU_COMPARE(NAME, INS, T)                                                                       \
    static inline void NAME(uint32_t *f, T a, T b) {                                                    \
        uint32_t ax;                                                                                    \
        __asm__(INS " %2, %1; lahf; seto %%al" : "=a"(ax) : "q"(a), "qm"(b) : "cc");                    \
        FLAGS_OUT(f, ax); }
#define ALU_UNARY(NAME, INS, T)                                                                         \
    static inline T NAME(uint32_t *f, T a) {                                                            \
        uint32_t ax;                                                                                    \
        __asm__("btl $8, %2; " INS " %1; lahf; seto %%al" : "=a"(ax), "+q"(a) : "q"(*f) : "cc");        \
        FLAGS_OUT(f, ax); return a; }                                                                   \
    static inline void lock_##NAME(uint32_t *f, T *p) {                                                 \
        uint32_t ax;                                                                                    \
        __asm__ volatile("btl $8, %2; lock; " INS " %1; lahf; seto %%al"                                \
                         : "=a"(ax), "+m"(*p) : "q"(*f) : "cc", "memory");                              \
        FLAGS_OUT(f, ax); }
/* shifts: a count of 0 leaves the flags alone */
#define ALU_SHIFT(NAME, INS, T, MASK)                                                                   \
    static inline T NAME(uint32_t *f, T a, uint8_t count) {                                             \
        uint32_t ax;                                                                                    \
        count &= MASK;                                                                                  \
        if (count == 0) return a;                                                                       \
        __asm__(INS " %%cl, %1; lahf; seto %%al" : "=&a"(ax), "+q"(a) : "c"(count) : "cc");             \
        FLAGS_OUT(f, ax); return a; }
/* rotates change CF and OF alone */
#define ALU_ROTATE(NAME, INS, T, MASK)                                                                  \
    static inline T NAME(uint32_t *f, T a, uint8_t count) {                                             \
        uint32_t ax = *f;                                                                               \
        count &= MASK;                                                                                  \
        if (count == 0) return a;                                                                       \
        __asm__("sahf; " INS " %%cl, %1; lahf; seto %%al" : "+a"(ax), "+q"(a) : "c"(count) : "cc");     \
        FLAGS_OUT(f, ax); return a; }
#define ALU_DOUBLE(NAME, INS, T, MASK)                                                                  \
    static inline T NAME(uint32_t *f, T a, T b, uint8_t count) {                                        \
        uint32_t ax;                                                                                    \
        count &= MASK;                                                                                  \
        if (count == 0) return a;                                                                       \
        __asm__(INS " %%cl, %2, %1; lahf; seto %%al" : "=&a"(ax), "+r"(a) : "r"(b), "c"(count) : "cc"); \
        FLAGS_OUT(f, ax); return a; }
#define ALU_MULTIPLY(NAME, INS, T)                                                                      \
    static inline void NAME(uint32_t *f, T a, T b, T *low, T *high) {                                   \
        T d, lo;                                                                                        \
        __asm__(INS " %3; mov %0, %2; lahf; seto %%al" : "+a"(a), "=&d"(d), "=&r"(lo) : "r"(b) : "cc"); \
        *low = lo; *high = d; FLAGS_OUT(f, a); }
#define ALU_IMUL2(NAME, INS, T)                                                                         \
    static inline T NAME(uint32_t *f, T a, T b) {                                                       \
        uint32_t ax;                                                                                    \
        __asm__(INS " %2, %1; lahf; seto %%al" : "=a"(ax), "+r"(a) : "rm"(b) : "cc");                   \
        FLAGS_OUT(f, ax); return a; }
/* a source of 0: ZF, and the destination as it was */
#define ALU_SCAN(NAME, INS, T)                                                                          \
    static inline T NAME(uint32_t *f, T a, T b) {                                                       \
        uint32_t ax;                                                                                    \
        __asm__(INS " %2, %1; lahf; seto %%al" : "=&a"(ax), "+r"(a) : "rm"(b) : "cc");                  \
        FLAGS_OUT(f, ax); return a; }

#define ALU_SIZE(S, SUFFIX, T, MASK)                                                                    \
    ALU_BINARY(add##S, "add" SUFFIX, T) ALU_BINARY(sub##S, "sub" SUFFIX, T)                             \
    ALU_BINARY(and##S, "and" SUFFIX, T) ALU_BINARY(or##S, "or" SUFFIX, T) ALU_BINARY(xor##S, "xor" SUFFIX, T) \
    ALU_CARRY(adc##S, "adc" SUFFIX, T) ALU_CARRY(sbb##S, "sbb" SUFFIX, T)                               \
    ALU_COMPARE(cmp##S, "cmp" SUFFIX, T) ALU_COMPARE(test##S, "test" SUFFIX, T)                         \
    ALU_UNARY(inc##S, "inc" SUFFIX, T) ALU_UNARY(dec##S, "dec" SUFFIX, T) ALU_UNARY(neg##S, "neg" SUFFIX, T) \
    ALU_SHIFT(shl##S, "shl" SUFFIX, T, MASK) ALU_SHIFT(shr##S, "shr" SUFFIX, T, MASK)                   \
    ALU_SHIFT(sar##S, "sar" SUFFIX, T, MASK)                                                            \
    ALU_ROTATE(rol##S, "rol" SUFFIX, T, MASK) ALU_ROTATE(ror##S, "ror" SUFFIX, T, MASK)                 \
    ALU_ROTATE(rcl##S, "rcl" SUFFIX, T, MASK) ALU_ROTATE(rcr##S, "rcr" SUFFIX, T, MASK)
#define ALU_WIDE(S, SUFFIX, T, MASK)                                                                    \
    ALU_DOUBLE(shld##S, "shld" SUFFIX, T, MASK) ALU_DOUBLE(shrd##S, "shrd" SUFFIX, T, MASK)             \
    ALU_MULTIPLY(mul##S, "mul" SUFFIX, T) ALU_MULTIPLY(imul##S, "imul" SUFFIX, T)                       \
    ALU_IMUL2(imul2_##S, "imul" SUFFIX, T) ALU_SCAN(bsf##S, "bsf" SUFFIX, T) ALU_SCAN(bsr##S, "bsr" SUFFIX, T) \
    ALU_SCAN(popcnt##S, "popcnt" SUFFIX, T)

ALU_SIZE(8, "b", uint8_t, 31) ALU_SIZE(16, "w", uint16_t, 31) ALU_SIZE(32, "l", uint32_t, 31)
ALU_SIZE(64, "q", uint64_t, 63)
ALU_WIDE(16, "w", uint16_t, 31) ALU_WIDE(32, "l", uint32_t, 31) ALU_WIDE(64, "q", uint64_t, 63)

static inline uint16_t mul8(uint32_t *f, uint8_t a, uint8_t b) {
    uint16_t ax = a, product;
    __asm__("mulb %2; mov %0, %1; lahf; seto %%al" : "+a"(ax), "=&r"(product) : "r"(b) : "cc");
    FLAGS_OUT(f, ax); return product; }
static inline uint16_t imul8(uint32_t *f, uint8_t a, uint8_t b) {
    uint16_t ax = a, product;
    __asm__("imulb %2; mov %0, %1; lahf; seto %%al" : "+a"(ax), "=&r"(product) : "r"(b) : "cc");
    FLAGS_OUT(f, ax); return product; }

/* Division: 0 done; 1 #DE. The host never sees a case that would trap. */
static inline int div8(uint16_t a, uint8_t b, uint16_t *ax) {
    if (b == 0 || a / b > 0xFF) return 1;
    *ax = (uint16_t)(a / b | (a % b) << 8); return 0; }
static inline int idiv8(int16_t a, int8_t b, uint16_t *ax) {
    if (b == 0) return 1;
    int q = a / b, r = a % b;
    if (q < -128 || q > 127) return 1;
    *ax = (uint16_t)((uint8_t)q | (uint16_t)(uint8_t)r << 8); return 0; }
#define ALU_DIVIDE(S, T, ST, W, SW)                                                                     \
    static inline int div##S(T low, T high, T b, T *q, T *r) {                                          \
        if (b == 0 || high >= b) return 1;                                                              \
        W a = (W)high << S | low; *q = (T)(a / b); *r = (T)(a % b); return 0; }                         \
    static inline int idiv##S(T low, T high, T b, T *q, T *r) {                                         \
        SW a = (SW)((W)high << S | low), quotient; ST d = (ST)b;                                        \
        if (d == 0 || (d == -1 && a == (SW)((W)1 << (2 * S - 1)))) return 1;                            \
        quotient = a / d;                                                                               \
        if (quotient != (ST)quotient) return 1;                                                         \
        *q = (T)quotient; *r = (T)(a % d); return 0; }
ALU_DIVIDE(16, uint16_t, int16_t, uint32_t, int32_t)
ALU_DIVIDE(32, uint32_t, int32_t, uint64_t, int64_t)
static inline int div64(uint64_t low, uint64_t high, uint64_t b, uint64_t *q, uint64_t *r) {
    if (b == 0 || high >= b) return 1;
    __asm__("divq %4" : "=a"(*q), "=d"(*r) : "0"(low), "1"(high), "r"(b) : "cc");
    return 0; }
static inline int idiv64(uint64_t low, uint64_t high, uint64_t b, uint64_t *q, uint64_t *r) {
    uint64_t ulow = low, uhigh = high, ub = b, quotient, rest;
    int negative = (int64_t)high < 0, opposite = negative != ((int64_t)b < 0);
    if (b == 0) return 1;
    if (negative) { ulow = -low; uhigh = ~high + (low == 0); }
    if ((int64_t)b < 0) ub = -b;
    if (div64(ulow, uhigh, ub, &quotient, &rest)) return 1;
    if (quotient > (opposite ? (uint64_t)1 << 63 : ((uint64_t)1 << 63) - 1)) return 1;
    *q = opposite ? -quotient : quotient; *r = negative ? -rest : rest; return 0; }

static inline uint32_t crc32_8(uint32_t c, uint8_t v) { __asm__("crc32b %1, %0" : "+r"(c) : "qm"(v)); return c; }
static inline uint32_t crc32_16(uint32_t c, uint16_t v) { __asm__("crc32w %1, %0" : "+r"(c) : "rm"(v)); return c; }
static inline uint32_t crc32_32(uint32_t c, uint32_t v) { __asm__("crc32l %1, %0" : "+r"(c) : "rm"(v)); return c; }
static inline uint64_t crc32_64(uint64_t c, uint64_t v) { __asm__("crc32q %1, %0" : "+r"(c) : "rm"(v)); return c; }

/* Conditions of Jcc, SETcc, CMOVcc from aflags: CF 8, PF 10, ZF 14, SF 15, OF 0 */
static inline int cond_o(uint32_t f) { return f & 1; }
static inline int cond_b(uint32_t f) { return f >> 8 & 1; }
static inline int cond_z(uint32_t f) { return f >> 14 & 1; }
static inline int cond_be(uint32_t f) { return (f & 0x4100) != 0; }
static inline int cond_s(uint32_t f) { return f >> 15 & 1; }
static inline int cond_p(uint32_t f) { return f >> 10 & 1; }
static inline int cond_l(uint32_t f) { return (f >> 15 ^ f) & 1; }
static inline int cond_le(uint32_t f) { return ((f >> 15 ^ f) & 1) | (f >> 14 & 1); }
static inline int condition(uint32_t cc, uint32_t f) {
    int r;
    switch (cc >> 1 & 7) {
    case 0: r = cond_o(f); break; case 1: r = cond_b(f); break; case 2: r = cond_z(f); break;
    case 3: r = cond_be(f); break; case 4: r = cond_s(f); break; case 5: r = cond_p(f); break;
    case 6: r = cond_l(f); break; default: r = cond_le(f); }
    return r ^ (cc & 1); }

#define ATOMICS(S, T)                                                                                   \
    static inline T swap##S(T *p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }          \
    static inline T lock_xadd##S(T *p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }      \
    static inline T lock_cas##S(T *p, T was, T v) {                                                     \
        __atomic_compare_exchange_n(p, &was, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); return was; }   \
    static inline void lock_not##S(T *p) { __atomic_fetch_xor(p, (T)~(T)0, __ATOMIC_SEQ_CST); }         \
    static inline T lock_bts##S(T *p, T bit) { return __atomic_fetch_or(p, bit, __ATOMIC_SEQ_CST) & bit; } \
    static inline T lock_btr##S(T *p, T bit) { return __atomic_fetch_and(p, (T)~bit, __ATOMIC_SEQ_CST) & bit; } \
    static inline T lock_btc##S(T *p, T bit) { return __atomic_fetch_xor(p, bit, __ATOMIC_SEQ_CST) & bit; }
ATOMICS(8, uint8_t) ATOMICS(16, uint16_t) ATOMICS(32, uint32_t) ATOMICS(64, uint64_t)

/* 1: swapped; low and high hold what was found. p: 16-byte aligned */
static inline int cas128(void *p, uint64_t *low, uint64_t *high, uint64_t new_low, uint64_t new_high) {
    uint8_t done;
    __asm__ volatile("lock; cmpxchg16b %1; setz %0" : "=q"(done), "+m"(*(__uint128_t *)p), "+a"(*low), "+d"(*high)
                     : "b"(new_low), "c"(new_high) : "cc", "memory");
    return done; }
static inline void fence_all(void) { __sync_synchronize(); }
static inline uint16_t bswap_16(uint16_t v) { return __builtin_bswap16(v); }
static inline uint32_t bswap_32(uint32_t v) { return __builtin_bswap32(v); }
static inline uint64_t bswap_64(uint64_t v) { return __builtin_bswap64(v); }
static inline uint64_t leading_zeros(uint64_t v, int bits) { return v ? (uint64_t)(__builtin_clzll(v) - 64 + bits) : (uint64_t)bits; }
