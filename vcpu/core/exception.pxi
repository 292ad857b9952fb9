"""Events: exceptions, interrupts, double and triple faults, debug traps; and leaving to the hypervisor. Owner: SYSTEM.

Owns:    delivery through the IDT in every mode (SDM 3A chapter 6), the exception bitmap's verdict, DR6.
Never:   runs guest code, loops over guest data: an event is tried at most three times (fault, double, triple).
Threads: the vCPU's own.

 fault ─► intercepted? ──yes──► exit EXCEPTION_NMI
            │ no
          deliver ──ok──► handler
            │ a fault on the way: benign → deliver that one
            ├ contributory after contributory, or contributory/#PF after #PF → #DF
            └ any after #DF → exit TRIPLE_FAULT
"""

cdef struct Event:
    uint32_t vector
    uint32_t kind                # EVENT_*
    int64_t error_code           # NO_ERROR_CODE: none
    uint64_t return_rip
    uint32_t ext                 # bit 0 of error codes that delivery itself makes
    uint32_t length              # of a software event's instruction


cdef void vm_exit(CpuState* cpu, uint32_t reason, uint64_t qualification) noexcept nogil:
    """Leave at cpu.rip. The first reason of an instruction stands."""
    if cpu.exit_reason != NO_EXIT:
        return
    if reason not in (EXIT_REASON_EPT_VIOLATION, EXIT_REASON_CPUID, EXIT_REASON_HLT):     # those were counted where they were met
        cpu.exit_counts[reason] += 1
    cpu.exit_reason = reason
    cpu.exit_qualification = qualification
    cpu.exit_length = 0
    cpu.exit_intr_info = 0
    cpu.exit_intr_error = 0
    cpu.idt_vectoring_info = 0
    cpu.idt_vectoring_error = 0
    cpu.exit_instruction_info = 0


cdef void vm_exit_op(CpuState* cpu, Op* op, uint32_t reason, uint64_t qualification) noexcept nogil:
    """Leave at op's instruction, which did not happen."""
    rmw_unlock(cpu)
    op_rewind(cpu, op)
    vm_exit(cpu, reason, qualification)
    cpu.exit_length = op.length


cdef inline bint has_error_code(uint32_t vector) noexcept nogil:
    return vector in (VECTOR_DF, VECTOR_TS, VECTOR_NP, VECTOR_SS, VECTOR_GP, VECTOR_PF, VECTOR_AC)


cdef inline int64_t error_code_of(CpuState* cpu, uint32_t vector, int64_t error_code) noexcept nogil:
    """Real mode pushes none."""
    return error_code & 0xFFFF if has_error_code(vector) and cpu.cr0 & CR0_PE else NO_ERROR_CODE


cdef inline bint is_contributory(uint32_t vector) noexcept nogil:
    return vector in (VECTOR_DE, VECTOR_TS, VECTOR_NP, VECTOR_SS, VECTOR_GP)


cdef uint32_t event_info(Event* event) noexcept nogil:
    """The interruption-information field (SDM 3C 25.9.2)."""
    cdef uint32_t info = event.vector | event.kind << 8 | 0x80000000U
    if event.error_code >= 0:
        info |= 0x800
    return info


cdef bint event_intercepted(CpuState* cpu, Event* event, Event* first) noexcept nogil:
    """Exit where the exception bitmap says so. first: the event whose delivery faulted, or NULL."""
    cdef bint wanted
    if event.kind not in (EVENT_EXCEPTION, EVENT_SOFT_EXCEPTION, EVENT_INT1):
        return False
    wanted = (cpu.exception_bitmap >> event.vector) & 1
    if event.vector == VECTOR_PF and (event.error_code & cpu.pf_error_mask) != cpu.pf_error_match:
        wanted = not wanted
    if not wanted:
        return False
    vm_exit(cpu, EXIT_REASON_EXCEPTION_NMI,
            cpu.pf_gva if event.vector == VECTOR_PF else cpu.debug_status if event.vector == VECTOR_DB else 0)
    cpu.exit_intr_info = event_info(event)
    cpu.exit_intr_error = <uint32_t>event.error_code if event.error_code >= 0 else 0
    cpu.exit_length = event.length
    if first != NULL:
        cpu.idt_vectoring_info = event_info(first)
        cpu.idt_vectoring_error = <uint32_t>first.error_code if first.error_code >= 0 else 0
    return True


cdef void raise_event(CpuState* cpu, Event* event) noexcept nogil:
    """Deliver, with double and triple faults."""
    cdef Event first
    cdef Event now = event[0]
    cdef Event* cause = NULL
    cdef int tries
    cdef bint df
    if cpu.exit_reason != NO_EXIT:
        return
    cpu.step_traps = 0
    cpu.step_live = 0
    for tries in range(4):
        if event_intercepted(cpu, &now, cause):
            return
        if now.vector == VECTOR_PF and now.kind == EVENT_EXCEPTION:
            cpu.cr2 = cpu.pf_gva
        elif now.vector == VECTOR_DB and now.kind == EVENT_EXCEPTION:
            cpu.dr[6] = (cpu.dr[6] & ~<uint64_t>0xF) | DR6_ONES | cpu.debug_status
            cpu.dr[7] &= ~<uint64_t>DR7_GD
            cpu.debug_status = 0
        if deliver_event(cpu, &now):
            cpu.activity = ACTIVITY_ACTIVE
            # each delivery counts as one: time moves even for a guest that never retires an instruction
            cpu.budget -= 1
            sync_retired(cpu)
            return
        if now.kind == EVENT_EXCEPTION and now.vector == VECTOR_DF:
            break
        if cpu.pf_vector == VECTOR_PF:
            cpu.cr2 = cpu.pf_gva                 # also where it becomes a double fault
        first = now
        cause = &first
        df = now.kind == EVENT_EXCEPTION and (
            (is_contributory(now.vector) and is_contributory(cpu.pf_vector))
            or (now.vector == VECTOR_PF and (cpu.pf_vector == VECTOR_PF or is_contributory(cpu.pf_vector))))
        now.kind = EVENT_EXCEPTION
        now.vector = VECTOR_DF if df else cpu.pf_vector
        now.error_code = error_code_of(cpu, now.vector, 0 if df else cpu.pf_error)
        now.return_rip = cpu.rip
        now.ext = 1
        now.length = 0
    vm_exit(cpu, EXIT_REASON_TRIPLE_FAULT, 0)


cdef void fault_at_rip(CpuState* cpu, uint32_t vector, int64_t error_code) noexcept nogil:
    cdef Event event
    event.vector = vector
    event.kind = EVENT_EXCEPTION
    event.error_code = error_code_of(cpu, vector, error_code)
    event.return_rip = cpu.rip
    event.ext = 1
    event.length = 0
    raise_event(cpu, &event)


cdef void fault(CpuState* cpu, Op* op, uint32_t vector, int64_t error_code) noexcept nogil:
    rmw_unlock(cpu)
    op_rewind(cpu, op)
    fault_at_rip(cpu, vector, error_code)


cdef void fault_refused(CpuState* cpu, Op* op) noexcept nogil:
    """Deliver what a function that refused left in cpu.pf_*."""
    fault(cpu, op, cpu.pf_vector, cpu.pf_error)


cdef void soft_interrupt(CpuState* cpu, Op* op, uint32_t vector, uint32_t kind) noexcept nogil:
    """INT n, INT3, INTO, INT1: a trap behind op."""
    cdef Event event
    event.vector = vector
    event.kind = kind
    event.error_code = NO_ERROR_CODE
    event.ext = 1 if kind == EVENT_INT1 else 0
    event.length = op.length
    event.return_rip = op_next_rip(cpu, op)
    op_rewind(cpu, op)
    raise_event(cpu, &event)


cdef void deliver_interrupt(CpuState* cpu, uint32_t vector) noexcept nogil:
    cdef Event event
    event.vector = vector
    event.kind = EVENT_EXTERNAL
    event.error_code = NO_ERROR_CODE
    event.return_rip = cpu.rip
    event.ext = 1
    event.length = 0
    raise_event(cpu, &event)


cdef void deliver_nmi(CpuState* cpu) noexcept nogil:
    """NMIs stay blocked until the next IRET. With NMI exiting the hypervisor has it instead."""
    cdef Event event
    if cpu.pin_controls & PIN_NMI:
        vm_exit(cpu, EXIT_REASON_EXCEPTION_NMI, 0)
        cpu.exit_intr_info = VECTOR_NMI | EVENT_NMI << 8 | 0x80000000U
        return
    event.vector = VECTOR_NMI
    event.kind = EVENT_NMI
    event.error_code = NO_ERROR_CODE
    event.return_rip = cpu.rip
    event.ext = 1
    event.length = 0
    cpu.interruptibility |= BLOCKED_BY_NMI
    raise_event(cpu, &event)


# --- through the IDT

cdef inline bint is_fault(CpuState* cpu, Event* event) noexcept nogil:
    """Faults push RF = 1, so that their instruction breakpoint does not come again (SDM 3B 18.3.1.1)."""
    if event.kind != EVENT_EXCEPTION or event.vector == VECTOR_DF:
        return False
    return event.vector != VECTOR_DB or cpu.debug_is_fault



cdef bint deliver_event(CpuState* cpu, Event* event) noexcept nogil:
    """True: rip, CS, SS, RSP, RFLAGS stand in the handler. False: refused, nothing in registers changed."""
    if not cpu.cr0 & CR0_PE:
        return deliver_real(cpu, event)
    if cpu.long_mode:
        return deliver_long(cpu, event)
    return deliver_protected(cpu, event)


cdef bint deliver_real(CpuState* cpu, Event* event) noexcept nogil:
    """Interrupt vector table of four-byte far pointers (SDM 3A 20.1.4)."""
    cdef uint32_t pointer = 0
    cdef uint64_t sp = cpu.regs[4]
    if event.vector * 4 + 3 > cpu.idtr_limit:
        return refuse(cpu, VECTOR_GP, 0)
    if not sys_read(cpu, (cpu.idtr_base + event.vector * 4) & 0xFFFFFFFFU, &pointer, 4):
        return False
    if not (push_to(cpu, &cpu.seg[SEG_SS], &sp, flags_get(cpu) & 0xFFFF, 2, 0, 0)
            and push_to(cpu, &cpu.seg[SEG_SS], &sp, cpu.seg[SEG_CS].selector, 2, 0, 0)
            and push_to(cpu, &cpu.seg[SEG_SS], &sp, event.return_rip & 0xFFFF, 2, 0, 0)):
        return False
    cpu.regs[4] = sp
    load_real_segment(cpu, SEG_CS, <uint16_t>(pointer >> 16))
    cpu.rip = pointer & 0xFFFF
    cpu.rflags_sys &= ~<uint32_t>(RF_IF | RF_TF | RF_AC | RF_RF)
    mode_update(cpu)
    return True


cdef bint push_to(CpuState* cpu, Segment* ss, uint64_t* sp, uint64_t value, uint32_t size, uint32_t access,
                  uint32_t ext) noexcept nogil:
    """Push on a stack outside 64-bit mode; access: whose privilege (ACCESS_*). Refuses #SS(ext) at the limit."""
    cdef uint64_t mask = 0xFFFFFFFFU if ss.rights & AR_DB else 0xFFFF
    cdef uint64_t offset = (sp[0] - size) & mask
    if not segment_allows(cpu, ss, offset, size, True):
        return refuse(cpu, VECTOR_SS, ext)
    if not sys_access(cpu, (ss.base + offset) & 0xFFFFFFFFU, <uint8_t*>&value, size, access | ACCESS_WRITE):
        return False
    sp[0] = (sp[0] & ~mask) | offset
    return True


cdef bint read_gate(CpuState* cpu, Event* event, uint32_t size, uint64_t* gate) noexcept nogil:
    """An IDT entry that this event may use; gate[0], gate[1]."""
    cdef uint32_t code = event.vector * 8 + 2 + event.ext
    cdef uint32_t type_, rights
    if event.vector * size + size - 1 > cpu.idtr_limit:
        return refuse(cpu, VECTOR_GP, code)
    if not sys_read(cpu, cpu.idtr_base + event.vector * size, gate, size):
        return False
    rights = <uint32_t>(gate[0] >> 40) & 0xFF
    type_ = rights & 0x1F
    if type_ not in (TYPE_INT, TYPE_TRAP) and (size == 16 or type_ not in (TYPE_INT16, TYPE_TRAP16, TYPE_TASK)):
        return refuse(cpu, VECTOR_GP, code)
    if event.kind in (EVENT_SOFT_INT, EVENT_SOFT_EXCEPTION) and (rights & AR_DPL) >> 5 < cpu.cpl:
        return refuse(cpu, VECTOR_GP, code)
    if not rights & AR_P:
        return refuse(cpu, VECTOR_NP, code)
    return True


cdef bint read_handler_segment(CpuState* cpu, uint16_t selector, uint32_t ext, Segment* cs, uint32_t* cpl) noexcept nogil:
    """The gate's code segment, and the privilege that the handler runs with."""
    cdef uint64_t d = 0
    cdef uint32_t dpl
    if not selector & 0xFFFC:
        return refuse(cpu, VECTOR_GP, ext)
    if not read_descriptor(cpu, selector, VECTOR_GP, ext, &d):
        return False
    unpack_descriptor(cs, selector, d)
    dpl = (cs.rights & AR_DPL) >> 5
    if (cs.rights & (AR_S | AR_CODE)) != (AR_S | AR_CODE) or dpl > cpu.cpl:
        return refuse(cpu, VECTOR_GP, (selector & 0xFFFC) | ext)
    if not cs.rights & AR_P:
        return refuse(cpu, VECTOR_NP, (selector & 0xFFFC) | ext)
    if cpu.long_mode and (cs.rights & (AR_L | AR_DB)) != AR_L:
        return refuse(cpu, VECTOR_GP, (selector & 0xFFFC) | ext)
    cpl[0] = cpu.cpl if cs.rights & AR_EXPAND else dpl
    if in_vm86(cpu) and cpl[0] != 0:
        return refuse(cpu, VECTOR_GP, (selector & 0xFFFC) | ext)
    if not mark_descriptor(cpu, selector, &d):
        return False
    cs.rights |= AR_ACCESSED
    cs.selector = (selector & 0xFFFC) | <uint16_t>cpl[0]
    return True


cdef bint tss_stack64(CpuState* cpu, uint32_t offset, uint32_t ext, uint64_t* rsp) noexcept nogil:
    """RSPn or ISTn of the 64-bit TSS."""
    if offset + 7 > cpu.seg[SEG_TR].limit:
        return refuse(cpu, VECTOR_TS, (cpu.seg[SEG_TR].selector & 0xFFFC) | ext)
    if not sys_read(cpu, cpu.seg[SEG_TR].base + offset, rsp, 8):
        return False
    if not canonical(rsp[0]):
        return refuse(cpu, VECTOR_SS, ext)
    return True


cdef bint deliver_long(CpuState* cpu, Event* event) noexcept nogil:
    """IA-32e mode: 16-byte gates, stack from RSPn or IST, SS:RSP always pushed (SDM 3A 6.14)."""
    cdef uint64_t gate[2]
    cdef uint64_t frame[6]
    cdef uint64_t rsp = cpu.regs[4]
    cdef uint64_t target
    cdef Segment cs
    cdef uint32_t cpl = 0
    cdef uint32_t ist
    cdef int first = 1
    if not read_gate(cpu, event, 16, gate):
        return False
    if not read_handler_segment(cpu, <uint16_t>(gate[0] >> 16), event.ext, &cs, &cpl):
        return False
    ist = <uint32_t>(gate[0] >> 32) & 7
    if ist:
        if not tss_stack64(cpu, 0x1C + ist * 8, event.ext, &rsp):
            return False
    elif cpl < cpu.cpl:
        if not tss_stack64(cpu, 4 + cpl * 8, event.ext, &rsp):
            return False
    target = (gate[0] & 0xFFFF) | ((gate[0] >> 32) & 0xFFFF0000U) | (gate[1] << 32)
    if not canonical(target):
        return refuse(cpu, VECTOR_GP, event.ext)
    rsp &= ~<uint64_t>15
    frame[0] = <uint64_t>event.error_code
    frame[1] = event.return_rip
    frame[2] = cpu.seg[SEG_CS].selector
    frame[3] = flags_get(cpu)
    if is_fault(cpu, event):
        frame[3] |= RF_RF        # faults (SDM 3B 18.3.1.1)
    frame[4] = cpu.regs[4]
    frame[5] = cpu.seg[SEG_SS].selector
    if event.error_code >= 0:
        first = 0
    rsp -= (6 - first) * 8
    if not sys_access(cpu, rsp, <uint8_t*>&frame[first], (6 - first) * 8,
                      (ACCESS_USER if cpl == 3 else ACCESS_IMPLICIT) | ACCESS_WRITE):
        if cpu.pf_vector == VECTOR_GP:
            return refuse(cpu, VECTOR_SS, event.ext)
        return False
    if cpl < cpu.cpl:
        load_null(cpu, SEG_SS, <uint16_t>cpl)
    cpu.cpl = cpl
    cpu.seg[SEG_CS] = cs
    cpu.regs[4] = rsp
    cpu.rip = target
    cpu.rflags_sys &= ~<uint32_t>(RF_TF | RF_NT | RF_RF | RF_VM)
    if gate[0] >> 40 & 1 == 0:
        cpu.rflags_sys &= ~<uint32_t>RF_IF
    mode_update(cpu)
    return True


cdef bint tss_stack(CpuState* cpu, uint32_t cpl, uint32_t ext, Segment* ss, uint64_t* sp) noexcept nogil:
    """SSn:ESPn of a 32- or 16-bit TSS."""
    cdef uint32_t pointer[2]
    cdef bint wide = cpu.seg[SEG_TR].rights & 8
    cdef uint32_t offset = 4 + cpl * 8 if wide else 2 + cpl * 4
    cdef uint16_t selector
    if cpu.seg[SEG_TR].rights & AR_UNUSABLE or offset + (7 if wide else 3) > cpu.seg[SEG_TR].limit:
        return refuse(cpu, VECTOR_TS, (cpu.seg[SEG_TR].selector & 0xFFFC) | ext)
    pointer[1] = 0
    if not sys_read(cpu, (cpu.seg[SEG_TR].base + offset) & 0xFFFFFFFFU, pointer, 8 if wide else 4):
        return False
    if wide:
        sp[0] = pointer[0]
        selector = <uint16_t>pointer[1]
    else:
        sp[0] = pointer[0] & 0xFFFF
        selector = <uint16_t>(pointer[0] >> 16)
    return load_stack_segment(cpu, selector, cpl, VECTOR_TS, ext, ss)


cdef bint deliver_protected(CpuState* cpu, Event* event) noexcept nogil:
    """Interrupt, trap and task gates of protected mode, from virtual-8086 mode too (SDM 3A 6.12, 20.3)."""
    cdef uint64_t gate[2]
    cdef Segment cs
    cdef Segment ss = cpu.seg[SEG_SS]
    cdef uint64_t sp = cpu.regs[4]
    cdef uint32_t cpl = 0
    cdef uint32_t size, access, target
    cdef uint64_t flags = flags_get(cpu)
    cdef bint vm86 = in_vm86(cpu)
    cdef int which, n
    if not read_gate(cpu, event, 8, gate):
        return False
    if gate[0] >> 40 & 0x1F == TYPE_TASK:
        return deliver_task(cpu, event, <uint16_t>(gate[0] >> 16))
    size = 4 if gate[0] >> 40 & 8 else 2
    target = <uint32_t>(gate[0] & 0xFFFF) | (<uint32_t>(gate[0] >> 32) & 0xFFFF0000U if size == 4 else 0)
    if not read_handler_segment(cpu, <uint16_t>(gate[0] >> 16), event.ext, &cs, &cpl):
        return False
    if cpl < cpu.cpl and not tss_stack(cpu, cpl, event.ext, &ss, &sp):
        return False
    if target > cs.limit:
        return refuse(cpu, VECTOR_GP, event.ext)
    if is_fault(cpu, event):
        flags |= RF_RF
    access = ACCESS_USER if cpl == 3 else ACCESS_IMPLICIT
    if vm86:
        for n in range(6):
            which = SEG_GS - n
            if which == SEG_CS or which == SEG_SS:
                continue
            if not push_to(cpu, &ss, &sp, cpu.seg[which].selector, size, access, event.ext):
                return False
    if cpl < cpu.cpl:
        if not (push_to(cpu, &ss, &sp, cpu.seg[SEG_SS].selector, size, access, event.ext)
                and push_to(cpu, &ss, &sp, cpu.regs[4], size, access, event.ext)):
            return False
    if not (push_to(cpu, &ss, &sp, flags, size, access, event.ext)
            and push_to(cpu, &ss, &sp, cpu.seg[SEG_CS].selector, size, access, event.ext)
            and push_to(cpu, &ss, &sp, event.return_rip, size, access, event.ext)):
        return False
    if event.error_code >= 0 and not push_to(cpu, &ss, &sp, <uint64_t>event.error_code, size, access, event.ext):
        return False
    if vm86:
        for n in range(6):
            which = SEG_GS - n
            if which == SEG_CS or which == SEG_SS:
                continue
            load_null(cpu, which, 0)
    cpu.cpl = cpl
    cpu.seg[SEG_CS] = cs
    cpu.seg[SEG_SS] = ss
    cpu.regs[4] = sp
    cpu.rip = target
    cpu.rflags_sys &= ~<uint32_t>(RF_TF | RF_NT | RF_RF | RF_VM)
    if gate[0] >> 40 & 1 == 0:
        cpu.rflags_sys &= ~<uint32_t>RF_IF
    mode_update(cpu)
    return True


cdef bint deliver_task(CpuState* cpu, Event* event, uint16_t selector) noexcept nogil:
    """A task gate in the IDT: the handler is a task of its own, linked back to this one."""
    cdef uint64_t sp
    cdef uint64_t rip = cpu.rip
    cpu.rip = event.return_rip
    if not task_switch(cpu, selector, TASK_INTERRUPT, event.ext):
        # a fault before the switch happens in the old task, one behind it in the new
        if not cpu.task_switched:
            cpu.rip = rip
        return False
    if event.error_code >= 0:
        sp = cpu.regs[4]
        if not push_to(cpu, &cpu.seg[SEG_SS], &sp, <uint64_t>event.error_code,
                       4 if cpu.seg[SEG_TR].rights & 8 else 2, 0, event.ext):
            return False
        cpu.regs[4] = sp
    return True


# --- debug: breakpoints and single step (SDM 3B 18.2, 18.3)

cdef void data_breakpoints(CpuState* cpu, gva_t gva, uint32_t size, bint write) noexcept nogil:
    """Note the data breakpoints that an access touches; the trap comes behind the instruction."""
    cdef uint32_t i, kind
    cdef uint64_t length, start
    for i in range(4):
        if not cpu.dr[7] >> (i * 2) & 3:
            continue
        kind = <uint32_t>(cpu.dr[7] >> (16 + i * 4)) & 3
        if kind != 3 and not (kind == 1 and write):
            continue
        length = breakpoint_length(cpu, i)
        start = cpu.dr[i] & ~(length - 1)
        if gva < start + length and start < gva + size:
            cpu.step_traps |= <uint64_t>1 << i


cdef inline uint64_t breakpoint_length(CpuState* cpu, uint32_t i) noexcept nogil:
    """LEN of DR7: 1, 2, 8, 4 bytes."""
    cdef uint32_t length = <uint32_t>(cpu.dr[7] >> (18 + i * 4)) & 3
    return 8 if length == 2 else length + 1


cdef void io_breakpoints(CpuState* cpu, uint32_t port, uint32_t size) noexcept nogil:
    """I/O breakpoints, with CR4.DE."""
    cdef uint32_t i
    cdef uint64_t length, start
    if not cpu.cr4 & CR4_DE:
        return
    for i in range(4):
        if cpu.dr[7] >> (i * 2) & 3 and (cpu.dr[7] >> (16 + i * 4)) & 3 == 2:
            length = breakpoint_length(cpu, i)
            start = cpu.dr[i] & ~(length - 1)
            if port < start + length and start < port + size:
                cpu.step_traps |= <uint64_t>1 << i


cdef bint step_begin(CpuState* cpu) noexcept nogil:
    """Before each instruction in KEY_STEP. False: an instruction breakpoint was delivered instead of it."""
    cdef uint32_t i
    cdef uint64_t hits = 0
    cdef uint64_t linear = cpu.rip if cpu.code64 else (cpu.seg[SEG_CS].base + cpu.rip) & 0xFFFFFFFFU
    cpu.step_rf = (cpu.rflags_sys & RF_RF) != 0
    cpu.step_tf = (cpu.rflags_sys & RF_TF) != 0
    cpu.step_traps = 0
    if cpu.step_rf or not cpu.dr[7] & 0xFF:
        cpu.step_live = 1
        return True
    for i in range(4):
        if cpu.dr[7] >> (i * 2) & 3 and (cpu.dr[7] >> (16 + i * 4)) & 3 == 0 and cpu.dr[i] == linear:
            hits |= <uint64_t>1 << i
    if hits:
        cpu.debug_status = hits
        cpu.debug_is_fault = 1
        fault_at_rip(cpu, VECTOR_DB, NO_ERROR_CODE)
        cpu.debug_is_fault = 0
        return False
    cpu.step_live = 1
    return True


cdef void step_end(CpuState* cpu) noexcept nogil:
    """After it: RF goes, traps come. Where an event was delivered meanwhile there are none; behind MOV SS neither."""
    cdef uint64_t traps
    if not cpu.step_live or cpu.exit_reason != NO_EXIT:
        return
    cpu.step_live = 0
    if cpu.step_rf:
        cpu.rflags_sys &= ~<uint32_t>RF_RF
    traps = cpu.step_traps
    if cpu.step_tf:
        traps |= DR6_BS
    cpu.step_traps = 0
    if traps and not cpu.interruptibility & BLOCKED_BY_MOV_SS:
        cpu.debug_status = traps
        fault_at_rip(cpu, VECTOR_DB, NO_ERROR_CODE)
