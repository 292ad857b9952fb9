"""Memory off the hit path: misses, pages crossed, devices, decoded code, implicit accesses. Owner: SYSTEM.

Owns:    the slow half of mem.pxd; sys_read and sys_write, by which the processor reaches its own tables.
Never:   stores a byte before every byte of the access is known to be allowed.
Threads: the vCPU's own.
"""

cdef struct Parts:               # an access, cut at the page's end
    uint8_t* host[2]             # NULL: a device's, or nobody's
    uint64_t gpa[2]
    uint32_t size[2]             # size[1] = 0: all on one page
    int count


cdef inline gva_t next_page(CpuState* cpu, gva_t gva) noexcept nogil:
    """The page behind gva's; linear addresses outside 64-bit mode wrap at 4 GiB."""
    cdef gva_t following = (gva & ~<uint64_t>0xFFF) + PAGE_SIZE
    if not cpu.code64 and following == <uint64_t>1 << 32:
        return 0
    return following


cdef bint find_part(CpuState* cpu, gva_t gva, uint32_t access, Parts* parts) noexcept nogil:
    """Translate the next part. The set's entry is tried first: most accesses that come here only cross pages."""
    cdef int i = parts.count
    cdef TlbEntry* entry = &tlb_set(cpu, access_mode(cpu, access))[(gva >> PAGE_SHIFT) & TLB_MASK]
    cdef uint64_t page = gva & ~<uint64_t>0xFFF
    cdef gpa_t gpa = 0
    parts.count += 1
    parts.gpa[i] = 0
    if page == (entry.write_tag if access & ACCESS_WRITE else entry.read_tag):
        parts.host[i] = <uint8_t*>(gva + entry.addend)
        return True
    if not translate(cpu, gva, access, &gpa):
        return False
    parts.gpa[i] = gpa
    parts.host[i] = phys_page(cpu, gpa, (access & ACCESS_WRITE) != 0)
    return True


cdef bint find_parts(CpuState* cpu, gva_t gva, uint32_t size, uint32_t access, Parts* parts) noexcept nogil:
    """Translate all of [gva, gva + size), size <= 4096. False: cpu.pf_* says why not.

    gpa is 0 for a part found in the TLB: it is RAM, and no store to it needs a mark.
    """
    cdef uint32_t room = PAGE_SIZE - (gva & 0xFFF)
    parts.count = 0
    parts.size[0] = size if size <= room else room
    parts.size[1] = size - parts.size[0]
    if not find_part(cpu, gva, access, parts):
        return False
    return parts.size[1] == 0 or find_part(cpu, next_page(cpu, gva), access, parts)


cdef bint io_part(CpuState* cpu, gpa_t gpa, uint8_t* data, uint32_t size, bint is_write) noexcept nogil:
    """A device's frame, in the largest naturally sized steps. False: nobody's, and the hypervisor wants to know."""
    cdef uint32_t step
    while size:
        step = 8
        while step > size or gpa & (step - 1):
            step >>= 1
        if not io_frame(cpu, gpa, data, step, is_write):
            return False
        gpa += step
        data += step
        size -= step
    return True


cdef bint read_parts(CpuState* cpu, Parts* parts, uint8_t* data) noexcept nogil:
    cdef int i
    for i in range(parts.count):
        if parts.host[i] != NULL:
            memcpy(data, parts.host[i], parts.size[i])
        elif not io_part(cpu, parts.gpa[i], data, parts.size[i], False):
            cpu.exit_gpa = parts.gpa[i]
            return False
        data += parts.size[i]
    return True


cdef bint write_parts(CpuState* cpu, Parts* parts, const uint8_t* data) noexcept nogil:
    cdef int i
    for i in range(parts.count):
        if parts.host[i] == NULL:
            if not io_part(cpu, parts.gpa[i], <uint8_t*>data, parts.size[i], True):
                cpu.exit_gpa = parts.gpa[i]
                return False
        else:
            store_part(parts.host[i], data, parts.size[i])
            if parts.gpa[i]:
                phys_wrote(cpu, parts.gpa[i], parts.size[i])
        data += parts.size[i]
    return True


cdef inline void store_part(uint8_t* host, const uint8_t* data, uint32_t size) noexcept nogil:
    """An aligned store stays one store: other vCPUs look on."""
    if size == 8:
        (<uint64_t*>host)[0] = (<uint64_t*>data)[0]
    elif size == 4:
        (<uint32_t*>host)[0] = (<uint32_t*>data)[0]
    elif size == 2:
        (<uint16_t*>host)[0] = (<uint16_t*>data)[0]
    else:
        memcpy(host, data, size)


# --- faults of an access

cdef void mem_fault(CpuState* cpu, Op* op) noexcept nogil:
    """Deliver what find_parts recorded. A non-canonical stack address is #SS(0): of an operand through SS, or
    where an instruction without an operand in memory reaches out beside RSP."""
    if cpu.pf_vector == VECTOR_GP and (op.seg == SEG_SS or (not op.flags & OPF_MEM
                                                            and cpu.pf_gva - cpu.regs[4] + 64 < 128)):
        fault(cpu, op, VECTOR_SS, 0)
    else:
        fault(cpu, op, cpu.pf_vector, cpu.pf_error)


cdef void ept_exit(CpuState* cpu, Op* op, gva_t gva, uint32_t access) noexcept nogil:
    """Nobody owns the frame at cpu.exit_gpa (SDM 3C 28.2.1, table 28-7): linear address valid, final access."""
    cdef uint64_t qualification = 0x180 | (1 if access == ACCESS_READ else 2 if access & ACCESS_WRITE else 4)
    cpu.exit_gla = gva
    if op != NULL:
        vm_exit_op(cpu, op, EXIT_REASON_EPT_VIOLATION, qualification)
    else:
        vm_exit(cpu, EXIT_REASON_EPT_VIOLATION, qualification)


cdef bint check_access(CpuState* cpu, Op* op, gva_t gva, uint32_t size, uint32_t access) noexcept nogil:
    """What TLB_MODE_SLOW exists for: #AC and data breakpoints. False: the fault is delivered."""
    if cpu.tlb_mode != TLB_MODE_SLOW:
        return True
    if (cpu.cpl == 3 and cpu.cr0 & CR0_AM and cpu.rflags_sys & RF_AC and size in (2, 4, 8)
            and gva & (size - 1)):
        fault(cpu, op, VECTOR_AC, 0)
        return False
    return True


# --- the slow half of mem.pxd

cdef uint8_t* mem_read_slow(CpuState* cpu, Op* op, gva_t gva, uint32_t size) noexcept nogil:
    cdef Parts parts
    cpu.op_index = op.index                      # a device may look at the clock
    if not check_access(cpu, op, gva, size, ACCESS_READ):
        return NULL
    if not find_parts(cpu, gva, size, ACCESS_READ, &parts):
        mem_fault(cpu, op)
        return NULL
    if cpu.dr[7] & 0xFF:
        data_breakpoints(cpu, gva, size, False)
    if parts.count == 1 and parts.host[0] != NULL:
        return parts.host[0]
    if not read_parts(cpu, &parts, cpu.mbuf):
        ept_exit(cpu, op, gva, ACCESS_READ)
        return NULL
    return cpu.mbuf


cdef bint mem_write_buf_slow(CpuState* cpu, Op* op, gva_t gva, const void* src, uint32_t size) noexcept nogil:
    cdef Parts parts
    cpu.op_index = op.index                      # a device may look at the clock
    if not check_access(cpu, op, gva, size, ACCESS_WRITE):
        return False
    if not find_parts(cpu, gva, size, ACCESS_WRITE, &parts):
        mem_fault(cpu, op)
        return False
    if cpu.dr[7] & 0xFF:
        data_breakpoints(cpu, gva, size, True)
    if not write_parts(cpu, &parts, <const uint8_t*>src):
        ept_exit(cpu, op, gva, ACCESS_WRITE)
        return False
    return True


cdef bint mem_write_slow(CpuState* cpu, Op* op, gva_t gva, uint64_t value, uint32_t size) noexcept nogil:
    return mem_write_buf_slow(cpu, op, gva, &value, size)


cdef inline bint is_all_ram(Parts* parts) noexcept nogil:
    """No device among them: one waits for the machine's lock, whose holder may wait for the others to go on."""
    return parts.host[0] != NULL and (parts.count == 1 or parts.host[1] != NULL)


cdef uint8_t* mem_rmw_slow(CpuState* cpu, Op* op, gva_t gva, uint32_t size) noexcept nogil:
    cdef Parts parts
    cdef int i
    cpu.op_index = op.index
    if not check_access(cpu, op, gva, size, ACCESS_WRITE):
        return NULL
    if not find_parts(cpu, gva, size, ACCESS_WRITE, &parts):
        mem_fault(cpu, op)
        return NULL
    if cpu.dr[7] & 0xFF:
        data_breakpoints(cpu, gva, size, True)
    cpu.mbuf_gva = gva
    cpu.mbuf_size = size
    cpu.rmw_split = parts.size[0]
    for i in range(parts.count):
        cpu.rmw_host[i] = parts.host[i]
        cpu.rmw_gpa[i] = parts.gpa[i]
    if parts.count == 1 and parts.host[0] != NULL:
        if parts.gpa[0]:
            cpu.rmw_pending = RMW_CODE
        return parts.host[0]
    if op.flags & OPF_LOCK and cpu.space.cpu_count > 1 and is_all_ram(&parts):
        # a lock across pages: no host instruction does it, so the others stand still meanwhile
        if space_stop_others(cpu.space, cpu):
            cpu.rmw_pending = RMW_LOCKED | RMW_ENTERED
        else:
            cpu.rmw_pending = RMW_LOCKED
        # while this vCPU waited for its turn its TLB may have changed: look again
        if not find_parts(cpu, gva, size, ACCESS_WRITE, &parts):
            rmw_unlock(cpu)
            mem_fault(cpu, op)
            return NULL
        for i in range(parts.count):
            cpu.rmw_host[i] = parts.host[i]
            cpu.rmw_gpa[i] = parts.gpa[i]
        if not is_all_ram(&parts):
            rmw_unlock(cpu)
    if not read_parts(cpu, &parts, cpu.mbuf):
        rmw_unlock(cpu)
        ept_exit(cpu, op, gva, ACCESS_WRITE)
        return NULL
    cpu.rmw_pending |= RMW_MBUF
    return cpu.mbuf


cdef void rmw_unlock(CpuState* cpu) noexcept nogil:
    """Forget a read-modify-write under way; the others go on."""
    if cpu.rmw_pending & RMW_LOCKED:
        space_resume_others(cpu.space, cpu, (cpu.rmw_pending & RMW_ENTERED) != 0)
    cpu.rmw_pending = 0


cdef void mem_rmw_done_slow(CpuState* cpu, Op* op) noexcept nogil:
    cdef Parts parts
    cdef int i
    if cpu.rmw_pending & RMW_MBUF:
        parts.size[0] = cpu.rmw_split
        parts.size[1] = cpu.mbuf_size - cpu.rmw_split
        parts.count = 2 if parts.size[1] else 1
        for i in range(parts.count):
            parts.host[i] = cpu.rmw_host[i]
            parts.gpa[i] = cpu.rmw_gpa[i]
        # a device answered the read, so it takes the write
        write_parts(cpu, &parts, cpu.mbuf)
    elif cpu.rmw_pending & RMW_CODE:
        phys_wrote(cpu, cpu.rmw_gpa[0], cpu.mbuf_size)
    rmw_unlock(cpu)


cdef bint mem_check_slow(CpuState* cpu, Op* op, gva_t gva, uint32_t size, bint write) noexcept nogil:
    cdef Parts parts
    if not find_parts(cpu, gva, size, ACCESS_WRITE if write else ACCESS_READ, &parts):
        mem_fault(cpu, op)
        return False
    return True


cdef uint8_t* mem_fetch(CpuState* cpu, gva_t gva, gpa_t* gpa) noexcept nogil:
    """Code bytes at gva, good to the end of the page. Nobody's frame reads as 0xFF: FF FF is #UD."""
    cdef uint8_t* host = probe_exec(cpu, gva)
    cdef uint64_t offset
    if host != NULL:                     # each return to the loop comes here, so no walk where the TLB knows
        offset = <uint64_t>(host - cpu.space.ram)
        gpa[0] = offset if offset < cpu.space.low_bytes else offset - cpu.space.low_bytes + (<uint64_t>1 << 32)
        return host
    if not translate(cpu, gva, ACCESS_FETCH, gpa):
        fault_at_rip(cpu, cpu.pf_vector, cpu.pf_error)
        return NULL
    host = phys_page(cpu, gpa[0], False)
    if host != NULL:
        return host
    if not cpu.space.open_bus:
        cpu.exit_gpa = gpa[0]
        ept_exit(cpu, NULL, gva, ACCESS_FETCH)
        return NULL
    return open_bus_page + (gva & 0xFFF)


# --- the processor's own accesses

cdef bint sys_access(CpuState* cpu, gva_t gva, uint8_t* data, uint32_t size, uint32_t access) noexcept nogil:
    """Read or write a system structure or a stack of another privilege. False: cpu.pf_* says why not."""
    cdef Parts parts
    if not find_parts(cpu, gva, size, access, &parts):
        return False
    if access & ACCESS_WRITE:
        write_parts(cpu, &parts, data)
    elif not read_parts(cpu, &parts, data):
        memset(data, 0xFF, size)
    return True


cdef inline bint sys_read(CpuState* cpu, gva_t gva, void* data, uint32_t size) noexcept nogil:
    """A descriptor, a TSS, a gate: supervisor whatever the CPL."""
    return sys_access(cpu, gva, <uint8_t*>data, size, ACCESS_IMPLICIT)


cdef inline bint sys_write(CpuState* cpu, gva_t gva, const void* data, uint32_t size) noexcept nogil:
    return sys_access(cpu, gva, <uint8_t*>data, size, ACCESS_IMPLICIT | ACCESS_WRITE)
