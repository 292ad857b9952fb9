# Owner: CORE. Included by the generated _integer.pyx: MOVS, CMPS, STOS, LODS, SCAS, with and without repetition.
#
# Each step is an iteration as in the manual, or, forward and within one page of either side, a run of them.
# Between two of them a repeated instruction may stop (attention): registers say how far it came, rip stays, and it
# counts as retired once, when it is through. True: go on behind it; False: a fault was delivered, or it was stopped.

cdef enum:
    RSI = 6
    RDI = 7
    REPEATED = OPF_REP | OPF_REPNE


cdef inline bint source_at(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    """Linear address of [rSI] in the source segment -> SLOT_EA. False: refused, nothing delivered yet."""
    if op.flags & OPF_ADDR64 and op.seg < SEG_FS:
        cpu.regs[20] = cpu.regs[RSI]
        return True
    return seg_linear(cpu, op.seg, cpu.regs[RSI] & address_mask(op), size, False, &cpu.regs[20])


cdef inline bint target_at(CpuState* cpu, Op* op, uint32_t size, bint write) noexcept nogil:
    """Linear address of ES:[rDI] -> SLOT_TMP."""
    if op.flags & OPF_ADDR64:
        cpu.regs[21] = cpu.regs[RDI]
        return True
    return seg_linear(cpu, SEG_ES, cpu.regs[RDI] & address_mask(op), size, write, &cpu.regs[21])


cdef inline void advance(CpuState* cpu, Op* op, uint32_t number, uint64_t bytes) noexcept nogil:
    cdef uint64_t delta = -bytes if cpu.rflags_sys & RF_DF else bytes
    set_masked(&cpu.regs[number], cpu.regs[number] + delta, address_mask(op))


cdef inline uint64_t count_left(CpuState* cpu, Op* op) noexcept nogil:
    return cpu.regs[1] & address_mask(op)


cdef inline bint stopped(CpuState* cpu, Op* op, uint64_t done) noexcept nogil:
    """Count `done` iterations; True: something wants the loop and there are more to do."""
    set_masked(&cpu.regs[1], cpu.regs[1] - done, address_mask(op))
    if cpu.attention == 0 or count_left(cpu, op) == 0:
        return False
    op_rewind(cpu, op)
    return True


cdef inline uint64_t run_in_page(CpuState* cpu, Op* op, uint32_t number, uint64_t linear, uint32_t size, uint64_t most) noexcept nogil:
    """Iterations forward that stay in the page of linear and in the address size's range."""
    cdef uint64_t offset = cpu.regs[number] & address_mask(op)
    cdef uint64_t room = (PAGE_SIZE - (linear & (PAGE_SIZE - 1))) // size
    cdef uint64_t range_ = (address_mask(op) - offset) // size
    if room > range_:
        room = range_
    return room if room < most else most


cdef inline uint64_t load_sized(const uint8_t* p, uint32_t size) noexcept nogil:
    if size == 1:
        return p[0]
    if size == 2:
        return (<uint16_t*>p)[0]
    return (<uint32_t*>p)[0] if size == 4 else (<uint64_t*>p)[0]


cdef inline void compare_sized(CpuState* cpu, uint64_t a, uint64_t b, uint32_t size) noexcept nogil:
    if size == 1:
        cmp8(&cpu.aflags, <uint8_t>a, <uint8_t>b)
    elif size == 2:
        cmp16(&cpu.aflags, <uint16_t>a, <uint16_t>b)
    elif size == 4:
        cmp32(&cpu.aflags, <uint32_t>a, <uint32_t>b)
    else:
        cmp64(&cpu.aflags, a, b)


cdef inline bint goes_on(CpuState* cpu, Op* op) noexcept nogil:
    """REPE: while ZF; REPNE: while not."""
    return (op.flags & OPF_REP != 0) == (cpu.aflags & AF_ZF != 0)


cdef void copy_forward(uint8_t* to, const uint8_t* source, uint64_t bytes, uint32_t size) noexcept nogil:
    """As single moves in ascending order would: an overlap ahead repeats the pattern."""
    cdef uint64_t i = 0
    if to <= source or to >= source + bytes:
        memmove(to, source, bytes)
    elif <uint64_t>(to - source) >= size:
        for i in range(bytes):
            to[i] = source[i]
    else:
        while i < bytes:
            memmove(to + i, source + i, size)
            i += size


# --- MOVS

cdef uint8_t* filled_probe(CpuState* cpu, Op* op, uint64_t gva, uint32_t size, bint write, bint* faulted) noexcept nogil:
    """The probe, after a walk if need be. NULL: not plain RAM, or a fault that was delivered."""
    cdef uint8_t* host = probe_write(cpu, gva, size) if write else probe_read(cpu, gva, size)
    if host != NULL:
        return host
    if not mem_check(cpu, op, gva, size, write):
        faulted[0] = True
        return NULL
    return probe_write(cpu, gva, size) if write else probe_read(cpu, gva, size)


cdef uint64_t movs_run(CpuState* cpu, Op* op, uint32_t size, uint64_t most, bint* faulted) noexcept nogil:
    """Move several at once; 0: not possible here. Source and target may share a slot of the TLB (2 MiB apart): the
    source's host address stays good while the target's translation pushes its own out."""
    cdef uint64_t n
    cdef uint8_t* source
    cdef uint8_t* to
    if cpu.rflags_sys & RF_DF or not source_at(cpu, op, size) or not target_at(cpu, op, size, True):
        return 0
    n = run_in_page(cpu, op, RDI, cpu.regs[21], size, run_in_page(cpu, op, RSI, cpu.regs[20], size, most))
    if n == 0 or not source_at(cpu, op, <uint32_t>(n * size)) or not target_at(cpu, op, <uint32_t>(n * size), True):
        return 0
    source = filled_probe(cpu, op, cpu.regs[20], <uint32_t>(n * size), False, faulted)
    if source == NULL:
        return 0
    to = filled_probe(cpu, op, cpu.regs[21], <uint32_t>(n * size), True, faulted)
    if to == NULL:
        return 0
    copy_forward(to, source, n * size, size)
    return n


cdef bint movs_one(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint8_t* p
    if not source_at(cpu, op, size):
        fault_refused(cpu, op)
        return False
    p = mem_read(cpu, op, cpu.regs[20], size)
    if p == NULL:
        return False
    if not target_at(cpu, op, size, True):
        fault_refused(cpu, op)
        return False
    return mem_write(cpu, op, cpu.regs[21], load_sized(p, size), size)


cdef bint string_movs(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint64_t left, n
    cdef bint faulted = False
    if not op.flags & REPEATED:
        if not movs_one(cpu, op, size):
            return False
        advance(cpu, op, RSI, size)
        advance(cpu, op, RDI, size)
        return True
    left = count_left(cpu, op)
    while left != 0:
        n = movs_run(cpu, op, size, left, &faulted)
        if faulted:
            return False
        if n == 0:
            if not movs_one(cpu, op, size):
                return False
            n = 1
        advance(cpu, op, RSI, n * size)
        advance(cpu, op, RDI, n * size)
        if stopped(cpu, op, n):
            return False
        left -= n
    return True


# --- STOS

cdef void fill_run(uint8_t* to, uint64_t value, uint64_t n, uint32_t size) noexcept nogil:
    cdef uint64_t i
    if size == 1 or value == 0:
        memset(to, <int>(value & 0xFF), n * size)
    elif size == 2:
        for i in range(n):
            (<uint16_t*>to)[i] = <uint16_t>value
    elif size == 4:
        for i in range(n):
            (<uint32_t*>to)[i] = <uint32_t>value
    else:
        for i in range(n):
            (<uint64_t*>to)[i] = value


cdef uint64_t stos_run(CpuState* cpu, Op* op, uint32_t size, uint64_t most) noexcept nogil:
    cdef uint64_t n
    cdef uint8_t* to
    if cpu.rflags_sys & RF_DF or not target_at(cpu, op, size, True):
        return 0
    n = run_in_page(cpu, op, RDI, cpu.regs[21], size, most)
    if n == 0 or not target_at(cpu, op, <uint32_t>(n * size), True):
        return 0
    to = probe_write(cpu, cpu.regs[21], <uint32_t>(n * size))
    if to == NULL:
        return 0
    fill_run(to, cpu.regs[0], n, size)
    return n


cdef bint stos_one(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    if not target_at(cpu, op, size, True):
        fault_refused(cpu, op)
        return False
    return mem_write(cpu, op, cpu.regs[21], cpu.regs[0], size)


cdef bint string_stos(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint64_t left, n
    if not op.flags & REPEATED:
        if not stos_one(cpu, op, size):
            return False
        advance(cpu, op, RDI, size)
        return True
    left = count_left(cpu, op)
    while left != 0:
        n = stos_run(cpu, op, size, left)
        if n == 0:
            if not stos_one(cpu, op, size):
                return False
            n = 1
        advance(cpu, op, RDI, n * size)
        if stopped(cpu, op, n):
            return False
        left -= n
    return True


# --- LODS

cdef bint lods_one(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint8_t* p
    if not source_at(cpu, op, size):
        fault_refused(cpu, op)
        return False
    p = mem_read(cpu, op, cpu.regs[20], size)
    if p == NULL:
        return False
    if size == 1:
        reg8(cpu, 0)[0] = p[0]
    elif size == 2:
        reg16(cpu, 0)[0] = (<uint16_t*>p)[0]
    else:
        cpu.regs[0] = load_sized(p, size)
    advance(cpu, op, RSI, size)
    return True


cdef bint string_lods(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    if not op.flags & REPEATED:
        return lods_one(cpu, op, size)
    while count_left(cpu, op) != 0:
        if not lods_one(cpu, op, size) or stopped(cpu, op, 1):
            return False
    return True


# --- CMPS and SCAS: the flags are those of the last comparison

cdef bint cmps_one(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint8_t* p
    cdef uint64_t a
    if not source_at(cpu, op, size):
        fault_refused(cpu, op)
        return False
    p = mem_read(cpu, op, cpu.regs[20], size)
    if p == NULL:
        return False
    a = load_sized(p, size)
    if not target_at(cpu, op, size, False):
        fault_refused(cpu, op)
        return False
    p = mem_read(cpu, op, cpu.regs[21], size)
    if p == NULL:
        return False
    compare_sized(cpu, a, load_sized(p, size), size)
    advance(cpu, op, RSI, size)
    advance(cpu, op, RDI, size)
    return True


cdef uint64_t cmps_run(CpuState* cpu, Op* op, uint32_t size, uint64_t most) noexcept nogil:
    """Compare several pairs that don't end the repetition, but for the last; 0: not possible here."""
    cdef uint64_t n, i = 0
    cdef uint8_t* a
    cdef uint8_t* b
    cdef bint equal = op.flags & OPF_REP != 0
    if cpu.rflags_sys & RF_DF or not source_at(cpu, op, size) or not target_at(cpu, op, size, False):
        return 0
    n = run_in_page(cpu, op, RDI, cpu.regs[21], size, run_in_page(cpu, op, RSI, cpu.regs[20], size, most))
    if n == 0 or not source_at(cpu, op, <uint32_t>(n * size)) or not target_at(cpu, op, <uint32_t>(n * size), False):
        return 0
    a = probe_read(cpu, cpu.regs[20], <uint32_t>(n * size))
    b = probe_read(cpu, cpu.regs[21], <uint32_t>(n * size))
    if a == NULL or b == NULL:
        return 0
    while i + 1 < n and (load_sized(a + i * size, size) == load_sized(b + i * size, size)) == equal:
        i += 1
    compare_sized(cpu, load_sized(a + i * size, size), load_sized(b + i * size, size), size)
    advance(cpu, op, RSI, (i + 1) * size)
    advance(cpu, op, RDI, (i + 1) * size)
    return i + 1


cdef bint string_cmps(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint64_t n
    if not op.flags & REPEATED:
        return cmps_one(cpu, op, size)
    while count_left(cpu, op) != 0:
        n = cmps_run(cpu, op, size, count_left(cpu, op))
        if n == 0:
            if not cmps_one(cpu, op, size):
                return False
            n = 1
        if not goes_on(cpu, op):
            set_masked(&cpu.regs[1], cpu.regs[1] - n, address_mask(op))
            return True
        if stopped(cpu, op, n):
            return False
    return True


cdef bint scas_one(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint8_t* p
    if not target_at(cpu, op, size, False):
        fault_refused(cpu, op)
        return False
    p = mem_read(cpu, op, cpu.regs[21], size)
    if p == NULL:
        return False
    compare_sized(cpu, cpu.regs[0], load_sized(p, size), size)
    advance(cpu, op, RDI, size)
    return True


cdef uint64_t scas_run(CpuState* cpu, Op* op, uint32_t size, uint64_t most) noexcept nogil:
    cdef uint64_t n, i = 0
    cdef uint64_t value = cpu.regs[0] if size == 8 else cpu.regs[0] & ((<uint64_t>1 << size * 8) - 1)
    cdef uint8_t* p
    cdef bint equal = op.flags & OPF_REP != 0
    if cpu.rflags_sys & RF_DF or not target_at(cpu, op, size, False):
        return 0
    n = run_in_page(cpu, op, RDI, cpu.regs[21], size, most)
    if n == 0 or not target_at(cpu, op, <uint32_t>(n * size), False):
        return 0
    p = probe_read(cpu, cpu.regs[21], <uint32_t>(n * size))
    if p == NULL:
        return 0
    while i + 1 < n and (load_sized(p + i * size, size) == value) == equal:
        i += 1
    compare_sized(cpu, value, load_sized(p + i * size, size), size)
    advance(cpu, op, RDI, (i + 1) * size)
    return i + 1


cdef bint string_scas(CpuState* cpu, Op* op, uint32_t size) noexcept nogil:
    cdef uint64_t n
    if not op.flags & REPEATED:
        return scas_one(cpu, op, size)
    while count_left(cpu, op) != 0:
        n = scas_run(cpu, op, size, count_left(cpu, op))
        if n == 0:
            if not scas_one(cpu, op, size):
                return False
            n = 1
        if not goes_on(cpu, op):
            set_masked(&cpu.regs[1], cpu.regs[1] - n, address_mask(op))
            return True
        if stopped(cpu, op, n):
            return False
    return True
