# cython: language_level=3
"""State of one virtual processor, and of the address space that several share. Owner: CORE (all of vcpu add fields).

Owns:    the layout that interpreter, MMU, APIC and, later, the translator agree on.
Never:   behaviour.
Threads: a CpuState belongs to its vCPU's thread, but for `attention`, `kick` and the APIC's atomic words.
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef uint64_t gva_t
ctypedef uint64_t gpa_t

cdef enum:
    PAGE_SHIFT = 12
    PAGE_SIZE = 4096
    TLB_BITS = 9
    TLB_SIZE = 512
    TLB_MASK = 511
    # byte offsets of the slots behind the sixteen general registers
    SLOT_ZERO = 16 * 8
    SLOT_RIP = 17 * 8
    SLOT_FS = 18 * 8
    SLOT_GS = 19 * 8
    SLOT_EA = 20 * 8
    SLOT_TMP = 21 * 8
    SLOTS = 24
    # segment numbers, as ModRM encodes them; then the system segments
    SEG_ES = 0
    SEG_CS = 1
    SEG_SS = 2
    SEG_DS = 3
    SEG_FS = 4
    SEG_GS = 5
    SEG_LDTR = 6
    SEG_TR = 7
    # attention bits
    ATTN_KICK = 1            # the host wants the loop to leave
    ATTN_INTERRUPT = 2       # the APIC or the PIC may have something
    ATTN_TLB_FLUSH = 4       # someone wants our TLB empty (p2m changed, dirty log)
    ATTN_CODE_CHANGED = 8    # the queue of changed code pages is not empty
    ATTN_SAFEPOINT = 16      # someone waits for us to stand at a block boundary
    ATTN_TIMER = 32          # the next deadline passed
    ATTN_SHADOW = 64         # STI/MOV SS shadow, TF, MTF: exactly one instruction, then look again
    ATTN_INIT = 128          # INIT or SIPI arrived
    ATTN_NMI = 256
    # vectors
    VECTOR_DE = 0
    VECTOR_DB = 1
    VECTOR_NMI = 2
    VECTOR_BP = 3
    VECTOR_OF = 4
    VECTOR_BR = 5
    VECTOR_UD = 6
    VECTOR_NM = 7
    VECTOR_DF = 8
    VECTOR_TS = 10
    VECTOR_NP = 11
    VECTOR_SS = 12
    VECTOR_GP = 13
    VECTOR_PF = 14
    VECTOR_MF = 16
    VECTOR_AC = 17
    VECTOR_MC = 18
    VECTOR_XM = 19
    NO_ERROR_CODE = -1
    NO_EXIT = 0xFFFFFFFFU
    RMW_MBUF = 1                 # mem_rmw handed out cpu.mbuf: write it back
    RMW_CODE = 2                 # … a frame with decoded code: drop the blocks
    RMW_LOCKED = 4               # … under the lock that stops the other vCPUs
    RMW_ENTERED = 8              # … which waited: what space_resume_others wants back

cdef struct Segment:
    uint64_t base
    uint32_t limit               # in bytes, already scaled by G
    uint32_t rights              # VMCS access-rights format (SDM 3C 25.4.1): type, S, DPL, P, AVL, L, D/B, G, unusable (bit 16)
    uint16_t selector

cdef struct TlbEntry:            # 32 bytes: what the translator's probe will read
    uint64_t read_tag
    uint64_t write_tag
    uint64_t exec_tag
    uint64_t addend

cdef struct XmmReg:
    uint64_t lo
    uint64_t hi

cdef struct St80:                # one x87 register: 80 bits in 16 bytes; MMX is its mantissa
    uint64_t mantissa
    uint16_t sign_exponent
    uint16_t pad[3]

cdef struct Op
cdef struct CpuState

ctypedef void (*handler_t)(CpuState* cpu, Op* op) noexcept nogil

cdef struct Op:                  # 40 bytes; one decoded instruction or micro-op
    handler_t fn
    uint64_t imm                 # immediate, sign-extended as the instruction wants; or the address of a linked op
    int64_t disp
    uint8_t r                    # byte offset in CpuState of the ModRM.reg operand (xmm/mm/st: register number)
    uint8_t b                    # … of the ModRM.rm register, or of the base
    uint8_t x                    # … of the index (SLOT_ZERO: none)
    uint8_t scale                # 0..3
    uint8_t opsize               # operand size in bytes
    uint8_t modrm                # the raw byte, for rows that decode it further
    uint8_t seg                  # segment of the memory operand (for #SS against #GP, and ea_seg)
    uint8_t length               # of the instruction in bytes
    uint16_t offset              # of the instruction from the block's first byte
    uint16_t index               # of the instruction in the block: retired before it
    uint16_t flags               # OPF_*: lock, rep, repne, address size
    uint16_t opcode              # row number in the table

cdef enum:
    OPF_LOCK = 1
    OPF_REP = 2                  # F3
    OPF_REPNE = 4                # F2
    OPF_ADDR16 = 8
    OPF_ADDR32 = 16
    OPF_ADDR64 = 32
    OPF_MEM = 64                 # rm is a memory operand
    OPF_REXW = 128
    OPF_WRITE = 256              # ea_seg: the access writes
    OPF_RMW = 512

# address: port or gpa; value: size bytes, little endian. Called without the GIL.
ctypedef void (*io_fn_t)(void* device, uint64_t address, void* value, uint32_t size, bint is_write) noexcept nogil

cdef struct IoHandler:
    io_fn_t fn
    void* device

cdef struct IoRange:             # [first, end) of ports or of guest-physical addresses, and who answers there
    uint64_t first
    uint64_t end
    IoHandler handler

cdef struct IoTable:             # sorted, never changed once published: a change publishes another one
    uint32_t ports
    uint32_t frames
    IoRange* port                # [ports]
    IoRange* frame               # [frames]

cdef enum:
    MAX_CPUS = 64
    P2M_PRESENT = 1              # RAM; p2m[gfn] & ~0xFFF is the host page (any process address is page aligned)
    P2M_WRITABLE = 2
    EXIT_REASONS = 80            # basic exit reasons are below this number
    CODE_QUEUE = 32              # changed code pages a vCPU may have waiting; more: all of them changed
    CODE_QUEUE_ALL = 255

cdef struct Space:               # the guest-physical address space, shared by its vCPUs; see space.pxd
    uint64_t* p2m                # [frames]: host page | P2M_*; 0: not RAM
    uint64_t frames              # guest frames from here on are never RAM
    uint8_t* code_pages          # [frames]: some vCPU decoded here
    uint8_t* ram                 # host address of file offset 0
    uint64_t ram_bytes
    uint64_t low_bytes           # RAM below 4 GiB; the rest starts at 4 GiB
    uint64_t* dirty              # one bit a RAM frame, by file offset; atomic
    uint32_t dirty_on
    uint32_t open_bus
    IoTable* io                  # atomic pointer
    uint32_t cpu_count
    CpuState* cpus[64]           # by APIC id; NULL: none
    uint32_t stop_owner          # futex lock of whoever stops the others
    uint32_t stop_wanted         # futex: vCPUs may not enter while it is not 0
    uint32_t parked              # futex: counts arrivals at safepoints
    uint32_t extint              # level of the PIC's INTR line
    io_fn_t extint_fn            # PIC's interrupt acknowledge: reads one vector
    void* extint_device
    io_fn_t eoi_fn               # told the vector of each level interrupt's end
    void* eoi_device
    uint32_t arbiter             # where the search for the next lowest-priority target starts

cdef struct ClockState:
    uint32_t is_virtual
    uint32_t paused
    uint64_t tsc_hz
    int64_t base_ns              # real: guest ns = CLOCK_MONOTONIC + base_ns; virtual: guest ns up to the run under way
    int64_t paused_at_ns
    int64_t wall_ns              # UNIX time in ns at guest time 0
    uint64_t seed
    CpuState* running            # virtual: whose retired instructions are time now; NULL: nobody runs

cdef struct Apic:                # one local APIC; irr, tmr, events are atomic words, the rest is its vCPU's
    uint32_t irr[8]
    uint32_t tmr[8]
    uint32_t isr[8]
    uint32_t events              # APIC_EVENT_*, and the SIPI vector in bits 31:24
    uint32_t id
    uint64_t base                # IA32_APIC_BASE
    uint32_t tpr
    uint32_t svr
    uint32_t ldr
    uint32_t dfr
    uint32_t esr
    uint32_t esr_new             # atomic; becomes visible by a write to ESR
    uint64_t icr
    uint32_t lvt[7]              # CMCI, timer, thermal, performance, LINT0, LINT1, error
    uint32_t divide
    uint32_t initial_count
    int64_t timer_start_ns
    int64_t timer_ns             # guest ns of the next expiry; TIMER_NEVER
    uint64_t tsc_deadline
    int64_t tsc_offset           # guest TSC = scaled guest time + this
    int64_t tsc_adjust
    uint64_t kvm_system_time     # MSRs of KVM's paravirtual interface
    uint64_t kvm_wall_clock
    uint64_t kvm_pv_eoi
    uint32_t kvm_version         # of the last kvmclock record written
    uint32_t pv_eoi_vector       # vector in service that the guest may end without a write; 0: none

cdef struct CpuState:
    # the general registers first: operands are byte offsets into here
    uint64_t regs[24]
    uint64_t rip                 # valid between blocks and in the loop; inside a block: regs[SLOT_RIP] + op.offset
    uint32_t aflags              # low 16 bits: AH:AL after `lahf; seto al`
    uint32_t rflags_sys          # every flag but CF PF AF ZF SF OF; bit 1 set
    int64_t budget               # retired instructions left before the loop must look
    uint64_t retired             # total; exact outside blocks
    int64_t budget_start         # budget when `retired` was last made exact
    void* code                   # CodeCache of engine.pxd
    uint32_t attention           # atomic OR from any thread
    uint32_t mode_key            # part of the block key: CS.L/D, SS.B, paging, CPL, address-size facts
    TlbEntry* tlb                # the set of the current privilege and PCID
    uint8_t cpl
    uint8_t long_mode            # EFER.LMA
    uint8_t code64               # CS.L and LMA
    uint8_t interruptibility     # VMCS format: bit 0 STI, 1 MOV SS, 3 NMI
    uint8_t activity             # VMCS format: 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI
    uint8_t in_event             # vector being delivered, for double faults (0xFF: none)
    Segment seg[8]
    uint64_t gdtr_base
    uint64_t idtr_base
    uint32_t gdtr_limit
    uint32_t idtr_limit
    uint64_t cr0
    uint64_t cr2
    uint64_t cr3
    uint64_t cr4
    uint64_t cr8
    uint64_t xcr0
    uint64_t efer
    uint64_t dr[8]
    # x87/SSE
    XmmReg xmm[16]
    St80 st[8]                   # physical registers; top is in fsw
    uint16_t fcw
    uint16_t fsw
    uint16_t ftw                 # the abridged tag byte of FXSAVE: 1 = not empty
    uint16_t fop
    uint64_t fip
    uint64_t fdp
    uint16_t fcs
    uint16_t fds
    uint32_t mxcsr
    uint32_t mxcsr_work[3]       # scratch of the kernels, behind mxcsr: see vcpu/ops/sse_kernels.h
    uint64_t fpu_temp
    uint8_t fpu_area[576]        # an image on its way to or from memory
    # scratch of the memory slow path
    uint8_t mbuf[128]
    uint64_t mbuf_gva
    uint32_t mbuf_size
    uint32_t rmw_pending         # RMW_*: what mem_rmw_done has to do
    # --- SYSTEM: translation (tlb.pxd). tlb_base: 32 sets of 512 entries, the bitmaps one bit an entry
    TlbEntry* tlb_base
    uint32_t tlb_mode
    uint32_t tlb_slot
    uint32_t tlb_pcid[8]         # which PCID lives in the slot; 0xFFFFFFFF: none
    uint64_t tlb_age[8]
    uint64_t tlb_clock
    uint64_t tlb_used[256]       # [word of 64 entries * 32 + set]
    uint64_t tlb_global[256]
    uint64_t tlb_large[256]
    uint64_t tlb_large_lo[32]    # a set's large pages lie in [lo, hi)
    uint64_t tlb_large_hi[32]
    uint64_t tlb_large_mask[32]  # the largest of them, as a mask of its offset bits
    uint64_t pdpte[4]            # PAE: loaded with CR3 (SDM 3A 4.4.1)
    uint32_t pf_vector           # of a translation that failed: VECTOR_PF or VECTOR_GP (not canonical)
    uint32_t pf_error
    uint64_t pf_gva
    uint8_t* rmw_host[2]         # where mem_rmw_done writes: the parts before and behind a page's end
    uint64_t rmw_gpa[2]
    uint32_t rmw_split           # bytes in the first part
    # --- SYSTEM: leaving to the hypervisor. exit_reason: NO_EXIT while in the guest
    uint32_t exit_reason
    uint32_t exit_length
    uint64_t exit_qualification
    uint64_t exit_gpa
    uint64_t exit_gla
    uint32_t exit_intr_info
    uint32_t exit_intr_error
    uint32_t idt_vectoring_info
    uint32_t idt_vectoring_error
    uint32_t exit_instruction_info
    # --- SYSTEM: VM-execution controls, as written to the VMCS
    uint32_t pin_controls
    uint32_t proc_controls
    uint32_t proc2_controls
    uint32_t exit_controls
    uint32_t entry_controls
    uint32_t exception_bitmap
    uint32_t pf_error_mask
    uint32_t pf_error_match
    uint32_t entry_intr_info
    uint32_t entry_intr_error
    uint32_t entry_length
    uint32_t cr3_target_count
    uint64_t cr3_target[4]
    int64_t vmcs_tsc_offset
    uint64_t cr0_mask
    uint64_t cr0_shadow
    uint64_t cr4_mask
    uint64_t cr4_shadow
    uint8_t* io_bitmap           # A then B, 8 KiB; NULL: none
    uint8_t* msr_bitmap          # 4 KiB, as in SDM 3C 25.6.9; NULL: none
    # --- SYSTEM: model-specific registers
    uint64_t star
    uint64_t lstar
    uint64_t cstar
    uint64_t sfmask
    uint64_t kernel_gs_base
    uint64_t sysenter_cs
    uint64_t sysenter_esp
    uint64_t sysenter_eip
    uint64_t pat
    uint64_t tsc_aux
    uint64_t misc_enable
    uint64_t debugctl
    uint64_t mtrr_def_type
    uint64_t mtrr_fixed[11]
    uint64_t mtrr_base[8]
    uint64_t mtrr_mask[8]
    uint64_t spec_ctrl
    uint32_t cpuid_exiting       # the hypervisor wants CPUID itself (Vmcs: VIRGA_CPUID_EXITING)
    uint64_t rng                 # state of RDRAND, seeded with the clock's seed
    uint32_t last_exit_reason    # of the last run(), as the VMCS reports it
    uint64_t pending_debug       # the VMCS's pending debug exceptions: DR6 bits
    uint64_t debug_status        # DR6 bits of the #DB under way
    uint64_t step_traps          # DR6 bits that the end of this instruction delivers
    uint8_t step_live            # step_begin saw this instruction, and no event came since
    uint8_t step_tf              # TF and RF as it began
    uint8_t step_rf
    uint8_t debug_is_fault       # the #DB under way is an instruction breakpoint's
    uint8_t task_switched        # the last task_switch passed its commit point
    # address space, clock, APIC
    Space* space
    ClockState* clock
    Apic apic
    uint32_t index               # APIC id
    uint32_t sleeping            # atomic; 1: in futex_wait on `attention`
    uint32_t in_guest            # atomic; 0: outside run(), parked, halted or in a device: others may touch its TLB
    int64_t deadline_ns          # of this run(), in guest time; TIMER_NEVER
    int64_t quantum              # retired instructions this run() may still take when the budget is spent; < 0: no end
    uint32_t op_index            # where in its block the instruction stands that may look at the clock
    uint64_t retired_start       # `retired` when this run() began
    uint64_t exit_counts[80]     # by basic exit reason, those served inside included
    uint32_t code_queue_lock
    uint32_t code_queue_count
    uint64_t code_queue[32]      # gfns
    uint32_t pauses              # PAUSE instructions, to yield now and then
