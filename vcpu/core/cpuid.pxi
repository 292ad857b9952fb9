"""CPUID: one named model, which announces exactly what works. Owner: SYSTEM.

Owns:    the model table; what depends on the vCPU's state (OSXSAVE, APIC, the count of processors).
Never:   announces a feature because a guest would like it.
Threads: the vCPU's own.

Model "virga-v1": x86-64-v2 with AES, PCLMULQDQ, MOVBE, RDRAND, FSGSBASE, SMEP, SMAP, UMIP, PCID, INVPCID; a GenuineIntel
of family 6, model 0x6A, because VMX will ask for that maker and no erratum of that model concerns an interpreter.
Not there: VME, MONITOR, VMX, AVX, BMI, TSX, SGX, PMU.
"""

cdef enum:
    CPUID_MAX = 0x16
    CPUID_MAX_EXTENDED = -0x7FFFFFF8             # 0x80000008
    SIGNATURE = 0x000606A6
    CRYSTAL_HZ = 1000000000                      # the local APIC's timer counts it
    # leaf 1
    F1_ECX = (1 << 0 | 1 << 1 | 1 << 9 | 1 << 13 | 1 << 17 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 23 | 1 << 24
              | 1 << 25 | 1 << 26 | 1 << 30)
    F1_ECX_OSXSAVE = 1 << 27
    F1_EDX = (1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 13
              | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26)
    F1_EDX_APIC = 1 << 9
    F1_EDX_HTT = 1 << 28
    # leaf 7: FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, no FCS and FDS, SMAP | UMIP | SPEC_CTRL, ARCH_CAPABILITIES
    F7_EBX = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 20
    F7_ECX = 1 << 2
    F7_EDX = 1 << 26 | 1 << 29
    F72_EDX = 1 << 4                             # leaf 7, subleaf 2: BHI_CTRL, SPEC_CTRL.BHI_DIS_S
    # 0x80000001: LAHF, LZCNT, PREFETCHW | SYSCALL (64-bit mode only), NX, 1 GiB pages, RDTSCP, LM
    F81_ECX = 1 << 0 | 1 << 5 | 1 << 8
    F81_EDX_SYSCALL = 1 << 11
    F81_EDX = 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29
    XSAVE_SIZE = 576                             # legacy area and header: x87 and SSE

cdef char* BRAND = b"Virga virtual processor, model virga-v1\0\0\0\0\0\0\0\0\0"


cdef inline void answer(uint32_t* out, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx) noexcept nogil:
    out[0] = eax
    out[1] = ebx
    out[2] = ecx
    out[3] = edx


cdef uint32_t apic_id_bits(CpuState* cpu) noexcept nogil:
    """Bits that tell the processors of the one package apart."""
    cdef uint32_t bits = 0
    while (<uint32_t>1 << bits) < cpu.space.cpu_count:
        bits += 1
    return bits


cdef void cpuid_features(CpuState* cpu, uint32_t* out) noexcept nogil:
    cdef uint32_t ecx = F1_ECX | <uint32_t>1 << 31       # a hypervisor is present
    cdef uint32_t edx = F1_EDX
    if cpu.cr4 & CR4_OSXSAVE:
        ecx |= F1_ECX_OSXSAVE
    if cpu.apic.base & APIC_BASE_EN:
        edx |= F1_EDX_APIC
    if cpu.space.cpu_count > 1:
        edx |= F1_EDX_HTT
    answer(out, SIGNATURE, cpu.index << 24 | (<uint32_t>1 << apic_id_bits(cpu)) << 16 | 8 << 8, ecx, edx)


cdef void cpuid_caches(CpuState* cpu, uint32_t sub, uint32_t* out) noexcept nogil:
    """Leaf 4: L1D 32 KiB, L1I 32 KiB, L2 2 MiB, L3 16 MiB shared by all."""
    cdef uint32_t cores = ((<uint32_t>1 << apic_id_bits(cpu)) - 1) << 26
    cdef uint32_t sharing = ((<uint32_t>1 << apic_id_bits(cpu)) - 1) << 14
    if sub == 0:
        answer(out, cores | 0x121, 7 << 22 | 63, 63, 0)
    elif sub == 1:
        answer(out, cores | 0x122, 7 << 22 | 63, 63, 0)
    elif sub == 2:
        answer(out, cores | 0x143, 15 << 22 | 63, 2047, 0)
    elif sub == 3:
        answer(out, cores | sharing | 0x163, 15 << 22 | 63, 16383, 0)
    else:
        answer(out, 0, 0, 0, 0)


cdef void cpuid_topology(CpuState* cpu, uint32_t sub, uint32_t* out) noexcept nogil:
    """Leaf 0xB: one thread a core, all cores in one package."""
    if sub == 0:
        answer(out, 0, 1, 0x100, cpu.index)
    elif sub == 1:
        answer(out, apic_id_bits(cpu), cpu.space.cpu_count, 0x201, cpu.index)
    else:
        answer(out, 0, 0, sub, cpu.index)


cdef void cpuid_xsave(CpuState* cpu, uint32_t sub, uint32_t* out) noexcept nogil:
    if sub == 0:
        answer(out, 3, XSAVE_SIZE, XSAVE_SIZE, 0)
    elif sub == 1:
        answer(out, 7, XSAVE_SIZE, 0, 0)         # XSAVEOPT, XSAVEC, XGETBV with ECX = 1
    else:
        answer(out, 0, 0, 0, 0)


cdef void cpuid_basic(CpuState* cpu, uint32_t leaf, uint32_t sub, uint32_t* out) noexcept nogil:
    answer(out, 0, 0, 0, 0)
    if leaf == 0:
        answer(out, CPUID_MAX, 0x756E6547, 0x6C65746E, 0x49656E69)      # GenuineIntel
    elif leaf == 1:
        cpuid_features(cpu, out)
    elif leaf == 2:
        answer(out, 0x00FEFF01, 0, 0, 0)         # TLBs by leaf 0x18 (none), caches by leaf 4
    elif leaf == 4:
        cpuid_caches(cpu, sub, out)
    elif leaf == 6:
        out[0] = 4                               # ARAT: the APIC's timer runs in every sleep
    elif leaf == 7 and sub == 0:
        answer(out, 2, F7_EBX, F7_ECX, F7_EDX)
    elif leaf == 7 and sub == 2:
        answer(out, 0, 0, 0, F72_EDX)
    elif leaf == 0xB:
        cpuid_topology(cpu, sub, out)
    elif leaf == 0xD:
        cpuid_xsave(cpu, sub, out)
    elif leaf == 0x15:
        # Linux multiplies kHz of the crystal by the numerator in 32 bits, and runs the APIC's timer at the crystal's rate
        answer(out, 1000, <uint32_t>(cpu.clock.tsc_hz // 1000000), CRYSTAL_HZ, 0)
    elif leaf == 0x16:
        answer(out, <uint32_t>(cpu.clock.tsc_hz // 1000000), <uint32_t>(cpu.clock.tsc_hz // 1000000), 100, 0)


cdef void cpuid_extended(CpuState* cpu, uint32_t leaf, uint32_t* out) noexcept nogil:
    answer(out, 0, 0, 0, 0)
    if leaf == 0:
        out[0] = <uint32_t>CPUID_MAX_EXTENDED
    elif leaf == 1:
        answer(out, 0, 0, F81_ECX, F81_EDX | (F81_EDX_SYSCALL if cpu.code64 else 0))
    elif 2 <= leaf <= 4:
        memcpy(out, BRAND + (leaf - 2) * 16, 16)
    elif leaf == 6:
        out[2] = 0x08006040                      # L2: 2 MiB, 8 ways, lines of 64
    elif leaf == 7:
        out[3] = 1 << 8                          # invariant TSC
    elif leaf == 8:
        out[0] = 48 << 8 | PHYS_BITS


cdef void cpuid(CpuState* cpu, uint32_t leaf, uint32_t sub, uint32_t* out) noexcept nogil:
    """out: EAX, EBX, ECX, EDX. A leaf beyond the last is the last basic one, as on Intel."""
    if leaf >> 8 == 0x400000:
        kvm_cpuid(cpu, leaf, out)
    elif leaf >> 16 == 0x8000:
        if leaf <= <uint32_t>CPUID_MAX_EXTENDED:
            cpuid_extended(cpu, leaf & 0xFFFF, out)
        else:
            cpuid_basic(cpu, CPUID_MAX, sub, out)
    else:
        cpuid_basic(cpu, leaf if leaf <= CPUID_MAX else <uint32_t>CPUID_MAX, sub, out)
