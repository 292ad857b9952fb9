# cython: language_level=3
"""Guest time: constants and the inline part. Owner: APIC.

Owns:    what "now" means. real: CLOCK_MONOTONIC moved by an offset, standing still while paused. virtual: one retired
         instruction is one nanosecond; idle time is skipped by whoever turns the vCPUs (Clock.advance_to).
Never:   looks at the host's clock in virtual mode.
Threads: a vCPU reads its own time in its own thread; Clock.pause and load are called while no vCPU runs.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from vcpu.core.atomic cimport monotonic_ns, scale64
from vcpu.core.state cimport ClockState, CpuState

cdef enum:
    NS = 1000000000
    REAL_SLICE = 20000           # instructions between two looks at the host's clock, at most …
    REAL_SLICE_MIN = 512         # … and at least

cdef extern from *:
    """
    #define TIMER_NEVER INT64_MAX
    """
    const int64_t TIMER_NEVER


cdef inline bint clock_is_exact(CpuState* cpu) noexcept nogil:
    """The budget is a promise (step down to 0), not a time slice (clock_arm as soon as it is below BLOCK_INSNS)."""
    return cpu.clock.is_virtual or cpu.quantum >= 0


cdef inline uint64_t retired_at_boundary(CpuState* cpu) noexcept nogil:
    """Instructions retired up to the block boundary passed last, or to the instruction that set op_index."""
    return cpu.retired + <uint64_t>(cpu.budget_start - cpu.budget) + cpu.op_index


cdef inline int64_t clock_read(ClockState* clock) noexcept nogil:
    """Guest ns, from any thread. Virtual: exact for an instruction that set op_index (MSRs, ports, devices' frames)."""
    if clock.is_virtual:
        if clock.running == NULL:
            return clock.base_ns
        return clock.base_ns + <int64_t>(retired_at_boundary(clock.running) - clock.running.retired_start)
    return clock.paused_at_ns if clock.paused else monotonic_ns() + clock.base_ns


cdef inline uint64_t ns_to_tsc(ClockState* clock, int64_t ns) noexcept nogil:
    return <uint64_t>ns if clock.tsc_hz == NS else scale64(<uint64_t>ns, clock.tsc_hz, NS)
