"""Paging, the TLB's misses and flushes, and memory off the hit path. Owner: SYSTEM.

Owns:    the walks (SDM 3A chapter 4), the TLB's contents, cpu.pf_*, the slow half of mem.pxd.
Never:   raises, takes the GIL, trusts a guest's table: a walk has at most four steps, each through the p2m.
Threads: the vCPU's own; page-table entries are changed by compare-and-swap, because other vCPUs walk too.

A translation that fails leaves vector, error code and address in cpu.pf_*; who asked decides what to do with it.
"""


cdef enum:
    PF_P = 1
    PF_W = 2
    PF_U = 4
    PF_RSVD = 8
    PF_I = 16
    ACCESS_READ = 0
    ACCESS_WRITE = 2             # the values of the error code's bits
    ACCESS_FETCH = 16
    ACCESS_IMPLICIT = 0x100      # supervisor whatever the CPL, SMAP on whatever EFLAGS.AC (SDM 3A 4.6.1)
    ACCESS_USER = 0x200          # user whatever the CPL
    PTE_P = 1
    PTE_W = 2
    PTE_U = 4
    PTE_A = 0x20
    PTE_D = 0x40
    PTE_PS = 0x80
    PTE_G = 0x100
    WALK_RETRIES = 256
    PHYS_BITS = 40

cdef uint64_t PTE_NX = <uint64_t>1 << 63
cdef uint64_t PTE_ADDRESS = 0x000000FFFFFFF000ULL
cdef uint64_t PTE_RSVD_LONG = 0x000FFF0000000000ULL        # bits 51:40
cdef uint64_t PTE_RSVD_PAE = 0x7FFFFF0000000000ULL         # bits 62:40
cdef uint8_t open_bus_page[4096]
memset(open_bus_page, 0xFF, 4096)

cdef extern from *:
    """
    static inline int pte_cas64(void *p, uint64_t was, uint64_t is) {
        return __atomic_compare_exchange_n((uint64_t *)p, &was, is, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
    static inline int pte_cas32(void *p, uint32_t was, uint32_t is) {
        return __atomic_compare_exchange_n((uint32_t *)p, &was, is, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
    static inline int bit_lowest(uint64_t v) { return __builtin_ctzll(v); }
    """
    bint pte_cas64(void* p, uint64_t was, uint64_t becomes) noexcept nogil
    bint pte_cas32(void* p, uint32_t was, uint32_t becomes) noexcept nogil
    int bit_lowest(uint64_t v) noexcept nogil

cdef struct Walk:
    uint64_t page                # guest-physical address of the 4 KiB page
    uint64_t offset_mask         # of the whole page that maps it: 0xFFF, 0x1FFFFF …
    uint32_t rights              # PTE_W, PTE_U: of all levels together
    uint32_t leaf                # low bits of the last entry: PTE_D, PTE_G
    bint nx


# --- guest-physical memory

cdef inline uint8_t* phys_page(CpuState* cpu, gpa_t gpa, bint write) noexcept nogil:
    """Host address of gpa where it is RAM (writable, if asked), else NULL."""
    cdef uint64_t entry
    if (gpa >> PAGE_SHIFT) >= cpu.space.frames:
        return NULL
    entry = cpu.space.p2m[gpa >> PAGE_SHIFT]
    if not entry & P2M_PRESENT or (write and not entry & P2M_WRITABLE):
        return NULL
    return <uint8_t*>((entry & ~<uint64_t>0xFFF) + (gpa & 0xFFF))


cdef inline void phys_wrote(CpuState* cpu, gpa_t gpa, uint32_t size) noexcept nogil:
    """After a store that went around the write entries: the dirty log, decoded code."""
    if cpu.space.dirty_on:
        mark_dirty(cpu.space, gpa)
    if cpu.space.code_pages[gpa >> PAGE_SHIFT]:
        code_written(cpu, gpa, size)


cdef inline bint is_marked_dirty(Space* space, gpa_t gpa) noexcept nogil:
    cdef uint64_t frame = ram_offset(space, gpa) >> PAGE_SHIFT
    return (atomic_load64(&space.dirty[frame >> 6]) >> (frame & 63)) & 1


# --- the walks

cdef bint page_fault(CpuState* cpu, gva_t gva, uint32_t access, bint user, uint32_t bits) noexcept nogil:
    """Record #PF. access: of the translation; bits: PF_P, PF_RSVD. Always False."""
    cdef uint32_t error = bits | (access & PF_W)
    if user:
        error |= PF_U
    if access & ACCESS_FETCH and ((cpu.efer & EFER_NXE and cpu.cr4 & CR4_PAE) or cpu.cr4 & CR4_SMEP):
        error |= PF_I
    cpu.pf_vector = VECTOR_PF
    cpu.pf_error = error
    cpu.pf_gva = gva
    return False


cdef bint walk_allows(CpuState* cpu, Walk* walk, uint32_t access, bint user, bint smap) noexcept nogil:
    """SDM 3A 4.6.1: may the page be read, written or fetched from?"""
    cdef bint user_page = (walk.rights & PTE_U) != 0
    if access & ACCESS_FETCH:
        if walk.nx:
            return False
        return user_page if user else not (user_page and cpu.cr4 & CR4_SMEP)
    if user:
        return user_page and (walk.rights & PTE_W or not access & ACCESS_WRITE)
    if user_page and smap:
        return False
    return walk.rights & PTE_W or not access & ACCESS_WRITE or not cpu.cr0 & CR0_WP


cdef uint64_t entry_reserved(CpuState* cpu, int level, bint pae, uint64_t entry) noexcept nogil:
    """Reserved bits that are set in an 8-byte entry; bit 7 counts where there is no such page."""
    cdef uint64_t reserved = PTE_RSVD_PAE if pae else PTE_RSVD_LONG
    if not cpu.efer & EFER_NXE:
        reserved |= PTE_NX
    if entry & PTE_PS:
        if level == 4:
            reserved |= PTE_PS
        elif level == 3:
            reserved |= 0x3FFFE000               # bits 29:13
        elif level == 2:
            reserved |= 0x1FE000                 # bits 20:13
    return entry & reserved


cdef int mark_accessed(CpuState* cpu, uint64_t* gpas, uint64_t* entries, int count, bint wide, bint write) noexcept nogil:
    """Set A in the entries used and D in the last; 0 done, 1 an entry changed meanwhile: walk again."""
    cdef int i
    cdef uint64_t wanted
    cdef uint8_t* p
    for i in range(count):
        wanted = entries[i] | PTE_A | (PTE_D if write and i == count - 1 else 0)
        if wanted == entries[i]:
            continue
        p = phys_page(cpu, gpas[i], True)
        if p == NULL:
            continue
        if not (pte_cas64(p, entries[i], wanted) if wide else pte_cas32(p, <uint32_t>entries[i], <uint32_t>wanted)):
            return 1
        entries[i] = wanted
        phys_wrote(cpu, gpas[i], 8 if wide else 4)
    return 0


cdef int walk_wide(CpuState* cpu, gva_t gva, uint32_t access, bint user, bint smap, Walk* walk) noexcept nogil:
    """4-level and PAE paging. 1 done, 0 fault recorded, 2 walk again."""
    cdef uint64_t gpas[4]
    cdef uint64_t entries[4]
    cdef uint64_t entry, table
    cdef bint pae = not cpu.long_mode
    cdef int level = 4
    cdef int count = 0
    cdef int shift
    cdef uint8_t* p
    walk.rights = PTE_W | PTE_U
    walk.nx = False
    table = cpu.cr3 & PTE_ADDRESS
    if pae:
        entry = cpu.pdpte[(gva >> 30) & 3]
        if not entry & PTE_P:
            return page_fault(cpu, gva, access, user, 0)
        table = entry & PTE_ADDRESS
        level = 2
    while True:
        shift = 3 + 9 * level
        gpas[count] = table + ((gva >> shift) & 511) * 8
        p = phys_page(cpu, gpas[count], False)
        entry = (<uint64_t*>p)[0] if p != NULL else ~<uint64_t>0
        entries[count] = entry
        count += 1
        if not entry & PTE_P:
            return page_fault(cpu, gva, access, user, 0)
        if entry_reserved(cpu, level, pae, entry):
            return page_fault(cpu, gva, access, user, PF_P | PF_RSVD)
        walk.rights &= <uint32_t>entry
        if entry & PTE_NX:
            walk.nx = True
        table = entry & PTE_ADDRESS
        if level == 1 or entry & PTE_PS:
            break
        level -= 1
    walk.offset_mask = (<uint64_t>1 << shift) - 1
    walk.page = (table & ~walk.offset_mask) | (gva & walk.offset_mask & ~<uint64_t>0xFFF)
    if not walk_allows(cpu, walk, access, user, smap):
        return page_fault(cpu, gva, access, user, PF_P)
    if mark_accessed(cpu, gpas, entries, count, True, (access & ACCESS_WRITE) != 0):
        return 2
    walk.leaf = <uint32_t>entries[count - 1]
    return 1


cdef int walk_narrow(CpuState* cpu, gva_t gva, uint32_t access, bint user, bint smap, Walk* walk) noexcept nogil:
    """32-bit paging with 4 MiB pages (PSE, PSE-36). 1 done, 0 fault recorded, 2 walk again."""
    cdef uint64_t gpas[2]
    cdef uint64_t entries[2]
    cdef uint64_t entry
    cdef int count = 1
    cdef uint8_t* p
    walk.nx = False
    gpas[0] = (cpu.cr3 & 0xFFFFF000U) + ((gva >> 22) & 1023) * 4
    p = phys_page(cpu, gpas[0], False)
    entry = (<uint32_t*>p)[0] if p != NULL else 0xFFFFFFFFU
    entries[0] = entry
    if not entry & PTE_P:
        return page_fault(cpu, gva, access, user, 0)
    walk.rights = <uint32_t>entry & (PTE_W | PTE_U)
    if entry & PTE_PS and cpu.cr4 & CR4_PSE:
        if entry & 0x200000:                     # bit 21, as MAXPHYADDR is 40
            return page_fault(cpu, gva, access, user, PF_P | PF_RSVD)
        walk.offset_mask = 0x3FFFFF
        walk.page = (entry & 0xFFC00000U) | ((entry & 0x1FE000) << 19) | (gva & 0x3FF000)
    else:
        gpas[1] = (entry & 0xFFFFF000U) + ((gva >> 12) & 1023) * 4
        p = phys_page(cpu, gpas[1], False)
        entry = (<uint32_t*>p)[0] if p != NULL else 0xFFFFFFFFU
        entries[1] = entry
        count = 2
        if not entry & PTE_P:
            return page_fault(cpu, gva, access, user, 0)
        walk.rights &= <uint32_t>entry
        walk.offset_mask = 0xFFF
        walk.page = entry & 0xFFFFF000U
    if not walk_allows(cpu, walk, access, user, smap):
        return page_fault(cpu, gva, access, user, PF_P)
    if mark_accessed(cpu, gpas, entries, count, False, (access & ACCESS_WRITE) != 0):
        return 2
    walk.leaf = <uint32_t>entries[count - 1]
    return 1


cdef bint walk_tables(CpuState* cpu, gva_t gva, uint32_t access, bint user, bint smap, Walk* walk) noexcept nogil:
    """Translate by the guest's tables; False: the fault is in cpu.pf_*."""
    cdef int tries, done
    if not cpu.cr0 & CR0_PG:
        walk.page = gva & <uint64_t>0xFFFFF000U
        walk.offset_mask = 0xFFF
        walk.rights = PTE_W | PTE_U
        walk.leaf = PTE_D
        walk.nx = False
        return True
    for tries in range(WALK_RETRIES):
        if cpu.cr4 & CR4_PAE:
            done = walk_wide(cpu, gva, access, user, smap, walk)
        else:
            done = walk_narrow(cpu, gva, access, user, smap, walk)
        if done != 2:
            return done == 1
    # others rewrite the entry all the time: a spurious fault, after which the guest tries again
    return page_fault(cpu, gva, access, user, 0)


# --- filling the TLB

cdef inline bint access_is_user(CpuState* cpu, uint32_t access) noexcept nogil:
    return access & ACCESS_USER or (cpu.cpl == 3 and not access & ACCESS_IMPLICIT)


cdef inline uint32_t access_mode(CpuState* cpu, uint32_t access) noexcept nogil:
    """The set that this access looks into."""
    if access & ACCESS_USER:
        return TLB_MODE_USER
    if access & ACCESS_IMPLICIT:
        return TLB_MODE_SMAP if cpu.cr4 & CR4_SMAP else TLB_MODE_SUPERVISOR
    return cpu.tlb_mode


cdef inline TlbEntry* tlb_set(CpuState* cpu, uint32_t mode) noexcept nogil:
    return cpu.tlb_base + ((cpu.tlb_slot * TLB_MODES + mode) << TLB_BITS)


cdef void tlb_fill(CpuState* cpu, gva_t gva, uint32_t mode, bint user, bint smap, Walk* walk,
                   uint8_t* host) noexcept nogil:
    """Make the entry of a page of RAM; host: its first byte. Each right is worked out on its own."""
    cdef uint32_t index = (gva >> PAGE_SHIFT) & TLB_MASK
    cdef uint32_t set_ = cpu.tlb_slot * TLB_MODES + mode
    cdef uint32_t word = (index >> 6) * TLB_SETS + set_
    cdef uint64_t bit = <uint64_t>1 << (index & 63)
    cdef uint64_t page = gva & ~<uint64_t>0xFFF
    cdef uint64_t empty = tlb_empty_tag(index)
    cdef TlbEntry* entry = &cpu.tlb_base[(set_ << TLB_BITS) + index]
    cdef uint64_t gfn = walk.page >> PAGE_SHIFT
    cdef bint writable = (walk.leaf & PTE_D and cpu.space.p2m[gfn] & P2M_WRITABLE
                          and not cpu.space.code_pages[gfn] and walk_allows(cpu, walk, ACCESS_WRITE, user, smap))
    if writable and cpu.space.dirty_on and not is_marked_dirty(cpu.space, walk.page):
        writable = False
    entry.read_tag = page if walk_allows(cpu, walk, ACCESS_READ, user, smap) else empty
    entry.write_tag = page if writable else empty
    entry.exec_tag = page if walk_allows(cpu, walk, ACCESS_FETCH, user, smap) else empty
    entry.addend = <uint64_t>host - page
    cpu.tlb_used[word] |= bit
    cpu.tlb_global[word] &= ~bit
    cpu.tlb_large[word] &= ~bit
    if walk.leaf & PTE_G and cpu.cr4 & CR4_PGE:
        cpu.tlb_global[word] |= bit
    if walk.offset_mask != 0xFFF:
        cpu.tlb_large[word] |= bit
        if cpu.tlb_large_mask[set_] == 0:
            cpu.tlb_large_lo[set_] = ~<uint64_t>0
            cpu.tlb_large_hi[set_] = 0
        cpu.tlb_large_mask[set_] |= walk.offset_mask
        if (page & ~walk.offset_mask) < cpu.tlb_large_lo[set_]:
            cpu.tlb_large_lo[set_] = page & ~walk.offset_mask
        if (page | walk.offset_mask) > cpu.tlb_large_hi[set_]:
            cpu.tlb_large_hi[set_] = page | walk.offset_mask


cdef bint translate(CpuState* cpu, gva_t gva, uint32_t access, gpa_t* gpa) noexcept nogil:
    """gva -> gpa for this access, and the TLB entry with it; False: cpu.pf_* says why not."""
    cdef Walk walk
    cdef bint user = access_is_user(cpu, access)
    cdef bint smap = (not user and cpu.cr4 & CR4_SMAP
                      and (access & ACCESS_IMPLICIT or not cpu.rflags_sys & RF_AC))
    cdef uint32_t mode = access_mode(cpu, access)
    cdef uint8_t* host
    if cpu.long_mode and not canonical(gva):
        cpu.pf_vector = VECTOR_GP
        cpu.pf_error = 0
        cpu.pf_gva = gva
        return False
    if not walk_tables(cpu, gva, access, user, smap, &walk):
        return False
    gpa[0] = walk.page | (gva & 0xFFF)
    host = phys_page(cpu, walk.page, False)
    if host == NULL:
        return True
    if access & ACCESS_WRITE and cpu.space.dirty_on:
        mark_dirty(cpu.space, walk.page)
    if mode != TLB_MODE_SLOW:
        tlb_fill(cpu, gva, mode, user, smap, &walk, host)
    return True


# --- flushing

cdef void tlb_init(CpuState* cpu) noexcept nogil:
    """Every entry empty, every bitmap clear. tlb_base: TLB_SETS * TLB_SIZE entries."""
    cdef uint64_t i
    for i in range(TLB_SETS * TLB_SIZE):
        cpu.tlb_base[i].read_tag = tlb_empty_tag(i & TLB_MASK)
        cpu.tlb_base[i].write_tag = tlb_empty_tag(i & TLB_MASK)
        cpu.tlb_base[i].exec_tag = tlb_empty_tag(i & TLB_MASK)
        cpu.tlb_base[i].addend = 0
    memset(cpu.tlb_used, 0, sizeof(cpu.tlb_used))
    memset(cpu.tlb_global, 0, sizeof(cpu.tlb_global))
    memset(cpu.tlb_large, 0, sizeof(cpu.tlb_large))
    memset(cpu.tlb_large_mask, 0, sizeof(cpu.tlb_large_mask))
    memset(cpu.tlb_large_lo, 0, sizeof(cpu.tlb_large_lo))
    memset(cpu.tlb_large_hi, 0, sizeof(cpu.tlb_large_hi))
    for i in range(TLB_SLOTS):
        cpu.tlb_pcid[i] = 0xFFFFFFFFU
        cpu.tlb_age[i] = 0
    cpu.tlb_clock = 0
    cpu.tlb_slot = 0
    cpu.tlb_pcid[0] = 0
    cpu.tlb = tlb_set(cpu, cpu.tlb_mode)


cdef inline void entry_clear(TlbEntry* entry, uint64_t index) noexcept nogil:
    cdef uint64_t empty = tlb_empty_tag(index)
    entry.read_tag = empty
    entry.write_tag = empty
    entry.exec_tag = empty


cdef void tlb_flush_set(CpuState* cpu, uint32_t set_, bint keep_global) noexcept nogil:
    cdef uint32_t word, index
    cdef uint64_t bits, kept
    cdef uint64_t large = 0
    for word in range(TLB_SIZE // 64):
        bits = cpu.tlb_used[word * TLB_SETS + set_]
        if bits == 0:
            continue
        kept = bits & cpu.tlb_global[word * TLB_SETS + set_] if keep_global else 0
        bits &= ~kept
        cpu.tlb_used[word * TLB_SETS + set_] = kept
        large |= cpu.tlb_large[word * TLB_SETS + set_] & kept
        cpu.tlb_large[word * TLB_SETS + set_] &= kept
        while bits:
            index = word * 64 + bit_lowest(bits)
            entry_clear(&cpu.tlb_base[(set_ << TLB_BITS) + index], index)
            bits &= bits - 1
    if large == 0:
        cpu.tlb_large_mask[set_] = 0


cdef void tlb_flush_slot(CpuState* cpu, uint32_t slot, bint keep_global) noexcept nogil:
    cdef uint32_t mode
    for mode in range(TLB_MODE_SLOW):
        tlb_flush_set(cpu, slot * TLB_MODES + mode, keep_global)


cdef void tlb_flush_all(CpuState* cpu) noexcept nogil:
    cdef uint32_t slot
    for slot in range(TLB_SLOTS):
        tlb_flush_slot(cpu, slot, False)


cdef void tlb_flush_nonglobal(CpuState* cpu) noexcept nogil:
    cdef uint32_t slot
    for slot in range(TLB_SLOTS):
        tlb_flush_slot(cpu, slot, True)


cdef void tlb_flush_pcid(CpuState* cpu, uint32_t pcid) noexcept nogil:
    cdef uint32_t slot
    for slot in range(TLB_SLOTS):
        if cpu.tlb_pcid[slot] == pcid:
            tlb_flush_slot(cpu, slot, True)


cdef void flush_large_page(CpuState* cpu, uint32_t set_, gva_t gva) noexcept nogil:
    """Drop every entry that may be a part of the large page around gva."""
    cdef uint64_t mask = ~cpu.tlb_large_mask[set_]
    cdef uint64_t bits
    cdef uint32_t word, index
    cdef TlbEntry* entry
    for word in range(TLB_SIZE // 64):
        bits = cpu.tlb_large[word * TLB_SETS + set_]
        while bits:
            index = word * 64 + bit_lowest(bits)
            bits &= bits - 1
            entry = &cpu.tlb_base[(set_ << TLB_BITS) + index]
            if (((entry.read_tag ^ gva) & mask) == 0 or ((entry.write_tag ^ gva) & mask) == 0
                    or ((entry.exec_tag ^ gva) & mask) == 0):
                entry_clear(entry, index)


cdef void tlb_flush_page(CpuState* cpu, gva_t gva) noexcept nogil:
    """INVLPG, for every PCID: more than it must, but nobody can tell."""
    cdef uint32_t index = (gva >> PAGE_SHIFT) & TLB_MASK
    cdef uint32_t set_
    cdef uint64_t bit = <uint64_t>1 << (index & 63)
    cdef uint64_t page = gva & ~<uint64_t>0xFFF
    cdef TlbEntry* entry
    for set_ in range(TLB_SETS):
        if cpu.tlb_large_mask[set_] and cpu.tlb_large_lo[set_] <= gva <= cpu.tlb_large_hi[set_]:
            flush_large_page(cpu, set_, gva)
        if not cpu.tlb_used[(index >> 6) * TLB_SETS + set_] & bit:
            continue
        entry = &cpu.tlb_base[(set_ << TLB_BITS) + index]
        if entry.read_tag == page or entry.write_tag == page or entry.exec_tag == page:
            entry_clear(entry, index)


cdef void tlb_drop_writes(CpuState* cpu, gpa_t gpa) noexcept nogil:
    """The frame holds decoded code from now on: every store to it must be seen."""
    cdef uint8_t* host = phys_page(cpu, gpa & ~<uint64_t>0xFFF, False)
    cdef uint32_t word, index, set_
    cdef uint64_t bits
    cdef TlbEntry* entry
    if host == NULL:
        return
    for word in range(TLB_SIZE // 64):
        for set_ in range(TLB_SETS):
            bits = cpu.tlb_used[word * TLB_SETS + set_]
            while bits:
                index = word * 64 + bit_lowest(bits)
                bits &= bits - 1
                entry = &cpu.tlb_base[(set_ << TLB_BITS) + index]
                if entry.write_tag + entry.addend == <uint64_t>host:
                    entry.write_tag = tlb_empty_tag(index)


cdef void tlb_use_pcid(CpuState* cpu, uint32_t pcid, bint flush) noexcept nogil:
    """Make pcid's sets the current ones; the least recently used slot gives way."""
    cdef uint32_t slot, oldest = 0
    cpu.tlb_clock += 1
    for slot in range(TLB_SLOTS):
        if cpu.tlb_pcid[slot] == pcid:
            if flush:
                tlb_flush_slot(cpu, slot, True)
            break
        if cpu.tlb_age[slot] < cpu.tlb_age[oldest]:
            oldest = slot
    else:
        slot = oldest
        tlb_flush_slot(cpu, slot, False)
        cpu.tlb_pcid[slot] = pcid
    cpu.tlb_age[slot] = cpu.tlb_clock
    cpu.tlb_slot = slot
    cpu.tlb = tlb_set(cpu, cpu.tlb_mode)
