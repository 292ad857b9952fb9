# What every SSE and MMX handler shares: aligned access, exceptions, the passage from x87 to MMX. Owner: FPU.

from libc.string cimport memcpy, memset
from vcpu.core.tlb cimport probe_read, probe_write
from vcpu.core.arch cimport CR0_NE, CR0_TS, CR4_OSXMMEXCPT, CR4_OSXSAVE

cdef extern from "vcpu/ops/sse_kernels.h":
    ctypedef struct v128:
        pass
    v128 load128(const void* p) noexcept nogil
    v128 load64(const void* p) noexcept nogil
    v128 load32(const void* p) noexcept nogil
    v128 load16(const void* p) noexcept nogil
    v128 from64(uint64_t v) noexcept nogil
    void store128(void* p, v128 v) noexcept nogil
    void k_movss(void* d, v128 s) noexcept nogil
    void k_movsd(void* d, v128 s) noexcept nogil
    void k_movhlps(void* d, v128 s) noexcept nogil
    void k_movlhps(void* d, v128 s) noexcept nogil
    void k_pinsrb(void* d, uint64_t s, uint32_t imm) noexcept nogil
    void k_pinsrw(void* d, uint64_t s, uint32_t imm) noexcept nogil
    void k_pinsrd(void* d, uint64_t s, uint32_t imm) noexcept nogil
    void k_pinsrq(void* d, uint64_t s, uint32_t imm) noexcept nogil
    uint64_t align_right(uint64_t d, uint64_t s, uint32_t imm) noexcept nogil
    uint64_t shuffle_words(uint64_t s, uint32_t imm) noexcept nogil
    int32_t string_length(uint64_t reg, int wide) noexcept nogil
    void k_rcp(void* d, v128 s, int lanes) noexcept nogil
    void k_rsqrt(void* d, v128 s, int lanes) noexcept nogil
    void k_ptest(uint32_t* aflags, const void* d, v128 s) noexcept nogil
    const char* host_lacks() noexcept nogil
    void go_on(void* cpu, void* op, void* complete) noexcept nogil

cdef enum:
    FSW_ES = 0x80                # an unmasked x87 exception waits
    FSW_TOP = 0x3800


cdef inline uint8_t* read_aligned(CpuState* cpu, Op* op) noexcept nogil:
    """A 16-byte operand whose misalignment is #GP(0)."""
    cdef uint64_t gva = ea(cpu, op)
    if gva & 15:
        fault(cpu, op, VECTOR_GP, 0)
        return NULL
    return mem_read(cpu, op, gva, 16)


cdef inline uint8_t* probe_aligned(CpuState* cpu, uint64_t gva) noexcept nogil:
    return NULL if gva & 15 else probe_read(cpu, gva, 16)


cdef inline bint put(CpuState* cpu, uint64_t gva, uint64_t value, uint32_t size) noexcept nogil:
    """mem_write where the TLB hits; False: nothing was done."""
    cdef uint8_t* p = probe_write(cpu, gva, size)
    if p == NULL:
        return False
    memcpy(p, &value, size)
    return True


cdef inline bint put128(CpuState* cpu, uint64_t gva, v128 value) noexcept nogil:
    cdef uint8_t* p = probe_write(cpu, gva, 16)
    if p == NULL:
        return False
    store128(p, value)
    return True


cdef inline bint put_aligned(CpuState* cpu, uint64_t gva, v128 value) noexcept nogil:
    return not gva & 15 and put128(cpu, gva, value)


cdef inline bint write_aligned(CpuState* cpu, Op* op, const void* value) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    if gva & 15:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    return mem_write_buf(cpu, op, gva, value, 16)


cdef void fault_xm(CpuState* cpu, Op* op) noexcept nogil:
    """An unmasked SIMD exception; its flags stand in MXCSR already (SDM 1 11.5)."""
    fault(cpu, op, VECTOR_XM if cpu.cr4 & CR4_OSXMMEXCPT else VECTOR_UD, NO_ERROR_CODE)


cdef inline bint mmx_begin(CpuState* cpu, Op* op) noexcept nogil:
    """A pending x87 exception comes before an MMX instruction. False: delivered."""
    if cpu.fsw & FSW_ES and cpu.cr0 & CR0_NE:
        fault(cpu, op, VECTOR_MF, NO_ERROR_CODE)
        return False
    return True


cdef inline void mmx_enter(CpuState* cpu) noexcept nogil:
    """What every MMX instruction does to x87: TOP = 0, all tags valid (EMMS empties them then) (SDM 3A 12.2)."""
    cpu.fsw &= <uint16_t>(~FSW_TOP & 0xFFFF)
    cpu.ftw = 0xFF


cdef inline uint64_t mm(CpuState* cpu, uint32_t number) noexcept nogil:
    return cpu.st[number & 7].mantissa


cdef inline void set_mm(CpuState* cpu, uint32_t number, uint64_t value) noexcept nogil:
    cpu.st[number & 7].mantissa = value
    cpu.st[number & 7].sign_exponent = 0xFFFF
