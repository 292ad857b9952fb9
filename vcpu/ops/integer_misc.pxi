# Owner: CORE. Included by the generated _integer.pyx: flags, BCD, CMPXCHG8B/16B, XLAT, NOPs and fences.


cdef void op_nop(CpuState* cpu, Op* op) noexcept nogil:
    op[1].fn(cpu, op + 1)


cdef void op_nop_or_xchg(CpuState* cpu, Op* op) noexcept nogil:
    """90..97: with rAX itself it is NOP (F3: PAUSE), and leaves the upper half alone."""
    cdef uint64_t first = get_sized(cpu, op.b, op.opsize)
    if op.b != 0:
        set_sized(cpu, op.b, get_sized(cpu, 0, op.opsize), op.opsize)
        set_sized(cpu, 0, first, op.opsize)
    op[1].fn(cpu, op + 1)


cdef void op_ud(CpuState* cpu, Op* op) noexcept nogil:
    fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)


cdef void op_fence(CpuState* cpu, Op* op) noexcept nogil:
    fence_all()
    op[1].fn(cpu, op + 1)


cdef void op_clflush(CpuState* cpu, Op* op) noexcept nogil:
    if not mem_check(cpu, op, ea(cpu, op), 1, False):
        return
    op[1].fn(cpu, op + 1)


cdef void op_cmc(CpuState* cpu, Op* op) noexcept nogil:
    cpu.aflags ^= AF_CF
    op[1].fn(cpu, op + 1)


cdef void op_clc(CpuState* cpu, Op* op) noexcept nogil:
    cpu.aflags &= ~<uint32_t>AF_CF
    op[1].fn(cpu, op + 1)


cdef void op_stc(CpuState* cpu, Op* op) noexcept nogil:
    cpu.aflags |= AF_CF
    op[1].fn(cpu, op + 1)


cdef void op_cld(CpuState* cpu, Op* op) noexcept nogil:
    cpu.rflags_sys &= ~<uint32_t>RF_DF
    op[1].fn(cpu, op + 1)


cdef void op_std(CpuState* cpu, Op* op) noexcept nogil:
    cpu.rflags_sys |= RF_DF
    op[1].fn(cpu, op + 1)


cdef void op_lahf(CpuState* cpu, Op* op) noexcept nogil:
    reg8(cpu, 1)[0] = <uint8_t>((cpu.aflags >> 8 & 0xD5) | 2)
    op[1].fn(cpu, op + 1)


cdef void op_sahf(CpuState* cpu, Op* op) noexcept nogil:
    cpu.aflags = (cpu.aflags & AF_OF) | (<uint32_t>reg8(cpu, 1)[0] & 0xD5) << 8
    op[1].fn(cpu, op + 1)


cdef void op_salc(CpuState* cpu, Op* op) noexcept nogil:
    reg8(cpu, 0)[0] = 0xFF if cpu.aflags & AF_CF else 0
    op[1].fn(cpu, op + 1)


cdef void op_xlat(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p
    if not seg_linear(cpu, op.seg, (cpu.regs[3] + reg8(cpu, 0)[0]) & address_mask(op), 1, False, &cpu.regs[20]):
        fault_refused(cpu, op)
        return
    p = mem_read(cpu, op, cpu.regs[20], 1)
    if p == NULL:
        return
    reg8(cpu, 0)[0] = p[0]
    op[1].fn(cpu, op + 1)


# ------------------------------------------------------------------ CMPXCHG8B, CMPXCHG16B

cdef inline void set_zf(CpuState* cpu, bint zero) noexcept nogil:
    cpu.aflags = (cpu.aflags & ~<uint32_t>AF_ZF) | (AF_ZF if zero else 0)


cdef void op_cmpxchg8b(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p = mem_rmw(cpu, op, ea(cpu, op), 8)
    cdef uint64_t expected = <uint64_t><uint32_t>cpu.regs[2] << 32 | <uint32_t>cpu.regs[0]
    cdef uint64_t wanted = <uint64_t><uint32_t>cpu.regs[1] << 32 | <uint32_t>cpu.regs[3]
    cdef uint64_t was
    if p == NULL:
        return
    was = lock_cas64(<uint64_t*>p, expected, wanted)
    mem_rmw_done(cpu, op)
    set_zf(cpu, was == expected)
    if was != expected:
        cpu.regs[0] = <uint32_t>was
        cpu.regs[2] = was >> 32
    op[1].fn(cpu, op + 1)


cdef void op_cmpxchg16b(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t address = ea(cpu, op)
    cdef uint8_t* p
    cdef bint equal
    if address & 15:
        fault(cpu, op, VECTOR_GP, 0)
        return
    p = mem_rmw(cpu, op, address, 16)
    if p == NULL:
        return
    cpu.regs[20] = cpu.regs[0]
    cpu.regs[21] = cpu.regs[2]
    if <uint64_t>p & 15:
        # cpu.mbuf: nobody else sees it
        equal = (<uint64_t*>p)[0] == cpu.regs[0] and (<uint64_t*>p)[1] == cpu.regs[2]
        cpu.regs[20] = (<uint64_t*>p)[0]
        cpu.regs[21] = (<uint64_t*>p)[1]
        if equal:
            (<uint64_t*>p)[0] = cpu.regs[3]
            (<uint64_t*>p)[1] = cpu.regs[1]
    else:
        equal = cas128(p, &cpu.regs[20], &cpu.regs[21], cpu.regs[3], cpu.regs[1]) != 0
    mem_rmw_done(cpu, op)
    set_zf(cpu, equal)
    if not equal:
        cpu.regs[0] = cpu.regs[20]
        cpu.regs[2] = cpu.regs[21]
    op[1].fn(cpu, op + 1)


# ------------------------------------------------------------------ BCD (SDM 2A AAA-AAS, DAA, DAS), not in 64-bit mode

cdef void op_daa(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t al = reg8(cpu, 0)[0]
    cdef uint32_t flags = 0
    cdef uint8_t result = al
    if al & 0xF > 9 or cpu.aflags & AF_AF:
        result += 6
        flags |= AF_AF
    if al > 0x99 or cpu.aflags & AF_CF:
        result += 0x60
        flags |= AF_CF
    bcd_result(cpu, result, flags)
    op[1].fn(cpu, op + 1)


cdef void op_das(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t al = reg8(cpu, 0)[0]
    cdef uint32_t flags = 0
    cdef uint8_t result = al
    if al & 0xF > 9 or cpu.aflags & AF_AF:
        if al < 6 or cpu.aflags & AF_CF:
            flags |= AF_CF
        result -= 6
        flags |= AF_AF
    if al > 0x99 or cpu.aflags & AF_CF:
        result -= 0x60
        flags |= AF_CF
    bcd_result(cpu, result, flags)
    op[1].fn(cpu, op + 1)


cdef inline void bcd_result(CpuState* cpu, uint8_t result, uint32_t flags) noexcept nogil:
    """AL, and SF ZF PF by it; AF and CF as given; OF, which is undefined, 0."""
    test8(&cpu.aflags, result, 0xFF)
    cpu.aflags = (cpu.aflags & (AF_SF | AF_ZF | AF_PF)) | flags
    reg8(cpu, 0)[0] = result


cdef void op_aaa(CpuState* cpu, Op* op) noexcept nogil:
    cdef bint adjust = reg8(cpu, 0)[0] & 0xF > 9 or cpu.aflags & AF_AF
    if adjust:
        reg16(cpu, 0)[0] += 0x106
    aa_result(cpu, adjust)
    op[1].fn(cpu, op + 1)


cdef void op_aas(CpuState* cpu, Op* op) noexcept nogil:
    cdef bint adjust = reg8(cpu, 0)[0] & 0xF > 9 or cpu.aflags & AF_AF
    if adjust:
        reg16(cpu, 0)[0] -= 0x106
    aa_result(cpu, adjust)
    op[1].fn(cpu, op + 1)


cdef inline void aa_result(CpuState* cpu, bint adjusted) noexcept nogil:
    reg8(cpu, 0)[0] &= 0xF
    test8(&cpu.aflags, reg8(cpu, 0)[0], 0xFF)
    cpu.aflags = (cpu.aflags & (AF_SF | AF_ZF | AF_PF)) | (AF_AF | AF_CF if adjusted else 0)


cdef void op_aam(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t al = reg8(cpu, 0)[0]
    cdef uint8_t base = <uint8_t>op.imm
    if base == 0:
        fault(cpu, op, VECTOR_DE, NO_ERROR_CODE)
        return
    reg8(cpu, 1)[0] = al // base
    bcd_result(cpu, al % base, 0)
    op[1].fn(cpu, op + 1)


cdef void op_aad(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t al = <uint8_t>(reg8(cpu, 0)[0] + reg8(cpu, 1)[0] * op.imm)
    reg8(cpu, 1)[0] = 0
    bcd_result(cpu, al, 0)
    op[1].fn(cpu, op + 1)
