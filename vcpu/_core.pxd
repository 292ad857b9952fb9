# cython: language_level=3
"""What vcpu._core exports to the handler extensions (cimport; plain C calls). One section per owner.

Owns:    signatures. Each function is defined in the fragment named above it.
Never:   a function that takes the GIL on an instruction's path: all noexcept nogil.
"""
from vcpu.core.state cimport CpuState, Op, Segment, Space, gva_t, gpa_t, uint8_t, uint16_t, uint32_t, uint64_t, int64_t

# --- SYSTEM, core/mmu.pxi: memory off the hit path (call through mem.pxd)
cdef uint8_t* mem_read_slow(CpuState* cpu, Op* op, gva_t gva, uint32_t size) noexcept nogil
cdef bint mem_write_slow(CpuState* cpu, Op* op, gva_t gva, uint64_t value, uint32_t size) noexcept nogil
cdef bint mem_write_buf_slow(CpuState* cpu, Op* op, gva_t gva, const void* src, uint32_t size) noexcept nogil
cdef uint8_t* mem_rmw_slow(CpuState* cpu, Op* op, gva_t gva, uint32_t size) noexcept nogil
cdef void mem_rmw_done_slow(CpuState* cpu, Op* op) noexcept nogil
cdef bint mem_check_slow(CpuState* cpu, Op* op, gva_t gva, uint32_t size, bint write) noexcept nogil
# host address of the instruction byte at gva (valid to the end of its page) and its guest-physical address;
# NULL: the fault was delivered (cpu.rip must stand at the instruction) or the vCPU left with an exit
cdef uint8_t* mem_fetch(CpuState* cpu, gva_t gva, gpa_t* gpa) noexcept nogil
# the engine's first decode from a frame: no write entry of this vCPU may stay
cdef void tlb_drop_writes(CpuState* cpu, gpa_t gpa) noexcept nogil
cdef void tlb_flush_all(CpuState* cpu) noexcept nogil

# --- SYSTEM, core/exception.pxi
# a fault of op: rip back to it, the retired count corrected (op_rewind, CORE), delivered or given to the hypervisor
cdef void fault(CpuState* cpu, Op* op, uint32_t vector, int64_t error_code) noexcept nogil
# the same between instructions: cpu.rip is right, the count exact. Used by the fetch and the loop
cdef void fault_at_rip(CpuState* cpu, uint32_t vector, int64_t error_code) noexcept nogil
# deliver an external interrupt or NMI at an instruction boundary
cdef void deliver_interrupt(CpuState* cpu, uint32_t vector) noexcept nogil
cdef void deliver_nmi(CpuState* cpu) noexcept nogil
# leave to the hypervisor: the loop returns where cpu.exit_reason != NO_EXIT. At op: rewinds first (length kept)
cdef void vm_exit(CpuState* cpu, uint32_t reason, uint64_t qualification) noexcept nogil
cdef void vm_exit_op(CpuState* cpu, Op* op, uint32_t reason, uint64_t qualification) noexcept nogil

# --- SYSTEM, core/seg.pxi
# recompute cpu.mode_key, code64, long_mode, tlb, the FS/GS slots after CR, EFER, CS, SS, CPL, EFLAGS.AC/VM or DR7 changed
cdef void mode_update(CpuState* cpu) noexcept nogil

# --- CORE, core/engine.pxi
# cpu.rip is set and counted: on to the block there. The last act of a handler (a tail call)
cdef void next_block(CpuState* cpu) noexcept nogil
# the slow half of branch_indirect (engine.pxd): SLOT_RIP is set and counted; notes the target in op's links
cdef void next_block_from(CpuState* cpu, Op* op) noexcept nogil

cdef bint load_segment(CpuState* cpu, uint32_t which, uint16_t selector) noexcept nogil
cdef bint load_ldtr(CpuState* cpu, uint16_t selector, uint32_t vector) noexcept nogil
cdef bint load_tr(CpuState* cpu, uint16_t selector) noexcept nogil
cdef bint read_descriptor(CpuState* cpu, uint16_t selector, uint32_t vector, uint32_t ext, uint64_t* d) noexcept nogil
cdef bint seg_linear(CpuState* cpu, uint32_t which, uint64_t offset, uint32_t size, bint write,
                     gva_t* linear) noexcept nogil
# a function of SYSTEM's returned False: deliver the vector and error code it left
cdef void fault_refused(CpuState* cpu, Op* op) noexcept nogil
cdef bint sys_access(CpuState* cpu, gva_t gva, uint8_t* data, uint32_t size, uint32_t access) noexcept nogil

# --- SYSTEM, core/exception.pxi: software interrupts; the two sides of a single step; I/O breakpoints
cdef void soft_interrupt(CpuState* cpu, Op* op, uint32_t vector, uint32_t kind) noexcept nogil
cdef bint step_begin(CpuState* cpu) noexcept nogil
cdef void step_end(CpuState* cpu) noexcept nogil
cdef void io_breakpoints(CpuState* cpu, uint32_t port, uint32_t size) noexcept nogil

# --- SYSTEM, core/transfer.pxi: each retires op and leaves to its target, or delivers op's fault
cdef void far_jump(CpuState* cpu, Op* op, uint16_t selector, uint64_t rip) noexcept nogil
cdef void far_call(CpuState* cpu, Op* op, uint16_t selector, uint64_t rip, uint32_t size) noexcept nogil
cdef void far_return(CpuState* cpu, Op* op, uint32_t size, uint32_t release) noexcept nogil
cdef void iret(CpuState* cpu, Op* op, uint32_t size) noexcept nogil
cdef void syscall(CpuState* cpu, Op* op) noexcept nogil
cdef void sysret(CpuState* cpu, Op* op) noexcept nogil
cdef void sysenter(CpuState* cpu, Op* op) noexcept nogil
cdef void sysexit(CpuState* cpu, Op* op) noexcept nogil
# RFLAGS as IRET and POPF load them at privilege cpl; the caller does mode_update and returns to the loop
cdef void load_flags(CpuState* cpu, uint64_t value, uint32_t size, uint32_t cpl) noexcept nogil

# --- SYSTEM, core/control.pxi, msr.pxi, cpuid.pxi: False means refused
cdef bint cr_write_exits(CpuState* cpu, uint32_t which, uint64_t value) noexcept nogil
cdef bint write_cr(CpuState* cpu, uint32_t which, uint64_t value) noexcept nogil
cdef uint64_t read_cr(CpuState* cpu, uint32_t which) noexcept nogil
cdef bint load_debug(CpuState* cpu, uint32_t which, uint64_t value) noexcept nogil
cdef bint read_msr(CpuState* cpu, uint32_t msr, uint64_t* value) noexcept nogil
cdef bint write_msr(CpuState* cpu, uint32_t msr, uint64_t value) noexcept nogil
cdef uint64_t random64(CpuState* cpu) noexcept nogil
cdef void cpuid(CpuState* cpu, uint32_t leaf, uint32_t sub, uint32_t* out) noexcept nogil
cdef void tlb_flush_page(CpuState* cpu, gva_t gva) noexcept nogil
cdef void tlb_flush_pcid(CpuState* cpu, uint32_t pcid) noexcept nogil
cdef void tlb_flush_nonglobal(CpuState* cpu) noexcept nogil

# --- CORE, core/blocks.pxi: what SYSTEM's fragments call
# after a store of this vCPU into a frame with decoded code: drop its blocks there, tell the others (space_wrote_code)
cdef void code_written(CpuState* cpu, gpa_t gpa, uint32_t size) noexcept nogil

# --- APIC, core/space.pxi: the address space
# a port owned by a device: True. Nobody there: False, reads gave all ones. Counted either way.
cdef bint io_port(CpuState* cpu, uint32_t port, void* value, uint32_t size, bint is_write) noexcept nogil
# a frame that is no RAM, 1..64 bytes: True: served. False: EPT violation, the space has no open bus. Counted either way.
cdef bint io_frame(CpuState* cpu, uint64_t gpa, void* value, uint32_t size, bint is_write) noexcept nogil
# all other vCPUs of the space stand parked between these two; cpu NULL: the caller is no vCPU. Not nested.
cdef bint space_stop_others(Space* space, CpuState* cpu) noexcept nogil
cdef void space_resume_others(Space* space, CpuState* cpu, bint entered) noexcept nogil
# before the first block of a frame is decoded; may wait for others
cdef void space_decoding(CpuState* cpu, uint64_t gfn) noexcept nogil
# this vCPU has no block of the frame any more
cdef void space_code_gone(CpuState* cpu, uint64_t gfn) noexcept nogil
# after a vCPU stored into a code page: all OTHER vCPUs that decoded there are told (ATTN_CODE_CHANGED)
cdef void space_wrote_code(Space* space, uint64_t gfn, CpuState* cpu) noexcept nogil
# on ATTN_CODE_CHANGED: fills gfns[CODE_QUEUE], returns their number, or CODE_QUEUE_ALL: drop every block
cdef uint32_t code_queue_take(CpuState* cpu, uint64_t* gfns) noexcept nogil
# RAM as a device reads and writes it: dirty log, code pages of all vCPUs. False: not all of it is RAM, nothing done.
cdef bint space_read(Space* space, uint64_t gpa, void* data, uint64_t size) noexcept nogil
cdef bint space_write(Space* space, uint64_t gpa, const void* data, uint64_t size) noexcept nogil

# --- APIC, core/clock.pxi: guest time. The loop: clock_begin; clock_arm whenever budget < BLOCK_INSNS (virtual: <= 0,
#     stepping single instructions down to 0 before); clock_end on every way out of run()
cdef int64_t clock_now(CpuState* cpu) noexcept nogil
# what RDTSC reads, without the VMCS's offset
cdef uint64_t clock_tsc(CpuState* cpu) noexcept nogil
# deadline_ns: guest time or TIMER_NEVER; quantum: retired instructions or -1
cdef void clock_begin(CpuState* cpu, int64_t deadline_ns, int64_t quantum) noexcept nogil
cdef void clock_end(CpuState* cpu) noexcept nogil
# fires the APIC timer if it is due (apic_pending sees it then) and sets the budget; True: leave, EXIT_REASON_PREEMPTION_TIMER
cdef bint clock_arm(CpuState* cpu) noexcept nogil

# --- APIC, core/apic.pxi. The loop looks at apic_pending each time round while IF is set and nothing is blocked:
#     so whatever sets IF or lowers the TPR returns to the loop. ATTN_INTERRUPT is cleared before looking.
# vector that may be delivered now (IF and shadows are the caller's), INTERRUPT_PIC: the PIC's, -1: none
cdef int apic_pending(CpuState* cpu) noexcept nogil
# takes what apic_pending saw: IRR -> ISR, or INTA; -1: gone meanwhile
cdef int apic_acknowledge(CpuState* cpu) noexcept nogil
# one NMI is waiting and is taken by this call (ATTN_NMI)
cdef bint apic_take_nmi(CpuState* cpu) noexcept nogil
# INIT and SIPI (ATTN_INIT): resets or starts this vCPU; the state is ready for the loop to go on
cdef void apic_take_init(CpuState* cpu) noexcept nogil
# activity is not active: sleep (real) until something is to do. 0: look again; else the exit reason to leave with
cdef uint32_t cpu_wait(CpuState* cpu) noexcept nogil
# the guest executed PAUSE: now and then, let the vCPU that it waits for have the host's processor
cdef void cpu_spins(CpuState* cpu) noexcept nogil
# IA32_APIC_BASE, TSC, TSC_ADJUST, TSC_DEADLINE, x2APIC's and KVM's MSRs. False: #GP(0)
cdef bint apic_owns_msr(uint32_t msr) noexcept nogil
cdef bint apic_rdmsr(CpuState* cpu, uint32_t msr, uint64_t* value) noexcept nogil
cdef bint apic_wrmsr(CpuState* cpu, uint32_t msr, uint64_t value) noexcept nogil
cdef uint64_t apic_cr8(CpuState* cpu) noexcept nogil
cdef void apic_set_cr8(CpuState* cpu, uint64_t value) noexcept nogil
# CPUID 0x40000000..0x400000FF: eax, ebx, ecx, edx
cdef void kvm_cpuid(CpuState* cpu, uint32_t leaf, uint32_t* out) noexcept nogil

# --- APIC, core/smp.pxi
# architectural state after RESET, or after INIT (SDM 3A table 10-1); ends with mode_update and an empty TLB
cdef void cpu_power_up(CpuState* cpu, bint init) noexcept nogil
