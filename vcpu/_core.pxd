# cython: language_level=3
"""What vcpu._core exports to the handler extensions (cimport; plain C calls). One section per owner.

Owns:    signatures. Each function is defined in the fragment named above it.
Never:   a function that takes the GIL on an instruction's path: all noexcept nogil.
"""
from vcpu.core.state cimport CpuState, Op, Segment, gva_t, gpa_t, uint8_t, uint16_t, uint32_t, uint64_t, int64_t

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
