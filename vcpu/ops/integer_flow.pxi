# Owner: CORE. Included by the generated _integer.pyx: branches, calls, and the stack.
#
# In 64-bit mode direct branches follow the block's links: op + 1 where it is taken, op + 2 where it is not.
# Elsewhere each checks CS.limit itself and looks the target up.


# ------------------------------------------------------------------ 64-bit mode

cdef void op_jmp_rel(CpuState* cpu, Op* op) noexcept nogil:
    chain(cpu, <Link*>(op + 1), op.index + 1)


cdef void op_call_rel(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t gva = cpu.regs[4] - 8
    cdef TlbEntry* entry = tlb_entry(cpu, gva)
    if (gva ^ entry.write_tag) > <uint64_t>(PAGE_SIZE - 8):
        slow_call_rel(cpu, op)
        return
    (<uint64_t*>(gva + entry.addend))[0] = op_rip(cpu, op) + op.length
    cpu.regs[4] = gva
    chain(cpu, <Link*>(op + 1), op.index + 1)


cdef void slow_call_rel(CpuState* cpu, Op* op) noexcept nogil:
    if not mem_write(cpu, op, cpu.regs[4] - 8, op_rip(cpu, op) + op.length, 8):
        return
    cpu.regs[4] -= 8
    chain(cpu, <Link*>(op + 1), op.index + 1)


cdef void op_ret(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t gva = cpu.regs[4]
    cdef TlbEntry* entry = tlb_entry(cpu, gva)
    cdef uint64_t target
    if (gva ^ entry.read_tag) > <uint64_t>(PAGE_SIZE - 8):
        slow_ret(cpu, op)
        return
    target = (<uint64_t*>(gva + entry.addend))[0]
    if not canonical(target):
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.regs[4] = gva + 8
    branch_indirect(cpu, op, target)


cdef void slow_ret(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p = mem_read(cpu, op, cpu.regs[4], 8)
    cdef uint64_t target
    if p == NULL:
        return
    target = (<uint64_t*>p)[0]
    if not canonical(target):
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.regs[4] += 8
    branch_indirect(cpu, op, target)


cdef void op_ret_imm(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p = mem_read(cpu, op, cpu.regs[4], 8)
    cdef uint64_t target
    if p == NULL:
        return
    target = (<uint64_t*>p)[0]
    if not canonical(target):
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.regs[4] += 8 + op.imm
    branch_indirect(cpu, op, target)


cdef inline bint loop_taken(CpuState* cpu, Op* op) noexcept nogil:
    """LOOPcc: count down, and the condition of the opcode: E0 not zero, E1 zero, E2 none."""
    cdef uint64_t mask = address_mask(op)
    cdef uint64_t count = (cpu.regs[1] - 1) & mask
    set_masked(&cpu.regs[1], count, mask)
    if count == 0:
        return False
    return op.modrm == 0xE2 or (op.modrm == 0xE1) == (cpu.aflags & AF_ZF != 0)


cdef void op_loop(CpuState* cpu, Op* op) noexcept nogil:
    if loop_taken(cpu, op):
        chain(cpu, <Link*>(op + 1), op.index + 1)
    else:
        chain(cpu, <Link*>(op + 2), op.index + 1)


cdef void op_jcxz(CpuState* cpu, Op* op) noexcept nogil:
    if cpu.regs[1] & address_mask(op) == 0:
        chain(cpu, <Link*>(op + 1), op.index + 1)
    else:
        chain(cpu, <Link*>(op + 2), op.index + 1)


cdef void op_push_imm(CpuState* cpu, Op* op) noexcept nogil:
    if not mem_write(cpu, op, cpu.regs[4] - op.opsize, op.imm, op.opsize):
        return
    cpu.regs[4] -= op.opsize
    op[1].fn(cpu, op + 1)


cdef void op_pushf(CpuState* cpu, Op* op) noexcept nogil:
    if not mem_write(cpu, op, cpu.regs[4] - op.opsize, flags_get(cpu) & ~<uint64_t>(RF_RF | RF_VM), op.opsize):
        return
    cpu.regs[4] -= op.opsize
    op[1].fn(cpu, op + 1)


cdef inline bint flags_need_loop(uint32_t before, uint32_t after) noexcept nogil:
    """A change that the loop must see: IF set (an interrupt may wait), TF, AC."""
    return (before ^ after) & (RF_TF | RF_AC) or after & ~before & RF_IF


cdef void op_popf(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p = mem_read(cpu, op, cpu.regs[4], op.opsize)
    cdef uint32_t before = cpu.rflags_sys
    if p == NULL:
        return
    load_flags(cpu, (<uint64_t*>p)[0] if op.opsize == 8 else (<uint16_t*>p)[0], op.opsize, cpu.cpl)
    if op.opsize == 8:
        cpu.rflags_sys &= ~<uint32_t>RF_RF
    cpu.regs[4] += op.opsize
    if flags_need_loop(before, cpu.rflags_sys):
        mode_update(cpu)
        finish_op(cpu, op)
        return
    op[1].fn(cpu, op + 1)


cdef void op_leave(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p = mem_read(cpu, op, cpu.regs[5], op.opsize)
    if p == NULL:
        return
    cpu.regs[4] = cpu.regs[5] + op.opsize
    set_sized(cpu, 40, (<uint64_t*>p)[0] if op.opsize == 8 else (<uint16_t*>p)[0], op.opsize)
    op[1].fn(cpu, op + 1)


cdef bint enter_frames(CpuState* cpu, Op* op, uint32_t level, uint64_t frame) noexcept nogil:
    """ENTER's copies of the outer frames' pointers, below the saved rBP; in 64-bit mode."""
    cdef uint64_t from_, to = frame
    cdef uint32_t i, size = op.opsize
    cdef uint8_t* p
    for i in range(1, level):
        from_ = cpu.regs[5] - i * size
        to -= size
        p = mem_read(cpu, op, from_, size)
        if p == NULL or not mem_write(cpu, op, to, (<uint64_t*>p)[0] if size == 8 else (<uint16_t*>p)[0], size):
            return False
    return level == 0 or mem_write(cpu, op, to - size, frame, size)


cdef void op_enter(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t level = <uint32_t>(op.imm >> 16) & 31
    cdef uint64_t frame = cpu.regs[4] - op.opsize
    cdef uint64_t top = frame - level * op.opsize - (op.imm & 0xFFFF)
    if not mem_check(cpu, op, top, op.opsize, True):
        return
    if not mem_write(cpu, op, frame, cpu.regs[5], op.opsize) or not enter_frames(cpu, op, level, frame):
        return
    cpu.regs[4] = top
    set_sized(cpu, 40, frame, op.opsize)
    op[1].fn(cpu, op + 1)


# ------------------------------------------------------------------ 16- and 32-bit code

cdef inline uint64_t size_mask(uint32_t size) noexcept nogil:
    return 0xFFFF if size == 2 else 0xFFFFFFFFU


cdef inline bint legacy_target(CpuState* cpu, Op* op, uint64_t target) noexcept nogil:
    if target <= cpu.seg[SEG_CS].limit:
        return True
    fault(cpu, op, VECTOR_GP, 0)
    return False


cdef inline uint64_t relative(CpuState* cpu, Op* op) noexcept nogil:
    return (op_rip(cpu, op) + op.length + op.imm) & size_mask(op.opsize)


cdef void legacy_branch(CpuState* cpu, Op* op, bint taken) noexcept nogil:
    cdef uint64_t target = relative(cpu, op) if taken else op_next_rip(cpu, op)
    if taken and not legacy_target(cpu, op, target):
        return
    branch_to(cpu, op, target)


cdef void op_jcc_legacy(CpuState* cpu, Op* op) noexcept nogil:
    legacy_branch(cpu, op, condition(op.modrm & 15, cpu.aflags))


cdef void op_jmp_rel_legacy(CpuState* cpu, Op* op) noexcept nogil:
    legacy_branch(cpu, op, True)


cdef void op_loop_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t before = cpu.regs[1]
    cdef bint taken = loop_taken(cpu, op)
    if taken and relative(cpu, op) > cpu.seg[SEG_CS].limit:
        cpu.regs[1] = before
    legacy_branch(cpu, op, taken)


cdef void op_jcxz_legacy(CpuState* cpu, Op* op) noexcept nogil:
    legacy_branch(cpu, op, cpu.regs[1] & address_mask(op) == 0)


cdef void op_call_rel_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t target = relative(cpu, op)
    if not legacy_target(cpu, op, target) or not legacy_push(cpu, op, op_next_rip(cpu, op), op.opsize):
        return
    branch_to(cpu, op, target)


cdef void legacy_return(CpuState* cpu, Op* op, uint64_t release) noexcept nogil:
    if not legacy_peek(cpu, op, op.opsize, &cpu.regs[21]) or not legacy_target(cpu, op, cpu.regs[21]):
        return
    legacy_drop(cpu, op.opsize + release)
    branch_to(cpu, op, cpu.regs[21])


cdef void op_ret_legacy(CpuState* cpu, Op* op) noexcept nogil:
    legacy_return(cpu, op, 0)


cdef void op_ret_imm_legacy(CpuState* cpu, Op* op) noexcept nogil:
    legacy_return(cpu, op, op.imm)


cdef inline bint legacy_operand(CpuState* cpu, Op* op, uint64_t* value) noexcept nogil:
    """ModRM.rm for reading, 16 or 32 bits."""
    cdef uint8_t* p
    if not op.flags & OPF_MEM:
        value[0] = get_sized(cpu, op.b, op.opsize)
        return True
    p = mem_read(cpu, op, ea(cpu, op), op.opsize)
    if p == NULL:
        return False
    value[0] = (<uint32_t*>p)[0] if op.opsize == 4 else (<uint16_t*>p)[0]
    return True


cdef void op_jmp_rm_legacy(CpuState* cpu, Op* op) noexcept nogil:
    if not legacy_operand(cpu, op, &cpu.regs[21]) or not legacy_target(cpu, op, cpu.regs[21]):
        return
    branch_to(cpu, op, cpu.regs[21])


cdef void op_call_rm_legacy(CpuState* cpu, Op* op) noexcept nogil:
    if not legacy_operand(cpu, op, &cpu.regs[21]) or not legacy_target(cpu, op, cpu.regs[21]):
        return
    if not legacy_push(cpu, op, op_next_rip(cpu, op), op.opsize):
        return
    branch_to(cpu, op, cpu.regs[21])


cdef void op_push_o_legacy(CpuState* cpu, Op* op) noexcept nogil:
    if legacy_push(cpu, op, get_sized(cpu, op.b, op.opsize), op.opsize):
        op[1].fn(cpu, op + 1)


cdef void op_push_rm_legacy(CpuState* cpu, Op* op) noexcept nogil:
    if legacy_operand(cpu, op, &cpu.regs[21]) and legacy_push(cpu, op, cpu.regs[21], op.opsize):
        op[1].fn(cpu, op + 1)


cdef void op_push_imm_legacy(CpuState* cpu, Op* op) noexcept nogil:
    if legacy_push(cpu, op, op.imm, op.opsize):
        op[1].fn(cpu, op + 1)


cdef void op_pop_o_legacy(CpuState* cpu, Op* op) noexcept nogil:
    if not legacy_peek(cpu, op, op.opsize, &cpu.regs[21]):
        return
    legacy_drop(cpu, op.opsize)
    set_sized(cpu, op.b, cpu.regs[21], op.opsize)
    op[1].fn(cpu, op + 1)


cdef void op_pop_rm_legacy(CpuState* cpu, Op* op) noexcept nogil:
    # the step before computed the address, for ESP as it is after the pop, into SLOT_EA: peek works there too
    cdef uint64_t address = cpu.regs[20]
    if not legacy_peek(cpu, op, op.opsize, &cpu.regs[21]):
        return
    if op.flags & OPF_MEM:
        if not mem_write(cpu, op, address, cpu.regs[21], op.opsize):
            return
        legacy_drop(cpu, op.opsize)
    else:
        legacy_drop(cpu, op.opsize)
        set_sized(cpu, op.b, cpu.regs[21], op.opsize)
    op[1].fn(cpu, op + 1)


cdef inline bint flags_refused(CpuState* cpu, Op* op) noexcept nogil:
    """PUSHF and POPF in virtual-8086 mode need IOPL 3 (there is no VME)."""
    if not cpu.rflags_sys & RF_VM or cpu.rflags_sys & RF_IOPL == RF_IOPL:
        return False
    fault(cpu, op, VECTOR_GP, 0)
    return True


cdef void op_pushf_legacy(CpuState* cpu, Op* op) noexcept nogil:
    if flags_refused(cpu, op):
        return
    if legacy_push(cpu, op, flags_get(cpu) & ~<uint64_t>(RF_RF | RF_VM), op.opsize):
        op[1].fn(cpu, op + 1)


cdef void op_popf_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t before = cpu.rflags_sys
    if flags_refused(cpu, op) or not legacy_peek(cpu, op, op.opsize, &cpu.regs[21]):
        return
    legacy_drop(cpu, op.opsize)
    load_flags(cpu, cpu.regs[21], op.opsize, cpu.cpl)
    if op.opsize == 4:
        cpu.rflags_sys &= ~<uint32_t>RF_RF
    if flags_need_loop(before, cpu.rflags_sys):
        mode_update(cpu)
        finish_op(cpu, op)
        return
    op[1].fn(cpu, op + 1)


cdef void op_leave_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t before = cpu.regs[4]
    set_masked(&cpu.regs[4], cpu.regs[5], stack_mask(cpu))
    if not legacy_peek(cpu, op, op.opsize, &cpu.regs[21]):
        cpu.regs[4] = before
        return
    legacy_drop(cpu, op.opsize)
    set_sized(cpu, 40, cpu.regs[21], op.opsize)
    op[1].fn(cpu, op + 1)


cdef bint legacy_word(CpuState* cpu, Op* op, uint64_t sp, uint32_t size, bint write) noexcept nogil:
    """One word of the stack at sp to or from SLOT_TMP, the stack pointer untouched."""
    cdef uint8_t* p
    if not seg_linear(cpu, SEG_SS, sp & stack_mask(cpu), size, write, &cpu.regs[20]):
        fault_refused(cpu, op)
        return False
    if write:
        return mem_write(cpu, op, cpu.regs[20], cpu.regs[21], size)
    p = mem_read(cpu, op, cpu.regs[20], size)
    if p == NULL:
        return False
    cpu.regs[21] = (<uint32_t*>p)[0] if size == 4 else (<uint16_t*>p)[0]
    return True


cdef void op_enter_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t level = <uint32_t>(op.imm >> 16) & 31, size = op.opsize, i
    cdef uint64_t frame = cpu.regs[4] - size
    cdef uint64_t sp = frame
    # with a 16-bit stack and 32-bit operands EBP gets all of ESP, whose upper half SP's arithmetic leaves alone
    cdef uint64_t whole = (cpu.regs[4] & ~stack_mask(cpu)) | (frame & stack_mask(cpu))
    cpu.regs[21] = cpu.regs[5]
    if not legacy_word(cpu, op, frame, size, True):
        return
    for i in range(1, level):
        sp -= size
        if not legacy_word(cpu, op, cpu.regs[5] - i * size, size, False) or not legacy_word(cpu, op, sp, size, True):
            return
    if level:
        sp -= size
        cpu.regs[21] = whole
        if not legacy_word(cpu, op, sp, size, True):
            return
    sp -= op.imm & 0xFFFF
    if not seg_linear(cpu, SEG_SS, sp & stack_mask(cpu), size, True, &cpu.regs[20]):
        fault_refused(cpu, op)
        return
    if not mem_check(cpu, op, cpu.regs[20], size, True):
        return
    set_masked(&cpu.regs[4], sp, stack_mask(cpu))
    set_sized(cpu, 40, whole, size)
    op[1].fn(cpu, op + 1)


cdef void op_pusha(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t i, size = op.opsize
    # all eight or none: the lowest first, where a limit or a page would refuse
    for i in range(8):
        cpu.regs[21] = cpu.regs[7 - i]
        if not legacy_word(cpu, op, cpu.regs[4] - 8 * size + i * size, size, True):
            return
    set_masked(&cpu.regs[4], cpu.regs[4] - 8 * size, stack_mask(cpu))
    op[1].fn(cpu, op + 1)


cdef void op_popa(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t i, size = op.opsize
    cdef uint64_t values[8]
    for i in range(8):
        if not legacy_word(cpu, op, cpu.regs[4] + i * size, size, False):
            return
        values[i] = cpu.regs[21]
    for i in range(8):
        if i != 3:
            set_sized(cpu, (7 - i) * 8, values[i], size)
    legacy_drop(cpu, 8 * size)
    op[1].fn(cpu, op + 1)


cdef void op_bound(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p = mem_read(cpu, op, ea(cpu, op), 2 * op.opsize)
    cdef bint inside
    if p == NULL:
        return
    if op.opsize == 4:
        inside = (<int32_t*>p)[0] <= <int32_t>reg32(cpu, op.r)[0] and <int32_t>reg32(cpu, op.r)[0] <= (<int32_t*>p)[1]
    else:
        inside = (<int16_t*>p)[0] <= <int16_t>reg16(cpu, op.r)[0] and <int16_t>reg16(cpu, op.r)[0] <= (<int16_t*>p)[1]
    if not inside:
        fault(cpu, op, VECTOR_BR, NO_ERROR_CODE)
        return
    op[1].fn(cpu, op + 1)


# ------------------------------------------------------------------ flat 32-bit code (KEY_FLAT): links, and no segment to ask

cdef void op_flat_jmp_rel_legacy(CpuState* cpu, Op* op) noexcept nogil:
    chain(cpu, <Link*>(op + 1), op.index + 1)


cdef void op_flat_loop_legacy(CpuState* cpu, Op* op) noexcept nogil:
    op_loop(cpu, op)


cdef void op_flat_jcxz_legacy(CpuState* cpu, Op* op) noexcept nogil:
    op_jcxz(cpu, op)


cdef void op_flat_call_rel_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t gva = <uint32_t>(cpu.regs[4] - 4)
    cdef TlbEntry* entry = tlb_entry(cpu, gva)
    if (gva ^ entry.write_tag) > <uint64_t>(PAGE_SIZE - 4):
        op_call_rel_legacy(cpu, op)
        return
    (<uint32_t*>(gva + entry.addend))[0] = <uint32_t>(op_rip(cpu, op) + op.length)
    cpu.regs[4] = gva
    chain(cpu, <Link*>(op + 1), op.index + 1)


cdef void op_flat_ret_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t gva = <uint32_t>cpu.regs[4]
    cdef TlbEntry* entry = tlb_entry(cpu, gva)
    if (gva ^ entry.read_tag) > <uint64_t>(PAGE_SIZE - 4):
        op_ret_legacy(cpu, op)
        return
    cpu.regs[4] = <uint32_t>(gva + 4)
    branch_indirect(cpu, op, (<uint32_t*>(gva + entry.addend))[0])


cdef void op_flat_push_o_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t gva = <uint32_t>(cpu.regs[4] - 4)
    cdef TlbEntry* entry = tlb_entry(cpu, gva)
    if (gva ^ entry.write_tag) > <uint64_t>(PAGE_SIZE - 4):
        op_push_o_legacy(cpu, op)
        return
    (<uint32_t*>(gva + entry.addend))[0] = reg32(cpu, op.b)[0]
    cpu.regs[4] = gva
    op[1].fn(cpu, op + 1)


cdef void op_flat_pop_o_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t gva = <uint32_t>cpu.regs[4]
    cdef TlbEntry* entry = tlb_entry(cpu, gva)
    if (gva ^ entry.read_tag) > <uint64_t>(PAGE_SIZE - 4):
        op_pop_o_legacy(cpu, op)
        return
    cpu.regs[4] = <uint32_t>(gva + 4)
    reg64(cpu, op.b)[0] = (<uint32_t*>(gva + entry.addend))[0]
    op[1].fn(cpu, op + 1)
