# x87 control: words, environments, FNSAVE and FRSTOR, WAIT. Owner: FPU.
#
# The environment (SDM 1 figures 8-9 to 8-12), of seven words or, with a 32-bit operand size, doublewords:
#   FCW, FSW, tags, FIP, FCS and opcode, FDP, FDS. In real and virtual-8086 mode the pointers are linear and split.

cdef inline bint env_is_real(CpuState* cpu) noexcept nogil:
    return not cpu.cr0 & CR0_PE or (cpu.rflags_sys & RF_VM) != 0


cdef uint32_t put_environment(CpuState* cpu, uint8_t* to, bint wide) noexcept nogil:
    """Its size."""
    cdef uint32_t* d = <uint32_t*>to
    cdef uint16_t* w = <uint16_t*>to
    cdef uint64_t ip = cpu.fip
    cdef uint64_t dp = cpu.fdp
    cdef bint real = env_is_real(cpu)
    if real:
        ip += cpu.seg[SEG_CS].base
    if wide:
        d[0] = <uint32_t>0xFFFF0000 | cpu.fcw
        d[1] = <uint32_t>0xFFFF0000 | cpu.fsw
        d[2] = <uint32_t>0xFFFF0000 | tag_word(cpu)
        d[3] = <uint32_t>(ip & 0xFFFF) if real else <uint32_t>ip
        d[4] = <uint32_t>(ip >> 16 << 12 & 0x0FFFF000) | cpu.fop if real else <uint32_t>cpu.fop << 16
        d[5] = <uint32_t>(dp & 0xFFFF) if real else <uint32_t>dp
        d[6] = <uint32_t>(dp >> 16 << 12 & 0x0FFFF000) if real else <uint32_t>0xFFFF0000
        return 28
    w[0] = cpu.fcw
    w[1] = cpu.fsw
    w[2] = <uint16_t>tag_word(cpu)
    w[3] = <uint16_t>ip
    w[4] = <uint16_t>(ip >> 16 << 12 & 0xF000) | cpu.fop if real else 0
    w[5] = <uint16_t>dp
    w[6] = <uint16_t>(dp >> 16 << 12 & 0xF000) if real else 0
    return 14


cdef void get_environment(CpuState* cpu, const uint8_t* source, bint wide) noexcept nogil:
    cdef uint32_t* d = <uint32_t*>source
    cdef uint16_t* w = <uint16_t*>source
    cdef bint real = env_is_real(cpu)
    cpu.fcw = <uint16_t>((d[0] if wide else w[0]) & FCW_VALID | FCW_FIXED)
    cpu.fsw = <uint16_t>(d[1] if wide else w[1])
    cpu.ftw = abridge(d[2] if wide else w[2])
    x87_pending(cpu)
    if wide:
        cpu.fop = <uint16_t>((d[4] if real else d[4] >> 16) & 0x7FF)
        cpu.fip = (d[3] & 0xFFFF) | d[4] << 4 & <uint32_t>0xFFFF0000 if real else d[3]
        cpu.fdp = (d[5] & 0xFFFF) | d[6] << 4 & <uint32_t>0xFFFF0000 if real else d[5]
    else:
        cpu.fop = w[4] & 0x7FF if real else 0
        cpu.fip = w[3] | <uint32_t>(w[4] & 0xF000) << 4 if real else w[3]
        cpu.fdp = w[5] | <uint32_t>(w[6] & 0xF000) << 4 if real else w[5]


cdef inline uint32_t environment_size(Op* op) noexcept nogil:
    return 14 if op.opsize == 2 else 28


cdef inline uint32_t environment_alignment(Op* op) noexcept nogil:
    return 2 if op.opsize == 2 else 4


cdef bint write_area(CpuState* cpu, Op* op, uint64_t gva, uint32_t size) noexcept nogil:
    cdef uint32_t first = 0
    cdef uint32_t n
    if not aligned_to(cpu, op, gva, environment_alignment(op)) or not mem_check(cpu, op, gva, size, True):
        return False
    while first < size:
        n = min(size - first, 64)
        if not mem_write_buf(cpu, op, gva + first, &cpu.fpu_area[first], n):
            return False
        first += n
    return True


cdef bint read_area(CpuState* cpu, Op* op, uint64_t gva, uint32_t size) noexcept nogil:
    cdef uint32_t first = 0
    cdef uint32_t n
    cdef uint8_t* p
    if not aligned_to(cpu, op, gva, environment_alignment(op)):
        return False
    while first < size:
        n = min(size - first, 64)
        p = mem_read(cpu, op, gva + first, n)
        if p == NULL:
            return False
        memcpy(&cpu.fpu_area[first], p, n)
        first += n
    return True


cdef void x87_initialize(CpuState* cpu) noexcept nogil:
    """FNINIT: the registers keep their contents, and are empty."""
    cpu.fcw = FCW_INITIAL
    cpu.fsw = 0
    cpu.ftw = 0
    cpu.fop = 0
    cpu.fip = 0
    cpu.fdp = 0


cdef void op_fnstenv(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t size = put_environment(cpu, cpu.fpu_area, op.opsize != 2)
    if not write_area(cpu, op, ea(cpu, op), size):
        return
    cpu.fcw |= FSW_EXCEPTIONS
    x87_pending(cpu)
    op[1].fn(cpu, op + 1)


cdef void op_fldenv(CpuState* cpu, Op* op) noexcept nogil:
    if not x87_begin(cpu, op) or not read_area(cpu, op, ea(cpu, op), environment_size(op)):
        return
    get_environment(cpu, cpu.fpu_area, op.opsize != 2)
    op[1].fn(cpu, op + 1)


cdef void op_fnsave(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t size = put_environment(cpu, cpu.fpu_area, op.opsize != 2)
    put_registers(cpu, &cpu.fpu_area[size])
    if not write_area(cpu, op, ea(cpu, op), size + 80):
        return
    x87_initialize(cpu)
    op[1].fn(cpu, op + 1)


cdef void op_frstor(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t size = environment_size(op)
    if not x87_begin(cpu, op) or not read_area(cpu, op, ea(cpu, op), size + 80):
        return
    get_environment(cpu, cpu.fpu_area, op.opsize != 2)
    get_registers(cpu, &cpu.fpu_area[size])
    op[1].fn(cpu, op + 1)


cdef void op_fldcw(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint8_t* p
    if not x87_begin(cpu, op):
        return
    p = mem_read(cpu, op, ea(cpu, op), 2)
    if p == NULL:
        return
    cpu.fcw = (<uint16_t*>p)[0] & FCW_VALID | FCW_FIXED
    x87_pending(cpu)
    op[1].fn(cpu, op + 1)


cdef void op_fnstcw(CpuState* cpu, Op* op) noexcept nogil:
    if not mem_write(cpu, op, ea(cpu, op), cpu.fcw, 2):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fnstsw_m16(CpuState* cpu, Op* op) noexcept nogil:
    if not mem_write(cpu, op, ea(cpu, op), cpu.fsw, 2):
        return
    op[1].fn(cpu, op + 1)


cdef void op_fnstsw_ax(CpuState* cpu, Op* op) noexcept nogil:
    (<uint16_t*>&cpu.regs[0])[0] = cpu.fsw
    op[1].fn(cpu, op + 1)


cdef void op_fnclex(CpuState* cpu, Op* op) noexcept nogil:
    cpu.fsw &= 0x7F00
    op[1].fn(cpu, op + 1)


cdef void op_fninit(CpuState* cpu, Op* op) noexcept nogil:
    x87_initialize(cpu)
    op[1].fn(cpu, op + 1)


cdef void op_fwait(CpuState* cpu, Op* op) noexcept nogil:
    if not x87_begin(cpu, op):
        return
    op[1].fn(cpu, op + 1)


# the 8087's and 287's own: nothing since the 387

cdef void op_feni(CpuState* cpu, Op* op) noexcept nogil:
    op[1].fn(cpu, op + 1)


cdef void op_fdisi(CpuState* cpu, Op* op) noexcept nogil:
    op[1].fn(cpu, op + 1)


cdef void op_fsetpm(CpuState* cpu, Op* op) noexcept nogil:
    op[1].fn(cpu, op + 1)
