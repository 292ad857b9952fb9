"""What the fragments of _system share. Owner: SYSTEM."""

cdef inline uint64_t truncate(uint64_t value, uint32_t size) noexcept nogil:
    return value & 0xFFFF if size == 2 else value & 0xFFFFFFFFU if size == 4 else value


cdef inline void write_reg(CpuState* cpu, uint32_t offset, uint64_t value, uint32_t size) noexcept nogil:
    """A register operand of 2, 4 or 8 bytes; 4 clears the upper half."""
    if size == 2:
        reg16(cpu, offset)[0] = <uint16_t>value
    else:
        reg64(cpu, offset)[0] = truncate(value, size)


cdef inline bint legacy_mode(CpuState* cpu) noexcept nogil:
    """Real or virtual-8086 mode: where LLDT, LAR and the like do not exist."""
    return not cpu.cr0 & CR0_PE or cpu.rflags_sys & RF_VM


cdef inline void set_zf(CpuState* cpu, bint on) noexcept nogil:
    cpu.aflags = (cpu.aflags | AF_ZF) if on else (cpu.aflags & ~<uint32_t>AF_ZF)


cdef inline bint read_word(CpuState* cpu, Op* op, uint16_t* value) noexcept nogil:
    """A 16-bit register or memory operand. False: the fault was delivered."""
    cdef uint8_t* p
    if op.flags & OPF_MEM:
        p = mem_read(cpu, op, ea(cpu, op), 2)
        if p == NULL:
            return False
        value[0] = (<uint16_t*>p)[0]
    else:
        value[0] = reg16(cpu, op.b)[0]
    return True


cdef inline bint store_word(CpuState* cpu, Op* op, uint64_t value) noexcept nogil:
    """16 bits to memory, or a register of the operand size, zero-extended."""
    if op.flags & OPF_MEM:
        return mem_write(cpu, op, ea(cpu, op), value & 0xFFFF, 2)
    write_reg(cpu, op.b, value, op.opsize)
    return True


cdef inline uint64_t address_mask(Op* op) noexcept nogil:
    return 0xFFFF if op.flags & OPF_ADDR16 else 0xFFFFFFFFU if op.flags & OPF_ADDR32 else ~<uint64_t>0


cdef inline uint64_t stack_mask(CpuState* cpu) noexcept nogil:
    return ~<uint64_t>0 if cpu.code64 else 0xFFFFFFFFU if cpu.mode_key & KEY_SS32 else 0xFFFF


cdef inline void set_stack(CpuState* cpu, uint64_t sp) noexcept nogil:
    cdef uint64_t mask = stack_mask(cpu)
    cpu.regs[4] = (cpu.regs[4] & ~mask) | (sp & mask) if mask == 0xFFFF else sp & mask


cdef void op_ea_seg(CpuState* cpu, Op* op) noexcept nogil:
    """Address step: offset -> linear address in SLOT_EA, with the segment's limit and rights."""
    cdef uint64_t offset = ea(cpu, op) & address_mask(op)
    cdef Segment* seg = &cpu.seg[op.seg]
    if (not cpu.code64 and seg.limit == 0xFFFFFFFFU
            and (seg.rights & (AR_S | AR_CODE | AR_EXPAND | AR_WRITE | AR_UNUSABLE)) == (AR_S | AR_WRITE)):
        cpu.regs[SLOT_EA >> 3] = (seg.base + offset) & 0xFFFFFFFFU
    elif not seg_linear(cpu, op.seg, offset, op.opsize, (op.flags & OPF_WRITE) != 0, &cpu.regs[SLOT_EA >> 3]):
        fault_refused(cpu, op)
        return
    op[1].fn(cpu, op + 1)
