# The quick ways of frequent x87 instructions. Owner: FPU.
#
# Taken when nothing waits, every exception is masked where one may occur, no register over- or underflows, and the operation signals
# nothing that FSW does not say already. Everything else: the thunk, from the unchanged state.

ctypedef int (*arithmetic_t)(uint16_t* w, uint8_t* d, const uint8_t* a, const uint8_t* b) noexcept nogil
ctypedef int (*unary_t)(uint16_t* w, uint8_t* d) noexcept nogil
ctypedef int (*store_t)(uint16_t* w, const uint8_t* a, uint8_t* t) noexcept nogil
ctypedef int (*compare_t)(uint16_t* w, const uint8_t* a, const uint8_t* b) noexcept nogil
ctypedef int (*compare_flags_t)(uint16_t* w, const uint8_t* a, const uint8_t* b, uint32_t* aflags) noexcept nogil

cdef extern from *:
    int q_fadd(uint16_t* w, uint8_t* d, const uint8_t* a, const uint8_t* b) noexcept nogil
    int q_fmul(uint16_t* w, uint8_t* d, const uint8_t* a, const uint8_t* b) noexcept nogil
    int q_fsub(uint16_t* w, uint8_t* d, const uint8_t* a, const uint8_t* b) noexcept nogil
    int q_fsubr(uint16_t* w, uint8_t* d, const uint8_t* a, const uint8_t* b) noexcept nogil
    int q_fdiv(uint16_t* w, uint8_t* d, const uint8_t* a, const uint8_t* b) noexcept nogil
    int q_fdivr(uint16_t* w, uint8_t* d, const uint8_t* a, const uint8_t* b) noexcept nogil
    int q_fsqrt(uint16_t* w, uint8_t* d) noexcept nogil
    int q_frndint(uint16_t* w, uint8_t* d) noexcept nogil
    int q_fst_m32(uint16_t* w, const uint8_t* a, uint8_t* t) noexcept nogil
    int q_fst_m64(uint16_t* w, const uint8_t* a, uint8_t* t) noexcept nogil
    int q_fist_m16(uint16_t* w, const uint8_t* a, uint8_t* t) noexcept nogil
    int q_fist_m32(uint16_t* w, const uint8_t* a, uint8_t* t) noexcept nogil
    int q_fist_m64(uint16_t* w, const uint8_t* a, uint8_t* t) noexcept nogil
    int q_fisttp_m16(uint16_t* w, const uint8_t* a, uint8_t* t) noexcept nogil
    int q_fisttp_m32(uint16_t* w, const uint8_t* a, uint8_t* t) noexcept nogil
    int q_fisttp_m64(uint16_t* w, const uint8_t* a, uint8_t* t) noexcept nogil
    int q_fcom(uint16_t* w, const uint8_t* a, const uint8_t* b) noexcept nogil
    int q_fucom(uint16_t* w, const uint8_t* a, const uint8_t* b) noexcept nogil
    int q_fcomi(uint16_t* w, const uint8_t* a, const uint8_t* b, uint32_t* aflags) noexcept nogil
    int q_fucomi(uint16_t* w, const uint8_t* a, const uint8_t* b, uint32_t* aflags) noexcept nogil


cdef inline bint x87_plain(CpuState* cpu) noexcept nogil:
    return cpu.fcw & FSW_EXCEPTIONS == FSW_EXCEPTIONS and not cpu.fsw & FSW_ES


cdef inline uint8_t* st_bytes(CpuState* cpu, uint32_t i) noexcept nogil:
    return <uint8_t*>st(cpu, i)


cdef inline void copy_st(St80* to, const St80* source) noexcept nogil:
    """Not as one struct: 16 bytes loaded behind stores of 8 and 2 must wait for them."""
    to.mantissa = source.mantissa
    to.sign_exponent = source.sign_exponent


cdef inline void x87_pop(CpuState* cpu) noexcept nogil:
    cpu.ftw &= <uint16_t>~(1 << x87_top(cpu))
    cpu.fsw = <uint16_t>((cpu.fsw & ~FSW_TOP) | ((cpu.fsw + 0x800) & FSW_TOP))


cdef inline bint can_push(CpuState* cpu) noexcept nogil:
    return not st_full(cpu, 7) and not cpu.fsw & FSW_ES


cdef inline void x87_push(CpuState* cpu, uint64_t mantissa, uint16_t sign_exponent) noexcept nogil:
    cpu.fsw = <uint16_t>((cpu.fsw & ~(FSW_TOP | FSW_C1)) | ((cpu.fsw - 0x800) & FSW_TOP))
    cpu.ftw |= <uint16_t>(1 << x87_top(cpu))
    st(cpu, 0).mantissa = mantissa
    st(cpu, 0).sign_exponent = sign_exponent


cdef inline St80* wide_of(CpuState* cpu) noexcept nogil:
    return <St80*>&cpu.fpu_area[160]


cdef inline bint widen(CpuState* cpu, const uint8_t* p, uint32_t size, bint integer) noexcept nogil:
    """A number in memory to 80 bits at wide_of(cpu). False: it would signal something."""
    cdef St80* wide = wide_of(cpu)
    if integer:
        widen_integer((<int64_t*>p)[0] if size == 8 else (<int32_t*>p)[0] if size == 4 else (<int16_t*>p)[0],
                      &wide.mantissa, &wide.sign_exponent)
        return True
    if size == 8:
        return widen64((<uint64_t*>p)[0], &wide.mantissa, &wide.sign_exponent) != 0
    return widen32((<uint32_t*>p)[0], &wide.mantissa, &wide.sign_exponent) != 0


# --- arithmetic

cdef inline bint arithmetic_sti(CpuState* cpu, Op* op, arithmetic_t kernel, uint32_t opcode, bint to_sti,
                                bint pop) noexcept nogil:
    """ST(0) or, to_sti, ST(i) is destination and first operand, the other one is the second."""
    cdef uint32_t i = op.modrm & 7
    cdef uint8_t* d = st_bytes(cpu, i if to_sti else 0)
    if x87_plain(cpu) and st_full(cpu, 0) and st_full(cpu, i):
        if kernel(&cpu.fcw, d, d, st_bytes(cpu, 0 if to_sti else i)):
            x87_note(cpu, op, opcode)
            if pop:
                x87_pop(cpu)
            return True
    return run_register(cpu, op, opcode)


cdef inline bint arithmetic_memory(CpuState* cpu, Op* op, arithmetic_t kernel, uint32_t opcode, uint32_t size,
                                   bint integer) noexcept nogil:
    """ST(0) with a number in memory, widened first."""
    cdef uint64_t gva = ea(cpu, op)
    cdef uint8_t* p
    if x87_plain(cpu) and st_full(cpu, 0):
        p = mem_read(cpu, op, gva, size)
        if p == NULL:
            return False
        if widen(cpu, p, size, integer) and kernel(&cpu.fcw, st_bytes(cpu, 0), st_bytes(cpu, 0),
                                                   <uint8_t*>wide_of(cpu)):
            x87_note_memory(cpu, op, opcode, gva)
            return True
    return run_memory(cpu, op, opcode, size, False)


cdef inline bint unary(CpuState* cpu, Op* op, unary_t kernel) noexcept nogil:
    if x87_plain(cpu) and st_full(cpu, 0) and kernel(&cpu.fcw, st_bytes(cpu, 0)):
        x87_note(cpu, op, 1)
        return True
    return run_register(cpu, op, 1)


# --- loads

cdef inline bint load(CpuState* cpu, Op* op, uint32_t opcode, uint32_t size, bint integer) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    cdef uint8_t* p
    if can_push(cpu):
        p = mem_read(cpu, op, gva, size)
        if p == NULL:
            return False
        if widen(cpu, p, size, integer):
            x87_push(cpu, wide_of(cpu).mantissa, wide_of(cpu).sign_exponent)
            x87_note_memory(cpu, op, opcode, gva)
            return True
    return run_memory(cpu, op, opcode, size, False)


cdef void op_fld_m80(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    cdef uint8_t* p
    if can_push(cpu):
        if not aligned_to(cpu, op, gva, 8):
            return
        p = mem_read(cpu, op, gva, 10)
        if p == NULL:
            return
        x87_push(cpu, (<uint64_t*>p)[0], (<uint16_t*>p)[4])
        x87_note_memory(cpu, op, 3, gva)
    elif not run_memory(cpu, op, 3, 10, False):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fld_sti(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t i = op.modrm & 7
    if can_push(cpu) and st_full(cpu, i):
        x87_push(cpu, st(cpu, i).mantissa, st(cpu, i).sign_exponent)
        x87_note(cpu, op, 1)
    elif not run_register(cpu, op, 1):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fld1(CpuState* cpu, Op* op) noexcept nogil:
    if can_push(cpu):
        x87_push(cpu, <uint64_t>1 << 63, 0x3FFF)
        x87_note(cpu, op, 1)
    elif not run_register(cpu, op, 1):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fldz(CpuState* cpu, Op* op) noexcept nogil:
    if can_push(cpu):
        x87_push(cpu, 0, 0)
        x87_note(cpu, op, 1)
    elif not run_register(cpu, op, 1):
        return
    op[1].fn(cpu, op + 1)


# --- stores

cdef inline bint store(CpuState* cpu, Op* op, store_t kernel, uint32_t opcode, uint32_t size, bint pop) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    cdef uint16_t fsw = cpu.fsw
    if x87_plain(cpu) and st_full(cpu, 0) and kernel(&cpu.fcw, st_bytes(cpu, 0), operand_of(cpu)):
        if not mem_write(cpu, op, gva, (<uint64_t*>operand_of(cpu))[0], size):
            cpu.fsw = fsw
            return False
        x87_note_memory(cpu, op, opcode, gva)
        if pop:
            x87_pop(cpu)
        return True
    return run_memory(cpu, op, opcode, size, True)


cdef void op_fstp_m80(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    if st_full(cpu, 0) and not cpu.fsw & FSW_ES:
        if not aligned_to(cpu, op, gva, 8) or not mem_write_buf(cpu, op, gva, st(cpu, 0), 10):
            return
        cpu.fsw &= <uint16_t>~FSW_C1
        x87_pop(cpu)
        x87_note_memory(cpu, op, 3, gva)
    elif not run_memory(cpu, op, 3, 10, True):
        return
    op[1].fn(cpu, op + 1)


cdef inline bint copy_to(CpuState* cpu, Op* op, bint pop) noexcept nogil:
    cdef uint32_t i = op.modrm & 7
    if not st_full(cpu, 0) or cpu.fsw & FSW_ES:
        return run_register(cpu, op, 5)
    copy_st(st(cpu, i), st(cpu, 0))
    cpu.ftw |= <uint16_t>(1 << (x87_top(cpu) + i & 7))
    cpu.fsw &= <uint16_t>~FSW_C1
    if pop:
        x87_pop(cpu)
    x87_note(cpu, op, 5)
    return True


cdef void op_fst_sti(CpuState* cpu, Op* op) noexcept nogil:
    if not copy_to(cpu, op, False):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fstp_sti(CpuState* cpu, Op* op) noexcept nogil:
    if not copy_to(cpu, op, True):
        return
    op[1].fn(cpu, op + 1)


# --- within the registers

cdef inline bint exchange(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t i = op.modrm & 7
    cdef uint64_t mantissa = st(cpu, 0).mantissa
    cdef uint16_t sign_exponent = st(cpu, 0).sign_exponent
    if not st_full(cpu, 0) or not st_full(cpu, i) or cpu.fsw & FSW_ES:
        return run_register(cpu, op, 1)
    copy_st(st(cpu, 0), st(cpu, i))
    st(cpu, i).mantissa = mantissa
    st(cpu, i).sign_exponent = sign_exponent
    cpu.fsw &= <uint16_t>~FSW_C1
    x87_note(cpu, op, 1)
    return True


cdef void op_fxch_sti(CpuState* cpu, Op* op) noexcept nogil:
    if not exchange(cpu, op):
        return
    op[1].fn(cpu, op + 1)


cdef inline bint sign(CpuState* cpu, Op* op, uint32_t keep, uint32_t flip) noexcept nogil:
    if not st_full(cpu, 0) or cpu.fsw & FSW_ES:
        return run_register(cpu, op, 1)
    st(cpu, 0).sign_exponent = <uint16_t>((st(cpu, 0).sign_exponent & keep) ^ flip)
    cpu.fsw &= <uint16_t>~FSW_C1
    x87_note(cpu, op, 1)
    return True


cdef void op_fchs(CpuState* cpu, Op* op) noexcept nogil:
    if not sign(cpu, op, 0xFFFF, 0x8000):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fabs(CpuState* cpu, Op* op) noexcept nogil:
    if not sign(cpu, op, 0x7FFF, 0):
        return
    op[1].fn(cpu, op + 1)


# --- comparisons

cdef inline bint compare_flags(CpuState* cpu, Op* op, compare_flags_t kernel, uint32_t opcode, bint pop) noexcept nogil:
    cdef uint32_t i = op.modrm & 7
    if x87_plain(cpu) and st_full(cpu, 0) and st_full(cpu, i):
        if kernel(&cpu.fcw, st_bytes(cpu, 0), st_bytes(cpu, i), &cpu.aflags):
            x87_note(cpu, op, opcode)
            if pop:
                x87_pop(cpu)
            return True
    return run_register(cpu, op, opcode)


cdef inline bint compare(CpuState* cpu, Op* op, compare_t kernel, uint32_t opcode, uint32_t pops) noexcept nogil:
    """With ST(i); FCOMPP and FUCOMPP: with ST(1), which the ModRM byte names too."""
    cdef uint32_t i = op.modrm & 7
    if x87_plain(cpu) and st_full(cpu, 0) and st_full(cpu, i):
        if kernel(&cpu.fcw, st_bytes(cpu, 0), st_bytes(cpu, i)):
            x87_note(cpu, op, opcode)
            if pops:
                x87_pop(cpu)
            if pops == 2:
                x87_pop(cpu)
            return True
    return run_register(cpu, op, opcode)


cdef inline bint compare_memory(CpuState* cpu, Op* op, compare_t kernel, uint32_t opcode, uint32_t size, bint integer,
                                bint pop) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    cdef uint8_t* p
    if x87_plain(cpu) and st_full(cpu, 0):
        p = mem_read(cpu, op, gva, size)
        if p == NULL:
            return False
        if widen(cpu, p, size, integer) and kernel(&cpu.fcw, st_bytes(cpu, 0), <uint8_t*>wide_of(cpu)):
            x87_note_memory(cpu, op, opcode, gva)
            if pop:
                x87_pop(cpu)
            return True
    return run_memory(cpu, op, opcode, size, False)
