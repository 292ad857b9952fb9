# Owner: CORE. Included by vcpu/_core.pyx: bytes -> one Op, or two where the operand's address takes a step of its own.
#
# Owns:    prefixes, ModRM, immediates, the search for the row; the registry of handlers.
# Never:   changes the vCPU's state, but by the fetch of a second page.
# Threads: the vCPU's own; the tables are filled at import.

from vcpu.core.decode cimport *

cdef handler_t handler_table[16384]
cdef handler_t lock_table[16384]         # what runs with a LOCK prefix, by the number of the plain one
cdef RowRecord* row_records = NULL
cdef uint16_t row_index[4 * 256 * 2]
cdef handler_t based_table[16384]        # … where the address has no index
cdef handler_t flat_table[16384]         # … in flat 32-bit code
cdef handler_t branch_table[16]          # conditional branches that follow links
cdef uint32_t jcc_legacy = 0             # number of the one that does not
cdef handler_t* fused_table = NULL       # [number * 16 + condition]: with the conditional branch behind it
cdef handler_t fn_ea_seg = <handler_t>op_missing
cdef handler_t fn_nop = NULL
cdef object _tables = None               # keeps the bytes under row_records alive
cdef dict _handler_ids = {}


def load_tables(bytes index, bytes records, dict ids):
    """The packed table of vcpu.isa.table, and the number of each handler's name."""
    global row_records, _tables, _handler_ids, fused_table, jcc_legacy
    cdef int i
    if len(ids) >= MAX_HANDLERS or len(index) != sizeof(row_index) or len(records) % sizeof(RowRecord):
        raise ValueError("the packed instruction table does not fit")
    _tables = records
    row_records = <RowRecord*><char*>records
    memcpy(row_index, <char*>index, sizeof(row_index))
    _handler_ids = ids
    jcc_legacy = ids["jcc_legacy"]
    for i in range(MAX_HANDLERS):
        handler_table[i] = op_missing
        lock_table[i] = op_missing
        based_table[i] = NULL
        flat_table[i] = NULL
    free(fused_table)
    fused_table = <handler_t*>calloc((len(ids) + 1) * 16, sizeof(handler_t))
    if fused_table == NULL:
        raise MemoryError()


CONDITIONS = ("o", "no", "b", "nb", "z", "nz", "be", "nbe", "s", "ns", "p", "np", "l", "nl", "le", "nle")


def register_handler(str name, uint64_t address):
    """A handler extension brings op_<name>. Names that no row asks for are ignored, but for ea_seg, the address step,
    and for better versions of a handler: lock_<name>, based_<name>, flat_<name>, fused_<name>_<condition>."""
    global fn_ea_seg, fn_nop
    if name == "nop":
        fn_nop = <handler_t>address
    if name[:1] == "j" and name[1:] in CONDITIONS:
        branch_table[<int>CONDITIONS.index(name[1:])] = <handler_t>address
    kind, _, plain = name.partition("_")
    number = _handler_ids.get(name)
    if number is not None:
        handler_table[<uint32_t>number] = <handler_t>address
    elif name == "ea_seg":
        fn_ea_seg = <handler_t>address
    elif kind == "lock" and plain in _handler_ids:
        lock_table[<uint32_t>_handler_ids[plain]] = <handler_t>address
    elif kind == "based" and plain in _handler_ids:
        based_table[<uint32_t>_handler_ids[plain]] = <handler_t>address
    elif kind == "flat" and plain in _handler_ids:
        flat_table[<uint32_t>_handler_ids[plain]] = <handler_t>address
    elif kind == "fused":
        plain, _, condition = plain.rpartition("_")
        fused_table[<uint32_t>_handler_ids[plain] * 16 + <uint32_t>CONDITIONS.index(condition)] = <handler_t>address


def missing_handlers():
    """Names that rows ask for and nobody registered."""
    return sorted(name for name, number in _handler_ids.items() if handler_table[<uint32_t>number] == op_missing)


# ------------------------------------------------------------------ bytes

cdef bint decode_next_page(Decoder* d) noexcept nogil:
    """The instruction goes on in the next page: get at it, if that is allowed now."""
    cdef uint64_t linear
    if not d.may_cross:
        d.error = DECODE_PAGE
        return False
    linear = d.linear + d.count
    if d.key & KEY_CODE != KEY_CODE64:
        linear &= 0xFFFFFFFFU
    d.host2 = mem_fetch(d.cpu, linear, &d.gpa2)
    if d.host2 == NULL:
        d.error = DECODE_FAULT
        return False
    space_decoding(d.cpu, d.gpa2 >> PAGE_SHIFT)
    d.next = d.host2
    d.page_end = d.host2 + PAGE_SIZE
    return True


cdef inline uint8_t take8(Decoder* d) noexcept nogil:
    cdef uint8_t byte
    if d.error:
        return 0
    if d.count >= MAX_INSN:
        d.error = DECODE_GP
        return 0
    if d.next == d.page_end and not decode_next_page(d):
        return 0
    byte = d.next[0]
    d.next += 1
    d.count += 1
    return byte


cdef uint64_t take(Decoder* d, uint32_t size) noexcept nogil:
    """Little-endian, zero-extended."""
    cdef uint64_t value = 0
    cdef uint32_t i
    for i in range(size):
        value |= <uint64_t>take8(d) << (8 * i)
    return value


cdef int64_t take_signed(Decoder* d, uint32_t size) noexcept nogil:
    cdef uint64_t value = take(d, size)
    return <int8_t>value if size == 1 else <int16_t>value if size == 2 else <int32_t>value if size == 4 else <int64_t>value


# ------------------------------------------------------------------ prefixes, opcode, ModRM

cdef void decode_prefixes(Decoder* d) noexcept nogil:
    """Any order, any number up to the length limit; a REX counts only right before the opcode."""
    cdef uint8_t byte
    cdef bint code64 = d.key & KEY_CODE == KEY_CODE64
    while True:
        byte = take8(d)
        if d.error:
            return
        if byte == 0x66:
            d.opsize66 = True
        elif byte == 0x67:
            d.adsize67 = True
        elif byte == 0xF0:
            d.lock = True
        elif byte == 0xF2 or byte == 0xF3:
            d.rep = byte
        elif byte == 0x26 or byte == 0x2E or byte == 0x36 or byte == 0x3E:
            # ES CS SS DS: no meaning in 64-bit mode, where they don't undo an FS or GS either
            if not code64:
                d.segment = (byte >> 3) & 3
        elif byte == 0x64 or byte == 0x65:
            d.segment = SEG_FS + (byte & 1)
        elif code64 and byte & 0xF0 == 0x40:
            d.rex = byte
            continue
        else:
            break
        d.rex = 0
    d.map = 0
    if byte == 0x0F:
        d.map = 1
        byte = take8(d)
        if byte == 0x38 or byte == 0x3A:
            d.map = 2 if byte == 0x38 else 3
            byte = take8(d)
    d.opcode = byte


cdef void decode_address16(Decoder* d, uint8_t mod, uint8_t rm) noexcept nogil:
    """SDM 2A table 2-1."""
    cdef bint bp = rm == 2 or rm == 3 or (rm == 6 and mod != 0)
    d.base = SLOT_ZERO
    d.index = SLOT_ZERO
    if rm < 4:
        d.base = (3 if rm < 2 else 5) * 8               # BX, BP
        d.index = (6 if not rm & 1 else 7) * 8          # SI, DI
    elif rm == 6 and mod == 0:
        d.disp = take_signed(d, 2)
    else:
        d.base = (6 if rm == 4 else 7 if rm == 5 else 5 if rm == 6 else 3) * 8
    if mod == 1:
        d.disp = take_signed(d, 1)
    elif mod == 2:
        d.disp = take_signed(d, 2)
    if d.segment < 0:
        d.segment = SEG_SS if bp else SEG_DS


cdef void decode_address(Decoder* d, uint8_t mod, uint8_t rm) noexcept nogil:
    """SDM 2A tables 2-2 and 2-3, with REX."""
    cdef uint8_t sib, base
    d.base = SLOT_ZERO
    d.index = SLOT_ZERO
    if rm == 4:
        sib = take8(d)
        base = sib & 7
        d.index = ((sib >> 3) & 7) | (d.rex & 2) << 2
        d.index = SLOT_ZERO if d.index == 4 else d.index * 8
        d.scale = sib >> 6 if d.index != SLOT_ZERO else 0
        if base == 5 and mod == 0:
            d.disp = take_signed(d, 4)
        else:
            d.base = (base | (d.rex & 1) << 3) * 8
    elif rm == 5 and mod == 0:
        d.disp = take_signed(d, 4)
        if d.key & KEY_CODE == KEY_CODE64:
            d.rip_relative = True
            d.base = SLOT_RIP
    else:
        d.base = (rm | (d.rex & 1) << 3) * 8
    if mod == 1:
        d.disp = take_signed(d, 1)
    elif mod == 2:
        d.disp = take_signed(d, 4)
    if d.segment < 0:
        d.segment = SEG_SS if d.base == 4 * 8 or d.base == 5 * 8 else SEG_DS


cdef RowRecord* find_row(Decoder* d) noexcept nogil:
    """The first row that matches; rows stand in order of specificity. Reads the ModRM byte if any of them has one."""
    cdef uint32_t slot = (d.map * 256 + d.opcode) * 2
    cdef RowRecord* row = row_records + row_index[slot]
    cdef uint32_t left = row_index[slot + 1]
    cdef uint32_t mode = 2 if d.key & KEY_CODE == KEY_CODE64 else 1
    cdef uint32_t form = 3
    if left != 0 and row.flags & ROW_MODRM:
        d.has_modrm = True
        d.modrm = take8(d)
        form = 2 if d.modrm >> 6 == 3 else 1
    while left != 0:
        if row.modes & mode and row.mod & form and row_prefix_fits(row, d) and row_fits(row, d):
            return row
        row += 1
        left -= 1
    return NULL


cdef inline bint row_prefix_fits(RowRecord* row, Decoder* d) noexcept nogil:
    if row.prefix == PREFIX_ANY:
        return True
    if row.prefix == PREFIX_F3:
        return d.rep == 0xF3
    if row.prefix == PREFIX_F2:
        return d.rep == 0xF2
    if d.rep:
        return False
    return row.prefix == PREFIX_NFX or (row.prefix == PREFIX_66) == d.opsize66


cdef inline bint row_fits(RowRecord* row, Decoder* d) noexcept nogil:
    if d.has_modrm and not (row.reg_mask >> ((d.modrm >> 3) & 7) & 1 and (row.rm_mask == 0xFF or row.rm_mask >> (d.modrm & 7) & 1)):
        return False
    if row.w and (row.w == 2) != ((d.rex & 8) != 0):
        return False
    if row.opsize and not row.opsize & operand_size(row, d) >> 1:
        return False
    return row.adsize == 0 or row.adsize & address_size(d) >> 1


cdef inline uint8_t operand_size(RowRecord* row, Decoder* d) noexcept nogil:
    """Effective operand size in bytes."""
    cdef bint word = d.opsize66 and row.prefix != PREFIX_66
    if row.size == SIZE_B:
        return 1
    if d.key & KEY_CODE == KEY_CODE64:
        if row.size == SIZE_F64:
            return 8
        if d.rex & 8:
            return 8
        if word:
            return 2
        return 8 if row.size == SIZE_D64 else 4
    return 2 if word != (d.key & KEY_CODE == KEY_CODE16) else 4


cdef inline uint8_t address_size(Decoder* d) noexcept nogil:
    if d.key & KEY_CODE == KEY_CODE64:
        return 4 if d.adsize67 else 8
    return 2 if d.adsize67 != (d.key & KEY_CODE == KEY_CODE16) else 4


cdef uint64_t decode_immediate(RowRecord* row, Decoder* d) noexcept nogil:
    cdef uint64_t value
    cdef uint32_t kind = row.imm, z = 4 if d.opsize == 8 else d.opsize
    if kind == IMM_IB:
        return take8(d)
    if kind == IMM_IBS or kind == IMM_CB:
        return <uint64_t>take_signed(d, 1)
    if kind == IMM_IZ:
        return <uint64_t>take_signed(d, z)
    if kind == IMM_CZ:
        return <uint64_t>take_signed(d, 2 if d.opsize == 2 else 4)
    if kind == IMM_IV:
        return take(d, d.opsize)
    if kind == IMM_IW:
        return take(d, 2)
    if kind == IMM_ID:
        return take(d, 4)
    if kind == IMM_ONE:
        return 1
    if kind == IMM_IWIB or kind == IMM_IBIB:
        value = take(d, 2 if kind == IMM_IWIB else 1)
        return value | <uint64_t>take8(d) << (16 if kind == IMM_IWIB else 8)
    if kind == IMM_PTR:
        value = take(d, z)
        return value | take(d, 2) << 32
    return 0


# ------------------------------------------------------------------ one instruction

cdef inline uint8_t gpr8_slot(Decoder* d, uint32_t number) noexcept nogil:
    """SPL..DIL with any REX, AH..BH without."""
    return number * 8 if d.rex or number < 4 else (number - 4) * 8 + 1


cdef RowRecord* decode_row(Decoder* d) noexcept nogil:
    """All bytes of the instruction at d.next. NULL: d.error says why."""
    cdef RowRecord* row
    decode_prefixes(d)
    if d.error:
        return NULL
    row = find_row(d)
    if row == NULL:
        if d.error == DECODE_OK:
            d.error = DECODE_UD
        return NULL
    d.opsize = operand_size(row, d)
    d.adsize = address_size(d)
    if d.has_modrm and d.modrm >> 6 != 3:
        if d.adsize == 2:
            decode_address16(d, d.modrm >> 6, d.modrm & 7)
        else:
            decode_address(d, d.modrm >> 6, d.modrm & 7)
    elif row.imm == IMM_MOFFS:
        d.base = SLOT_ZERO
        d.index = SLOT_ZERO
        d.disp = <int64_t>take(d, d.adsize)
    if row.imm:
        d.imm = decode_immediate(row, d)
    if d.error:
        return NULL
    if d.lock and not (row.flags & ROW_LOCK and d.modrm >> 6 != 3):
        d.error = DECODE_UD
        return NULL
    return row


cdef handler_t row_refused(RowRecord* row, uint32_t key) noexcept nogil:
    """The handler of the fault that the mode alone decides, or NULL."""
    cdef uint32_t unit = row.unit
    if row.flags & ROW_CPL0 and (key >> KEY_CPL_SHIFT) & 3:
        return op_gp
    if unit == 0:
        return NULL
    if unit == UNIT_WAIT:
        if key & KEY_TS and key & KEY_MP:
            return op_nm
        return NULL
    if unit == UNIT_X87:
        if key & (KEY_EM | KEY_TS):
            return op_nm
        return NULL
    if key & KEY_EM or (unit == UNIT_SSE and key & KEY_NO_SSE):
        return op_ud
    if key & KEY_TS:
        return op_nm
    return NULL


cdef void fill_registers(RowRecord* row, Decoder* d, Op* op) noexcept nogil:
    cdef uint32_t reg = ((d.modrm >> 3) & 7) | (d.rex & 4) << 1
    cdef uint32_t rm = (d.modrm & 7) | (d.rex & 1) << 3
    cdef uint32_t low = (d.opcode & 7) | (d.rex & 1) << 3
    cdef uint8_t other
    if row.reg == REG_GPR8:
        op.r = gpr8_slot(d, reg)
    elif row.reg == REG_GPR:
        op.r = reg * 8
    else:
        op.r = reg
    if row.rm == RM_OPCODE8:
        op.b = gpr8_slot(d, low)
    elif row.rm == RM_OPCODE:
        op.b = low * 8
    elif row.rm == RM_STI:
        op.b = d.modrm & 7
    elif d.has_modrm and d.modrm >> 6 == 3:
        op.b = gpr8_slot(d, rm) if row.rm == RM_GPR8 else rm * 8 if row.rm == RM_GPR else rm
        if row.flags & ROW_SWAP:
            other = op.r
            op.r = op.b
            op.b = other


cdef uint32_t fill_memory(RowRecord* row, Decoder* d, Op* op, Op* step) noexcept nogil:
    """The memory operand. 1: `step` was filled and must run before op; else 0."""
    cdef bint based = d.segment == SEG_FS or d.segment == SEG_GS
    cdef uint8_t slot = SLOT_FS if d.segment == SEG_FS else SLOT_GS
    op.flags |= OPF_MEM
    op.b = d.base
    op.x = d.index
    op.scale = d.scale
    op.disp = d.disp
    if d.rip_relative:
        op.disp += op.offset + op.length
    if d.map == 0 and d.opcode == 0x8F and d.base == 4 * 8:
        op.disp += op.opsize                         # POP computes its address with rSP as it will be (SDM 2B POP)
    if row.flags & ROW_NO_EA:
        return 0
    if d.key & KEY_CODE == KEY_CODE64 and d.adsize == 8:
        if not based:
            return 0
        if op.x == SLOT_ZERO:
            op.x = slot
            return 0
        if op.b == SLOT_ZERO:
            op.b = slot
            return 0
    step[0] = op[0]
    step.fn = fn_ea_seg
    if d.key & KEY_FLAT and d.adsize == 4 and (d.segment == SEG_DS or d.segment == SEG_SS or d.segment == SEG_ES):
        step.fn = op_ea_flat
    step.opsize = <uint8_t>(op.opsize if row.memory == MEMORY_BY_SIZE else row.memory if row.memory < 255 else 0)
    if row.flags & ROW_WRITE:
        step.flags |= OPF_WRITE
    op.b = SLOT_EA
    op.x = SLOT_ZERO
    op.scale = 0
    op.disp = 0
    return 1


cdef uint32_t decode_insn(Decoder* d, Op* ops, uint32_t offset, uint32_t index, RowRecord** found) noexcept nogil:
    """Decode the instruction at d.next into ops[0] or ops[0..1]; their number. 0: d.error says why."""
    cdef RowRecord* row = decode_row(d)
    cdef Op* op = ops
    cdef Op step
    cdef handler_t refused
    cdef uint32_t slot
    found[0] = row
    if row == NULL:
        return 0
    memset(op, 0, sizeof(Op))
    op.opsize = d.opsize
    op.modrm = d.modrm if d.has_modrm else d.opcode
    op.seg = <uint8_t>(d.segment if d.segment >= 0 else SEG_DS)
    op.length = <uint8_t>d.count
    op.offset = <uint16_t>offset
    op.index = <uint16_t>index
    op.opcode = <uint16_t>row.number
    op.imm = d.imm
    op.x = SLOT_ZERO
    op.flags = OPF_ADDR16 if d.adsize == 2 else OPF_ADDR32 if d.adsize == 4 else OPF_ADDR64
    if d.rep:
        op.flags |= OPF_REP if d.rep == 0xF3 else OPF_REPNE
    if d.lock or (d.map == 0 and d.opcode & 0xFE == 0x86):
        op.flags |= OPF_LOCK                         # XCHG with memory locks by itself
    if d.rex & 8:
        op.flags |= OPF_REXW
    refused = row_refused(row, d.key)
    if refused != NULL:
        op.fn = refused
        return 1
    fill_registers(row, d, op)
    slot = 3 if d.opsize == 8 else 2 if d.opsize == 4 else 1 if d.opsize == 2 else 0
    if (d.has_modrm and d.modrm >> 6 != 3) or row.imm == IMM_MOFFS:
        d.handler = row.handlers[slot * 2 + 1]
        op.fn = handler_table[d.handler]
        if d.lock and lock_table[d.handler] != op_missing:
            op.fn = lock_table[d.handler]
        if fill_memory(row, d, op, &step):
            ops[1] = op[0]
            ops[0] = step
            op += 1
        if op.x == SLOT_ZERO and not d.lock and based_table[d.handler] != NULL:
            op.fn = based_table[d.handler]
        return 2 if op != ops else 1
    d.handler = row.handlers[slot * 2]
    op.fn = handler_table[d.handler]
    if d.key & KEY_FLAT and d.opsize == 4 and d.adsize == 4:
        if d.handler == jcc_legacy:
            op.fn = branch_table[d.opcode & 15]
        elif flat_table[d.handler] != NULL:
            op.fn = flat_table[d.handler]
    return 1


cdef inline void fuse(Op* before, uint32_t handler, Decoder* d) noexcept nogil:
    """A comparison right before a conditional branch that follows links: its handler does both."""
    cdef handler_t both
    if not (d.key & KEY_CODE == KEY_CODE64 or (d.key & KEY_FLAT and d.opsize == 4 and d.adsize == 4)):
        return
    if not ((d.map == 0 and d.opcode & 0xF0 == 0x70) or (d.map == 1 and d.opcode & 0xF0 == 0x80)):
        return
    both = fused_table[handler * 16 + (d.opcode & 15)]
    if both != NULL:
        before.fn = both
