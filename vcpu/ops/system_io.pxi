"""IN, OUT, INS, OUTS: privilege, the TSS's bitmap, I/O exits. Owner: SYSTEM."""

cdef enum:
    IO_RUN = 4096                # iterations of REP INS/OUTS between two looks at the attention word


cdef bint port_allowed(CpuState* cpu, Op* op, uint32_t port, uint32_t size) noexcept nogil:
    """CPL <= IOPL, or every bit of the port clear in the TSS's map (SDM 1 19.5.2). False: #GP(0) delivered."""
    cdef Segment* tss = &cpu.seg[SEG_TR]
    cdef uint16_t map_ = 0
    cdef uint16_t bits = 0
    cdef uint32_t type_ = tss.rights & 0x1F
    if not cpu.cr0 & CR0_PE or (not cpu.rflags_sys & RF_VM and cpu.cpl <= (cpu.rflags_sys & RF_IOPL) >> 12):
        return True
    if type_ in (TYPE_TSS, TYPE_TSS_BUSY) and not tss.rights & AR_UNUSABLE and tss.limit >= 103:
        if not sys_access(cpu, tss.base + 102, <uint8_t*>&map_, 2, IMPLICIT):
            fault_refused(cpu, op)
            return False
        # two bytes are read always, so the map ends with a byte of ones
        if map_ + (port >> 3) + 1 <= tss.limit:
            if not sys_access(cpu, tss.base + map_ + (port >> 3), <uint8_t*>&bits, 2, IMPLICIT):
                fault_refused(cpu, op)
                return False
            if not bits >> (port & 7) & ((1 << size) - 1):
                return True
    fault(cpu, op, VECTOR_GP, 0)
    return False


cdef enum:
    IMPLICIT = 0x100             # ACCESS_IMPLICIT of core/mmu.pxi


cdef bint port_exits(CpuState* cpu, Op* op, uint32_t port, uint32_t size, uint32_t how) noexcept nogil:
    """how: qualification bits 3 in, 4 string, 5 REP, 6 immediate (SDM 3C table 28-5)."""
    cdef bint wanted = False
    cdef uint32_t i
    if cpu.proc_controls & PROC_IO_BITMAPS and cpu.io_bitmap != NULL:
        for i in range(size):
            if port + i > 0xFFFF or cpu.io_bitmap[(port + i) >> 3] >> ((port + i) & 7) & 1:
                wanted = True
    elif cpu.proc_controls & PROC_UNCONDITIONAL_IO:
        wanted = True
    if not wanted:
        return False
    vm_exit_op(cpu, op, EXIT_REASON_IO_INSTRUCTION, (size - 1) | how | <uint64_t>port << 16)
    return True


cdef inline uint32_t io_size(Op* op) noexcept nogil:
    """Even opcodes are byte forms; 64-bit operands do not exist."""
    return 1 if not op.modrm & 1 else 2 if op.opsize == 2 else 4


cdef void do_in(CpuState* cpu, Op* op, uint32_t port, uint32_t how) noexcept nogil:
    cdef uint32_t size = io_size(op)
    cdef uint64_t value = 0
    if not port_allowed(cpu, op, port, size) or port_exits(cpu, op, port, size, how | 8):
        return
    finish_op(cpu, op)
    io_port(cpu, port, &value, size, False)
    if size == 1:
        reg8(cpu, 0)[0] = <uint8_t>value
    else:
        write_reg(cpu, 0, value, size)
    if cpu.mode_key & KEY_STEP:
        io_breakpoints(cpu, port, size)


cdef void do_out(CpuState* cpu, Op* op, uint32_t port, uint32_t how) noexcept nogil:
    cdef uint32_t size = io_size(op)
    cdef uint64_t value = cpu.regs[0] & (0xFF if size == 1 else 0xFFFF if size == 2 else 0xFFFFFFFFU)
    if not port_allowed(cpu, op, port, size) or port_exits(cpu, op, port, size, how):
        return
    finish_op(cpu, op)
    io_port(cpu, port, &value, size, True)
    if cpu.mode_key & KEY_STEP:
        io_breakpoints(cpu, port, size)


cdef void op_in_imm(CpuState* cpu, Op* op) noexcept nogil:
    do_in(cpu, op, <uint32_t>op.imm & 0xFF, 64)


cdef void op_in_dx(CpuState* cpu, Op* op) noexcept nogil:
    do_in(cpu, op, <uint32_t>cpu.regs[2] & 0xFFFF, 0)


cdef void op_out_imm(CpuState* cpu, Op* op) noexcept nogil:
    do_out(cpu, op, <uint32_t>op.imm & 0xFF, 64)


cdef void op_out_dx(CpuState* cpu, Op* op) noexcept nogil:
    do_out(cpu, op, <uint32_t>cpu.regs[2] & 0xFFFF, 0)


cdef inline void advance(CpuState* cpu, uint32_t number, uint32_t size, uint64_t mask) noexcept nogil:
    """SI or DI by the direction flag, in the width of the address size."""
    cdef uint64_t value = cpu.regs[number] - size if cpu.rflags_sys & RF_DF else cpu.regs[number] + size
    if mask == 0xFFFF:
        cpu.regs[number] = (cpu.regs[number] & ~mask) | (value & mask)
    else:
        cpu.regs[number] = value & mask


cdef bint count_down(CpuState* cpu, uint64_t mask) noexcept nogil:
    """One off CX; True while it is not 0."""
    cdef uint64_t value = (cpu.regs[1] - 1) & mask
    cpu.regs[1] = (cpu.regs[1] & ~mask) | value if mask == 0xFFFF else value
    return value != 0


cdef bint ins_once(CpuState* cpu, Op* op, uint32_t port, uint32_t size, uint64_t mask) noexcept nogil:
    """The store is known to be allowed before the port is read: its byte would be lost."""
    cdef gva_t linear = 0
    cdef uint64_t value = 0
    if not seg_linear(cpu, SEG_ES, cpu.regs[7] & mask, size, True, &linear):
        fault_refused(cpu, op)
        return False
    if not mem_check(cpu, op, linear, size, True):
        return False
    cpu.op_index = op.index
    io_port(cpu, port, &value, size, False)
    if not mem_write(cpu, op, linear, value, size):
        return False
    advance(cpu, 7, size, mask)
    return True


cdef bint outs_once(CpuState* cpu, Op* op, uint32_t port, uint32_t size, uint64_t mask) noexcept nogil:
    cdef gva_t linear = 0
    cdef uint64_t value = 0
    cdef uint8_t* p
    if not seg_linear(cpu, op.seg, cpu.regs[6] & mask, size, False, &linear):
        fault_refused(cpu, op)
        return False
    p = mem_read(cpu, op, linear, size)
    if p == NULL:
        return False
    memcpy(&value, p, size)
    cpu.op_index = op.index
    io_port(cpu, port, &value, size, True)
    advance(cpu, 6, size, mask)
    return True


cdef void string_io(CpuState* cpu, Op* op, bint is_in) noexcept nogil:
    """With REP: a run of iterations; between two runs the loop looks, with rip on the instruction."""
    cdef uint32_t port = <uint32_t>cpu.regs[2] & 0xFFFF
    cdef uint32_t size = io_size(op)
    cdef uint64_t mask = address_mask(op)
    cdef bint repeated = (op.flags & (OPF_REP | OPF_REPNE)) != 0
    cdef uint32_t done
    if not port_allowed(cpu, op, port, size):
        return
    if port_exits(cpu, op, port, size, (8 if is_in else 0) | 16 | (32 if repeated else 0)):
        return
    if repeated and cpu.regs[1] & mask == 0:
        finish_op(cpu, op)
        return
    for done in range(IO_RUN):
        if not (ins_once(cpu, op, port, size, mask) if is_in else outs_once(cpu, op, port, size, mask)):
            return
        if not repeated or not count_down(cpu, mask):
            if cpu.mode_key & KEY_STEP:
                io_breakpoints(cpu, port, size)
            finish_op(cpu, op)
            return
        if cpu.attention or cpu.mode_key & KEY_STEP:
            break
    op_rewind(cpu, op)


cdef void op_ins(CpuState* cpu, Op* op) noexcept nogil:
    string_io(cpu, op, True)


cdef void op_outs(CpuState* cpu, Op* op) noexcept nogil:
    string_io(cpu, op, False)
