"""Model-specific registers: what RDMSR and WRMSR find, #GP(0) for the rest. Owner: SYSTEM.

Owns:    the list (SDM 4), the checks of reserved bits, the generator behind RDRAND.
Never:   invents a register: what the model does not have is #GP(0), so that a guest can probe.
Threads: the vCPU's own.
"""

cdef enum:
    MTRR_CAPABILITIES = 0x508            # 8 variable ranges, fixed ranges, write-combining
    MISC_ENABLE_DEFAULT = 0x1            # fast strings
    MISC_ENABLE_WRITABLE = 0x440089      # fast strings, MONITOR, limit CPUID, thermal
    UCODE_REVISION = 0x0D0003F5
    # RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO,
    # BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO: an interpreter speculates nothing (SDM 4 table 2-2)
    ARCH_CAPABILITIES = 0x0D10E17B

# ITS_NO is bit 62
cdef uint64_t ARCH_CAPABILITIES_HIGH = <uint64_t>1 << 62


cdef bint pat_is_valid(uint64_t value) noexcept nogil:
    """Memory types 0, 1, 4, 5, 6, 7 in each byte."""
    cdef uint32_t i, kind
    for i in range(8):
        kind = (value >> (i * 8)) & 0xFF
        if kind > 7 or kind == 2 or kind == 3:
            return False
    return True


cdef inline bint mtrr_type_is_valid(uint64_t kind) noexcept nogil:
    return kind in (0, 1, 4, 5, 6)


cdef int mtrr_fixed_index(uint32_t msr) noexcept nogil:
    if msr == MSR_MTRR_FIX64K:
        return 0
    if msr == MSR_MTRR_FIX16K_80000 or msr == MSR_MTRR_FIX16K_A0000:
        return 1 + <int>(msr - MSR_MTRR_FIX16K_80000)
    if MSR_MTRR_FIX4K_C0000 <= msr < MSR_MTRR_FIX4K_C0000 + 8:
        return 3 + <int>(msr - MSR_MTRR_FIX4K_C0000)
    return -1


cdef bint write_mtrr(CpuState* cpu, uint32_t msr, uint64_t value) noexcept nogil:
    cdef int i = mtrr_fixed_index(msr)
    cdef uint32_t byte
    if i >= 0:
        for byte in range(8):
            if not mtrr_type_is_valid((value >> (byte * 8)) & 0xFF):
                return False
        cpu.mtrr_fixed[i] = value
    elif msr == MSR_MTRR_DEF_TYPE:
        if value & ~<uint64_t>0xCFF or not mtrr_type_is_valid(value & 0xFF):
            return False
        cpu.mtrr_def_type = value
    elif value >> PHYS_BITS:
        return False
    elif msr & 1:
        if value & 0x7FF:
            return False
        cpu.mtrr_mask[(msr - MSR_MTRR_PHYSBASE0) >> 1] = value
    else:
        if value & 0xF00 or not mtrr_type_is_valid(value & 0xFF):
            return False
        cpu.mtrr_base[(msr - MSR_MTRR_PHYSBASE0) >> 1] = value
    return True


cdef inline bint is_mtrr(uint32_t msr) noexcept nogil:
    return (MSR_MTRR_PHYSBASE0 <= msr < MSR_MTRR_PHYSBASE0 + 16 or msr == MSR_MTRR_DEF_TYPE
            or mtrr_fixed_index(msr) >= 0)


cdef uint64_t read_mtrr(CpuState* cpu, uint32_t msr) noexcept nogil:
    cdef int i = mtrr_fixed_index(msr)
    if i >= 0:
        return cpu.mtrr_fixed[i]
    if msr == MSR_MTRR_DEF_TYPE:
        return cpu.mtrr_def_type
    return cpu.mtrr_mask[(msr - MSR_MTRR_PHYSBASE0) >> 1] if msr & 1 else cpu.mtrr_base[(msr - MSR_MTRR_PHYSBASE0) >> 1]


cdef uint64_t* plain_msr(CpuState* cpu, uint32_t msr, uint32_t* check) noexcept nogil:
    """Registers that are one word; check: 0 any value, 1 canonical, 2 selector-sized, 3 none may be written."""
    check[0] = 0
    if msr == MSR_STAR:
        return &cpu.star
    if msr == MSR_SFMASK:
        check[0] = 2
        return &cpu.sfmask
    if msr == MSR_TSC_AUX:
        check[0] = 2
        return &cpu.tsc_aux
    if msr == MSR_SYSENTER_CS:
        return &cpu.sysenter_cs
    check[0] = 1
    if msr == MSR_LSTAR:
        return &cpu.lstar
    if msr == MSR_CSTAR:
        return &cpu.cstar
    if msr == MSR_KERNEL_GS_BASE:
        return &cpu.kernel_gs_base
    if msr == MSR_FS_BASE:
        return &cpu.seg[SEG_FS].base
    if msr == MSR_GS_BASE:
        return &cpu.seg[SEG_GS].base
    if msr == MSR_SYSENTER_ESP:
        return &cpu.sysenter_esp
    if msr == MSR_SYSENTER_EIP:
        return &cpu.sysenter_eip
    return NULL


cdef bint read_msr(CpuState* cpu, uint32_t msr, uint64_t* value) noexcept nogil:
    """False: there is none, #GP(0)."""
    cdef uint32_t check
    cdef uint64_t* plain
    if apic_owns_msr(msr):
        return apic_rdmsr(cpu, msr, value)
    plain = plain_msr(cpu, msr, &check)
    if plain != NULL:
        value[0] = plain[0]
    elif is_mtrr(msr):
        value[0] = read_mtrr(cpu, msr)
    elif msr == MSR_EFER:
        value[0] = cpu.efer
    elif msr == MSR_PAT:
        value[0] = cpu.pat
    elif msr == MSR_MISC_ENABLE:
        value[0] = cpu.misc_enable
    elif msr == MSR_MTRRCAP:
        value[0] = MTRR_CAPABILITIES
    elif msr == MSR_ARCH_CAPABILITIES:
        value[0] = ARCH_CAPABILITIES | ARCH_CAPABILITIES_HIGH
    elif msr == MSR_SPEC_CTRL:
        value[0] = cpu.spec_ctrl
    elif msr == MSR_FEATURE_CONTROL:
        value[0] = 1                             # locked, VMX off
    elif msr == MSR_UCODE_REV:
        value[0] = <uint64_t>UCODE_REVISION << 32
    elif msr == MSR_DEBUGCTL:
        value[0] = cpu.debugctl
    elif msr in (MSR_P5_MC_ADDR, MSR_P5_MC_TYPE, MSR_PLATFORM_ID, MSR_MCG_CAP, MSR_MCG_STATUS, MSR_PERF_STATUS):
        value[0] = 0                             # no machine-check bank, no platform fuse
    else:
        return False
    return True


cdef bint write_msr(CpuState* cpu, uint32_t msr, uint64_t value) noexcept nogil:
    """False: #GP(0). Ends with whatever the write means for modes and the TLB."""
    cdef uint32_t check
    cdef uint64_t* plain
    if apic_owns_msr(msr):
        return apic_wrmsr(cpu, msr, value)
    plain = plain_msr(cpu, msr, &check)
    if plain != NULL:
        if (check == 1 and not canonical(value)) or (check == 2 and value >> 32):
            return False
        plain[0] = value
        cpu.regs[SLOT_FS >> 3] = cpu.seg[SEG_FS].base
        cpu.regs[SLOT_GS >> 3] = cpu.seg[SEG_GS].base
        return True
    if is_mtrr(msr):
        return write_mtrr(cpu, msr, value)
    if msr == MSR_EFER:
        if not load_efer(cpu, value):
            return False
        mode_update(cpu)
    elif msr == MSR_PAT:
        if not pat_is_valid(value):
            return False
        cpu.pat = value
    elif msr == MSR_MISC_ENABLE:
        if value & ~<uint64_t>MISC_ENABLE_WRITABLE:
            return False
        cpu.misc_enable = value
    elif msr == MSR_SPEC_CTRL:
        if value & ~<uint64_t>0x401:             # IBRS and BHI_DIS_S: on an interpreter they are always in force
            return False
        cpu.spec_ctrl = value
    elif msr == MSR_PRED_CMD:
        return value & ~<uint64_t>1 == 0         # IBPB: there is nothing to flush
    elif msr == MSR_DEBUGCTL:
        if value & ~<uint64_t>3:
            return False
        cpu.debugctl = value & 2                 # BTF; no branch records
    elif msr in (MSR_UCODE_REV, MSR_MCG_STATUS, MSR_P5_MC_ADDR, MSR_P5_MC_TYPE):
        return value == 0
    else:
        return False
    return True


cdef extern from "sys/random.h" nogil:
    ssize_t getrandom(void* buffer, size_t size, unsigned int flags)


cdef uint64_t random64(CpuState* cpu) noexcept nogil:
    """Real time: the host's generator. Virtual: splitmix64 over a seeded counter, so that the same guest reads the
    same numbers."""
    cdef uint64_t z = 0
    if not cpu.clock.is_virtual and getrandom(&z, 8, 0) == 8:
        return z
    cpu.rng += 0x9E3779B97F4A7C15ULL
    z = cpu.rng
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL
    return z ^ (z >> 31)
