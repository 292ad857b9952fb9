# cython: language_level=3
"""Architectural constants by the manual's names: control registers, EFER, rights, exit reasons, controls. Owner: SYSTEM.

Owns:    bits and numbers that more than one fragment needs (SDM 3A 2.5, 3C 25.6-25.9, appendix C; SDM 4 for MSRs).
Never:   anything that is computed.
Threads: constants.
"""

cdef enum:
    CR0_PE = 1
    CR0_MP = 2
    CR0_EM = 4
    CR0_TS = 8
    CR0_ET = 0x10
    CR0_NE = 0x20
    CR0_WP = 0x10000
    CR0_AM = 0x40000
    CR0_NW = 0x20000000
    CR0_CD = 0x40000000
    CR4_VME = 1
    CR4_PVI = 2
    CR4_TSD = 4
    CR4_DE = 8
    CR4_PSE = 0x10
    CR4_PAE = 0x20
    CR4_MCE = 0x40
    CR4_PGE = 0x80
    CR4_PCE = 0x100
    CR4_OSFXSR = 0x200
    CR4_OSXMMEXCPT = 0x400
    CR4_UMIP = 0x800
    CR4_FSGSBASE = 0x10000
    CR4_PCIDE = 0x20000
    CR4_OSXSAVE = 0x40000
    CR4_SMEP = 0x100000
    CR4_SMAP = 0x200000
    EFER_SCE = 1
    EFER_LME = 0x100
    EFER_LMA = 0x400
    EFER_NXE = 0x800
    # a segment's rights, in the VMCS format (SDM 3C table 25-2)
    AR_TYPE = 0xF
    AR_ACCESSED = 1
    AR_WRITE = 2                 # data: writable; code: readable
    AR_EXPAND = 4                # data: expand-down; code: conforming
    AR_CODE = 8
    AR_S = 0x10
    AR_DPL = 0x60
    AR_P = 0x80
    AR_L = 0x2000
    AR_DB = 0x4000
    AR_G = 0x8000
    AR_UNUSABLE = 0x10000
    # types of system descriptors and gates
    TYPE_TSS16 = 1
    TYPE_LDT = 2
    TYPE_TSS16_BUSY = 3
    TYPE_CALL16 = 4
    TYPE_TASK = 5
    TYPE_INT16 = 6
    TYPE_TRAP16 = 7
    TYPE_TSS = 9
    TYPE_TSS_BUSY = 11
    TYPE_CALL = 12
    TYPE_INT = 14
    TYPE_TRAP = 15
    # interruption types (SDM 3C 25.8.3)
    EVENT_EXTERNAL = 0
    EVENT_NMI = 2
    EVENT_EXCEPTION = 3
    EVENT_SOFT_INT = 4
    EVENT_INT1 = 5
    EVENT_SOFT_EXCEPTION = 6
    # interruptibility state (SDM 3C table 25-3)
    BLOCKED_BY_STI = 1
    BLOCKED_BY_MOV_SS = 2
    BLOCKED_BY_NMI = 8
    ACTIVITY_ACTIVE = 0
    ACTIVITY_HLT = 1
    ACTIVITY_SHUTDOWN = 2
    ACTIVITY_WAIT_SIPI = 3

cdef enum:                       # basic exit reasons, SDM 3C appendix C
    EXIT_REASON_EXCEPTION_NMI = 0
    EXIT_REASON_EXTERNAL_INTERRUPT = 1
    EXIT_REASON_TRIPLE_FAULT = 2
    EXIT_REASON_INIT = 3
    EXIT_REASON_SIPI = 4
    EXIT_REASON_INTERRUPT_WINDOW = 7
    EXIT_REASON_NMI_WINDOW = 8
    EXIT_REASON_TASK_SWITCH = 9
    EXIT_REASON_CPUID = 10
    EXIT_REASON_HLT = 12
    EXIT_REASON_INVD = 13
    EXIT_REASON_INVLPG = 14
    EXIT_REASON_RDPMC = 15
    EXIT_REASON_RDTSC = 16
    EXIT_REASON_VMCALL = 18
    EXIT_REASON_CR_ACCESS = 28
    EXIT_REASON_DR_ACCESS = 29
    EXIT_REASON_IO_INSTRUCTION = 30
    EXIT_REASON_MSR_READ = 31
    EXIT_REASON_MSR_WRITE = 32
    EXIT_REASON_INVALID_STATE = 33
    EXIT_REASON_PAUSE = 40
    EXIT_REASON_APIC_ACCESS = 44
    EXIT_REASON_GDTR_IDTR = 46
    EXIT_REASON_LDTR_TR = 47
    EXIT_REASON_EPT_VIOLATION = 48
    EXIT_REASON_RDTSCP = 51
    EXIT_REASON_PREEMPTION_TIMER = 52
    EXIT_REASON_WBINVD = 54
    EXIT_REASON_XSETBV = 55
    EXIT_REASON_RDRAND = 57
    EXIT_REASON_INVPCID = 58

cdef enum:                       # execution controls, SDM 3C 25.6
    PIN_EXTERNAL_INTERRUPT = 1
    PIN_NMI = 8
    PIN_PREEMPTION_TIMER = 0x40
    PROC_INTERRUPT_WINDOW = 0x4
    PROC_TSC_OFFSETTING = 0x8
    PROC_HLT = 0x80
    PROC_INVLPG = 0x200
    PROC_RDPMC = 0x800
    PROC_RDTSC = 0x1000
    PROC_CR3_LOAD = 0x8000
    PROC_CR3_STORE = 0x10000
    PROC_CR8_LOAD = 0x80000
    PROC_CR8_STORE = 0x100000
    PROC_NMI_WINDOW = 0x400000
    PROC_MOV_DR = 0x800000
    PROC_UNCONDITIONAL_IO = 0x1000000
    PROC_IO_BITMAPS = 0x2000000
    PROC_MSR_BITMAPS = 0x10000000
    PROC_PAUSE = 0x40000000
    PROC2_DESCRIPTOR_TABLE = 0x4
    PROC2_WBINVD = 0x40
    PROC2_RDRAND = 0x800
    PROC2_INVPCID = 0x1000
    ENTRY_IA32E = 0x200
    DR6_BD = 0x2000
    DR6_BS = 0x4000
    DR6_BT = 0x8000
    DR7_FIXED = 0x400
    DR7_GD = 0x2000

cdef enum:                       # MSRs, SDM 4 chapter 2
    MSR_P5_MC_ADDR = 0x0
    MSR_P5_MC_TYPE = 0x1
    MSR_TSC = 0x10
    MSR_PLATFORM_ID = 0x17
    MSR_APIC_BASE = 0x1B
    MSR_FEATURE_CONTROL = 0x3A
    MSR_TSC_ADJUST = 0x3B
    MSR_SPEC_CTRL = 0x48
    MSR_PRED_CMD = 0x49
    MSR_UCODE_REV = 0x8B
    MSR_MTRRCAP = 0xFE
    MSR_ARCH_CAPABILITIES = 0x10A
    MSR_SYSENTER_CS = 0x174
    MSR_SYSENTER_ESP = 0x175
    MSR_SYSENTER_EIP = 0x176
    MSR_MCG_CAP = 0x179
    MSR_MCG_STATUS = 0x17A
    MSR_PERF_STATUS = 0x198
    MSR_MISC_ENABLE = 0x1A0
    MSR_ENERGY_PERF_BIAS = 0x1B0
    MSR_DEBUGCTL = 0x1D9
    MSR_MTRR_PHYSBASE0 = 0x200
    MSR_MTRR_FIX64K = 0x250
    MSR_MTRR_FIX16K_80000 = 0x258
    MSR_MTRR_FIX16K_A0000 = 0x259
    MSR_MTRR_FIX4K_C0000 = 0x268
    MSR_PAT = 0x277
    MSR_MTRR_DEF_TYPE = 0x2FF
    MSR_MC0_CTL = 0x400
    MSR_TSC_DEADLINE = 0x6E0
    MSR_X2APIC_FIRST = 0x800
    MSR_X2APIC_LAST = 0x8FF
    MSR_KVM_WALL_CLOCK_OLD = 0x11
    MSR_KVM_SYSTEM_TIME_OLD = 0x12
    MSR_KVM_FIRST = 0x4B564D00
    MSR_KVM_LAST = 0x4B564DFF


cdef extern from *:              # beyond an int, so no enum's
    """
    #define CR0_PG 0x80000000u
    #define DR6_ONES 0xFFFF0FF0u
    #define PROC_SECONDARY 0x80000000u
    #define MSR_EFER 0xC0000080u
    #define MSR_STAR 0xC0000081u
    #define MSR_LSTAR 0xC0000082u
    #define MSR_CSTAR 0xC0000083u
    #define MSR_SFMASK 0xC0000084u
    #define MSR_FS_BASE 0xC0000100u
    #define MSR_GS_BASE 0xC0000101u
    #define MSR_KERNEL_GS_BASE 0xC0000102u
    #define MSR_TSC_AUX 0xC0000103u
    """
    const unsigned int CR0_PG
    const unsigned int DR6_ONES
    const unsigned int PROC_SECONDARY
    const unsigned int MSR_EFER
    const unsigned int MSR_STAR
    const unsigned int MSR_LSTAR
    const unsigned int MSR_CSTAR
    const unsigned int MSR_SFMASK
    const unsigned int MSR_FS_BASE
    const unsigned int MSR_GS_BASE
    const unsigned int MSR_KERNEL_GS_BASE
    const unsigned int MSR_TSC_AUX
