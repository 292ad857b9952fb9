"""Far transfers: JMP, CALL, RET, IRET between segments, privileges and modes; fast system calls. Owner: SYSTEM.

Owns:    what SDM 2A/2B say under these mnemonics, and 3A 5.8.
Never:   changes a register before the last check passed.
Threads: the vCPU's own.

Each function of the outer layer (far_jump … sysret) either retires op and leaves to the target, or delivers op's fault.
"""


cdef inline uint64_t size_mask(uint32_t size) noexcept nogil:
    return 0xFFFF if size == 2 else 0xFFFFFFFFU if size == 4 else ~<uint64_t>0


cdef bint peek(CpuState* cpu, uint64_t delta, uint32_t size, uint64_t* value) noexcept nogil:
    """Read the current stack at SP + delta. Refuses #SS(0) at the limit."""
    cdef uint64_t offset = (cpu.regs[4] + delta) & sp_mask(cpu)
    cdef gva_t linear = 0
    value[0] = 0
    if not seg_linear(cpu, SEG_SS, offset, size, False, &linear):
        return False
    return sys_access(cpu, linear, <uint8_t*>value, size, 0)


cdef bint push_current(CpuState* cpu, uint64_t* sp, uint64_t value, uint32_t size) noexcept nogil:
    """Push at *sp on the current stack, with the current privilege."""
    cdef uint64_t mask = sp_mask(cpu)
    cdef uint64_t offset = (sp[0] - size) & mask
    cdef gva_t linear = 0
    if not seg_linear(cpu, SEG_SS, offset, size, True, &linear):
        return False
    if not sys_access(cpu, linear, <uint8_t*>&value, size, ACCESS_WRITE):
        return False
    sp[0] = (sp[0] & ~mask) | offset
    return True


cdef bint target_fits(CpuState* cpu, Segment* cs, uint64_t rip) noexcept nogil:
    """#GP(0) where rip is outside the segment, or not canonical in a 64-bit one."""
    if cpu.long_mode and cs.rights & AR_L:
        return True if canonical(rip) else refuse(cpu, VECTOR_GP, 0)
    return True if rip <= cs.limit else refuse(cpu, VECTOR_GP, 0)


cdef bint check_code(CpuState* cpu, Segment* cs, uint32_t rpl, uint32_t ext) noexcept nogil:
    """A code segment as the target of a direct far JMP or CALL at the current privilege."""
    cdef uint32_t code = (cs.selector & 0xFFFC) | ext
    cdef uint32_t dpl = (cs.rights & AR_DPL) >> 5
    if cs.rights & AR_EXPAND:
        if dpl > cpu.cpl:
            return refuse(cpu, VECTOR_GP, code)
    elif rpl > cpu.cpl or dpl != cpu.cpl:
        return refuse(cpu, VECTOR_GP, code)
    if cpu.long_mode and (cs.rights & (AR_L | AR_DB)) == (AR_L | AR_DB):
        return refuse(cpu, VECTOR_GP, code)
    if not cs.rights & AR_P:
        return refuse(cpu, VECTOR_NP, code)
    return True


cdef void enter_code(CpuState* cpu, Segment* cs, uint32_t cpl) noexcept nogil:
    cpu.seg[SEG_CS] = cs[0]
    cpu.seg[SEG_CS].selector = (cs.selector & 0xFFFC) | <uint16_t>cpl
    cpu.cpl = cpl
    mode_update(cpu)


cdef void far_real(CpuState* cpu, Op* op, uint16_t selector, uint64_t rip) noexcept nogil:
    load_real_segment(cpu, SEG_CS, selector)
    mode_update(cpu)
    leave_to(cpu, op, rip)


# --- JMP and CALL

cdef void far_jump(CpuState* cpu, Op* op, uint16_t selector, uint64_t rip) noexcept nogil:
    if not is_protected(cpu):
        if rip > cpu.seg[SEG_CS].limit:
            fault(cpu, op, VECTOR_GP, 0)
            return
        far_real(cpu, op, selector, rip)
        return
    if not jump_protected(cpu, op, selector, rip):
        fault_far(cpu, op)


cdef void fault_far(CpuState* cpu, Op* op) noexcept nogil:
    """A refused transfer. Behind a task switch's commit point the fault is the new task's."""
    if cpu.task_switched:
        cpu.task_switched = 0
        cpu.budget -= op.index + 1
        sync_retired(cpu)
        fault_at_rip(cpu, cpu.pf_vector, cpu.pf_error)
    else:
        fault_refused(cpu, op)


cdef bint jump_protected(CpuState* cpu, Op* op, uint16_t selector, uint64_t rip) noexcept nogil:
    cdef uint64_t d = 0
    cdef Segment cs
    cpu.task_switched = 0
    if not selector & 0xFFFC:
        return refuse(cpu, VECTOR_GP, 0)
    if not read_descriptor(cpu, selector, VECTOR_GP, 0, &d):
        return False
    unpack_descriptor(&cs, selector, d)
    if not cs.rights & AR_S:
        return jump_system(cpu, op, selector, d)
    if not cs.rights & AR_CODE:
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if not check_code(cpu, &cs, selector & 3, 0) or not target_fits(cpu, &cs, rip):
        return False
    if not mark_descriptor(cpu, selector, &d):
        return False
    cs.rights |= AR_ACCESSED
    enter_code(cpu, &cs, cpu.cpl)
    leave_to(cpu, op, rip)
    return True


cdef bint jump_system(CpuState* cpu, Op* op, uint16_t selector, uint64_t d) noexcept nogil:
    """JMP to a call gate, a task gate or a TSS."""
    cdef uint32_t type_ = <uint32_t>(d >> 40) & 0xF
    cdef Segment cs
    cdef uint64_t rip = 0
    if type_ in (TYPE_CALL, TYPE_CALL16):
        if not open_gate(cpu, selector, &cs, &rip):
            return False
        if not check_code(cpu, &cs, 0, 0) or not target_fits(cpu, &cs, rip):
            return False
        enter_code(cpu, &cs, cpu.cpl)
        leave_to(cpu, op, rip)
        return True
    return switch_by(cpu, op, selector, d, TASK_JUMP)


cdef bint switch_by(CpuState* cpu, Op* op, uint16_t selector, uint64_t d, uint32_t how) noexcept nogil:
    """JMP or CALL to a task gate or a TSS; neither exists in long mode."""
    cdef uint32_t type_ = <uint32_t>(d >> 40) & 0xF
    cdef uint32_t dpl = <uint32_t>(d >> 45) & 3
    cdef uint64_t start = op_rip(cpu, op)
    if cpu.long_mode or type_ not in (TYPE_TASK, TYPE_TSS, TYPE_TSS16):
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if dpl < cpu.cpl or dpl < (selector & 3u):
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if not (d >> 47) & 1:
        return refuse(cpu, VECTOR_NP, selector & 0xFFFC)
    if type_ == TYPE_TASK:
        selector = <uint16_t>(d >> 16)
    cpu.rip = op_next_rip(cpu, op)
    if not task_switch(cpu, selector, how, 0):
        if not cpu.task_switched:
            cpu.rip = start
        return False
    leave_to(cpu, op, cpu.rip)
    return True


cdef bint open_gate(CpuState* cpu, uint16_t selector, Segment* cs, uint64_t* rip) noexcept nogil:
    """A call gate: checked, its code segment unpacked into cs with the gate's selector."""
    cdef uint64_t gate[2]
    cdef uint64_t d = 0
    cdef uint32_t dpl
    cdef uint16_t target
    cdef bint wide
    if not read_system_descriptor(cpu, selector, VECTOR_GP, 0, gate):
        return False
    dpl = <uint32_t>(gate[0] >> 45) & 3
    wide = (gate[0] >> 40 & 0xF) == TYPE_CALL
    if dpl < cpu.cpl or dpl < (selector & 3u) or (cpu.long_mode and not wide):
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if not (gate[0] >> 47) & 1:
        return refuse(cpu, VECTOR_NP, selector & 0xFFFC)
    target = <uint16_t>(gate[0] >> 16)
    if not target & 0xFFFC:
        return refuse(cpu, VECTOR_GP, 0)
    if not read_descriptor(cpu, target, VECTOR_GP, 0, &d):
        return False
    unpack_descriptor(cs, target, d)
    if (cs.rights & (AR_S | AR_CODE)) != (AR_S | AR_CODE) or (cs.rights & AR_DPL) >> 5 > cpu.cpl:
        return refuse(cpu, VECTOR_GP, target & 0xFFFC)
    if cpu.long_mode and (cs.rights & (AR_L | AR_DB)) != AR_L:
        return refuse(cpu, VECTOR_GP, target & 0xFFFC)
    if not cs.rights & AR_P:
        return refuse(cpu, VECTOR_NP, target & 0xFFFC)
    if not mark_descriptor(cpu, target, &d):
        return False
    cs.rights |= AR_ACCESSED
    rip[0] = (gate[0] & 0xFFFF) | ((gate[0] >> 32) & 0xFFFF0000U if wide else 0) | (gate[1] << 32)
    return True


cdef void far_call(CpuState* cpu, Op* op, uint16_t selector, uint64_t rip, uint32_t size) noexcept nogil:
    """size: of the operand, hence of what is pushed."""
    cdef uint64_t sp = cpu.regs[4]
    if is_protected(cpu):
        if not call_protected(cpu, op, selector, rip, size):
            fault_far(cpu, op)
        return
    if rip > cpu.seg[SEG_CS].limit:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if not (push_current(cpu, &sp, cpu.seg[SEG_CS].selector, size)
            and push_current(cpu, &sp, op_next_rip(cpu, op), size)):
        fault_refused(cpu, op)
        return
    cpu.regs[4] = sp
    far_real(cpu, op, selector, rip)


cdef bint call_protected(CpuState* cpu, Op* op, uint16_t selector, uint64_t rip, uint32_t size) noexcept nogil:
    cdef uint64_t d = 0
    cdef uint64_t sp = cpu.regs[4]
    cdef uint64_t back = op_next_rip(cpu, op)
    cdef Segment cs
    cpu.task_switched = 0
    if not selector & 0xFFFC:
        return refuse(cpu, VECTOR_GP, 0)
    if not read_descriptor(cpu, selector, VECTOR_GP, 0, &d):
        return False
    unpack_descriptor(&cs, selector, d)
    if not cs.rights & AR_S:
        if cs.rights & AR_TYPE in (TYPE_CALL, TYPE_CALL16):
            return call_gate(cpu, op, selector, d)
        return switch_by(cpu, op, selector, d, TASK_CALL)
    if not cs.rights & AR_CODE:
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if not check_code(cpu, &cs, selector & 3, 0) or not target_fits(cpu, &cs, rip):
        return False
    if not (push_current(cpu, &sp, cpu.seg[SEG_CS].selector, size) and push_current(cpu, &sp, back, size)):
        return False
    if not mark_descriptor(cpu, selector, &d):
        return False
    cs.rights |= AR_ACCESSED
    store_sp(cpu, sp)
    enter_code(cpu, &cs, cpu.cpl)
    leave_to(cpu, op, rip)
    return True


cdef inline void store_sp(CpuState* cpu, uint64_t sp) noexcept nogil:
    """A stack pointer changed by the stack's width only."""
    cdef uint64_t mask = sp_mask(cpu)
    if mask == 0xFFFF:
        cpu.regs[4] = (cpu.regs[4] & ~mask) | (sp & mask)
    else:
        cpu.regs[4] = sp & mask


cdef bint call_gate(CpuState* cpu, Op* op, uint16_t selector, uint64_t d) noexcept nogil:
    """CALL through a gate, to the same or to more privilege (SDM 3A 5.8.3-5.8.5)."""
    cdef Segment cs
    cdef uint64_t rip = 0
    cdef uint64_t sp = cpu.regs[4]
    cdef uint64_t back = op_next_rip(cpu, op)
    cdef uint32_t size = 8 if cpu.long_mode else 4 if (d >> 40 & 0xF) == TYPE_CALL else 2
    cdef uint32_t cpl
    if not open_gate(cpu, selector, &cs, &rip) or not target_fits(cpu, &cs, rip):
        return False
    cpl = (cs.rights & AR_DPL) >> 5
    if not cs.rights & AR_EXPAND and cpl < cpu.cpl:
        if cpu.long_mode:
            return gate_inward64(cpu, op, &cs, cpl, rip, back)
        return gate_inward(cpu, op, &cs, cpl, rip, back, size, <uint32_t>(d >> 32) & 31)
    if cpu.long_mode and not cpu.code64:
        # from compatibility mode to 64-bit code at the same privilege: eight-byte pushes
        sp = cpu.regs[4] & 0xFFFFFFFFU
    if not (push_current(cpu, &sp, cpu.seg[SEG_CS].selector, size) and push_current(cpu, &sp, back, size)):
        return False
    store_sp(cpu, sp)
    enter_code(cpu, &cs, cpu.cpl)
    leave_to(cpu, op, rip)
    return True


cdef bint gate_inward64(CpuState* cpu, Op* op, Segment* cs, uint32_t cpl, uint64_t rip, uint64_t back) noexcept nogil:
    cdef uint64_t rsp = 0
    cdef uint64_t frame[4]
    if not tss_stack64(cpu, 4 + cpl * 8, 0, &rsp):
        return False
    frame[0] = back
    frame[1] = cpu.seg[SEG_CS].selector
    frame[2] = cpu.regs[4]
    frame[3] = cpu.seg[SEG_SS].selector
    rsp -= 32
    if not sys_access(cpu, rsp, <uint8_t*>frame, 32, ACCESS_IMPLICIT | ACCESS_WRITE):
        return False
    load_null(cpu, SEG_SS, <uint16_t>cpl)
    cpu.regs[4] = rsp
    enter_code(cpu, cs, cpl)
    leave_to(cpu, op, rip)
    return True


cdef bint gate_inward(CpuState* cpu, Op* op, Segment* cs, uint32_t cpl, uint64_t rip, uint64_t back, uint32_t size,
                      uint32_t count) noexcept nogil:
    """To the inner stack of the TSS, with count parameters copied from the outer one."""
    cdef Segment ss
    cdef uint64_t sp = 0
    cdef uint64_t parameters[32]
    cdef uint32_t i
    cdef uint32_t access = ACCESS_USER if cpl == 3 else ACCESS_IMPLICIT
    if not tss_stack(cpu, cpl, 0, &ss, &sp):
        return False
    for i in range(count):
        if not peek(cpu, i * size, size, &parameters[i]):
            return False
    if not (push_to(cpu, &ss, &sp, cpu.seg[SEG_SS].selector, size, access, 0)
            and push_to(cpu, &ss, &sp, cpu.regs[4], size, access, 0)):
        return False
    for i in range(count, 0, -1):
        if not push_to(cpu, &ss, &sp, parameters[i - 1], size, access, 0):
            return False
    if not (push_to(cpu, &ss, &sp, cpu.seg[SEG_CS].selector, size, access, 0)
            and push_to(cpu, &ss, &sp, back, size, access, 0)):
        return False
    cpu.seg[SEG_SS] = ss
    cpu.regs[4] = sp
    enter_code(cpu, cs, cpl)
    leave_to(cpu, op, rip)
    return True


# --- RET and IRET

cdef bint check_return(CpuState* cpu, uint16_t selector, Segment* cs) noexcept nogil:
    """The code segment that a far return or IRET goes to."""
    cdef uint64_t d = 0
    cdef uint32_t rpl = selector & 3
    cdef uint32_t dpl
    if not selector & 0xFFFC:
        return refuse(cpu, VECTOR_GP, 0)
    if not read_descriptor(cpu, selector, VECTOR_GP, 0, &d):
        return False
    unpack_descriptor(cs, selector, d)
    dpl = (cs.rights & AR_DPL) >> 5
    if ((cs.rights & (AR_S | AR_CODE)) != (AR_S | AR_CODE) or rpl < cpu.cpl
            or (dpl > rpl if cs.rights & AR_EXPAND else dpl != rpl)
            or (cpu.long_mode and (cs.rights & (AR_L | AR_DB)) == (AR_L | AR_DB))):
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if not cs.rights & AR_P:
        return refuse(cpu, VECTOR_NP, selector & 0xFFFC)
    if not mark_descriptor(cpu, selector, &d):
        return False
    cs.rights |= AR_ACCESSED
    return True


cdef bint outer_stack(CpuState* cpu, uint16_t selector, uint32_t rpl, Segment* cs, Segment* ss) noexcept nogil:
    """SS of a return to less privilege; null is allowed to 64-bit code outside CPL 3."""
    if not selector & 0xFFFC and cpu.long_mode and cs.rights & AR_L and rpl != 3:
        if (selector & 3u) != rpl:
            return refuse(cpu, VECTOR_GP, 0)
        ss.selector = selector
        ss.base = 0
        ss.limit = 0
        ss.rights = AR_UNUSABLE | rpl << 5 | AR_DB
        return True
    return load_stack_segment(cpu, selector, rpl, VECTOR_GP, 0, ss)


cdef void enter_outer(CpuState* cpu, Segment* cs, Segment* ss, uint64_t sp) noexcept nogil:
    """Give up privilege: CS, SS, SP, CPL, and data segments that may not stay."""
    cpu.cpl = cs.selector & 3
    cpu.seg[SEG_CS] = cs[0]
    cpu.seg[SEG_SS] = ss[0]
    mode_update(cpu)
    store_sp(cpu, sp)
    drop_segments(cpu)
    mode_update(cpu)


cdef void far_return(CpuState* cpu, Op* op, uint32_t size, uint32_t release) noexcept nogil:
    """RET far; release: bytes of parameters."""
    cdef uint64_t rip = 0
    cdef uint64_t selector = 0
    if not (peek(cpu, 0, size, &rip) and peek(cpu, size, size, &selector)):
        fault_refused(cpu, op)
        return
    if not is_protected(cpu):
        if rip > cpu.seg[SEG_CS].limit:
            fault(cpu, op, VECTOR_GP, 0)
            return
        store_sp(cpu, cpu.regs[4] + 2 * size + release)
        far_real(cpu, op, <uint16_t>selector, rip)
        return
    if not return_protected(cpu, op, size, release, <uint16_t>selector, rip):
        fault_refused(cpu, op)


cdef bint return_protected(CpuState* cpu, Op* op, uint32_t size, uint32_t release, uint16_t selector,
                           uint64_t rip) noexcept nogil:
    cdef Segment cs
    cdef Segment ss
    cdef uint64_t sp = 0
    cdef uint64_t stack = 0
    if not check_return(cpu, selector, &cs) or not target_fits(cpu, &cs, rip):
        return False
    if (selector & 3) == cpu.cpl:
        store_sp(cpu, cpu.regs[4] + 2 * size + release)
        enter_code(cpu, &cs, cpu.cpl)
        leave_to(cpu, op, rip)
        return True
    if not (peek(cpu, 2 * size + release, size, &sp) and peek(cpu, 3 * size + release, size, &stack)
            and outer_stack(cpu, <uint16_t>stack, selector & 3, &cs, &ss)):
        return False
    enter_outer(cpu, &cs, &ss, sp + release)
    leave_to(cpu, op, rip)
    return True


cdef void load_flags(CpuState* cpu, uint64_t value, uint32_t size, uint32_t cpl) noexcept nogil:
    """RFLAGS by IRET or POPF at privilege cpl: IOPL at 0 only, IF with CPL <= IOPL."""
    cdef uint64_t mask = RF_ARITH | RF_TF | RF_DF | RF_NT
    if size > 2:
        mask |= RF_RF | RF_AC | RF_ID
    if cpl == 0 or not cpu.cr0 & CR0_PE:
        mask |= RF_IOPL | RF_IF
        if size > 2:
            mask |= RF_VIF | RF_VIP
    elif cpl <= (cpu.rflags_sys & RF_IOPL) >> 12:
        mask |= RF_IF
    flags_set(cpu, value, mask)


cdef void iret(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    """IRET, IRETD, IRETQ. NMIs are unblocked even where it faults, as on the silicon (SDM 3A 6.7.1)."""
    cpu.interruptibility &= ~<uint8_t>BLOCKED_BY_NMI
    if not cpu.cr0 & CR0_PE or in_vm86(cpu):
        iret_real(cpu, op, size)
        return
    cpu.task_switched = 0
    if cpu.rflags_sys & RF_NT:
        if not iret_task(cpu, op):
            fault_far(cpu, op)
        return
    if not (iret_long(cpu, op, size) if cpu.long_mode else iret_protected(cpu, op, size)):
        fault_refused(cpu, op)


cdef void iret_real(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint64_t rip = 0
    cdef uint64_t selector = 0
    cdef uint64_t flags = 0
    if in_vm86(cpu) and (cpu.rflags_sys & RF_IOPL) != RF_IOPL:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if not (peek(cpu, 0, size, &rip) and peek(cpu, size, size, &selector) and peek(cpu, 2 * size, size, &flags)):
        fault_refused(cpu, op)
        return
    if rip > cpu.seg[SEG_CS].limit:
        fault(cpu, op, VECTOR_GP, 0)
        return
    store_sp(cpu, cpu.regs[4] + 3 * size)
    load_flags(cpu, flags, size, cpu.cpl)
    attend(cpu, ATTN_INTERRUPT)
    far_real(cpu, op, <uint16_t>selector, rip)


cdef bint iret_task(CpuState* cpu, Op* op) noexcept nogil:
    """NT: back to the task in this TSS's link."""
    cdef uint16_t link = 0
    cdef uint64_t start = op_rip(cpu, op)
    if cpu.long_mode:
        return refuse(cpu, VECTOR_GP, 0)
    if not sys_read(cpu, cpu.seg[SEG_TR].base & 0xFFFFFFFFU, &link, 2):
        return False
    cpu.rip = op_next_rip(cpu, op)
    if not task_switch(cpu, link, TASK_RETURN, 0):
        if not cpu.task_switched:
            cpu.rip = start
        return False
    attend(cpu, ATTN_INTERRUPT)
    leave_to(cpu, op, cpu.rip)
    return True


cdef bint iret_protected(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint64_t v[5]
    cdef Segment cs
    cdef Segment ss
    cdef uint32_t i
    cdef uint32_t cpl = cpu.cpl
    for i in range(3):
        if not peek(cpu, i * size, size, &v[i]):
            return False
    if v[2] & RF_VM and size == 4 and cpl == 0:
        return iret_vm86(cpu, op, v)
    if not check_return(cpu, <uint16_t>v[1], &cs) or not target_fits(cpu, &cs, v[0]):
        return False
    if (v[1] & 3) == cpl:
        store_sp(cpu, cpu.regs[4] + 3 * size)
        load_flags(cpu, v[2], size, cpl)
        enter_code(cpu, &cs, cpl)
    else:
        if not (peek(cpu, 3 * size, size, &v[3]) and peek(cpu, 4 * size, size, &v[4])
                and outer_stack(cpu, <uint16_t>v[4], v[1] & 3, &cs, &ss)):
            return False
        load_flags(cpu, v[2], size, cpl)
        enter_outer(cpu, &cs, &ss, v[3])
    attend(cpu, ATTN_INTERRUPT)
    leave_to(cpu, op, v[0])
    return True


cdef bint iret_vm86(CpuState* cpu, Op* op, uint64_t* v) noexcept nogil:
    """Into virtual-8086 mode: ESP, SS, ES, DS, FS, GS follow on the stack (SDM 3A 20.2.5)."""
    cdef uint64_t more[6]
    cdef uint32_t i
    for i in range(6):
        if not peek(cpu, 12 + i * 4, 4, &more[i]):
            return False
    if v[0] > 0xFFFF:
        return refuse(cpu, VECTOR_GP, 0)
    flags_set(cpu, v[2], RF_ARITH | RF_TF | RF_IF | RF_DF | RF_IOPL | RF_NT | RF_RF | RF_VM | RF_AC | RF_VIF
              | RF_VIP | RF_ID)
    cpu.cpl = 3
    load_real_segment(cpu, SEG_CS, <uint16_t>v[1])
    load_real_segment(cpu, SEG_SS, <uint16_t>more[1])
    load_real_segment(cpu, SEG_ES, <uint16_t>more[2])
    load_real_segment(cpu, SEG_DS, <uint16_t>more[3])
    load_real_segment(cpu, SEG_FS, <uint16_t>more[4])
    load_real_segment(cpu, SEG_GS, <uint16_t>more[5])
    cpu.regs[4] = more[0]
    mode_update(cpu)
    attend(cpu, ATTN_INTERRUPT)
    leave_to(cpu, op, v[0])
    return True


cdef bint iret_long(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    """64-bit mode pops SS:RSP always; compatibility mode only where the privilege changes."""
    cdef uint64_t v[5]
    cdef Segment cs
    cdef Segment ss
    cdef uint32_t i
    cdef uint32_t cpl = cpu.cpl
    cdef bint whole = cpu.code64
    for i in range(3):
        if not peek(cpu, i * size, size, &v[i]):
            return False
    if not check_return(cpu, <uint16_t>v[1], &cs) or not target_fits(cpu, &cs, v[0]):
        return False
    if (v[1] & 3) != cpl:
        whole = True
    if whole:
        if not (peek(cpu, 3 * size, size, &v[3]) and peek(cpu, 4 * size, size, &v[4])
                and outer_stack(cpu, <uint16_t>v[4], v[1] & 3, &cs, &ss)):
            return False
    load_flags(cpu, v[2], size, cpl)
    if not whole:
        store_sp(cpu, cpu.regs[4] + 3 * size)
        enter_code(cpu, &cs, cpl)
    elif (v[1] & 3) == cpl:
        cpu.seg[SEG_SS] = ss
        enter_code(cpu, &cs, cpl)
        store_sp(cpu, v[3])
    else:
        enter_outer(cpu, &cs, &ss, v[3])
    attend(cpu, ATTN_INTERRUPT)
    leave_to(cpu, op, v[0])
    return True


# --- SYSCALL and SYSENTER

cdef void flat_segment(CpuState* cpu, uint32_t which, uint16_t selector, uint32_t rights) noexcept nogil:
    cdef Segment* seg = &cpu.seg[which]
    seg.selector = selector
    seg.base = 0
    seg.limit = 0xFFFFFFFFU
    seg.rights = rights | AR_P | AR_S | AR_G | AR_ACCESSED | AR_WRITE


cdef void syscall(CpuState* cpu, Op* op) noexcept nogil:
    """64-bit mode only, as on Intel (SDM 2B SYSCALL)."""
    cdef uint16_t selector = <uint16_t>(cpu.star >> 32) & 0xFFFC
    if not cpu.code64 or not cpu.efer & EFER_SCE:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    cpu.regs[1] = op_next_rip(cpu, op)
    cpu.regs[11] = flags_get(cpu) & ~<uint64_t>RF_RF
    flags_set(cpu, flags_get(cpu) & ~cpu.sfmask, RF_ARITH | RF_TF | RF_IF | RF_DF | RF_IOPL | RF_NT | RF_AC | RF_ID)
    cpu.rflags_sys &= ~<uint32_t>RF_RF
    flat_segment(cpu, SEG_CS, selector, AR_CODE | AR_L)
    flat_segment(cpu, SEG_SS, selector + 8, AR_DB)
    cpu.cpl = 0
    mode_update(cpu)
    leave_to(cpu, op, cpu.lstar)


cdef void sysret(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint16_t selector = <uint16_t>(cpu.star >> 48)
    cdef bint wide = (op.flags & OPF_REXW) != 0
    cdef uint64_t rip = cpu.regs[1] if wide else cpu.regs[1] & 0xFFFFFFFFU
    if not cpu.code64 or not cpu.efer & EFER_SCE:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if cpu.cpl != 0 or not canonical(rip):
        fault(cpu, op, VECTOR_GP, 0)
        return
    flags_set(cpu, cpu.regs[11], RF_ARITH | RF_TF | RF_IF | RF_DF | RF_IOPL | RF_NT | RF_AC | RF_ID | RF_VIF | RF_VIP)
    flat_segment(cpu, SEG_CS, (selector + 16 if wide else selector) | 3,
                 AR_CODE | AR_DPL | (AR_L if wide else AR_DB))
    flat_segment(cpu, SEG_SS, (selector + 8) | 3, AR_DPL | AR_DB)
    cpu.cpl = 3
    mode_update(cpu)
    attend(cpu, ATTN_INTERRUPT)
    leave_to(cpu, op, rip)


cdef void sysenter(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint16_t selector = <uint16_t>cpu.sysenter_cs & 0xFFFC
    if not cpu.cr0 & CR0_PE or not selector:
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.rflags_sys &= ~<uint32_t>(RF_IF | RF_VM)
    flat_segment(cpu, SEG_CS, selector, AR_CODE | (AR_L if cpu.long_mode else AR_DB))
    flat_segment(cpu, SEG_SS, selector + 8, AR_DB)
    cpu.cpl = 0
    cpu.regs[4] = cpu.sysenter_esp if cpu.long_mode else cpu.sysenter_esp & 0xFFFFFFFFU
    mode_update(cpu)
    leave_to(cpu, op, cpu.sysenter_eip if cpu.long_mode else cpu.sysenter_eip & 0xFFFFFFFFU)


cdef void sysexit(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint16_t selector = <uint16_t>cpu.sysenter_cs & 0xFFFC
    cdef bint wide = (op.flags & OPF_REXW) != 0
    cdef uint64_t rip = cpu.regs[2] if wide else cpu.regs[2] & 0xFFFFFFFFU
    if not is_protected(cpu) or not selector or cpu.cpl != 0 or (wide and not (canonical(rip)
                                                                            and canonical(cpu.regs[1]))):
        fault(cpu, op, VECTOR_GP, 0)
        return
    flat_segment(cpu, SEG_CS, (selector + (32 if wide else 16)) | 3, AR_CODE | AR_DPL | (AR_L if wide else AR_DB))
    flat_segment(cpu, SEG_SS, (selector + (40 if wide else 24)) | 3, AR_DPL | AR_DB)
    cpu.cpl = 3
    cpu.regs[4] = cpu.regs[1] if wide else cpu.regs[1] & 0xFFFFFFFFU
    mode_update(cpu)
    leave_to(cpu, op, rip)
