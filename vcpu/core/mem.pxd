# cython: language_level=3
"""Memory access of handlers: the hit inline, everything else out of line (mmu.pxi). Owner: SYSTEM.

Owns:    the functions by which a handler reads and writes guest memory at a linear address.
Never:   leaves a trace of a faulting access: every byte of a write is checked before the first is stored.
Threads: the vCPU's own.

    p = mem_read(cpu, op, gva, size)          host address, or cpu.mbuf with a copy; NULL: fault delivered, return
    mem_write(cpu, op, gva, value, size)      False: fault delivered, return
    mem_write_buf(cpu, op, gva, src, size)    the same from a buffer, 1..64 bytes (FXSAVE areas: in pieces, after mem_check)
    p = mem_rmw(cpu, op, gva, size)           host address to modify in place (atomics are the host's) or cpu.mbuf
    mem_rmw_done(cpu, op)                     after it; writes cpu.mbuf back, drops decoded code
    mem_check(cpu, op, gva, size, write)      may [gva, gva+size) be accessed, size <= 4096? Faults like the access would.

A fault is delivered with op's rip. In mem_read the copy in cpu.mbuf lasts until the next slow access.
A handler that leaves between mem_rmw and mem_rmw_done does so through fault(), which forgets the pending write.
"""
from libc.string cimport memcpy
from vcpu.core.state cimport CpuState, Op, gva_t, uint8_t, uint16_t, uint32_t, uint64_t
from vcpu.core.tlb cimport probe_read, probe_write
from vcpu._core cimport (mem_read_slow, mem_write_slow, mem_write_buf_slow, mem_rmw_slow, mem_rmw_done_slow,
                         mem_check_slow)


cdef inline uint8_t* mem_read(CpuState* cpu, Op* op, gva_t gva, uint32_t size) noexcept nogil:
    cdef uint8_t* p = probe_read(cpu, gva, size)
    if p != NULL:
        return p
    return mem_read_slow(cpu, op, gva, size)


cdef inline bint mem_write(CpuState* cpu, Op* op, gva_t gva, uint64_t value, uint32_t size) noexcept nogil:
    """size: 1, 2, 4 or 8."""
    cdef uint8_t* p = probe_write(cpu, gva, size)
    if p == NULL:
        return mem_write_slow(cpu, op, gva, value, size)
    if size == 8:
        (<uint64_t*>p)[0] = value
    elif size == 4:
        (<uint32_t*>p)[0] = <uint32_t>value
    elif size == 2:
        (<uint16_t*>p)[0] = <uint16_t>value
    else:
        p[0] = <uint8_t>value
    return True


cdef inline bint mem_write_buf(CpuState* cpu, Op* op, gva_t gva, const void* src, uint32_t size) noexcept nogil:
    cdef uint8_t* p = probe_write(cpu, gva, size)
    if p == NULL:
        return mem_write_buf_slow(cpu, op, gva, src, size)
    memcpy(p, src, size)
    return True


cdef inline uint8_t* mem_rmw(CpuState* cpu, Op* op, gva_t gva, uint32_t size) noexcept nogil:
    cdef uint8_t* p = probe_write(cpu, gva, size)
    if p != NULL:
        return p
    return mem_rmw_slow(cpu, op, gva, size)


cdef inline void mem_rmw_done(CpuState* cpu, Op* op) noexcept nogil:
    if cpu.rmw_pending:
        mem_rmw_done_slow(cpu, op)


cdef inline bint mem_check(CpuState* cpu, Op* op, gva_t gva, uint32_t size, bint write) noexcept nogil:
    if (probe_write(cpu, gva, size) if write else probe_read(cpu, gva, size)) != NULL:
        return True
    return mem_check_slow(cpu, op, gva, size, write)
