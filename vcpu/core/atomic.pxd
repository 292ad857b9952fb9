# cython: language_level=3
"""Atomic words and futexes. Owner: APIC.

Owns:    the few primitives by which threads of one machine meet.
Never:   takes the GIL; blocks other than in futex_wait.
Threads: all of them. Every operation is sequentially consistent unless its name says otherwise.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef VIRGA_ATOMIC
    #define VIRGA_ATOMIC
    #include <errno.h>
    #include <linux/futex.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    static inline uint32_t atomic_load32(uint32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void atomic_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t atomic_or32(uint32_t *p, uint32_t v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t atomic_and32(uint32_t *p, uint32_t v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t atomic_add32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t atomic_swap32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline int atomic_cas32(uint32_t *p, uint32_t was, uint32_t is) {
        return __atomic_compare_exchange_n(p, &was, is, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
    static inline uint64_t atomic_load64(uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline uint64_t atomic_or64(uint64_t *p, uint64_t v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t atomic_swap64(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline void *atomic_load_pointer(void *p) { return __atomic_load_n((void **)p, __ATOMIC_SEQ_CST); }
    static inline void atomic_store_pointer(void *p, void *v) { __atomic_store_n((void **)p, v, __ATOMIC_SEQ_CST); }
    static inline void atomic_store8(uint8_t *p, uint8_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint8_t atomic_load8(uint8_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void atomic_or8(uint8_t *p, uint8_t v) { __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
    static inline void atomic_and8(uint8_t *p, uint8_t v) { __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }
    static inline int atomic_cas8(uint8_t *p, uint8_t was, uint8_t is) {
        return __atomic_compare_exchange_n(p, &was, is, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
    static inline void atomic_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline void cpu_relax(void) { __builtin_ia32_pause(); }
    /* timeout_ns < 0: none. Returns when woken, timed out, interrupted, or *p != value: look again. */
    static inline void futex_wait(uint32_t *p, uint32_t value, int64_t timeout_ns) {
        struct timespec t = { timeout_ns / 1000000000, timeout_ns % 1000000000 };
        syscall(SYS_futex, p, FUTEX_WAIT_PRIVATE, value, timeout_ns < 0 ? 0 : &t, 0, 0); }
    static inline void futex_wake(uint32_t *p, int count) {
        syscall(SYS_futex, p, FUTEX_WAKE_PRIVATE, count, 0, 0, 0); }
    static inline int64_t monotonic_ns(void) {
        struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
    static inline int64_t realtime_ns(void) {
        struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
    static inline uint64_t scale64(uint64_t value, uint64_t times, uint64_t over) {
        return (uint64_t)((unsigned __int128)value * times / over); }
    #endif
    """
    uint32_t atomic_load32(uint32_t* p) noexcept nogil
    void atomic_store32(uint32_t* p, uint32_t v) noexcept nogil
    uint32_t atomic_or32(uint32_t* p, uint32_t v) noexcept nogil         # these return the former value
    uint32_t atomic_and32(uint32_t* p, uint32_t v) noexcept nogil
    uint32_t atomic_add32(uint32_t* p, uint32_t v) noexcept nogil
    uint32_t atomic_swap32(uint32_t* p, uint32_t v) noexcept nogil
    bint atomic_cas32(uint32_t* p, uint32_t was, uint32_t becomes) noexcept nogil
    uint64_t atomic_load64(uint64_t* p) noexcept nogil
    uint64_t atomic_or64(uint64_t* p, uint64_t v) noexcept nogil
    uint64_t atomic_swap64(uint64_t* p, uint64_t v) noexcept nogil
    void* atomic_load_pointer(void* p) noexcept nogil
    void atomic_store_pointer(void* p, void* v) noexcept nogil
    uint8_t atomic_load8(uint8_t* p) noexcept nogil
    void atomic_store8(uint8_t* p, uint8_t v) noexcept nogil
    void atomic_or8(uint8_t* p, uint8_t v) noexcept nogil
    void atomic_and8(uint8_t* p, uint8_t v) noexcept nogil
    bint atomic_cas8(uint8_t* p, uint8_t was, uint8_t becomes) noexcept nogil
    void atomic_fence() noexcept nogil
    void cpu_relax() noexcept nogil
    void futex_wait(uint32_t* p, uint32_t value, int64_t timeout_ns) noexcept nogil
    void futex_wake(uint32_t* p, int count) noexcept nogil
    int64_t monotonic_ns() noexcept nogil
    int64_t realtime_ns() noexcept nogil
    uint64_t scale64(uint64_t value, uint64_t times, uint64_t over) noexcept nogil
