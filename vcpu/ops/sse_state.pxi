# FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XSAVEC, XRSTOR, XGETBV, XSETBV, LDMXCSR, STMXCSR. Owner: FPU.
#
# The image (SDM 1 10.5.1, 13.4):
#   0 FCW  2 FSW  4 tags, one bit a register  6 FOP  8 FIP (or FIP32, FCS)  16 FDP (or FDP32, FDS)  24 MXCSR  28 its mask
#   32 ST(0)..ST(7), 16 bytes each   160 XMM0..XMM15   512 XSTATE_BV  520 XCOMP_BV  528 zero to 576
# XCR0 is at most 3 (x87, SSE), so that the compacted form looks like the standard one. What does not fit the names here:
#   XINUSE is computed: a component is in use when it is not in its initial state. XSAVEOPT knows no modified optimization.

cdef enum:
    XCR0_X87 = 1
    XCR0_SSE = 2
    XCR0_SUPPORTED = 3
    MXCSR_INITIAL = 0x1F80
    MXCSR_VALID = 0xFFFF
    FCW_INITIAL = 0x37F
    FCW_VALID = 0x1F3F
    FCW_FIXED = 0x40
    FSW_UNMASKABLE = 0x3F
    FSW_ES_B = 0x8080
    HEADER = 512
    IMAGE = 576


cdef inline uint32_t fsw_top(CpuState* cpu) noexcept nogil:
    return cpu.fsw >> 11 & 7


cdef void put_x87(CpuState* cpu, uint8_t* image, bint wide) noexcept nogil:
    cdef uint32_t i
    (<uint16_t*>image)[0] = cpu.fcw
    (<uint16_t*>image)[1] = cpu.fsw
    (<uint16_t*>image)[2] = cpu.ftw & 0xFF
    (<uint16_t*>image)[3] = cpu.fop
    (<uint64_t*>image)[1] = cpu.fip if wide else <uint32_t>cpu.fip | <uint64_t>cpu.fcs << 32
    (<uint64_t*>image)[2] = cpu.fdp if wide else <uint32_t>cpu.fdp | <uint64_t>cpu.fds << 32
    for i in range(8):
        (<uint64_t*>(image + 32 + 16 * i))[0] = cpu.st[(fsw_top(cpu) + i) & 7].mantissa
        (<uint64_t*>(image + 32 + 16 * i))[1] = cpu.st[(fsw_top(cpu) + i) & 7].sign_exponent


cdef void get_x87(CpuState* cpu, const uint8_t* image, bint wide) noexcept nogil:
    cdef uint32_t i
    cpu.fcw = (<uint16_t*>image)[0] & FCW_VALID | FCW_FIXED
    cpu.fsw = (<uint16_t*>image)[1] & ~FSW_ES_B
    if cpu.fsw & ~cpu.fcw & FSW_UNMASKABLE:
        cpu.fsw |= FSW_ES_B
    cpu.ftw = (<uint16_t*>image)[2] & 0xFF
    cpu.fop = (<uint16_t*>image)[3] & 0x7FF
    cpu.fip = (<uint64_t*>image)[1] if wide else (<uint32_t*>image)[2]
    cpu.fdp = (<uint64_t*>image)[2] if wide else (<uint32_t*>image)[4]
    cpu.fcs = 0
    cpu.fds = 0
    for i in range(8):
        cpu.st[(fsw_top(cpu) + i) & 7].mantissa = (<uint64_t*>(image + 32 + 16 * i))[0]
        cpu.st[(fsw_top(cpu) + i) & 7].sign_exponent = (<uint16_t*>(image + 40 + 16 * i))[0]


cdef void reset_x87(CpuState* cpu) noexcept nogil:
    cpu.fcw = FCW_INITIAL
    cpu.fsw = 0
    cpu.ftw = 0
    cpu.fop = 0
    cpu.fip = 0
    cpu.fdp = 0
    cpu.fcs = 0
    cpu.fds = 0
    memset(&cpu.st[0], 0, 8 * 16)


cdef bint x87_in_use(CpuState* cpu) noexcept nogil:
    cdef uint32_t i
    if cpu.fcw != FCW_INITIAL or cpu.fsw or cpu.ftw or cpu.fop or cpu.fip or cpu.fdp:
        return True
    for i in range(8):
        if cpu.st[i].mantissa or cpu.st[i].sign_exponent:
            return True
    return False


cdef bint sse_in_use(CpuState* cpu) noexcept nogil:
    cdef uint32_t i
    for i in range(16):
        if cpu.xmm[i].lo or cpu.xmm[i].hi:
            return True
    return False


cdef inline uint64_t xinuse(CpuState* cpu) noexcept nogil:
    return (XCR0_X87 if x87_in_use(cpu) else 0) | (XCR0_SSE if sse_in_use(cpu) else 0)


cdef inline uint32_t xmm_bytes(CpuState* cpu) noexcept nogil:
    """XMM8 to XMM15 exist in 64-bit mode only."""
    return 256 if cpu.code64 else 128


cdef bint write_pieces(CpuState* cpu, Op* op, uint64_t gva, uint32_t first, uint32_t end) noexcept nogil:
    """Bytes [first, end) of cpu.fpu_area to the image at gva, whose pages were checked."""
    cdef uint32_t n
    while first < end:
        n = min(end - first, 64)
        if not mem_write_buf(cpu, op, gva + first, &cpu.fpu_area[first], n):
            return False
        first += n
    return True


cdef bint read_pieces(CpuState* cpu, Op* op, uint64_t gva, uint32_t first, uint32_t end) noexcept nogil:
    cdef uint32_t n
    cdef uint8_t* p
    while first < end:
        n = min(end - first, 64)
        p = mem_read(cpu, op, gva + first, n)
        if p == NULL:
            return False
        memcpy(&cpu.fpu_area[first], p, n)
        first += n
    return True


# --- FXSAVE, FXRSTOR

cdef bint fx_save(CpuState* cpu, Op* op, bint wide) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    if gva & 15:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    if not mem_check(cpu, op, gva, 512, True):
        return False
    put_x87(cpu, cpu.fpu_area, wide)
    (<uint32_t*>cpu.fpu_area)[6] = cpu.mxcsr
    (<uint32_t*>cpu.fpu_area)[7] = MXCSR_VALID
    memcpy(&cpu.fpu_area[160], &cpu.xmm[0], 256)
    return write_pieces(cpu, op, gva, 0, 160 + xmm_bytes(cpu))


cdef bint fx_restore(CpuState* cpu, Op* op, bint wide) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    if gva & 15:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    if not mem_check(cpu, op, gva, 512, False) or not read_pieces(cpu, op, gva, 0, 416):
        return False
    if (<uint32_t*>cpu.fpu_area)[6] & ~<uint32_t>MXCSR_VALID:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    get_x87(cpu, cpu.fpu_area, wide)
    cpu.mxcsr = (<uint32_t*>cpu.fpu_area)[6]
    memcpy(&cpu.xmm[0], &cpu.fpu_area[160], xmm_bytes(cpu))
    return True


cdef void op_fxsave(CpuState* cpu, Op* op) noexcept nogil:
    if not fx_save(cpu, op, False):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fxsave64(CpuState* cpu, Op* op) noexcept nogil:
    if not fx_save(cpu, op, True):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fxrstor(CpuState* cpu, Op* op) noexcept nogil:
    if not fx_restore(cpu, op, False):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fxrstor64(CpuState* cpu, Op* op) noexcept nogil:
    if not fx_restore(cpu, op, True):
        return
    op[1].fn(cpu, op + 1)


# --- XSAVE and its kin

cdef inline uint64_t requested(CpuState* cpu) noexcept nogil:
    """RFBM: what the instruction asks for, of what is enabled."""
    return (<uint32_t>cpu.regs[0] | cpu.regs[2] << 32) & cpu.xcr0


cdef bint x_begin(CpuState* cpu, Op* op) noexcept nogil:
    """The checks that come before memory (SDM 1 13.7). False: delivered."""
    if not cpu.cr4 & CR4_OSXSAVE:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return False
    if cpu.cr0 & CR0_TS:
        fault(cpu, op, VECTOR_NM, NO_ERROR_CODE)
        return False
    if ea(cpu, op) & 63:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    return True


cdef bint write_components(CpuState* cpu, Op* op, uint64_t gva, uint64_t which, bint mxcsr, bint wide) noexcept nogil:
    if which & XCR0_X87:
        put_x87(cpu, cpu.fpu_area, wide)
        if not write_pieces(cpu, op, gva, 0, 24) or not write_pieces(cpu, op, gva, 32, 160):
            return False
    if mxcsr:
        (<uint32_t*>cpu.fpu_area)[6] = cpu.mxcsr
        (<uint32_t*>cpu.fpu_area)[7] = MXCSR_VALID
        if not write_pieces(cpu, op, gva, 24, 32):
            return False
    if which & XCR0_SSE:
        memcpy(&cpu.fpu_area[160], &cpu.xmm[0], 256)
        return write_pieces(cpu, op, gva, 160, 160 + xmm_bytes(cpu))
    return True


cdef bint x_save(CpuState* cpu, Op* op, bint optimize, bint wide) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    cdef uint64_t wanted = requested(cpu)
    cdef uint64_t used = xinuse(cpu)
    cdef uint64_t* header = <uint64_t*>&cpu.fpu_area[HEADER]
    if not x_begin(cpu, op) or not mem_check(cpu, op, gva, IMAGE, True):
        return False
    if not read_pieces(cpu, op, gva, HEADER, HEADER + 8):
        return False
    header[0] = (header[0] & ~wanted) | (used & wanted)
    if not write_components(cpu, op, gva, wanted & used if optimize else wanted, wanted & XCR0_SSE, wide):
        return False
    return write_pieces(cpu, op, gva, HEADER, HEADER + 8)


cdef bint x_save_compact(CpuState* cpu, Op* op, bint wide) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    cdef uint64_t wanted = requested(cpu)
    cdef uint64_t used = xinuse(cpu) & wanted
    cdef uint64_t* header = <uint64_t*>&cpu.fpu_area[HEADER]
    if not x_begin(cpu, op) or not mem_check(cpu, op, gva, IMAGE, True):
        return False
    if cpu.mxcsr != MXCSR_INITIAL:           # MXCSR belongs to the component here (SDM 1 13.10)
        used |= wanted & XCR0_SSE
    header[0] = used
    header[1] = wanted | <uint64_t>1 << 63
    if not write_components(cpu, op, gva, used, used & XCR0_SSE, wide):
        return False
    return write_pieces(cpu, op, gva, HEADER, HEADER + 16)


cdef bint header_valid(CpuState* cpu, const uint64_t* header) noexcept nogil:
    """SDM 1 13.8.1, 13.8.2: what makes XRSTOR a #GP(0)."""
    cdef uint64_t compact = header[1] >> 63
    cdef uint64_t components = header[1] & ~(<uint64_t>1 << 63)
    cdef uint32_t i
    if not compact:
        return header[0] & ~cpu.xcr0 == 0 and header[1] == 0 and header[2] == 0
    if components & ~cpu.xcr0 or header[0] & ~components:
        return False
    for i in range(2, 8):
        if header[i]:
            return False
    return True


cdef bint x_restore(CpuState* cpu, Op* op, bint wide) noexcept nogil:
    cdef uint64_t gva = ea(cpu, op)
    cdef uint64_t wanted = requested(cpu)
    cdef uint64_t* header = <uint64_t*>&cpu.fpu_area[HEADER]
    cdef uint32_t mxcsr = MXCSR_INITIAL
    if not x_begin(cpu, op) or not mem_check(cpu, op, gva, IMAGE, False):
        return False
    if not read_pieces(cpu, op, gva, HEADER, IMAGE) or not read_pieces(cpu, op, gva, 0, 416):
        return False
    if not header_valid(cpu, header):
        fault(cpu, op, VECTOR_GP, 0)
        return False
    if not header[1] >> 63 or header[0] & XCR0_SSE:      # the standard form loads MXCSR whatever XSTATE_BV says
        mxcsr = (<uint32_t*>cpu.fpu_area)[6]
    if wanted & XCR0_SSE and mxcsr & ~<uint32_t>MXCSR_VALID:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    if wanted & XCR0_X87:
        if header[0] & XCR0_X87:
            get_x87(cpu, cpu.fpu_area, wide)
        else:
            reset_x87(cpu)
    if wanted & XCR0_SSE:
        cpu.mxcsr = mxcsr
        if header[0] & XCR0_SSE:
            memcpy(&cpu.xmm[0], &cpu.fpu_area[160], xmm_bytes(cpu))
        else:
            memset(&cpu.xmm[0], 0, xmm_bytes(cpu))
    return True


cdef void op_xsave(CpuState* cpu, Op* op) noexcept nogil:
    if not x_save(cpu, op, False, False):
        return
    op[1].fn(cpu, op + 1)


cdef void op_xsave64(CpuState* cpu, Op* op) noexcept nogil:
    if not x_save(cpu, op, False, True):
        return
    op[1].fn(cpu, op + 1)


cdef void op_xsaveopt(CpuState* cpu, Op* op) noexcept nogil:
    if not x_save(cpu, op, True, False):
        return
    op[1].fn(cpu, op + 1)


cdef void op_xsaveopt64(CpuState* cpu, Op* op) noexcept nogil:
    if not x_save(cpu, op, True, True):
        return
    op[1].fn(cpu, op + 1)


cdef void op_xsavec(CpuState* cpu, Op* op) noexcept nogil:
    if not x_save_compact(cpu, op, False):
        return
    op[1].fn(cpu, op + 1)


cdef void op_xsavec64(CpuState* cpu, Op* op) noexcept nogil:
    if not x_save_compact(cpu, op, True):
        return
    op[1].fn(cpu, op + 1)


cdef void op_xrstor(CpuState* cpu, Op* op) noexcept nogil:
    if not x_restore(cpu, op, False):
        return
    op[1].fn(cpu, op + 1)


cdef void op_xrstor64(CpuState* cpu, Op* op) noexcept nogil:
    if not x_restore(cpu, op, True):
        return
    op[1].fn(cpu, op + 1)


cdef void op_xgetbv(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t value
    if not cpu.cr4 & CR4_OSXSAVE:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if <uint32_t>cpu.regs[1] > 1:
        fault(cpu, op, VECTOR_GP, 0)
        return
    value = cpu.xcr0 & xinuse(cpu) if cpu.regs[1] & 1 else cpu.xcr0
    cpu.regs[0] = <uint32_t>value
    cpu.regs[2] = value >> 32
    op[1].fn(cpu, op + 1)


cdef void op_xsetbv(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t value = <uint32_t>cpu.regs[0] | cpu.regs[2] << 32
    if not cpu.cr4 & CR4_OSXSAVE:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if (cpu.cpl != 0 or <uint32_t>cpu.regs[1] != 0 or value & ~<uint64_t>XCR0_SUPPORTED != 0
            or value & XCR0_X87 == 0):
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.xcr0 = value
    finish_op(cpu, op)


# --- MXCSR

cdef void op_ldmxcsr(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p = mem_read(cpu, op, ea(cpu, op), 4)
    if p == NULL:
        return
    if (<uint32_t*>p)[0] & ~<uint32_t>MXCSR_VALID:
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.mxcsr = (<uint32_t*>p)[0]
    op[1].fn(cpu, op + 1)


cdef void op_stmxcsr(CpuState* cpu, Op* op) noexcept nogil:
    if not mem_write(cpu, op, ea(cpu, op), cpu.mxcsr, 4):
        return
    op[1].fn(cpu, op + 1)
