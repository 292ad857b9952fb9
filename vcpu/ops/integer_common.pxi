# Owner: CORE. Included by the generated _integer.pyx: what integer handlers share.


cdef inline void set_cf(CpuState* cpu, bint carry) noexcept nogil:
    cpu.aflags = (cpu.aflags & ~<uint32_t>AF_CF) | (AF_CF if carry else 0)


cdef inline uint64_t address_mask(Op* op) noexcept nogil:
    if op.flags & OPF_ADDR64:
        return ~<uint64_t>0
    return 0xFFFF if op.flags & OPF_ADDR16 else 0xFFFFFFFFU


cdef inline void set_masked(uint64_t* register, uint64_t value, uint64_t mask) noexcept nogil:
    """Write a register of the mask's width: 16 bits keep the rest, 32 bits clear it."""
    register[0] = (register[0] & ~<uint64_t>0xFFFF) | (value & 0xFFFF) if mask == 0xFFFF else value & mask


# --- the stack of 16- and 32-bit code: SS.base, its limit, SP or ESP. In 64-bit mode handlers use RSP as it is

cdef inline uint64_t stack_mask(CpuState* cpu) noexcept nogil:
    return 0xFFFFFFFFU if cpu.mode_key & KEY_SS32 else 0xFFFF


cdef bint legacy_push(CpuState* cpu, Op* op, uint64_t value, uint32_t size) noexcept nogil:
    cdef uint64_t mask = stack_mask(cpu)
    cdef uint64_t sp = (cpu.regs[4] - size) & mask
    if not seg_linear(cpu, SEG_SS, sp, size, True, &cpu.regs[20]):
        fault_refused(cpu, op)
        return False
    if not mem_write(cpu, op, cpu.regs[20], value, size):
        return False
    set_masked(&cpu.regs[4], sp, mask)
    return True


cdef bint legacy_peek(CpuState* cpu, Op* op, uint32_t size, uint64_t* value) noexcept nogil:
    """What POP would read; the stack pointer stays."""
    cdef uint8_t* p
    if not seg_linear(cpu, SEG_SS, cpu.regs[4] & stack_mask(cpu), size, False, &cpu.regs[20]):
        fault_refused(cpu, op)
        return False
    p = mem_read(cpu, op, cpu.regs[20], size)
    if p == NULL:
        return False
    value[0] = (<uint32_t*>p)[0] if size == 4 else (<uint16_t*>p)[0]
    return True


cdef inline void legacy_drop(CpuState* cpu, uint64_t size) noexcept nogil:
    set_masked(&cpu.regs[4], cpu.regs[4] + size, stack_mask(cpu))


cdef inline uint64_t get_sized(CpuState* cpu, uint32_t slot, uint32_t size) noexcept nogil:
    return reg32(cpu, slot)[0] if size == 4 else reg16(cpu, slot)[0] if size == 2 else reg64(cpu, slot)[0]


cdef inline void set_sized(CpuState* cpu, uint32_t slot, uint64_t value, uint32_t size) noexcept nogil:
    if size == 2:
        reg16(cpu, slot)[0] = <uint16_t>value
    else:
        reg64(cpu, slot)[0] = value if size == 8 else <uint32_t>value
