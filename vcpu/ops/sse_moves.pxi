# Moves between XMM, MMX, general registers and memory; inserts and extracts; masks. Owner: FPU.
#
# The moves that differ only in name (MOVAPS, MOVAPD, MOVDQA …) and the lanes of XMM registers come from the generator: move() in
# emit_sse.py.

# --- 32 and 64 bits

cdef void op_movss_x_x(CpuState* cpu, Op* op) noexcept nogil:
    k_movss(&cpu.xmm[op.r], load128(&cpu.xmm[op.b]))
    op[1].fn(cpu, op + 1)


cdef void op_movsd_x_x(CpuState* cpu, Op* op) noexcept nogil:
    k_movsd(&cpu.xmm[op.r], load128(&cpu.xmm[op.b]))
    op[1].fn(cpu, op + 1)


cdef void op_movq_x_x(CpuState* cpu, Op* op) noexcept nogil:
    store128(&cpu.xmm[op.r], load64(&cpu.xmm[op.b]))
    op[1].fn(cpu, op + 1)


cdef void op_movhlps_x_x(CpuState* cpu, Op* op) noexcept nogil:
    k_movhlps(&cpu.xmm[op.r], load128(&cpu.xmm[op.b]))
    op[1].fn(cpu, op + 1)


cdef void op_movlhps_x_x(CpuState* cpu, Op* op) noexcept nogil:
    k_movlhps(&cpu.xmm[op.r], load128(&cpu.xmm[op.b]))
    op[1].fn(cpu, op + 1)


cdef void op_movd_x_r32(CpuState* cpu, Op* op) noexcept nogil:
    store128(&cpu.xmm[op.r], from64(reg32(cpu, op.b)[0]))
    op[1].fn(cpu, op + 1)


cdef void op_movq_x_r64(CpuState* cpu, Op* op) noexcept nogil:
    store128(&cpu.xmm[op.r], from64(reg64(cpu, op.b)[0]))
    op[1].fn(cpu, op + 1)


cdef void op_movd_r32_x(CpuState* cpu, Op* op) noexcept nogil:
    reg64(cpu, op.b)[0] = <uint32_t>cpu.xmm[op.r].lo
    op[1].fn(cpu, op + 1)


cdef void op_movq_r64_x(CpuState* cpu, Op* op) noexcept nogil:
    reg64(cpu, op.b)[0] = cpu.xmm[op.r].lo
    op[1].fn(cpu, op + 1)


cdef void op_movhps_x_m(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p = mem_read(cpu, op, ea(cpu, op), 8)
    if p == NULL:
        return
    k_movlhps(&cpu.xmm[op.r], load64(p))
    op[1].fn(cpu, op + 1)


cdef void op_movhps_m_x(CpuState* cpu, Op* op) noexcept nogil:
    if not mem_write(cpu, op, ea(cpu, op), cpu.xmm[op.r].hi, 8):
        return
    op[1].fn(cpu, op + 1)


cdef void op_movlps_x_m(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p = mem_read(cpu, op, ea(cpu, op), 8)
    if p == NULL:
        return
    k_movsd(&cpu.xmm[op.r], load64(p))
    op[1].fn(cpu, op + 1)


# --- MMX

cdef void op_movd_mm_r32(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    set_mm(cpu, op.r, reg32(cpu, op.b)[0])
    op[1].fn(cpu, op + 1)


cdef void op_movd_mm_m32(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p
    if not mmx_begin(cpu, op):
        return
    p = mem_read(cpu, op, ea(cpu, op), 4)
    if p == NULL:
        return
    mmx_enter(cpu)
    set_mm(cpu, op.r, (<uint32_t*>p)[0])
    op[1].fn(cpu, op + 1)


cdef void op_movq_mm_r64(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    set_mm(cpu, op.r, reg64(cpu, op.b)[0])
    op[1].fn(cpu, op + 1)


cdef void op_movq_mm_m64(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p
    if not mmx_begin(cpu, op):
        return
    p = mem_read(cpu, op, ea(cpu, op), 8)
    if p == NULL:
        return
    mmx_enter(cpu)
    set_mm(cpu, op.r, (<uint64_t*>p)[0])
    op[1].fn(cpu, op + 1)


cdef void op_movq_mm_m(CpuState* cpu, Op* op) noexcept nogil:
    op_movq_mm_m64(cpu, op)


cdef void op_movq_mm_mm(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    set_mm(cpu, op.r, mm(cpu, op.b))
    op[1].fn(cpu, op + 1)


cdef void op_movd_r32_mm(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    reg64(cpu, op.b)[0] = <uint32_t>mm(cpu, op.r)
    op[1].fn(cpu, op + 1)


cdef void op_movq_r64_mm(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    reg64(cpu, op.b)[0] = mm(cpu, op.r)
    op[1].fn(cpu, op + 1)


cdef void op_movd_m32_mm(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op) or not mem_write(cpu, op, ea(cpu, op), <uint32_t>mm(cpu, op.r), 4):
        return
    mmx_enter(cpu)
    op[1].fn(cpu, op + 1)


cdef void op_movq_m64_mm(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op) or not mem_write(cpu, op, ea(cpu, op), mm(cpu, op.r), 8):
        return
    mmx_enter(cpu)
    op[1].fn(cpu, op + 1)


cdef void op_movq_m_mm(CpuState* cpu, Op* op) noexcept nogil:
    op_movq_m64_mm(cpu, op)


cdef void op_movntq_m_mm(CpuState* cpu, Op* op) noexcept nogil:
    op_movq_m64_mm(cpu, op)


cdef void op_movq2dq_x_mm(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    store128(&cpu.xmm[op.r], from64(mm(cpu, op.b)))
    op[1].fn(cpu, op + 1)


cdef void op_movdq2q_mm_x(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    set_mm(cpu, op.r, cpu.xmm[op.b].lo)
    op[1].fn(cpu, op + 1)


cdef void op_emms(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    cpu.ftw = 0
    op[1].fn(cpu, op + 1)


# --- sign masks

cdef inline uint64_t sign_bytes(uint64_t v) noexcept nogil:
    """Bit 7 of each byte, gathered into eight bits: the multiplication moves bit 8 i to bit 56 + i."""
    return ((v >> 7 & <uint64_t>0x0101010101010101) * <uint64_t>0x0102040810204080) >> 56


cdef void op_pmovmskb_r32_x(CpuState* cpu, Op* op) noexcept nogil:
    reg64(cpu, op.r)[0] = sign_bytes(cpu.xmm[op.b].lo) | sign_bytes(cpu.xmm[op.b].hi) << 8
    op[1].fn(cpu, op + 1)


cdef void op_pmovmskb_r32_mm(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    reg64(cpu, op.r)[0] = sign_bytes(mm(cpu, op.b))
    op[1].fn(cpu, op + 1)


cdef void op_movmskps_r32_x(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t lo = cpu.xmm[op.b].lo
    cdef uint64_t hi = cpu.xmm[op.b].hi
    reg64(cpu, op.r)[0] = (lo >> 31 & 1) | (lo >> 62 & 2) | (hi >> 29 & 4) | (hi >> 60 & 8)
    op[1].fn(cpu, op + 1)


cdef void op_movmskpd_r32_x(CpuState* cpu, Op* op) noexcept nogil:
    reg64(cpu, op.r)[0] = cpu.xmm[op.b].lo >> 63 | (cpu.xmm[op.b].hi >> 62 & 2)
    op[1].fn(cpu, op + 1)


# --- bytes stored under a mask, at DS:rDI

cdef inline uint64_t mask_offset(CpuState* cpu, Op* op) noexcept nogil:
    if op.flags & OPF_ADDR64:
        return cpu.regs[7]
    return <uint32_t>cpu.regs[7] if op.flags & OPF_ADDR32 else <uint16_t>cpu.regs[7]


cdef bint store_masked(CpuState* cpu, Op* op, const uint8_t* data, const uint8_t* mask, uint32_t size) noexcept nogil:
    """Every selected byte is checked before the first is stored. False: a fault was delivered."""
    cdef uint64_t offset = mask_offset(cpu, op)
    cdef uint32_t i
    for i in range(size):
        if mask[i] & 0x80 == 0:
            continue
        if not seg_linear(cpu, op.seg, offset + i, 1, True, &cpu.fpu_temp):
            fault_refused(cpu, op)
            return False
        if not mem_check(cpu, op, cpu.fpu_temp, 1, True):
            return False
    for i in range(size):
        if mask[i] & 0x80 == 0:
            continue
        seg_linear(cpu, op.seg, offset + i, 1, True, &cpu.fpu_temp)
        if not mem_write(cpu, op, cpu.fpu_temp, data[i], 1):
            return False
    return True


cdef void op_maskmovdqu(CpuState* cpu, Op* op) noexcept nogil:
    if not store_masked(cpu, op, <uint8_t*>&cpu.xmm[op.r], <uint8_t*>&cpu.xmm[op.b], 16):
        return
    op[1].fn(cpu, op + 1)


cdef void op_maskmovq(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op) or not store_masked(cpu, op, <uint8_t*>&cpu.st[op.r & 7].mantissa,
                                                  <uint8_t*>&cpu.st[op.b & 7].mantissa, 8):
        return
    mmx_enter(cpu)
    op[1].fn(cpu, op + 1)


# --- inserts and extracts

cdef inline uint8_t* lane(CpuState* cpu, uint32_t number, uint64_t imm, uint32_t size) noexcept nogil:
    """The lane of an XMM register that an immediate selects."""
    return <uint8_t*>&cpu.xmm[number] + (imm * size & 15)


cdef void op_pinsrw_mm_r32_i(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    set_mm(cpu, op.r, mm(cpu, op.r))
    (<uint16_t*>&cpu.st[op.r & 7].mantissa)[op.imm & 3] = <uint16_t>reg32(cpu, op.b)[0]
    op[1].fn(cpu, op + 1)


cdef void op_pinsrw_mm_m16_i(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p
    if not mmx_begin(cpu, op):
        return
    p = mem_read(cpu, op, ea(cpu, op), 2)
    if p == NULL:
        return
    mmx_enter(cpu)
    set_mm(cpu, op.r, mm(cpu, op.r))
    (<uint16_t*>&cpu.st[op.r & 7].mantissa)[op.imm & 3] = (<uint16_t*>p)[0]
    op[1].fn(cpu, op + 1)


cdef void op_pextrw_r32_mm_i(CpuState* cpu, Op* op) noexcept nogil:
    if not mmx_begin(cpu, op):
        return
    mmx_enter(cpu)
    reg64(cpu, op.r)[0] = (<uint16_t*>&cpu.st[op.b & 7].mantissa)[op.imm & 3]
    op[1].fn(cpu, op + 1)
