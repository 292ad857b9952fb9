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
