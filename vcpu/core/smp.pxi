# Owner: APIC. Included by vcpu/_core.pyx.
"""Power-up, INIT, SIPI, NMI and sleep: how a vCPU starts, stops and waits.

Owns:    the architectural state after RESET and INIT (SDM 3A table 10-1), the sleep of a vCPU that has nothing to do.
Never:   sleeps in virtual time: there run() returns and the caller gives others their turn.
Threads: the vCPU's own; it is woken through attend().
"""
from libc.stdint cimport int8_t

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef enum:
    PAUSES_TO_YIELD = 256
    WAIT_SPINS_NS = 15000                # a futex wake takes 21-25 us: look a while before sleeping
    WAIT_SPINS = 64                      # attention looks between two of the clock's
    CPU_SIGNATURE = 0x000306A9           # what EDX holds after RESET: as CPUID.1:EAX


cdef void set_segment(Segment* seg, uint16_t selector, uint64_t base, uint32_t limit, uint32_t rights) noexcept nogil:
    seg.selector = selector
    seg.base = base
    seg.limit = limit
    seg.rights = rights


cdef void reset_registers(CpuState* cpu) noexcept nogil:
    """What RESET and INIT have in common."""
    cdef int i
    for i in range(16):
        cpu.regs[i] = 0
    cpu.regs[2] = CPU_SIGNATURE
    cpu.rip = 0xFFF0
    cpu.aflags = 0
    cpu.rflags_sys = 2
    set_segment(&cpu.seg[SEG_CS], 0xF000, 0xFFFF0000U, 0xFFFF, 0x9B)
    for i in range(6):
        if i == SEG_CS:
            continue
        set_segment(&cpu.seg[i], 0, 0, 0xFFFF, 0x93)
    set_segment(&cpu.seg[SEG_LDTR], 0, 0, 0xFFFF, 0x82)
    set_segment(&cpu.seg[SEG_TR], 0, 0, 0xFFFF, 0x8B)
    cpu.cpl = 0
    cpu.gdtr_base = 0
    cpu.gdtr_limit = 0xFFFF
    cpu.idtr_base = 0
    cpu.idtr_limit = 0xFFFF
    cpu.cr2 = 0
    cpu.cr3 = 0
    cpu.cr4 = 0
    cpu.efer = 0
    for i in range(4):
        cpu.dr[i] = 0
    cpu.dr[6] = 0xFFFF0FF0U
    cpu.dr[7] = 0x400
    cpu.interruptibility = 0
    cpu.in_event = 0xFF
    cpu.rmw_pending = 0


cdef void reset_fpu(CpuState* cpu) noexcept nogil:
    memset(cpu.xmm, 0, sizeof(cpu.xmm))
    memset(cpu.st, 0, sizeof(cpu.st))
    cpu.fcw = 0x40
    cpu.fsw = 0
    cpu.ftw = 0xFF
    cpu.fop = 0
    cpu.fip = 0
    cpu.fdp = 0
    cpu.fcs = 0
    cpu.fds = 0
    cpu.mxcsr = 0x1F80


cdef void reset_msrs(CpuState* cpu) noexcept nogil:
    cdef int i
    cpu.xcr0 = 1
    cpu.star = 0
    cpu.lstar = 0
    cpu.cstar = 0
    cpu.sfmask = 0
    cpu.kernel_gs_base = 0
    cpu.sysenter_cs = 0
    cpu.sysenter_esp = 0
    cpu.sysenter_eip = 0
    cpu.pat = 0x0007040600070406ULL
    cpu.tsc_aux = 0
    cpu.misc_enable = 1                  # fast strings
    cpu.debugctl = 0
    cpu.spec_ctrl = 0
    cpu.mtrr_def_type = 0
    memset(cpu.mtrr_fixed, 0, sizeof(cpu.mtrr_fixed))
    for i in range(8):
        cpu.mtrr_base[i] = 0
        cpu.mtrr_mask[i] = 0


cdef void cpu_power_up(CpuState* cpu, bint init) noexcept nogil:
    """RESET, or INIT: which leaves FPU, MSRs, the TSC and the cache bits of CR0 as they are."""
    reset_registers(cpu)
    if init:
        cpu.cr0 = (cpu.cr0 & 0x60000000) | 0x10
    else:
        cpu.cr0 = 0x60000010
        reset_fpu(cpu)
        reset_msrs(cpu)
    apic_reset(cpu, init)
    cpu.activity = ACTIVITY_ACTIVE if cpu.index == 0 else ACTIVITY_WAIT_SIPI
    mode_update(cpu)
    tlb_flush_all(cpu)


cdef bint apic_take_nmi(CpuState* cpu) noexcept nogil:
    """A vCPU that waits for SIPI does not know NMIs (SDM 3A 9.4.1): they are lost."""
    atomic_and32(&cpu.attention, ~<uint32_t>ATTN_NMI)
    if cpu.activity == ACTIVITY_WAIT_SIPI:
        atomic_and32(&cpu.apic.events, ~<uint32_t>APIC_EVENT_NMI)
        return False
    return (atomic_and32(&cpu.apic.events, ~<uint32_t>APIC_EVENT_NMI) & APIC_EVENT_NMI) != 0


cdef inline bint apic_has_nmi(CpuState* cpu) noexcept nogil:
    """An NMI waits: to look at, once NMIs are not blocked any more."""
    return (cpu.apic.events & APIC_EVENT_NMI) != 0


cdef void apic_take_init(CpuState* cpu) noexcept nogil:
    cdef uint32_t events, vector
    atomic_and32(&cpu.attention, ~<uint32_t>ATTN_INIT)
    events = atomic_and32(&cpu.apic.events, APIC_EVENT_NMI)
    vector = events >> 24
    if events & APIC_EVENT_INIT:
        cpu_power_up(cpu, True)
    if events & APIC_EVENT_SIPI and cpu.activity == ACTIVITY_WAIT_SIPI:
        set_segment(&cpu.seg[SEG_CS], <uint16_t>(vector << 8), vector << 12, 0xFFFF, 0x9B)
        cpu.rip = 0
        cpu.activity = ACTIVITY_ACTIVE
        mode_update(cpu)


# ------------------------------------------------------------------ waiting

cdef void cpu_spins(CpuState* cpu) noexcept nogil:
    """Whoever holds the lock may be a vCPU that the host does not run: PAUSE after PAUSE gives it the turn."""
    cpu.pauses += 1
    if cpu.pauses % PAUSES_TO_YIELD == 0 and cpu.space.cpu_count > 1 and not cpu.clock.is_virtual:
        guest_leave(cpu)
        sched_yield()
        guest_enter(cpu)


cdef inline bint can_wake(CpuState* cpu) noexcept nogil:
    """HLT: is there an interrupt to deliver?"""
    if cpu.activity != ACTIVITY_HLT:
        return False
    if apic_has_nmi(cpu) and not cpu.interruptibility & BLOCKED_BY_NMI:
        return True
    return cpu.rflags_sys & RF_IF and apic_pending(cpu) >= 0


cdef int64_t wait_until(CpuState* cpu) noexcept nogil:
    """Guest ns of the next thing that this vCPU waits for by itself."""
    return cpu.apic.timer_ns if cpu.apic.timer_ns < cpu.deadline_ns else cpu.deadline_ns


cdef bint spin_for_attention(CpuState* cpu, int64_t until, uint32_t ignored) noexcept nogil:
    """True: something happened, or the time came."""
    cdef int64_t now = clock_now(cpu)
    cdef int64_t end = now + WAIT_SPINS_NS
    cdef uint32_t i
    while now < end:
        if now >= until:
            return True
        for i in range(WAIT_SPINS):
            if atomic_load32(&cpu.attention) & ~ignored:
                return True
            cpu_relax()
        now = clock_now(cpu)
    return False


cdef void sleep_for_attention(CpuState* cpu, int64_t until, uint32_t ignored) noexcept nogil:
    """`sleeping` first, then the word: attend() does it the other way round, so that one sees the other."""
    cdef uint32_t seen
    cdef int64_t now
    atomic_store32(&cpu.sleeping, 1)
    seen = atomic_load32(&cpu.attention)
    if not seen & ~ignored:
        now = clock_now(cpu)
        if until > now:
            futex_wait(&cpu.attention, seen, -1 if until == TIMER_NEVER else until - now)
    atomic_store32(&cpu.sleeping, 0)


cdef uint32_t cpu_wait(CpuState* cpu) noexcept nogil:
    """activity is not active. 0: something to do (attention, or an interrupt), else the reason to leave run() with."""
    cdef int64_t now, until
    # an NMI that is blocked stays where it is, and wakes nobody
    cdef uint32_t ignored = ATTN_NMI if cpu.interruptibility & BLOCKED_BY_NMI else 0
    while True:
        now = clock_now(cpu)
        if cpu.apic.timer_ns <= now:
            apic_timer_fire(cpu, now)
        if atomic_load32(&cpu.attention) & ~ignored or can_wake(cpu):
            return 0
        if cpu.deadline_ns <= now:
            return EXIT_REASON_PREEMPTION_TIMER
        if cpu.clock.is_virtual:
            return EXIT_REASON_HLT
        until = wait_until(cpu)
        guest_leave(cpu)
        if not spin_for_attention(cpu, until, ignored):
            sleep_for_attention(cpu, until, ignored)
        guest_enter(cpu)


# ------------------------------------------------------------------ what a saved vCPU keeps of its APIC

APIC_STATE_VERSION = 1
cdef tuple APIC_STATE_WORDS = ("id", "base", "tpr", "svr", "ldr", "dfr", "esr", "esr_new", "icr", "divide",
                               "initial_count", "timer_start_ns", "timer_ns", "tsc_deadline", "tsc_offset",
                               "tsc_adjust", "kvm_system_time", "kvm_wall_clock", "kvm_pv_eoi", "kvm_version",
                               "pv_eoi_vector", "events")


cdef dict apic_save(CpuState* cpu):
    """The local APIC as a record of plain values."""
    cdef Apic* a = &cpu.apic
    return {
        "version": APIC_STATE_VERSION, "id": a.id, "base": a.base, "tpr": a.tpr, "svr": a.svr, "ldr": a.ldr,
        "dfr": a.dfr, "esr": a.esr, "esr_new": a.esr_new, "icr": a.icr, "divide": a.divide,
        "initial_count": a.initial_count, "timer_start_ns": a.timer_start_ns, "timer_ns": a.timer_ns,
        "tsc_deadline": a.tsc_deadline, "tsc_offset": a.tsc_offset, "tsc_adjust": a.tsc_adjust,
        "kvm_system_time": a.kvm_system_time, "kvm_wall_clock": a.kvm_wall_clock, "kvm_pv_eoi": a.kvm_pv_eoi,
        "kvm_version": a.kvm_version, "pv_eoi_vector": a.pv_eoi_vector, "events": a.events,
        "irr": (<char*>a.irr)[:32], "tmr": (<char*>a.tmr)[:32], "isr": (<char*>a.isr)[:32], "lvt": (<char*>a.lvt)[:28],
    }


cdef void apic_load(CpuState* cpu, dict state) except *:
    """Take a saved APIC over whole, or raise and change nothing (ValueError, KeyError, OverflowError)."""
    cdef Apic a = cpu.apic
    cdef bytes irr = state["irr"], tmr = state["tmr"], isr = state["isr"], lvt = state["lvt"]
    if state["version"] != APIC_STATE_VERSION:
        raise ValueError(f"APIC state of version {state['version']}: this one reads {APIC_STATE_VERSION}")
    if (len(irr), len(tmr), len(isr), len(lvt)) != (32, 32, 32, 28):
        raise ValueError("APIC state: irr, tmr and isr have 32 bytes, lvt 28")
    a.id, a.base, a.tpr, a.svr, a.ldr, a.dfr, a.esr = (state[name] for name in APIC_STATE_WORDS[:7])
    a.esr_new, a.icr, a.divide, a.initial_count = (state[name] for name in APIC_STATE_WORDS[7:11])
    a.timer_start_ns, a.timer_ns, a.tsc_deadline = (state[name] for name in APIC_STATE_WORDS[11:14])
    a.tsc_offset, a.tsc_adjust, a.kvm_system_time = (state[name] for name in APIC_STATE_WORDS[14:17])
    a.kvm_wall_clock, a.kvm_pv_eoi, a.kvm_version = (state[name] for name in APIC_STATE_WORDS[17:20])
    a.pv_eoi_vector, a.events = (state[name] for name in APIC_STATE_WORDS[20:])
    if a.pv_eoi_vector > 255:
        raise ValueError("APIC state: pv_eoi_vector is a vector")
    memcpy(a.irr, <char*>irr, 32)
    memcpy(a.tmr, <char*>tmr, 32)
    memcpy(a.isr, <char*>isr, 32)
    memcpy(a.lvt, <char*>lvt, 28)
    cpu.apic = a
    attend(cpu, ATTN_INTERRUPT | ATTN_NMI | ATTN_INIT | ATTN_TIMER)
