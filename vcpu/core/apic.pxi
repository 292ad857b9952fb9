# Owner: APIC. Included by vcpu/_core.pyx.
"""The local APIC: registers, priorities, delivery, timer (SDM 3A chapter 11).

Owns:    struct Apic.
Never:   decides whether the vCPU accepts interrupts (IF, shadows): that is the loop's.
Threads: irr, tmr, events, esr_new are atomic words, written from any thread and followed by attend(); id, base, ldr,
         dfr, svr are read by others as single words; everything else belongs to the vCPU's thread.

  any thread:  deliver -> tmr, irr | attend(ATTN_INTERRUPT)          vCPU: irr -> isr (acknowledge) -> EOI -> IOAPIC
"""

cdef extern from *:
    int __builtin_clz(unsigned int x) noexcept nogil

cdef enum:
    APIC_BASE_BSP = 1 << 8
    APIC_BASE_EXTD = 1 << 10
    APIC_BASE_EN = 1 << 11
    APIC_VERSION = 0x00060014            # 7 LVT entries, integrated
    APIC_EVENT_NMI = 1
    APIC_EVENT_INIT = 2
    APIC_EVENT_SIPI = 4
    INTERRUPT_PIC = 256
    SVR_ENABLED = 0x100
    LVT_MASKED = 1 << 16
    LVT_CMCI = 0
    LVT_TIMER = 1
    LVT_THERMAL = 2
    LVT_PERFORMANCE = 3
    LVT_LINT0 = 4
    LVT_LINT1 = 5
    LVT_ERROR = 6
    TIMER_MODE = 3 << 17
    TIMER_ONE_SHOT = 0
    TIMER_PERIODIC = 1 << 17
    TIMER_TSC_DEADLINE = 2 << 17
    TIMER_MIN_PERIOD_NS = 20000          # a periodic timer asked to be faster is not: it would starve the guest
    DELIVER_FIXED = 0
    DELIVER_LOWEST = 1
    DELIVER_SMI = 2
    DELIVER_NMI = 4
    DELIVER_INIT = 5
    DELIVER_SIPI = 6
    DELIVER_EXTINT = 7
    ESR_SEND_ILLEGAL = 1 << 5
    ESR_RECEIVE_ILLEGAL = 1 << 6
    ESR_ILLEGAL_REGISTER = 1 << 7
    # register numbers: MMIO offset >> 4, MSR - 0x800
    REG_ID = 0x2
    REG_VERSION = 0x3
    REG_TPR = 0x8
    REG_PPR = 0xA
    REG_EOI = 0xB
    REG_LDR = 0xD
    REG_DFR = 0xE
    REG_SVR = 0xF
    REG_ISR = 0x10
    REG_TMR = 0x18
    REG_IRR = 0x20
    REG_ESR = 0x28
    REG_LVT_CMCI = 0x2F
    REG_ICR = 0x30
    REG_ICR2 = 0x31
    REG_LVT_FIRST = 0x32
    REG_LVT_LAST = 0x37
    REG_INITIAL_COUNT = 0x38
    REG_CURRENT_COUNT = 0x39
    REG_DIVIDE = 0x3E
    REG_SELF_IPI = 0x3F

# bits that a guest can set, by LVT number
cdef uint32_t LVT_WRITABLE[7]
LVT_WRITABLE[:] = [0x107FF, 0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF]


cdef inline bint apic_is_enabled(CpuState* cpu) noexcept nogil:
    return (cpu.apic.base & APIC_BASE_EN) != 0


cdef inline bint apic_is_x2apic(CpuState* cpu) noexcept nogil:
    return (cpu.apic.base & APIC_BASE_EXTD) != 0


cdef inline bint apic_is_xapic(CpuState* cpu) noexcept nogil:
    return cpu.apic.base & (APIC_BASE_EN | APIC_BASE_EXTD) == APIC_BASE_EN


cdef void apic_reset(CpuState* cpu, bint init) noexcept nogil:
    """After RESET; INIT leaves id, base and the TSC alone. LINT0 of the first vCPU starts as ExtINT: where no BIOS runs
    somebody has to have put the machine into virtual wire mode (MultiProcessor Specification 1.4 §3.6.2.2)."""
    cdef Apic* apic = &cpu.apic
    cdef int i
    for i in range(8):
        atomic_store32(&apic.irr[i], 0)
        atomic_store32(&apic.tmr[i], 0)
        apic.isr[i] = 0
    for i in range(7):
        apic.lvt[i] = LVT_MASKED
    if cpu.index == 0:
        apic.lvt[LVT_LINT0] = DELIVER_EXTINT << 8
    if not init:
        apic.base = APIC_PAGE | APIC_BASE_EN | (APIC_BASE_BSP if cpu.index == 0 else 0)
        apic.id = cpu.index
        apic.tsc_offset = 0
        apic.tsc_adjust = 0
        apic.kvm_system_time = 0
        apic.kvm_wall_clock = 0
        atomic_store32(&apic.events, 0)
    apic.kvm_pv_eoi = 0
    apic.pv_eoi_vector = 0
    apic.tpr = 0
    apic.svr = 0xFF
    apic.ldr = x2apic_ldr(apic.id) if apic.base & APIC_BASE_EXTD else 0
    apic.dfr = 0xFFFFFFFFU
    apic.esr = 0
    apic.esr_new = 0
    apic.icr = 0
    apic.divide = 0
    apic.initial_count = 0
    apic.tsc_deadline = 0
    apic.timer_ns = TIMER_NEVER


cdef inline uint32_t x2apic_ldr(uint32_t id) noexcept nogil:
    return (id >> 4) << 16 | <uint32_t>1 << (id & 15)


# ------------------------------------------------------------------ priorities

cdef inline int highest_bit(uint32_t* words) noexcept nogil:
    """The highest vector set, or -1."""
    cdef int i = 7
    while i >= 0:
        if words[i]:
            return i * 32 + 31 - __builtin_clz(words[i])
        i -= 1
    return -1


cdef inline bint vector_set(uint32_t* words, uint32_t vector) noexcept nogil:
    return words[vector >> 5] >> (vector & 31) & 1


cdef uint32_t apic_ppr(CpuState* cpu) noexcept nogil:
    """SDM 3A 11.8.3.1."""
    cdef int isr = highest_bit(cpu.apic.isr)
    if isr < 0:
        isr = 0
    return cpu.apic.tpr if cpu.apic.tpr >> 4 >= <uint32_t>isr >> 4 else <uint32_t>isr & 0xF0


cdef inline bint pic_is_wired(CpuState* cpu) noexcept nogil:
    """Does the PIC's INTR reach this vCPU? Through LINT0 as ExtINT, or straight where the APIC is off."""
    return (cpu.index == 0 and cpu.space.extint_fn != NULL
            and (not apic_is_enabled(cpu) or cpu.apic.lvt[LVT_LINT0] & (LVT_MASKED | 0x700) == DELIVER_EXTINT << 8))


cdef int apic_pending(CpuState* cpu) noexcept nogil:
    cdef int vector
    if apic_is_enabled(cpu) and cpu.apic.svr & SVR_ENABLED:
        pv_eoi_look(cpu)
        vector = highest_bit(cpu.apic.irr)
        if vector >= 16:
            if <uint32_t>vector >> 4 > apic_ppr(cpu) >> 4:
                return vector
            pv_eoi_revoke(cpu)
    if atomic_load32(&cpu.space.extint) and pic_is_wired(cpu):
        return INTERRUPT_PIC
    return -1


cdef int apic_acknowledge(CpuState* cpu) noexcept nogil:
    cdef int vector = apic_pending(cpu)
    cdef uint8_t from_pic = 0
    if vector == INTERRUPT_PIC:
        guest_leave(cpu)
        cpu.space.extint_fn(cpu.space.extint_device, 0, &from_pic, 1, False)
        guest_enter(cpu)
        return from_pic
    if vector >= 0:
        atomic_and32(&cpu.apic.irr[vector >> 5], ~(<uint32_t>1 << (vector & 31)))
        cpu.apic.isr[vector >> 5] |= <uint32_t>1 << (vector & 31)
        pv_eoi_offer(cpu, vector)
    return vector


cdef inline void apic_look_again(CpuState* cpu) noexcept nogil:
    """Priorities fell: something that waited may go now."""
    if apic_pending(cpu) >= 0:
        attend(cpu, ATTN_INTERRUPT)


cdef void end_of_interrupt(CpuState* cpu, uint32_t vector) noexcept nogil:
    cpu.apic.isr[vector >> 5] &= ~(<uint32_t>1 << (vector & 31))
    if vector_set(cpu.apic.tmr, vector) and cpu.space.eoi_fn != NULL:
        guest_leave(cpu)
        cpu.space.eoi_fn(cpu.space.eoi_device, vector, NULL, 0, True)
        guest_enter(cpu)


cdef void apic_eoi(CpuState* cpu) noexcept nogil:
    cdef int vector
    pv_eoi_revoke(cpu)
    vector = highest_bit(cpu.apic.isr)
    if vector >= 0:
        end_of_interrupt(cpu, vector)
        apic_look_again(cpu)


# ------------------------------------------------------------------ delivery, from any thread

cdef void apic_error(CpuState* cpu, uint32_t bits) noexcept nogil:
    """Note an error; the first one of a kind raises the error interrupt."""
    if atomic_or32(&cpu.apic.esr_new, bits) & bits == bits:
        return
    if not cpu.apic.lvt[LVT_ERROR] & LVT_MASKED and cpu.apic.lvt[LVT_ERROR] & 0xFF >= 16:
        apic_accept(cpu, cpu.apic.lvt[LVT_ERROR] & 0xFF, False)


cdef void apic_accept(CpuState* cpu, uint32_t vector, bint level) noexcept nogil:
    """A fixed interrupt arrives."""
    cdef uint32_t bit = <uint32_t>1 << (vector & 31)
    if not apic_is_enabled(cpu) or not cpu.apic.svr & SVR_ENABLED:
        return
    if vector < 16:
        apic_error(cpu, ESR_RECEIVE_ILLEGAL)
        return
    if level:
        atomic_or32(&cpu.apic.tmr[vector >> 5], bit)
    elif vector_set(cpu.apic.tmr, vector):
        atomic_and32(&cpu.apic.tmr[vector >> 5], ~bit)
    atomic_or32(&cpu.apic.irr[vector >> 5], bit)
    attend(cpu, ATTN_INTERRUPT)


cdef void apic_sipi(CpuState* cpu, uint32_t vector) noexcept nogil:
    """A start-up message. The vector of the last one counts; a vCPU that does not wait for one drops it."""
    cdef uint32_t was = atomic_load32(&cpu.apic.events)
    while not atomic_cas32(&cpu.apic.events, was, was & 0xFFFFFF | APIC_EVENT_SIPI | vector << 24):
        was = atomic_load32(&cpu.apic.events)
    attend(cpu, ATTN_INIT)


cdef void apic_receive(CpuState* cpu, uint32_t mode, uint32_t vector, bint level) noexcept nogil:
    if mode == DELIVER_FIXED or mode == DELIVER_LOWEST:
        apic_accept(cpu, vector, level)
    elif mode == DELIVER_NMI:
        atomic_or32(&cpu.apic.events, APIC_EVENT_NMI)
        attend(cpu, ATTN_NMI)
    elif mode == DELIVER_INIT:
        atomic_or32(&cpu.apic.events, APIC_EVENT_INIT)
        attend(cpu, ATTN_INIT)
    elif mode == DELIVER_SIPI:
        apic_sipi(cpu, vector)
    # SMI: there is no system management mode; ExtINT by message: the PIC has a wire


cdef bint apic_matches(CpuState* cpu, uint32_t destination, bint logical, bint wide) noexcept nogil:
    """SDM 3A 11.6.2. wide: a 32-bit destination, of an x2APIC."""
    cdef Apic* apic = &cpu.apic
    cdef uint32_t broadcast = 0xFFFFFFFFU if wide else 0xFF
    if not apic_is_enabled(cpu):
        return False
    if destination == broadcast:
        return True
    if not logical:
        return apic.id == destination
    if apic.base & APIC_BASE_EXTD:
        return destination >> 16 == apic.ldr >> 16 and destination & apic.ldr & 0xFFFF != 0
    if apic.dfr >> 28 == 0xF:
        return destination & apic.ldr >> 24 & 0xFF != 0
    return (destination >> 4 == apic.ldr >> 28 or destination >> 4 == 0xF) and destination & apic.ldr >> 24 & 0xF != 0


cdef void apic_deliver(Space* space, uint32_t destination, bint logical, bint wide, uint32_t mode, uint32_t vector,
                       bint level) noexcept nogil:
    cdef uint32_t i, start = 0
    cdef CpuState* cpu
    if mode == DELIVER_LOWEST:
        start = atomic_add32(&space.arbiter, 1)
    for i in range(MAX_CPUS):
        cpu = space.cpus[(start + i) & (MAX_CPUS - 1)]
        if cpu == NULL or not apic_matches(cpu, destination, logical, wide):
            continue
        if mode == DELIVER_LOWEST and not cpu.apic.svr & SVR_ENABLED:
            continue
        apic_receive(cpu, mode, vector, level)
        if mode == DELIVER_LOWEST:
            return


cdef void apic_deliver_msi(Space* space, uint64_t address, uint32_t data) noexcept nogil:
    """SDM 3A 11.11. The redirection hint asks for one target of several."""
    cdef uint32_t mode = data >> 8 & 7
    if address >> 20 != APIC_PAGE >> 20:
        return
    if mode == DELIVER_FIXED and address & 8 and address & 4:
        mode = DELIVER_LOWEST
    apic_deliver(space, <uint32_t>(address >> 12) & 0xFF, (address & 4) != 0, False, mode, data & 0xFF,
                 (data & 0x8000) != 0)


cdef void apic_send_ipi(CpuState* cpu, uint64_t icr) noexcept nogil:
    """A write of the ICR's lower half. SDM 3A 11.6.1."""
    cdef bint wide = apic_is_x2apic(cpu)
    cdef uint32_t vector = icr & 0xFF
    cdef uint32_t mode = <uint32_t>icr >> 8 & 7
    cdef uint32_t shorthand = <uint32_t>icr >> 18 & 3
    cdef uint32_t i
    if mode == DELIVER_INIT and icr & 0xC000 == 0x8000:
        return                                   # INIT level de-assert: ignored since the Pentium 4
    if (mode == DELIVER_FIXED or mode == DELIVER_LOWEST) and vector < 16:
        apic_error(cpu, ESR_SEND_ILLEGAL)
        return
    if shorthand == 0:
        apic_deliver(cpu.space, <uint32_t>(icr >> (32 if wide else 56)), (icr & 0x800) != 0, wide, mode, vector, False)
    elif shorthand == 1:
        apic_receive(cpu, mode, vector, False)
    else:
        for i in range(MAX_CPUS):
            if cpu.space.cpus[i] != NULL and (shorthand == 2 or cpu.space.cpus[i] != cpu):
                if apic_is_enabled(cpu.space.cpus[i]):
                    apic_receive(cpu.space.cpus[i], mode, vector, False)


# ------------------------------------------------------------------ timer

cdef inline uint32_t timer_divisor(CpuState* cpu) noexcept nogil:
    """Divide configuration: bits 3, 1, 0; 0b111 is 1. The timer's own clock is 1 GHz."""
    cdef uint32_t code = (cpu.apic.divide & 3) | (cpu.apic.divide >> 1 & 4)
    return 1 << (code + 1 & 7)


cdef int64_t timer_period_ns(CpuState* cpu) noexcept nogil:
    cdef int64_t period = <int64_t>cpu.apic.initial_count * timer_divisor(cpu)
    if cpu.apic.lvt[LVT_TIMER] & TIMER_MODE == TIMER_PERIODIC and period < TIMER_MIN_PERIOD_NS:
        return TIMER_MIN_PERIOD_NS
    return period


cdef void timer_set(CpuState* cpu, int64_t ns) noexcept nogil:
    """The next expiry changes; the loop takes it into its budget at the next block boundary."""
    cpu.apic.timer_ns = ns
    if ns != TIMER_NEVER:
        attend(cpu, ATTN_TIMER)


cdef void timer_start(CpuState* cpu) noexcept nogil:
    if cpu.apic.lvt[LVT_TIMER] & TIMER_MODE == TIMER_TSC_DEADLINE:
        return
    if cpu.apic.initial_count == 0:
        cpu.apic.timer_ns = TIMER_NEVER
        return
    cpu.apic.timer_start_ns = clock_now(cpu)
    timer_set(cpu, cpu.apic.timer_start_ns + timer_period_ns(cpu))


cdef void timer_set_tsc_deadline(CpuState* cpu, uint64_t tsc) noexcept nogil:
    """Arm for a value of the guest's TSC; 0 disarms. Ignored in the other modes (SDM 3A 11.5.4.1)."""
    cdef uint64_t ticks
    cdef int64_t now
    if cpu.apic.lvt[LVT_TIMER] & TIMER_MODE != TIMER_TSC_DEADLINE:
        return
    cpu.apic.tsc_deadline = tsc
    if tsc == 0:
        cpu.apic.timer_ns = TIMER_NEVER
        return
    now = clock_now(cpu)
    if tsc <= ns_to_tsc(cpu.clock, now) + <uint64_t>cpu.apic.tsc_offset:
        timer_set(cpu, now)
        return
    ticks = tsc - <uint64_t>cpu.apic.tsc_offset
    if cpu.clock.tsc_hz != NS:
        if ticks >> 63 or ticks // cpu.clock.tsc_hz > 9000000000ULL:      # 285 years
            ticks = TIMER_NEVER - 1
        else:
            ticks = scale64(ticks, NS, cpu.clock.tsc_hz) + 1
    timer_set(cpu, TIMER_NEVER - 1 if ticks >> 63 else <int64_t>ticks)


cdef void apic_timer_fire(CpuState* cpu, int64_t now) noexcept nogil:
    """The deadline has passed: interrupt, and the next period. Periods that went by unseen are one interrupt."""
    cdef uint32_t lvt = cpu.apic.lvt[LVT_TIMER]
    cdef int64_t period
    if lvt & TIMER_MODE == TIMER_PERIODIC and cpu.apic.initial_count:
        period = timer_period_ns(cpu)
        cpu.apic.timer_start_ns += (now - cpu.apic.timer_start_ns) // period * period
        cpu.apic.timer_ns = cpu.apic.timer_start_ns + period
    else:
        cpu.apic.timer_ns = TIMER_NEVER
        cpu.apic.tsc_deadline = 0
    if not lvt & LVT_MASKED:
        apic_accept(cpu, lvt & 0xFF, False)


cdef uint32_t timer_current_count(CpuState* cpu) noexcept nogil:
    cdef int64_t left
    if cpu.apic.timer_ns == TIMER_NEVER or cpu.apic.lvt[LVT_TIMER] & TIMER_MODE == TIMER_TSC_DEADLINE:
        return 0
    left = cpu.apic.timer_ns - clock_now(cpu)
    return <uint32_t>((left + timer_divisor(cpu) - 1) // timer_divisor(cpu)) if left > 0 else 0
