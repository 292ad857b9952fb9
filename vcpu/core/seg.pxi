"""Segmentation: descriptors, loads of segment registers with their checks, limits, the mode key. Owner: SYSTEM.

Owns:    cpu.seg[], cpu.cpl, cpu.mode_key, the FS and GS slots, the choice of the TLB's set.
Never:   delivers a fault: functions that return False leave vector and error code in cpu.pf_* (refuse).
Threads: the vCPU's own.

Segment.rights, the VMCS format:  16 unusable | 15 G | 14 D/B | 13 L | 12 AVL | 7 P | 6:5 DPL | 4 S | 3:0 type
"""


cdef inline bint refuse(CpuState* cpu, uint32_t vector, uint32_t error_code) noexcept nogil:
    cpu.pf_vector = vector
    cpu.pf_error = error_code
    return False


# --- modes

cdef inline bint in_vm86(CpuState* cpu) noexcept nogil:
    return (cpu.rflags_sys & RF_VM) != 0


cdef inline bint is_protected(CpuState* cpu) noexcept nogil:
    """Selectors name descriptors: protected mode, and not virtual-8086."""
    return cpu.cr0 & CR0_PE and not cpu.rflags_sys & RF_VM


cdef void mode_update(CpuState* cpu) noexcept nogil:
    """Work out again all that depends on CRs, EFER, CS, SS, CPL, EFLAGS.AC/VM/TF and DR7."""
    cdef uint32_t key
    cdef uint32_t mode
    cpu.long_mode = (cpu.efer & EFER_LMA) != 0
    cpu.code64 = cpu.long_mode and cpu.seg[SEG_CS].rights & AR_L != 0
    key = KEY_CODE64 if cpu.code64 else KEY_CODE32 if cpu.seg[SEG_CS].rights & AR_DB else KEY_CODE16
    if cpu.seg[SEG_SS].rights & AR_DB and not cpu.code64:
        key |= KEY_SS32
    key |= <uint32_t>cpu.cpl << KEY_CPL_SHIFT
    if cpu.cr0 & CR0_PE:
        key |= KEY_PE
    if cpu.rflags_sys & RF_VM:
        key |= KEY_VM86
    if cpu.cr0 & CR0_EM:
        key |= KEY_EM
    if cpu.cr0 & CR0_TS:
        key |= KEY_TS
    if cpu.cr0 & CR0_MP:
        key |= KEY_MP
    if not cpu.cr4 & CR4_OSFXSR:
        key |= KEY_NO_SSE
    if cpu.rflags_sys & RF_TF or cpu.dr[7] & 0xFF:
        key |= KEY_STEP
    cpu.mode_key = key
    if cpu.dr[7] & 0xFF or (cpu.cpl == 3 and cpu.cr0 & CR0_AM and cpu.rflags_sys & RF_AC):
        mode = TLB_MODE_SLOW
    elif cpu.cpl == 3:
        mode = TLB_MODE_USER
    elif cpu.cr4 & CR4_SMAP and not cpu.rflags_sys & RF_AC:
        mode = TLB_MODE_SMAP
    else:
        mode = TLB_MODE_SUPERVISOR
    cpu.tlb_mode = mode
    cpu.tlb = tlb_set(cpu, mode)
    cpu.regs[SLOT_FS >> 3] = cpu.seg[SEG_FS].base
    cpu.regs[SLOT_GS >> 3] = cpu.seg[SEG_GS].base


# --- descriptors

cdef inline uint32_t descriptor_rights(uint64_t d) noexcept nogil:
    return <uint32_t>((d >> 40) & 0xFF) | <uint32_t>((d >> 52) & 0xF) << 12


cdef void unpack_descriptor(Segment* seg, uint16_t selector, uint64_t d) noexcept nogil:
    cdef uint32_t limit = <uint32_t>(d & 0xFFFF) | (<uint32_t>(d >> 32) & 0xF0000)
    seg.selector = selector
    seg.rights = descriptor_rights(d)
    seg.base = ((d >> 16) & 0xFFFFFF) | ((d >> 32) & 0xFF000000U)
    seg.limit = (limit << 12 | 0xFFF) if seg.rights & AR_G else limit


cdef bint table_address(CpuState* cpu, uint16_t selector, uint32_t size, uint64_t* address) noexcept nogil:
    """Where the descriptor lies; False where the selector points outside its table."""
    cdef uint32_t index = selector & 0xFFF8
    if selector & 4:
        if cpu.seg[SEG_LDTR].rights & AR_UNUSABLE or index + size - 1 > cpu.seg[SEG_LDTR].limit:
            return False
        address[0] = cpu.seg[SEG_LDTR].base + index
    else:
        if index + size - 1 > cpu.gdtr_limit:
            return False
        address[0] = cpu.gdtr_base + index
    if not cpu.long_mode:
        address[0] &= 0xFFFFFFFFU
    return True


cdef bint read_descriptor(CpuState* cpu, uint16_t selector, uint32_t vector, uint32_t ext,
                          uint64_t* descriptor) noexcept nogil:
    """The 8 bytes of a selector's descriptor. Outside the table: vector(selector)."""
    cdef uint64_t address
    if not table_address(cpu, selector, 8, &address):
        return refuse(cpu, vector, (selector & 0xFFFC) | ext)
    return sys_read(cpu, address, descriptor, 8)


cdef bint read_system_descriptor(CpuState* cpu, uint16_t selector, uint32_t vector, uint32_t ext,
                                 uint64_t* descriptor) noexcept nogil:
    """8 bytes, 16 in long mode: descriptor[0], descriptor[1]."""
    cdef uint64_t address
    cdef uint32_t size = 16 if cpu.long_mode else 8
    descriptor[1] = 0
    if not table_address(cpu, selector, size, &address):
        return refuse(cpu, vector, (selector & 0xFFFC) | ext)
    if not sys_read(cpu, address, descriptor, size):
        return False
    # the type field of the upper half must be 0 (SDM 3A 5.8.3.1)
    if size == 16 and descriptor[1] >> 40 & 0x1F:
        return refuse(cpu, vector, (selector & 0xFFFC) | ext)
    return True


cdef bint change_rights(CpuState* cpu, uint16_t selector, uint8_t set_bits, uint8_t clear_bits) noexcept nogil:
    """Set or clear bits of the type in memory: accessed, busy."""
    cdef uint64_t address
    cdef uint8_t rights
    if not table_address(cpu, selector, 8, &address) or not sys_read(cpu, address + 5, &rights, 1):
        return False
    if (rights | set_bits) & ~clear_bits == rights:
        return True
    rights = (rights | set_bits) & ~clear_bits
    return sys_write(cpu, address + 5, &rights, 1)


cdef inline bint mark_descriptor(CpuState* cpu, uint16_t selector, uint64_t* descriptor) noexcept nogil:
    """Set the accessed bit where it is not set."""
    if descriptor[0] >> 40 & AR_ACCESSED:
        return True
    descriptor[0] |= <uint64_t>1 << 40
    return change_rights(cpu, selector, AR_ACCESSED, 0)


# --- loads

cdef void load_real_segment(CpuState* cpu, uint32_t which, uint16_t selector) noexcept nogil:
    """Real and virtual-8086 mode. Real mode keeps limit and rights, as big real mode wants."""
    cdef Segment* seg = &cpu.seg[which]
    seg.selector = selector
    seg.base = <uint64_t>selector << 4
    if in_vm86(cpu):
        seg.limit = 0xFFFF
        seg.rights = AR_P | AR_S | AR_DPL | AR_WRITE | AR_ACCESSED
    elif which == SEG_CS:
        seg.rights = (seg.rights & (AR_DB | AR_G)) | AR_P | AR_S | AR_WRITE | AR_ACCESSED | AR_CODE
    elif seg.rights & AR_UNUSABLE:
        seg.rights = AR_P | AR_S | AR_WRITE | AR_ACCESSED
        if seg.limit == 0:
            seg.limit = 0xFFFF


cdef void load_null(CpuState* cpu, uint32_t which, uint16_t selector) noexcept nogil:
    """A null selector. SS keeps a DPL, because SS.DPL is the CPL (SDM 3C 27.3.1.2)."""
    cdef Segment* seg = &cpu.seg[which]
    seg.selector = selector
    seg.base = 0
    seg.limit = 0
    seg.rights = AR_UNUSABLE
    if which == SEG_SS:
        seg.rights |= (selector & 3) << 5 | AR_DB


cdef bint load_stack_segment(CpuState* cpu, uint16_t selector, uint32_t cpl, uint32_t vector, uint32_t ext,
                             Segment* out) noexcept nogil:
    """Check and unpack SS for privilege cpl into out. vector: #GP for loads, #TS where a TSS names the stack."""
    cdef uint64_t d = 0
    cdef uint32_t rights
    if not selector & 0xFFFC:
        return refuse(cpu, vector, ext)
    if not read_descriptor(cpu, selector, vector, ext, &d):
        return False
    rights = descriptor_rights(d)
    if ((selector & 3) != cpl or (rights & (AR_S | AR_CODE | AR_WRITE)) != (AR_S | AR_WRITE)
            or (rights & AR_DPL) >> 5 != cpl):
        return refuse(cpu, vector, (selector & 0xFFFC) | ext)
    if not rights & AR_P:
        return refuse(cpu, VECTOR_SS, (selector & 0xFFFC) | ext)
    if not mark_descriptor(cpu, selector, &d):
        return False
    unpack_descriptor(out, selector, d)
    return True


cdef bint load_segment(CpuState* cpu, uint32_t which, uint16_t selector) noexcept nogil:
    """MOV and POP to DS, ES, FS, GS, SS and LDS … LSS (SDM 2B MOV). Sets the register, or refuses."""
    cdef uint64_t d = 0
    cdef uint32_t rights, dpl
    cdef Segment stack
    if not is_protected(cpu):
        load_real_segment(cpu, which, selector)
        return True
    if which == SEG_SS:
        if not selector & 0xFFFC:
            if not cpu.code64 or cpu.cpl == 3 or (selector & 3) != cpu.cpl:
                return refuse(cpu, VECTOR_GP, 0)
            load_null(cpu, SEG_SS, selector)
            return True
        if not load_stack_segment(cpu, selector, cpu.cpl, VECTOR_GP, 0, &stack):
            return False
        cpu.seg[SEG_SS] = stack
        return True
    if not selector & 0xFFFC:
        load_null(cpu, which, selector)
        return True
    if not read_descriptor(cpu, selector, VECTOR_GP, 0, &d):
        return False
    rights = descriptor_rights(d)
    dpl = (rights & AR_DPL) >> 5
    # data, or code that can be read
    if not rights & AR_S or (rights & AR_CODE and not rights & AR_WRITE):
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    # conforming code is open to all
    if (rights & (AR_CODE | AR_EXPAND)) != (AR_CODE | AR_EXPAND) and (dpl < cpu.cpl or dpl < (selector & 3)):
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if not rights & AR_P:
        return refuse(cpu, VECTOR_NP, selector & 0xFFFC)
    if not mark_descriptor(cpu, selector, &d):
        return False
    unpack_descriptor(&cpu.seg[which], selector, d)
    return True


cdef void drop_segments(CpuState* cpu) noexcept nogil:
    """After a return to less privilege: data segments that the new CPL may not use become null (SDM 2B RET)."""
    cdef uint32_t which, rights
    for which in range(6):
        if which == SEG_CS or which == SEG_SS:
            continue
        rights = cpu.seg[which].rights
        if rights & AR_UNUSABLE:
            cpu.seg[which].selector = 0
            continue
        if (rights & (AR_CODE | AR_EXPAND)) == (AR_CODE | AR_EXPAND):
            continue
        if (rights & AR_DPL) >> 5 < cpu.cpl:
            load_null(cpu, which, 0)


cdef bint load_ldtr(CpuState* cpu, uint16_t selector, uint32_t vector) noexcept nogil:
    cdef uint64_t d[2]
    if not selector & 0xFFFC:
        load_null(cpu, SEG_LDTR, selector)
        return True
    if selector & 4:
        return refuse(cpu, vector, selector & 0xFFFC)
    if not read_system_descriptor(cpu, selector, vector, 0, d):
        return False
    if (descriptor_rights(d[0]) & (AR_S | AR_TYPE)) != TYPE_LDT:
        return refuse(cpu, vector, selector & 0xFFFC)
    if not descriptor_rights(d[0]) & AR_P:
        return refuse(cpu, VECTOR_NP if vector == VECTOR_GP else vector, selector & 0xFFFC)
    if cpu.long_mode and not canonical((d[1] << 32) | ((d[0] >> 32) & 0xFF000000U)):
        return refuse(cpu, vector, selector & 0xFFFC)
    unpack_descriptor(&cpu.seg[SEG_LDTR], selector, d[0])
    cpu.seg[SEG_LDTR].base |= d[1] << 32
    return True


cdef bint load_tr(CpuState* cpu, uint16_t selector) noexcept nogil:
    """LTR: an available TSS, which becomes busy."""
    cdef uint64_t d[2]
    cdef uint32_t rights
    if not selector & 0xFFFC:
        return refuse(cpu, VECTOR_GP, 0)
    if selector & 4:
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if not read_system_descriptor(cpu, selector, VECTOR_GP, 0, d):
        return False
    rights = descriptor_rights(d[0])
    if (rights & (AR_S | AR_TYPE)) != TYPE_TSS and ((rights & (AR_S | AR_TYPE)) != TYPE_TSS16 or cpu.long_mode):
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if not rights & AR_P:
        return refuse(cpu, VECTOR_NP, selector & 0xFFFC)
    if cpu.long_mode and not canonical((d[1] << 32) | ((d[0] >> 32) & 0xFF000000U)):
        return refuse(cpu, VECTOR_GP, selector & 0xFFFC)
    if not change_rights(cpu, selector, 2, 0):
        return False
    unpack_descriptor(&cpu.seg[SEG_TR], selector, d[0])
    cpu.seg[SEG_TR].base |= d[1] << 32
    cpu.seg[SEG_TR].rights |= 2
    return True


# --- limits and rights of an access

cdef bint segment_allows(CpuState* cpu, Segment* seg, uint64_t offset, uint32_t size, bint write) noexcept nogil:
    """SDM 3A 5.3-5.5, outside 64-bit mode. size 0: only the address is wanted."""
    cdef uint64_t last = offset + size - 1
    cdef uint64_t top
    if seg.rights & AR_UNUSABLE:
        return False
    if is_protected(cpu):
        if write and (seg.rights & (AR_CODE | AR_WRITE)) != AR_WRITE:
            return False
        if seg.rights & AR_CODE and not seg.rights & AR_WRITE:
            return False
    if (seg.rights & (AR_CODE | AR_EXPAND)) == AR_EXPAND:
        top = 0xFFFFFFFFU if seg.rights & AR_DB else 0xFFFF
        return offset > seg.limit and last <= top
    return last <= seg.limit and last >= offset


cdef bint seg_linear(CpuState* cpu, uint32_t which, uint64_t offset, uint32_t size, bint write,
                     gva_t* linear) noexcept nogil:
    """offset in a segment -> linear address, with every check; refuses #GP(0), for SS #SS(0)."""
    cdef Segment* seg = &cpu.seg[which]
    if cpu.code64:
        linear[0] = offset + (seg.base if which >= SEG_FS else 0)
        if not canonical(linear[0]) or (size and not canonical(linear[0] + size - 1)):
            return refuse(cpu, VECTOR_SS if which == SEG_SS else VECTOR_GP, 0)
        return True
    if size and not segment_allows(cpu, seg, offset, size, write):
        return refuse(cpu, VECTOR_SS if which == SEG_SS else VECTOR_GP, 0)
    linear[0] = (seg.base + offset) & 0xFFFFFFFFU
    return True


cdef inline uint64_t sp_mask(CpuState* cpu) noexcept nogil:
    if cpu.code64:
        return ~<uint64_t>0
    return 0xFFFFFFFFU if cpu.seg[SEG_SS].rights & AR_DB else 0xFFFF
