# Owner: APIC. Included by vcpu/_core.pyx.
"""KVM's paravirtual interface (Linux Documentation/virt/kvm/x86/{cpuid,msr}.rst): kvmclock, wall clock, PV EOI.

Owns:    CPUID 0x40000000.., the MSRs 0x4B564D00.., the records that they make us write into guest memory.
Never:   announces what is not here: no asynchronous page faults, steal time, hypercalls.
Threads: the vCPU's own.

PV EOI: while interrupt v is the only thing in service and nothing waits, bit 0 of the guest's word is set; the guest
ends v by clearing it instead of writing to the APIC. Whoever needs the truth looks (pv_eoi_look); when something
arrives that v holds back the offer is revoked, and the guest has to write.
"""

cdef enum:
    KVM_FEATURE_CLOCKSOURCE = 1 << 0
    KVM_FEATURE_NOP_IO_DELAY = 1 << 1
    KVM_FEATURE_CLOCKSOURCE2 = 1 << 3
    KVM_FEATURE_PV_EOI = 1 << 6
    KVM_FEATURE_CLOCKSOURCE_STABLE = 1 << 24
    MSR_KVM_WALL_CLOCK = 0x4B564D00
    MSR_KVM_SYSTEM_TIME = 0x4B564D01
    MSR_KVM_PV_EOI_EN = 0x4B564D04
    PVCLOCK_TSC_STABLE = 1

cdef struct PvclockTime:         # struct pvclock_vcpu_time_info
    uint32_t version             # odd while it is being written
    uint32_t pad0
    uint64_t tsc_timestamp
    uint64_t system_time
    uint32_t tsc_to_system_mul
    int8_t tsc_shift
    uint8_t flags
    uint8_t pad[2]

cdef struct PvclockWall:         # struct pvclock_wall_clock
    uint32_t version
    uint32_t sec
    uint32_t nsec


cdef void kvm_cpuid(CpuState* cpu, uint32_t leaf, uint32_t* out) noexcept nogil:
    memset(out, 0, 16)
    if leaf == 0x40000000:
        out[0] = 0x40000010
        memcpy(&out[1], b"KVMKVMKVM\0\0\0", 12)
    elif leaf == 0x40000001:
        out[0] = (KVM_FEATURE_CLOCKSOURCE | KVM_FEATURE_NOP_IO_DELAY | KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_PV_EOI
                  | KVM_FEATURE_CLOCKSOURCE_STABLE)
    elif leaf == 0x40000010:             # kHz of the TSC and of the APIC timer
        out[0] = <uint32_t>(cpu.clock.tsc_hz // 1000)
        out[1] = NS // 1000


cdef void kvm_write_clock(CpuState* cpu) noexcept nogil:
    """(tsc - tsc_timestamp) scaled, + system_time, is guest time. Rate and offset are constant, so that once is enough."""
    cdef PvclockTime record
    cdef uint64_t gpa = cpu.apic.kvm_system_time & ~<uint64_t>1
    cdef uint64_t hz = cpu.clock.tsc_hz
    cdef int shift = 0
    if not cpu.apic.kvm_system_time & 1:
        return
    memset(&record, 0, sizeof(record))
    record.system_time = <uint64_t>clock_now(cpu)
    record.tsc_timestamp = ns_to_tsc(cpu.clock, record.system_time) + <uint64_t>cpu.apic.tsc_offset
    # mul / 2**32 * 2**shift = 1e9 / hz with mul in [2**31, 2**32]
    if hz > NS:
        while hz >> (shift + 1) > NS:
            shift += 1
        record.tsc_shift = <int8_t>-shift
        record.tsc_to_system_mul = <uint32_t>scale64(<uint64_t>NS << 32, <uint64_t>1 << shift, hz)
    else:
        while hz << shift <= NS:
            shift += 1
        record.tsc_shift = <int8_t>shift
        record.tsc_to_system_mul = <uint32_t>((<uint64_t>NS << (32 - shift)) // hz)
    record.flags = PVCLOCK_TSC_STABLE
    cpu.apic.kvm_version += 2
    record.version = cpu.apic.kvm_version - 1
    if not space_write(cpu.space, gpa, &record.version, 4):
        return
    record.version = cpu.apic.kvm_version
    space_write(cpu.space, gpa + 4, <uint8_t*>&record + 4, sizeof(record) - 4)
    space_write(cpu.space, gpa, &record.version, 4)


cdef void kvm_write_wall_clock(CpuState* cpu, uint64_t gpa) noexcept nogil:
    """UNIX time at guest time 0."""
    cdef PvclockWall record
    cdef uint32_t version = 0
    if not space_read(cpu.space, gpa, &version, 4):
        return
    record.version = (version & ~<uint32_t>1) + 2
    record.sec = <uint32_t>(cpu.clock.wall_ns // NS)
    record.nsec = <uint32_t>(cpu.clock.wall_ns % NS)
    space_write(cpu.space, gpa, &record, sizeof(record))


cdef bint kvm_rdmsr(CpuState* cpu, uint32_t msr, uint64_t* value) noexcept nogil:
    if msr in (MSR_KVM_SYSTEM_TIME, MSR_KVM_SYSTEM_TIME_OLD):
        value[0] = cpu.apic.kvm_system_time
    elif msr in (MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_OLD):
        value[0] = cpu.apic.kvm_wall_clock
    elif msr == MSR_KVM_PV_EOI_EN:
        value[0] = cpu.apic.kvm_pv_eoi
    else:
        return False
    return True


cdef bint kvm_wrmsr(CpuState* cpu, uint32_t msr, uint64_t value) noexcept nogil:
    if msr in (MSR_KVM_SYSTEM_TIME, MSR_KVM_SYSTEM_TIME_OLD):
        cpu.apic.kvm_system_time = value
        kvm_write_clock(cpu)
    elif msr in (MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_OLD):
        cpu.apic.kvm_wall_clock = value
        kvm_write_wall_clock(cpu, value)
    elif msr == MSR_KVM_PV_EOI_EN:
        if value & 2 or not ram_range(cpu.space, value & ~<uint64_t>3, 4):
            return False
        pv_eoi_look(cpu)
        cpu.apic.pv_eoi_vector = 0
        cpu.apic.kvm_pv_eoi = value
    else:
        return False
    return True


# ------------------------------------------------------------------ PV EOI

cdef void pv_eoi_look(CpuState* cpu) noexcept nogil:
    """Did the guest end the interrupt offered to it?"""
    cdef uint32_t word = 0
    cdef uint32_t vector = cpu.apic.pv_eoi_vector
    if vector == 0:
        return
    space_read(cpu.space, cpu.apic.kvm_pv_eoi & ~<uint64_t>3, &word, 4)
    if not word & 1:
        cpu.apic.pv_eoi_vector = 0
        end_of_interrupt(cpu, vector)


cdef void pv_eoi_write(CpuState* cpu, uint32_t bit) noexcept nogil:
    cdef uint64_t gpa = cpu.apic.kvm_pv_eoi & ~<uint64_t>3
    cdef uint32_t word = 0
    space_read(cpu.space, gpa, &word, 4)
    word = (word & ~<uint32_t>1) | bit
    space_write(cpu.space, gpa, &word, 4)


cdef void pv_eoi_offer(CpuState* cpu, uint32_t vector) noexcept nogil:
    """vector went into service: may the guest end it without a write?"""
    cdef int i
    if not cpu.apic.kvm_pv_eoi & 1 or vector_set(cpu.apic.tmr, vector):
        return
    for i in range(8):
        if cpu.apic.irr[i] or cpu.apic.isr[i] & ~(<uint32_t>1 << (vector & 31) if <uint32_t>i == vector >> 5 else 0):
            return
    cpu.apic.pv_eoi_vector = vector
    pv_eoi_write(cpu, 1)


cdef void pv_eoi_revoke(CpuState* cpu) noexcept nogil:
    """Something waits for the end of the offered interrupt: the guest has to tell us."""
    pv_eoi_look(cpu)
    if cpu.apic.pv_eoi_vector:
        cpu.apic.pv_eoi_vector = 0
        pv_eoi_write(cpu, 0)
