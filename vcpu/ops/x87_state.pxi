# The x87's state between guest and host: images, tags, pending exceptions, and the thunk. Owner: FPU.
#
# cpu.st are the physical registers, cpu.ftw has a bit for each that is not empty, TOP is in cpu.fsw. FCS and FDS are
# deprecated (CPUID.7:EBX bit 13): always 0. FOP, FIP and FDP follow every instruction that is no control instruction.
# With CR0.NE = 0 there is no FERR# wire: pending exceptions are ignored, as with IGNNE# asserted (SDM 1 8.7.2).

from libc.string cimport memcpy, memset

cdef extern from "vcpu/ops/x87_kernels.h":
    ctypedef struct x87_image:
        uint32_t fcw
        uint32_t fsw
        uint32_t ftw
        uint8_t regs[80]
    uint32_t x87_run_register(uint32_t opcode, uint32_t modrm, x87_image* image, uint32_t flags) noexcept nogil
    void x87_run_memory(uint32_t opcode, uint32_t modrm, x87_image* image, void* memory) noexcept nogil
    int widen64(uint64_t v, uint64_t* mantissa, uint16_t* sign_exponent) noexcept nogil
    int widen32(uint32_t v, uint64_t* mantissa, uint16_t* sign_exponent) noexcept nogil
    void widen_integer(int64_t v, uint64_t* mantissa, uint16_t* sign_exponent) noexcept nogil

cdef enum:
    FSW_EXCEPTIONS = 0x3F        # IE DE ZE OE UE PE
    FSW_PE = 0x20
    FSW_SF = 0x40
    FSW_ES = 0x80
    FSW_ES_B = 0x8080
    FSW_C1 = 0x200
    FSW_TOP = 0x3800
    FCW_INITIAL = 0x37F
    FCW_VALID = 0x1F3F
    FCW_FIXED = 0x40


cdef inline uint32_t x87_top(CpuState* cpu) noexcept nogil:
    return cpu.fsw >> 11 & 7


cdef inline St80* st(CpuState* cpu, uint32_t i) noexcept nogil:
    return &cpu.st[(cpu.fsw >> 11) + i & 7]


cdef inline bint st_full(CpuState* cpu, uint32_t i) noexcept nogil:
    """ST(i) is not empty."""
    return cpu.ftw >> ((cpu.fsw >> 11) + i & 7) & 1


cdef inline void x87_pending(CpuState* cpu) noexcept nogil:
    """ES and B from the flags and their masks."""
    if cpu.fsw & ~cpu.fcw & FSW_EXCEPTIONS:
        cpu.fsw |= FSW_ES_B
    else:
        cpu.fsw &= 0x7F7F


cdef inline bint x87_begin(CpuState* cpu, Op* op) noexcept nogil:
    """A waiting instruction: an exception of an earlier one is delivered now. False: it was."""
    if cpu.fsw & FSW_ES and cpu.cr0 & CR0_NE:
        fault(cpu, op, VECTOR_MF, NO_ERROR_CODE)
        return False
    return True


cdef inline bint aligned_to(CpuState* cpu, Op* op, uint64_t gva, uint32_t alignment) noexcept nogil:
    """Alignment checks of operands whose size is no power of two (SDM 3A table 6-7). False: #AC was delivered."""
    if cpu.cpl != 3 or not gva & (alignment - 1) or not cpu.rflags_sys & RF_AC or not cpu.cr0 & CR0_AM:
        return True
    fault(cpu, op, VECTOR_AC, 0)
    return False


cdef inline void x87_note(CpuState* cpu, Op* op, uint32_t opcode) noexcept nogil:
    """The instruction pointers of SDM 1 8.1.8."""
    cpu.fip = op_rip(cpu, op)
    cpu.fop = <uint16_t>(opcode << 8 | op.modrm)


cdef inline void x87_note_memory(CpuState* cpu, Op* op, uint32_t opcode, uint64_t gva) noexcept nogil:
    x87_note(cpu, op, opcode)
    cpu.fdp = gva
    if not cpu.code64 or op.seg >= SEG_FS:
        cpu.fdp -= cpu.seg[op.seg].base


cdef inline uint32_t tag_of(St80* r) noexcept nogil:
    """0 valid, 1 zero, 2 special (SDM 1 8.1.7)."""
    cdef uint32_t exponent = r.sign_exponent & 0x7FFF
    if exponent == 0 and r.mantissa == 0:
        return 1
    return 0 if exponent != 0 and exponent != 0x7FFF and r.mantissa >> 63 else 2


cdef uint32_t tag_word(CpuState* cpu) noexcept nogil:
    """The full tag word: two bits a physical register."""
    cdef uint32_t i, tags = 0
    for i in range(8):
        tags |= (tag_of(&cpu.st[i]) if cpu.ftw >> i & 1 else 3) << 2 * i
    return tags


cdef uint16_t abridge(uint32_t tags) noexcept nogil:
    cdef uint32_t i
    cdef uint16_t full = 0
    for i in range(8):
        if tags >> 2 * i & 3 != 3:
            full |= <uint16_t>(1 << i)
    return full


cdef void put_registers(CpuState* cpu, uint8_t* to) noexcept nogil:
    cdef uint32_t i
    for i in range(8):
        memcpy(to + 10 * i, st(cpu, i), 10)


cdef void get_registers(CpuState* cpu, const uint8_t* source) noexcept nogil:
    """Into the registers as the TOP of cpu.fsw numbers them."""
    cdef uint32_t i
    for i in range(8):
        memcpy(st(cpu, i), source + 10 * i, 10)


# --- the thunk

cdef inline x87_image* image_of(CpuState* cpu) noexcept nogil:
    return <x87_image*>&cpu.fpu_area[0]


cdef inline uint8_t* operand_of(CpuState* cpu) noexcept nogil:
    """Where a thunk's memory operand lies meanwhile."""
    return &cpu.fpu_area[128]


cdef uint32_t to_host(CpuState* cpu) noexcept nogil:
    """Fills the image. Gives the flags that must be added afterwards: none may be pending on the host."""
    cdef x87_image* image = image_of(cpu)
    cdef uint32_t kept = 0
    memset(image, 0, 28)
    image.fcw = cpu.fcw
    image.fsw = cpu.fsw & 0x7F7F
    if cpu.fsw & ~cpu.fcw & FSW_EXCEPTIONS:          # ignored, CR0.NE = 0
        kept = cpu.fsw & FSW_EXCEPTIONS
        image.fsw &= ~<uint32_t>FSW_EXCEPTIONS
    image.ftw = tag_word(cpu)
    put_registers(cpu, image.regs)
    return kept


cdef void from_host(CpuState* cpu, uint32_t kept) noexcept nogil:
    cdef x87_image* image = image_of(cpu)
    cpu.fsw = <uint16_t>(image.fsw | kept)
    cpu.ftw = abridge(image.ftw)
    get_registers(cpu, image.regs)
    x87_pending(cpu)


cdef bint run_register(CpuState* cpu, Op* op, uint32_t opcode) noexcept nogil:
    """An instruction D8+opcode with a register operand. False: a fault was delivered."""
    cdef uint32_t kept
    if not x87_begin(cpu, op):
        return False
    kept = to_host(cpu)
    cpu.aflags = x87_run_register(opcode, op.modrm, image_of(cpu), cpu.aflags)
    from_host(cpu, kept)
    x87_note(cpu, op, opcode)
    return True


cdef bint run_memory(CpuState* cpu, Op* op, uint32_t opcode, uint32_t size, bint store) noexcept nogil:
    """The same with a memory operand of so many bytes."""
    cdef uint64_t gva = ea(cpu, op)
    cdef uint32_t kept
    cdef uint8_t* p
    if not x87_begin(cpu, op) or (size == 10 and not aligned_to(cpu, op, gva, 8)):
        return False
    if not store:
        p = mem_read(cpu, op, gva, size)
        if p == NULL:
            return False
        memcpy(operand_of(cpu), p, size)
    kept = to_host(cpu)
    x87_run_memory(opcode, op.modrm, image_of(cpu), operand_of(cpu))
    # an unmasked exception other than PE leaves the destination alone (SDM 1 8.5)
    if store and not image_of(cpu).fsw & ~cpu.fcw & FSW_EXCEPTIONS & ~FSW_PE:
        if not mem_write_buf(cpu, op, gva, operand_of(cpu), size):
            return False
    from_host(cpu, kept)
    x87_note_memory(cpu, op, opcode, gva)
    return True
