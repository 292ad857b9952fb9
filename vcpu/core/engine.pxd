# cython: language_level=3
"""What handlers share with the engine: registers, flags, the way to the next block. Owner: CORE.

Owns:    blocks and links in memory, the retired count, the bits of the mode key.
Never:   memory access (mem.pxd), faults (exception.pxi).
Threads: the vCPU's own.

A block:    Block | op 0 | op 1 | … | last op | Link taken | Link fall-through
A handler ends with `op[1].fn(cpu, op + 1)`, or with one of
    finish_op(cpu, op)        the op retired, rip behind it; the caller returns to the loop
    leave_to(cpu, op, rip)    the op retired and went to rip; the caller returns to the loop
    branch_to(cpu, op, rip)   the op retired and went to rip in the same mode; as the last act: a tail call
Inside a block nothing is counted: retired instructions are budget_start - budget + op.index.
"""
from vcpu.core.state cimport (CpuState, Op, handler_t, Space, gpa_t, uint8_t, uint16_t, uint32_t, uint64_t, int8_t,
                              int16_t, int32_t, int64_t, SLOT_RIP)
from vcpu.core.tlb cimport probe_exec
from vcpu._core cimport next_block, next_block_from

cdef enum:
    BLOCK_INSNS = 64             # at most, in one block: the loop looks when the budget is below
    # mode key: all that decoding depends on; mode_update (seg.pxi) keeps it
    KEY_CODE16 = 0
    KEY_CODE32 = 1
    KEY_CODE64 = 2
    KEY_CODE = 3                 # mask of the three
    KEY_SS32 = 4                 # SS.B: the stack pointer is ESP
    KEY_CPL_SHIFT = 3            # two bits
    KEY_PE = 32
    KEY_VM86 = 64
    KEY_EM = 128                 # CR0.EM: x87 is #NM, MMX and SSE are #UD
    KEY_TS = 256                 # CR0.TS: x87, MMX, SSE are #NM
    KEY_MP = 512                 # CR0.MP: with TS, WAIT is #NM
    KEY_NO_SSE = 1024            # not CR4.OSFXSR: SSE is #UD
    KEY_FLAT = 2048              # 32-bit code, CS SS DS ES are all of 4 GiB from 0: the loop sets it, mode_update clears it
    KEY_STEP = 1 << 15           # one instruction, then the loop
    # aflags, as `lahf; seto al` leave them
    AF_CF = 1 << 8
    AF_PF = 1 << 10
    AF_AF = 1 << 12
    AF_ZF = 1 << 14
    AF_SF = 1 << 15
    AF_OF = 1
    # rflags
    RF_CF = 1
    RF_PF = 4
    RF_AF = 16
    RF_ZF = 64
    RF_SF = 128
    RF_TF = 1 << 8
    RF_IF = 1 << 9
    RF_DF = 1 << 10
    RF_OF = 1 << 11
    RF_IOPL = 3 << 12
    RF_NT = 1 << 14
    RF_RF = 1 << 16
    RF_VM = 1 << 17
    RF_AC = 1 << 18
    RF_VIF = 1 << 19
    RF_VIP = 1 << 20
    RF_ID = 1 << 21
    RF_ARITH = 0x8D5             # those in aflags

cdef struct Link:                # laid over an Op: where a block goes
    handler_t fn                 # op_link*: runs while target is the link itself
    uint64_t target              # first op of the next block, or the link itself
    int64_t delta                # from this block's first rip to the next one's
    # other page, or an indirect branch's former target: first op there, while its first byte is at this host address
    uint64_t far_op
    const uint8_t* far_host

cdef struct Block:
    uint8_t* host                # address of its first byte: the key, with mode_key
    uint32_t mode_key
    uint16_t n_ops               # without the links
    uint16_t n_insns
    uint16_t n_bytes
    uint16_t crosses             # its one instruction goes on in the next page
    uint32_t pad
    uint8_t* host2               # where, then
    Block* hash_next
    Block* page_next[2]
    uint64_t gfn[2]
    Op ops[1]

cdef struct CodeCache:           # the decoded code of one vCPU
    Block** table
    Block** pages                # [space.frames]: blocks with bytes there
    uint8_t* arena
    uint64_t arena_size
    uint64_t arena_used
    uint64_t arena_limit         # how much of it is used before it is emptied
    uint64_t emptied_at          # cpu.retired then
    uint64_t decoded             # counters, for stats
    uint64_t dropped
    uint64_t flushed


cdef inline uint8_t* reg8(CpuState* cpu, uint32_t offset) noexcept nogil:
    return <uint8_t*>cpu + offset


cdef inline uint16_t* reg16(CpuState* cpu, uint32_t offset) noexcept nogil:
    return <uint16_t*>(<uint8_t*>cpu + offset)


cdef inline uint32_t* reg32(CpuState* cpu, uint32_t offset) noexcept nogil:
    """For reading. A write of a 32-bit register clears the upper half: use reg64."""
    return <uint32_t*>(<uint8_t*>cpu + offset)


cdef inline uint64_t* reg64(CpuState* cpu, uint32_t offset) noexcept nogil:
    return <uint64_t*>(<uint8_t*>cpu + offset)


cdef inline uint64_t ea(CpuState* cpu, Op* op) noexcept nogil:
    """Linear address of the memory operand."""
    return reg64(cpu, op.b)[0] + (reg64(cpu, op.x)[0] << op.scale) + <uint64_t>op.disp


cdef inline uint64_t op_rip(CpuState* cpu, Op* op) noexcept nogil:
    """rip of the instruction."""
    return cpu.regs[17] + op.offset


cdef inline uint64_t op_next_rip(CpuState* cpu, Op* op) noexcept nogil:
    """rip behind the instruction, truncated as the mode wants."""
    cdef uint64_t rip = cpu.regs[17] + op.offset + op.length
    return rip if cpu.code64 else (rip & 0xFFFFFFFFU if cpu.mode_key & KEY_CODE == KEY_CODE32 else rip & 0xFFFF)


cdef inline uint64_t retired_now(CpuState* cpu, Op* op) noexcept nogil:
    """Instructions retired before op."""
    return cpu.retired + <uint64_t>(cpu.budget_start - cpu.budget) + op.index


cdef inline void sync_retired(CpuState* cpu) noexcept nogil:
    """Between blocks: make cpu.retired exact."""
    cpu.retired += <uint64_t>(cpu.budget_start - cpu.budget)
    cpu.budget_start = cpu.budget
    cpu.op_index = 0


cdef inline void set_budget(CpuState* cpu, int64_t budget) noexcept nogil:
    """Instructions until the loop must look, counted from the block boundary reached last."""
    sync_retired(cpu)
    cpu.budget = budget
    cpu.budget_start = budget


cdef inline void op_rewind(CpuState* cpu, Op* op) noexcept nogil:
    """op did not retire, those before it did: rip and count say so. The handler returns to the loop afterwards."""
    cpu.rip = op_rip(cpu, op)
    cpu.budget -= op.index
    sync_retired(cpu)


cdef inline void leave_to(CpuState* cpu, Op* op, uint64_t rip) noexcept nogil:
    cpu.rip = rip
    cpu.budget -= op.index + 1
    sync_retired(cpu)


cdef inline void finish_op(CpuState* cpu, Op* op) noexcept nogil:
    leave_to(cpu, op, op_next_rip(cpu, op))


cdef inline void branch_to(CpuState* cpu, Op* op, uint64_t rip) noexcept nogil:
    cpu.rip = rip
    cpu.budget -= op.index + 1
    next_block(cpu)


cdef inline void branch_indirect(CpuState* cpu, Op* op, uint64_t rip) noexcept nogil:
    """As branch_to, for the last op of a block of 64-bit code: its two links remember where it went before."""
    cdef Link* link = <Link*>(op + 1)
    cdef uint8_t* host
    cpu.budget -= op.index + 1
    if cpu.budget < BLOCK_INSNS or cpu.attention != 0:
        cpu.rip = rip
        return
    host = probe_exec(cpu, rip)
    cpu.regs[17] = rip
    if host == link.far_host and host != NULL:
        (<Op*>link.far_op).fn(cpu, <Op*>link.far_op)
        return
    link += 1
    if host == link.far_host and host != NULL:
        (<Op*>link.far_op).fn(cpu, <Op*>link.far_op)
        return
    next_block_from(cpu, op)


cdef inline void chain(CpuState* cpu, Link* link, uint32_t retired) noexcept nogil:
    """Go where link goes, after `retired` instructions of this block."""
    cpu.regs[17] += <uint64_t>link.delta
    cpu.budget -= retired
    if cpu.budget < BLOCK_INSNS or cpu.attention != 0:
        cpu.rip = cpu.regs[17]
        return
    (<Op*>link.target).fn(cpu, <Op*>link.target)


cdef inline uint64_t flags_get(CpuState* cpu) noexcept nogil:
    """RFLAGS, composed."""
    cdef uint32_t a = cpu.aflags
    return cpu.rflags_sys | (a >> 8 & 0xD5) | (a & 1) << 11


cdef inline void flags_set(CpuState* cpu, uint64_t value, uint64_t mask) noexcept nogil:
    """Write the flags of mask. Whoever changes TF, IF, VM or AC also tells the loop (mode_update, attention)."""
    cdef uint64_t flags = (flags_get(cpu) & ~mask) | (value & mask)
    cpu.aflags = <uint32_t>((flags & 0xD5) << 8 | (flags >> 11 & 1))
    cpu.rflags_sys = <uint32_t>(flags & ~<uint64_t>RF_ARITH) | 2


cdef inline bint canonical(uint64_t gva) noexcept nogil:
    return <uint64_t>(<int64_t>(gva << 16) >> 16) == gva
