# Owner: CORE. Included by vcpu/_core.pyx: from block to block, and the loop around it.
#
# Owns:    lookup and links, op_* of the engine itself, engine_run.
# Never:   knows an instruction; interrupts, exceptions and exits are their owners' functions.
# Threads: the vCPU's own.

cdef enum:
    ATTN_LOOP = ATTN_TLB_FLUSH | ATTN_CODE_CHANGED | ATTN_SAFEPOINT
    BLOCKING = 3                 # interruptibility: STI, MOV SS


# ------------------------------------------------------------------ ops of the engine

cdef void op_missing(CpuState* cpu, Op* op) noexcept nogil:
    """A row whose handler nobody brought."""
    fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)


cdef void op_ud(CpuState* cpu, Op* op) noexcept nogil:
    fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)


cdef void op_gp(CpuState* cpu, Op* op) noexcept nogil:
    fault(cpu, op, VECTOR_GP, 0)


cdef void op_nm(CpuState* cpu, Op* op) noexcept nogil:
    fault(cpu, op, VECTOR_NM, NO_ERROR_CODE)


cdef void op_end(CpuState* cpu, Op* op) noexcept nogil:
    """The block is full, or the page ends. op.index instructions retired."""
    chain(cpu, <Link*>(op + 1), op.index)


cdef void op_end_legacy(CpuState* cpu, Op* op) noexcept nogil:
    cpu.rip = op_next_rip(cpu, op)
    cpu.budget -= op.index
    next_block(cpu)


cdef void op_stale(CpuState* cpu, Op* op) noexcept nogil:
    """Its block was dropped: go on from here by a fresh lookup."""
    cpu.rip = op_rip(cpu, op)
    cpu.budget -= op.index
    next_block(cpu)


cdef void op_ea_flat(CpuState* cpu, Op* op) noexcept nogil:
    """The address step of flat 32-bit code: nothing to check."""
    cpu.regs[20] = <uint32_t>ea(cpu, op)
    op[1].fn(cpu, op + 1)


cdef inline uint64_t linked_rip(CpuState* cpu) noexcept nogil:
    """SLOT_RIP as a link has left it; flat 32-bit code wraps at 4 GiB."""
    if not cpu.code64:
        cpu.regs[17] &= 0xFFFFFFFFU
    return cpu.regs[17]


cdef void op_link(CpuState* cpu, Op* op) noexcept nogil:
    """A link nobody followed yet, or one to another page. rip and count are done."""
    cdef Link* link = <Link*>op
    cdef uint64_t rip = linked_rip(cpu)
    cdef Block* block
    if (rip - <uint64_t>link.delta ^ rip) >> PAGE_SHIFT:
        link.fn = op_link_far
        op_link_far(cpu, op)
        return
    cpu.rip = rip
    block = next_lookup(cpu)
    if block == NULL:
        return
    # the same page: whoever runs this block runs with that translation, so nothing needs to be looked at again
    link.target = <uint64_t>block.ops
    block.ops[0].fn(cpu, block.ops)


cdef void op_link_far(CpuState* cpu, Op* op) noexcept nogil:
    """To another page: good while the TLB says that the target's first byte is where it was."""
    cdef Link* link = <Link*>op
    cdef uint64_t rip = linked_rip(cpu)
    cdef uint8_t* host = probe_exec(cpu, rip)
    cdef Block* block
    if host != NULL and host == link.far_host:
        (<Op*>link.far_op).fn(cpu, <Op*>link.far_op)
        return
    cpu.rip = rip
    block = next_lookup(cpu)
    if block == NULL:
        return
    link.far_op = <uint64_t>block.ops
    link.far_host = host
    block.ops[0].fn(cpu, block.ops)


cdef inline Block* next_lookup(CpuState* cpu) noexcept nogil:
    """The block at cpu.rip if it is decoded and nothing about it is special, else NULL: the loop's business."""
    cdef uint64_t linear = cpu.rip
    cdef uint8_t* host
    cdef Block* block
    if not cpu.code64:
        linear = (linear + cpu.seg[SEG_CS].base) & 0xFFFFFFFFU
    host = probe_exec(cpu, linear)
    if host == NULL:
        return NULL
    block = find_block(cpu, host, cpu.mode_key)
    if block == NULL or block.crosses or beyond_limit(cpu, block):
        return NULL
    return block


cdef inline bint beyond_limit(CpuState* cpu, Block* block) noexcept nogil:
    """16- and 32-bit code: does the block reach behind CS.limit?"""
    return not cpu.code64 and cpu.rip + block.n_bytes - 1 > cpu.seg[SEG_CS].limit


cdef void next_block(CpuState* cpu) noexcept nogil:
    """cpu.rip is set: run the block there. Whatever is rare returns to the loop."""
    cdef Block* block
    if cpu.budget < BLOCK_INSNS or cpu.attention != 0:
        return
    block = next_lookup(cpu)
    if block == NULL:
        return
    cpu.regs[17] = cpu.rip
    block.ops[0].fn(cpu, block.ops)


cdef void next_block_from(CpuState* cpu, Op* op) noexcept nogil:
    """An indirect branch of 64-bit code went where it did not go lately."""
    cdef Link* link = <Link*>(op + 1)
    cdef Block* block
    cpu.rip = cpu.regs[17]
    block = next_lookup(cpu)
    if block == NULL:
        return
    link[1].far_op = link.far_op
    link[1].far_host = link.far_host
    link.far_op = <uint64_t>block.ops
    link.far_host = block.host
    block.ops[0].fn(cpu, block.ops)


# ------------------------------------------------------------------ the loop

cdef Block* loop_block(CpuState* cpu, uint32_t key) noexcept nogil:
    """The block at cpu.rip, decoded if need be. NULL: a fault was delivered, look again."""
    cdef uint64_t linear = cpu.rip
    cdef gpa_t gpa = 0
    cdef uint64_t gpa2 = 0
    cdef uint8_t* host
    cdef uint8_t* host2
    cdef Block* block
    if not cpu.code64:
        if key & KEY_FLAT:
            cpu.rip &= 0xFFFFFFFFU
        linear = (cpu.rip + cpu.seg[SEG_CS].base) & 0xFFFFFFFFU
        if cpu.rip > cpu.seg[SEG_CS].limit:
            fault_at_rip(cpu, VECTOR_GP, 0)
            return NULL
    host = mem_fetch(cpu, linear, &gpa)
    if host == NULL:
        return NULL
    block = find_block(cpu, host, key)
    if block != NULL and block.crosses:
        # the second page may be another one by now
        host2 = mem_fetch(cpu, (linear & ~<uint64_t>0xFFF) + PAGE_SIZE, &gpa2)
        if host2 == NULL:
            return NULL
        if host2 != block.host2:
            drop_block(cpu, block)
            block = NULL
    if block == NULL:
        make_room(cpu)
        block = build_block(cpu, host, gpa, linear, key)
    return block


cdef inline bint is_flat_data(Segment* seg) noexcept nogil:
    return (seg.base == 0 and seg.limit == 0xFFFFFFFFU
            and seg.rights & (AR_UNUSABLE | AR_P | AR_S | AR_CODE | AR_EXPAND | AR_WRITE) == AR_P | AR_S | AR_WRITE)


cdef bint is_flat(CpuState* cpu) noexcept nogil:
    """32-bit protected mode in which no segment but FS and GS can refuse or move anything."""
    return (cpu.mode_key & (KEY_CODE | KEY_PE | KEY_VM86 | KEY_SS32) == KEY_CODE32 | KEY_PE | KEY_SS32
            and cpu.seg[SEG_CS].base == 0 and cpu.seg[SEG_CS].limit == 0xFFFFFFFFU
            and is_flat_data(&cpu.seg[SEG_SS]) and is_flat_data(&cpu.seg[SEG_DS]) and is_flat_data(&cpu.seg[SEG_ES]))


cdef void run_blocks(CpuState* cpu) noexcept nogil:
    """From cpu.rip on until something wants the loop."""
    cdef Block* block
    cdef bint step = cpu.mode_key & KEY_STEP or cpu.interruptibility & BLOCKING
    cdef uint32_t key
    if not cpu.code64:
        cpu.mode_key &= ~<uint32_t>KEY_FLAT
        if is_flat(cpu):
            cpu.mode_key |= KEY_FLAT
    key = cpu.mode_key
    if not step:
        block = loop_block(cpu, key)
        if block == NULL:
            return
        step = block.n_insns > cpu.budget or beyond_limit(cpu, block)
    if step:
        run_step(cpu, key | KEY_STEP)
        return
    cpu.regs[17] = cpu.rip
    block.ops[0].fn(cpu, block.ops)
    sync_retired(cpu)


cdef void run_step(CpuState* cpu, uint32_t key) noexcept nogil:
    """Exactly one instruction: shadows, single step, breakpoints, the end of the budget, CS.limit."""
    cdef uint64_t retired = cpu.retired
    cdef uint8_t shadow = cpu.interruptibility & BLOCKING
    cdef Block* block
    if not step_begin(cpu):
        return
    block = loop_block(cpu, key)
    if block != NULL:
        if beyond_limit(cpu, block):
            fault_at_rip(cpu, VECTOR_GP, 0)
        else:
            # with attention pending no handler goes on to another block, and a repeated one stops between two steps
            atomic_or32(&cpu.attention, ATTN_SHADOW)
            cpu.interruptibility &= <uint8_t>~BLOCKING
            cpu.regs[17] = cpu.rip
            block.ops[0].fn(cpu, block.ops)
            sync_retired(cpu)
            if cpu.exit_reason != NO_EXIT and cpu.retired == retired:
                cpu.interruptibility |= shadow
    step_end(cpu)


cdef void engine_attend(CpuState* cpu) noexcept nogil:
    """What other threads asked for."""
    cdef uint32_t asked = atomic_load32(&cpu.attention)
    if asked & ATTN_SAFEPOINT:
        guest_safepoint(cpu)
    if asked & ATTN_TLB_FLUSH:
        atomic_and32(&cpu.attention, ~<uint32_t>ATTN_TLB_FLUSH)
        tlb_flush_all(cpu)
    if asked & ATTN_CODE_CHANGED:
        take_changed_code(cpu)
    if asked & ATTN_INIT:
        apic_take_init(cpu)
    if asked & ATTN_SHADOW:
        atomic_and32(&cpu.attention, ~<uint32_t>ATTN_SHADOW)
    if asked & ATTN_INTERRUPT:
        atomic_and32(&cpu.attention, ~<uint32_t>ATTN_INTERRUPT)
    if asked & ATTN_TIMER:
        atomic_and32(&cpu.attention, ~<uint32_t>ATTN_TIMER)
        if clock_arm(cpu):
            vm_exit(cpu, EXIT_REASON_PREEMPTION_TIMER, 0)
            return
    if asked & ATTN_KICK and cpu.exit_reason == NO_EXIT:
        atomic_and32(&cpu.attention, ~<uint32_t>ATTN_KICK)
        vm_exit(cpu, EXIT_REASON_EXTERNAL_INTERRUPT, 0)


cdef void engine_interrupt(CpuState* cpu) noexcept nogil:
    """At an instruction boundary: NMI, then an interrupt, if they may come."""
    cdef int vector
    if cpu.proc_controls & (PROC_INTERRUPT_WINDOW | PROC_NMI_WINDOW) and vmx_window(cpu):
        return
    if cpu.attention & ATTN_NMI and not cpu.interruptibility & (BLOCKING | 8):
        if apic_take_nmi(cpu):
            deliver_nmi(cpu)
            return
    if not cpu.rflags_sys & RF_IF or cpu.interruptibility & BLOCKING:
        return
    if apic_pending(cpu) == -1:
        return
    vector = apic_acknowledge(cpu)
    if vector >= 0:
        cpu.activity = 0
        deliver_interrupt(cpu, <uint32_t>vector)


cdef void engine_run(CpuState* cpu) noexcept nogil:
    """Until cpu.exit_reason says why to leave. The clock has begun, the vCPU is in the guest."""
    cdef uint32_t reason
    while cpu.exit_reason == NO_EXIT:
        # an NMI that is blocked stays in the attention word; it must not keep the loop from running blocks
        if cpu.attention != 0:
            engine_attend(cpu)
        if cpu.budget <= 0 or (cpu.budget < BLOCK_INSNS and not clock_is_exact(cpu)):
            if clock_arm(cpu):
                vm_exit(cpu, EXIT_REASON_PREEMPTION_TIMER, 0)
        if cpu.exit_reason != NO_EXIT:
            return
        engine_interrupt(cpu)
        if cpu.exit_reason != NO_EXIT:
            return
        if cpu.budget <= 0:                      # a delivery took the last of it
            continue
        if cpu.activity != 0:
            reason = cpu_wait(cpu)
            if reason:
                vm_exit(cpu, reason, 0)
            continue
        run_blocks(cpu)
