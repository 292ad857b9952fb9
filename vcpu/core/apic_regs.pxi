# Owner: APIC. Included by vcpu/_core.pyx.
"""The local APIC as the guest reaches it: the xAPIC's page, the x2APIC's MSRs, CR8, the MSRs of time.

Owns:    which registers exist in which mode, what can be written, what is #GP (SDM 3A 11.4, 11.12).
Never:   touches another vCPU but through apic_deliver.
Threads: the vCPU's own.
"""


# ------------------------------------------------------------------ registers, by number

cdef bint apic_reads(CpuState* cpu, uint32_t reg, uint32_t* value) noexcept nogil:
    """False: no such register. Those that read as 0 count as there."""
    cdef Apic* apic = &cpu.apic
    value[0] = 0
    if REG_ISR <= reg < REG_TMR:
        pv_eoi_look(cpu)
        value[0] = apic.isr[reg - REG_ISR]
    elif REG_TMR <= reg < REG_IRR:
        value[0] = apic.tmr[reg - REG_TMR]
    elif REG_IRR <= reg < REG_ESR:
        value[0] = apic.irr[reg - REG_IRR]
    elif REG_LVT_FIRST <= reg <= REG_LVT_LAST:
        value[0] = apic.lvt[reg - REG_LVT_FIRST + 1]
    elif reg == REG_LVT_CMCI:
        value[0] = apic.lvt[LVT_CMCI]
    elif reg == REG_ID:
        value[0] = apic.id if apic_is_x2apic(cpu) else apic.id << 24
    elif reg == REG_VERSION:
        value[0] = APIC_VERSION
    elif reg == REG_TPR:
        value[0] = apic.tpr
    elif reg == REG_PPR:
        pv_eoi_look(cpu)
        value[0] = apic_ppr(cpu)
    elif reg == REG_LDR:
        value[0] = apic.ldr
    elif reg == REG_DFR:
        value[0] = apic.dfr
    elif reg == REG_SVR:
        value[0] = apic.svr
    elif reg == REG_ESR:
        value[0] = apic.esr
    elif reg == REG_ICR:
        value[0] = <uint32_t>apic.icr
    elif reg == REG_ICR2:
        value[0] = <uint32_t>(apic.icr >> 32)
    elif reg == REG_INITIAL_COUNT:
        value[0] = apic.initial_count
    elif reg == REG_CURRENT_COUNT:
        value[0] = timer_current_count(cpu)
    elif reg == REG_DIVIDE:
        value[0] = apic.divide
    else:
        return False
    return True


cdef void write_svr(CpuState* cpu, uint32_t value) noexcept nogil:
    """Switching the APIC off by software masks every LVT entry; what is in service or requested stays."""
    cdef int i
    cpu.apic.svr = value & 0x1FF
    if not value & SVR_ENABLED:
        for i in range(7):
            cpu.apic.lvt[i] |= LVT_MASKED
    else:
        apic_look_again(cpu)


cdef void write_lvt(CpuState* cpu, uint32_t number, uint32_t value) noexcept nogil:
    cdef uint32_t was = cpu.apic.lvt[number]
    value &= LVT_WRITABLE[number]
    if not cpu.apic.svr & SVR_ENABLED:
        value |= LVT_MASKED
    cpu.apic.lvt[number] = value
    if number == LVT_LINT0:
        apic_look_again(cpu)
    if number == LVT_TIMER and (was ^ value) & TIMER_MODE:
        # another mode disarms; from one-shot to periodic and back the count goes on as it is (SDM 3A 11.5.4)
        if (was | value) & TIMER_TSC_DEADLINE:
            cpu.apic.timer_ns = TIMER_NEVER
            cpu.apic.tsc_deadline = 0
            cpu.apic.initial_count = 0
        elif cpu.apic.timer_ns == TIMER_NEVER:
            timer_start(cpu)


cdef bint apic_writes(CpuState* cpu, uint32_t reg, uint32_t value) noexcept nogil:
    """False: no such register, or not writable."""
    cdef Apic* apic = &cpu.apic
    if REG_LVT_FIRST <= reg <= REG_LVT_LAST:
        write_lvt(cpu, reg - REG_LVT_FIRST + 1, value)
    elif reg == REG_LVT_CMCI:
        write_lvt(cpu, LVT_CMCI, value)
    elif reg == REG_EOI:
        apic_eoi(cpu)
    elif reg == REG_TPR:
        apic.tpr = value & 0xFF
        apic_look_again(cpu)
    elif reg == REG_SVR:
        write_svr(cpu, value)
    elif reg == REG_ESR:
        apic.esr = atomic_swap32(&apic.esr_new, 0)
    elif reg == REG_INITIAL_COUNT:
        if apic.lvt[LVT_TIMER] & TIMER_MODE != TIMER_TSC_DEADLINE:
            apic.initial_count = value
            timer_start(cpu)
    elif reg == REG_DIVIDE:
        apic.divide = value & 0xB
        if apic.timer_ns != TIMER_NEVER:
            timer_start(cpu)
    else:
        return False
    return True


# ------------------------------------------------------------------ xAPIC

cdef bint xapic_writes(CpuState* cpu, uint32_t reg, uint32_t value) noexcept nogil:
    """What the page has and the MSRs have not."""
    if reg == REG_ID:
        cpu.apic.id = value >> 24
    elif reg == REG_LDR:
        cpu.apic.ldr = value & 0xFF000000U
    elif reg == REG_DFR:
        cpu.apic.dfr = value | 0x0FFFFFFF
    elif reg == REG_ICR:
        cpu.apic.icr = (cpu.apic.icr & <uint64_t>0xFFFFFFFF00000000ULL) | (value & 0xCCFFF)
        apic_send_ipi(cpu, cpu.apic.icr)
    elif reg == REG_ICR2:
        cpu.apic.icr = <uint64_t>(value & 0xFF000000U) << 32 | (cpu.apic.icr & 0xFFFFFFFFU)
    else:
        return apic_writes(cpu, reg, value)
    return True


cdef void apic_page(CpuState* cpu, uint32_t offset, void* value, uint32_t size, bint is_write) noexcept nogil:
    """An access to the xAPIC's page: registers are 32 bits wide at multiples of 16; between them it reads 0."""
    cdef uint32_t word = 0
    cdef uint32_t inside = offset & 0xF
    cdef bint known
    if is_write:
        if inside:
            return
        memcpy(&word, value, size if size < 4 else 4)
        known = xapic_writes(cpu, offset >> 4, word)
    else:
        known = apic_reads(cpu, offset >> 4, &word)
        memset(value, 0, size)
        if inside < 4:
            memcpy(value, <uint8_t*>&word + inside, size if size < 4 - inside else 4 - inside)
    if not known:
        apic_error(cpu, ESR_ILLEGAL_REGISTER)


# ------------------------------------------------------------------ x2APIC (SDM 3A 11.12.1.2, 11.12.9)

cdef bint x2apic_rdmsr(CpuState* cpu, uint32_t reg, uint64_t* value) noexcept nogil:
    cdef uint32_t word
    if not apic_is_x2apic(cpu) or reg == REG_EOI or reg == REG_DFR or reg == REG_ICR2 or reg == REG_SELF_IPI:
        return False
    if not apic_reads(cpu, reg, &word):
        return False
    value[0] = cpu.apic.icr if reg == REG_ICR else word
    return True


cdef bint x2apic_wrmsr(CpuState* cpu, uint32_t reg, uint64_t value) noexcept nogil:
    if not apic_is_x2apic(cpu):
        return False
    if reg == REG_ICR:
        if value & 0xFFF32000U:                   # delivery status is gone; 13, 16, 17, 20.. are reserved
            return False
        cpu.apic.icr = value
        apic_send_ipi(cpu, value)
        return True
    if value >> 32:
        return False
    if reg == REG_SELF_IPI:
        if value >> 8:
            return False
        apic_receive(cpu, DELIVER_FIXED, <uint32_t>value, False)
        return True
    if (reg == REG_EOI or reg == REG_ESR) and value:
        return False
    if reg == REG_TPR and value >> 8:
        return False
    if reg == REG_SVR and value & ~<uint64_t>0x11FF:
        return False
    if REG_LVT_FIRST <= reg <= REG_LVT_LAST and value & ~<uint64_t>(LVT_WRITABLE[reg - REG_LVT_FIRST + 1] | 0x5000):
        return False                             # 12 and 14 are read-only status: ignored
    return apic_writes(cpu, reg, <uint32_t>value)


cdef bint write_apic_base(CpuState* cpu, uint64_t value) noexcept nogil:
    """SDM 3A 11.12.5: disabled -> xAPIC -> x2APIC -> disabled; the other ways are #GP."""
    cdef uint64_t was = cpu.apic.base
    cdef uint64_t mode = value & (APIC_BASE_EN | APIC_BASE_EXTD)
    cdef uint64_t was_mode = was & (APIC_BASE_EN | APIC_BASE_EXTD)
    if value & ~<uint64_t>(APIC_BASE_BSP | APIC_BASE_EXTD | APIC_BASE_EN) & ~<uint64_t>0xFFFFFFF000ULL:
        return False
    if mode == APIC_BASE_EXTD or (was_mode == 0 and mode & APIC_BASE_EXTD):
        return False
    if was_mode & APIC_BASE_EXTD and mode == APIC_BASE_EN:
        return False
    cpu.apic.base = (value & ~<uint64_t>APIC_BASE_BSP) | (was & APIC_BASE_BSP)
    if mode & APIC_BASE_EXTD and not was_mode & APIC_BASE_EXTD:
        cpu.apic.id = cpu.index
        cpu.apic.ldr = x2apic_ldr(cpu.index)
        cpu.apic.dfr = 0xFFFFFFFFU
    if mode == 0 and was_mode != 0:
        cpu.apic.svr = 0xFF
        cpu.apic.id = cpu.index
        write_svr(cpu, 0xFF)
    if was >> PAGE_SHIFT != value >> PAGE_SHIFT:
        tlb_flush_all(cpu)
    return True


# ------------------------------------------------------------------ MSRs and CR8

cdef uint64_t apic_cr8(CpuState* cpu) noexcept nogil:
    return cpu.apic.tpr >> 4


cdef void apic_set_cr8(CpuState* cpu, uint64_t value) noexcept nogil:
    cpu.apic.tpr = (value & 0xF) << 4
    apic_look_again(cpu)


cdef bint apic_owns_msr(uint32_t msr) noexcept nogil:
    return (msr in (MSR_APIC_BASE, MSR_TSC, MSR_TSC_ADJUST, MSR_TSC_DEADLINE, MSR_KVM_WALL_CLOCK_OLD,
                    MSR_KVM_SYSTEM_TIME_OLD)
            or MSR_X2APIC_FIRST <= msr <= MSR_X2APIC_LAST or MSR_KVM_FIRST <= msr <= MSR_KVM_LAST)


cdef bint apic_rdmsr(CpuState* cpu, uint32_t msr, uint64_t* value) noexcept nogil:
    if msr == MSR_TSC:
        value[0] = clock_tsc(cpu)
    elif msr == MSR_TSC_ADJUST:
        value[0] = <uint64_t>cpu.apic.tsc_adjust
    elif msr == MSR_TSC_DEADLINE:
        value[0] = cpu.apic.tsc_deadline
    elif msr == MSR_APIC_BASE:
        value[0] = cpu.apic.base
    elif MSR_X2APIC_FIRST <= msr <= MSR_X2APIC_LAST:
        return x2apic_rdmsr(cpu, msr - MSR_X2APIC_FIRST, value)
    else:
        return kvm_rdmsr(cpu, msr, value)
    return True


cdef void move_tsc(CpuState* cpu, int64_t by) noexcept nogil:
    """The TSC jumps: what was armed for a value of it moves, kvmclock's record is written anew."""
    cpu.apic.tsc_offset += by
    if cpu.apic.tsc_deadline:
        timer_set_tsc_deadline(cpu, cpu.apic.tsc_deadline)
    kvm_write_clock(cpu)


cdef bint apic_wrmsr(CpuState* cpu, uint32_t msr, uint64_t value) noexcept nogil:
    cdef int64_t by
    if msr == MSR_TSC:
        by = <int64_t>(value - clock_tsc(cpu))
        cpu.apic.tsc_adjust += by
        move_tsc(cpu, by)
    elif msr == MSR_TSC_ADJUST:
        by = <int64_t>value - cpu.apic.tsc_adjust
        cpu.apic.tsc_adjust = <int64_t>value
        move_tsc(cpu, by)
    elif msr == MSR_TSC_DEADLINE:
        timer_set_tsc_deadline(cpu, value)
    elif msr == MSR_APIC_BASE:
        return write_apic_base(cpu, value)
    elif MSR_X2APIC_FIRST <= msr <= MSR_X2APIC_LAST:
        return x2apic_wrmsr(cpu, msr - MSR_X2APIC_FIRST, value)
    else:
        return kvm_wrmsr(cpu, msr, value)
    return True
