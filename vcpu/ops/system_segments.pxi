"""Segment registers, far transfers, descriptor tables. Owner: SYSTEM."""


cdef void op_mov_from_sreg(CpuState* cpu, Op* op) noexcept nogil:
    if op.r > SEG_GS:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if not store_word(cpu, op, cpu.seg[op.r].selector):
        return
    op[1].fn(cpu, op + 1)


cdef void segment_loaded(CpuState* cpu, Op* op, uint32_t which) noexcept nogil:
    """SS: the next instruction is undisturbed (SDM 2B MOV)."""
    mode_update(cpu)
    finish_op(cpu, op)
    if which == SEG_SS:
        cpu.interruptibility |= BLOCKED_BY_MOV_SS
        attend(cpu, ATTN_SHADOW)


cdef void op_mov_to_sreg(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint16_t selector = 0
    if op.r > SEG_GS or op.r == SEG_CS:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if not read_word(cpu, op, &selector):
        return
    if not load_segment(cpu, op.r, selector):
        fault_refused(cpu, op)
        return
    segment_loaded(cpu, op, op.r)


cdef uint32_t sreg_of_opcode(Op* op) noexcept nogil:
    """06 0E 16 1E: bits 4:3; 0F A0/A1, A8/A9: FS, GS. op.modrm is the opcode byte."""
    if op.modrm >= 0xA0:
        return SEG_FS if op.modrm < 0xA8 else SEG_GS
    return op.modrm >> 3 & 3


cdef void op_push_sreg(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t offset = (cpu.regs[4] - op.opsize) & stack_mask(cpu)
    cdef gva_t linear = 0
    if not seg_linear(cpu, SEG_SS, offset, op.opsize, True, &linear):
        fault_refused(cpu, op)
        return
    if not mem_write(cpu, op, linear, cpu.seg[sreg_of_opcode(op)].selector, op.opsize):
        return
    set_stack(cpu, offset)
    finish_op(cpu, op)


cdef void op_pop_sreg(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t which = sreg_of_opcode(op)
    cdef uint64_t sp = cpu.regs[4]
    cdef gva_t linear = 0
    cdef uint8_t* p
    cdef uint16_t selector
    if not seg_linear(cpu, SEG_SS, sp & stack_mask(cpu), op.opsize, False, &linear):
        fault_refused(cpu, op)
        return
    p = mem_read(cpu, op, linear, op.opsize)
    if p == NULL:
        return
    selector = (<uint16_t*>p)[0]
    # SP moves by the old stack's width, also where SS itself is popped
    sp = sp + op.opsize
    if which == SEG_SS:
        linear = stack_mask(cpu)
        if not load_segment(cpu, which, selector):
            fault_refused(cpu, op)
            return
        cpu.regs[4] = (cpu.regs[4] & ~linear) | (sp & linear)
    else:
        if not load_segment(cpu, which, selector):
            fault_refused(cpu, op)
            return
        set_stack(cpu, sp)
    segment_loaded(cpu, op, which)


cdef bint read_far_pointer(CpuState* cpu, Op* op, uint64_t* offset, uint16_t* selector) noexcept nogil:
    cdef uint8_t* p = mem_read(cpu, op, ea(cpu, op), op.opsize + 2)
    if p == NULL:
        return False
    offset[0] = 0
    memcpy(offset, p, op.opsize)
    memcpy(selector, p + op.opsize, 2)
    return True


cdef void load_far_pointer(CpuState* cpu, Op* op, uint32_t which) noexcept nogil:
    cdef uint64_t offset = 0
    cdef uint16_t selector = 0
    if not read_far_pointer(cpu, op, &offset, &selector):
        return
    if not load_segment(cpu, which, selector):
        fault_refused(cpu, op)
        return
    write_reg(cpu, op.r, offset, op.opsize)
    segment_loaded(cpu, op, which)


cdef void op_les(CpuState* cpu, Op* op) noexcept nogil:
    load_far_pointer(cpu, op, SEG_ES)


cdef void op_lds(CpuState* cpu, Op* op) noexcept nogil:
    load_far_pointer(cpu, op, SEG_DS)


cdef void op_lss(CpuState* cpu, Op* op) noexcept nogil:
    load_far_pointer(cpu, op, SEG_SS)


cdef void op_lfs(CpuState* cpu, Op* op) noexcept nogil:
    load_far_pointer(cpu, op, SEG_FS)


cdef void op_lgs(CpuState* cpu, Op* op) noexcept nogil:
    load_far_pointer(cpu, op, SEG_GS)


cdef void op_jmp_far_ptr(CpuState* cpu, Op* op) noexcept nogil:
    far_jump(cpu, op, <uint16_t>(op.imm >> 32), op.imm & 0xFFFFFFFFU)


cdef void op_call_far_ptr(CpuState* cpu, Op* op) noexcept nogil:
    far_call(cpu, op, <uint16_t>(op.imm >> 32), op.imm & 0xFFFFFFFFU, op.opsize)


cdef void op_jmp_far_m(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t offset = 0
    cdef uint16_t selector = 0
    if read_far_pointer(cpu, op, &offset, &selector):
        far_jump(cpu, op, selector, offset)


cdef void op_call_far_m(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t offset = 0
    cdef uint16_t selector = 0
    if read_far_pointer(cpu, op, &offset, &selector):
        far_call(cpu, op, selector, offset, op.opsize)


cdef void op_ret_far(CpuState* cpu, Op* op) noexcept nogil:
    far_return(cpu, op, op.opsize, <uint32_t>op.imm & 0xFFFF)


cdef void op_iret(CpuState* cpu, Op* op) noexcept nogil:
    iret(cpu, op, op.opsize)


cdef void op_int_n(CpuState* cpu, Op* op) noexcept nogil:
    """In virtual-8086 mode INT n needs IOPL 3 (SDM 3A 20.3, no VME)."""
    if cpu.rflags_sys & RF_VM and (cpu.rflags_sys & RF_IOPL) != RF_IOPL:
        fault(cpu, op, VECTOR_GP, 0)
        return
    soft_interrupt(cpu, op, <uint32_t>op.imm & 0xFF, EVENT_SOFT_INT)


cdef void op_int3(CpuState* cpu, Op* op) noexcept nogil:
    soft_interrupt(cpu, op, VECTOR_BP, EVENT_SOFT_EXCEPTION)


cdef void op_into(CpuState* cpu, Op* op) noexcept nogil:
    if cpu.aflags & AF_OF:
        soft_interrupt(cpu, op, VECTOR_OF, EVENT_SOFT_EXCEPTION)
    else:
        finish_op(cpu, op)


cdef void op_int1(CpuState* cpu, Op* op) noexcept nogil:
    soft_interrupt(cpu, op, VECTOR_DB, EVENT_INT1)


cdef void op_syscall(CpuState* cpu, Op* op) noexcept nogil:
    syscall(cpu, op)


cdef void op_sysret(CpuState* cpu, Op* op) noexcept nogil:
    sysret(cpu, op)


cdef void op_sysenter(CpuState* cpu, Op* op) noexcept nogil:
    sysenter(cpu, op)


cdef void op_sysexit(CpuState* cpu, Op* op) noexcept nogil:
    sysexit(cpu, op)


# --- descriptor tables

cdef bint umip_allows(CpuState* cpu, Op* op) noexcept nogil:
    """CR4.UMIP: SGDT, SIDT, SLDT, STR, SMSW are #GP(0) outside CPL 0."""
    if cpu.cr4 & CR4_UMIP and cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    return True


cdef bint table_exits(CpuState* cpu, Op* op, uint32_t reason, uint32_t identity) noexcept nogil:
    """Descriptor-table exiting; identity: bits 29:28 of the instruction information (SDM 3C tables 28-10, 28-11)."""
    if not (cpu.proc_controls & PROC_SECONDARY and cpu.proc2_controls & PROC2_DESCRIPTOR_TABLE):
        return False
    vm_exit_op(cpu, op, reason, 0)
    cpu.exit_instruction_info = identity << 28
    return True


cdef void op_sldt(CpuState* cpu, Op* op) noexcept nogil:
    if legacy_mode(cpu):
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if not umip_allows(cpu, op) or table_exits(cpu, op, EXIT_REASON_LDTR_TR, 0):
        return
    if store_word(cpu, op, cpu.seg[SEG_LDTR].selector):
        finish_op(cpu, op)


cdef void op_str(CpuState* cpu, Op* op) noexcept nogil:
    if legacy_mode(cpu):
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if not umip_allows(cpu, op) or table_exits(cpu, op, EXIT_REASON_LDTR_TR, 1):
        return
    if store_word(cpu, op, cpu.seg[SEG_TR].selector):
        finish_op(cpu, op)


cdef bint load_allowed(CpuState* cpu, Op* op) noexcept nogil:
    """LLDT, LTR: protected mode, CPL 0."""
    if legacy_mode(cpu):
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return False
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    return True


cdef void op_lldt(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint16_t selector = 0
    if not load_allowed(cpu, op) or table_exits(cpu, op, EXIT_REASON_LDTR_TR, 2) or not read_word(cpu, op, &selector):
        return
    if load_ldtr(cpu, selector, VECTOR_GP):
        finish_op(cpu, op)
    else:
        fault_refused(cpu, op)


cdef void op_ltr(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint16_t selector = 0
    if not load_allowed(cpu, op) or table_exits(cpu, op, EXIT_REASON_LDTR_TR, 3) or not read_word(cpu, op, &selector):
        return
    if load_tr(cpu, selector):
        finish_op(cpu, op)
    else:
        fault_refused(cpu, op)


cdef void store_table(CpuState* cpu, Op* op, uint64_t base, uint32_t limit, uint32_t identity) noexcept nogil:
    """SGDT and SIDT: 2 bytes of limit, 4 or 8 of base."""
    cdef uint8_t image[10]
    cdef uint16_t word = <uint16_t>limit
    if not umip_allows(cpu, op) or table_exits(cpu, op, EXIT_REASON_GDTR_IDTR, identity):
        return
    memcpy(image, &word, 2)
    memcpy(image + 2, &base, 8)
    if mem_write_buf(cpu, op, ea(cpu, op), image, 10 if cpu.code64 else 6):
        finish_op(cpu, op)


cdef void op_sgdt(CpuState* cpu, Op* op) noexcept nogil:
    store_table(cpu, op, cpu.gdtr_base, cpu.gdtr_limit, 0)


cdef void op_sidt(CpuState* cpu, Op* op) noexcept nogil:
    store_table(cpu, op, cpu.idtr_base, cpu.idtr_limit, 1)


cdef bint load_table(CpuState* cpu, Op* op, uint64_t* base, uint32_t* limit, uint32_t identity) noexcept nogil:
    """LGDT and LIDT; with a 16-bit operand the base has 24 bits."""
    cdef uint8_t* p
    cdef uint64_t address = 0
    if table_exits(cpu, op, EXIT_REASON_GDTR_IDTR, identity):
        return False
    p = mem_read(cpu, op, ea(cpu, op), 10 if cpu.code64 else 6)
    if p == NULL:
        return False
    memcpy(&address, p + 2, 8 if cpu.code64 else 4)
    if cpu.code64 and not canonical(address):
        fault(cpu, op, VECTOR_GP, 0)
        return False
    if op.opsize == 2 and not cpu.code64:
        address &= 0xFFFFFF
    limit[0] = (<uint16_t*>p)[0]
    base[0] = address
    return True


cdef void op_lgdt(CpuState* cpu, Op* op) noexcept nogil:
    if load_table(cpu, op, &cpu.gdtr_base, &cpu.gdtr_limit, 2):
        finish_op(cpu, op)


cdef void op_lidt(CpuState* cpu, Op* op) noexcept nogil:
    if load_table(cpu, op, &cpu.idtr_base, &cpu.idtr_limit, 3):
        finish_op(cpu, op)


# --- looking at descriptors

cdef bint look_at(CpuState* cpu, Op* op, uint64_t* d, int* seen) noexcept nogil:
    """The descriptor of a selector operand. seen: 1 there, 0 not (ZF = 0). False: a fault was delivered."""
    cdef uint16_t selector = 0
    seen[0] = 0
    if legacy_mode(cpu):
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return False
    if not read_word(cpu, op, &selector):
        return False
    if not selector & 0xFFFC:
        return True
    if not read_descriptor(cpu, selector, VECTOR_GP, 0, d):
        if cpu.pf_vector == VECTOR_PF:
            fault_refused(cpu, op)
            return False
        return True
    seen[0] = 1
    # privilege: conforming code is open to all
    if (d[0] >> 40 & (AR_S | AR_CODE | AR_EXPAND)) != (AR_S | AR_CODE | AR_EXPAND):
        if (d[0] >> 45 & 3) < cpu.cpl or (d[0] >> 45 & 3) < (selector & 3u):
            seen[0] = 0
    return True


cdef bint type_is_seen(CpuState* cpu, uint64_t d, bint limit) noexcept nogil:
    """Types that LAR (limit: LSL) knows (SDM 2A LAR table 3-53, LSL table 3-56)."""
    cdef uint32_t type_ = d >> 40 & 0x1F
    if type_ & AR_S:
        return True
    if type_ in (TYPE_LDT, TYPE_TSS, TYPE_TSS_BUSY):
        return True
    if type_ in (TYPE_TSS16, TYPE_TSS16_BUSY):
        return not cpu.long_mode
    if limit:
        return False
    return type_ == TYPE_CALL or (type_ in (TYPE_CALL16, TYPE_TASK) and not cpu.long_mode)


cdef void op_lar(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t d = 0
    cdef int seen = 0
    if not look_at(cpu, op, &d, &seen):
        return
    if seen and type_is_seen(cpu, d, False):
        write_reg(cpu, op.r, d >> 32 & 0xF0FF00 if op.opsize != 2 else d >> 32 & 0xFF00, op.opsize)
        set_zf(cpu, True)
    else:
        set_zf(cpu, False)
    finish_op(cpu, op)


cdef void op_lsl(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t d = 0
    cdef uint64_t limit
    cdef int seen = 0
    if not look_at(cpu, op, &d, &seen):
        return
    if seen and type_is_seen(cpu, d, True):
        limit = (d & 0xFFFF) | (d >> 32 & 0xF0000)
        if d >> 55 & 1:
            limit = limit << 12 | 0xFFF
        write_reg(cpu, op.r, limit, op.opsize)
        set_zf(cpu, True)
    else:
        set_zf(cpu, False)
    finish_op(cpu, op)


cdef void verify(CpuState* cpu, Op* op, bint write) noexcept nogil:
    cdef uint64_t d = 0
    cdef uint32_t rights
    cdef int seen = 0
    if not look_at(cpu, op, &d, &seen):
        return
    rights = <uint32_t>(d >> 40)
    if not rights & AR_S:
        seen = 0
    elif write:
        seen = seen and (rights & (AR_CODE | AR_WRITE)) == AR_WRITE
    elif rights & AR_CODE and not rights & AR_WRITE:
        seen = 0
    set_zf(cpu, seen != 0)
    finish_op(cpu, op)


cdef void op_verr(CpuState* cpu, Op* op) noexcept nogil:
    verify(cpu, op, False)


cdef void op_verw(CpuState* cpu, Op* op) noexcept nogil:
    verify(cpu, op, True)


cdef void op_arpl(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint16_t selector = 0
    cdef uint16_t rpl = reg16(cpu, op.r)[0] & 3
    if legacy_mode(cpu):
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if op.flags & OPF_MEM and not mem_check(cpu, op, ea(cpu, op), 2, True):
        return
    if not read_word(cpu, op, &selector):
        return
    if (selector & 3) < rpl:
        selector = (selector & 0xFFFC) | rpl
        if op.flags & OPF_MEM:
            if not mem_write(cpu, op, ea(cpu, op), selector, 2):
                return
        else:
            reg16(cpu, op.b)[0] = selector
        set_zf(cpu, True)
    else:
        set_zf(cpu, False)
    finish_op(cpu, op)


# --- FS and GS bases

cdef void op_swapgs(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t base = cpu.seg[SEG_GS].base
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.seg[SEG_GS].base = cpu.kernel_gs_base
    cpu.regs[SLOT_GS >> 3] = cpu.kernel_gs_base
    cpu.kernel_gs_base = base
    op[1].fn(cpu, op + 1)


cdef void op_rdbase(CpuState* cpu, Op* op) noexcept nogil:
    """RDFSBASE /0, RDGSBASE /1."""
    if not cpu.cr4 & CR4_FSGSBASE:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    write_reg(cpu, op.b, cpu.seg[SEG_FS + (op.modrm >> 3 & 1)].base, op.opsize)
    op[1].fn(cpu, op + 1)


cdef void op_wrbase(CpuState* cpu, Op* op) noexcept nogil:
    """WRFSBASE /2, WRGSBASE /3."""
    cdef uint32_t which = SEG_FS + (op.modrm >> 3 & 1)
    cdef uint64_t base = truncate(reg64(cpu, op.b)[0], op.opsize)
    if not cpu.cr4 & CR4_FSGSBASE:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if not canonical(base):
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.seg[which].base = base
    cpu.regs[(SLOT_FS >> 3) + (which - SEG_FS)] = base
    op[1].fn(cpu, op + 1)
