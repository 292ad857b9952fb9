# cython: language_level=3
"""Software TLB: the hit path, inlined into every engine. A miss is a call (mmu.pxi). Owner: SYSTEM.

Owns:    the entry layout and the probe.
Never:   walks page tables, takes the GIL, raises.
Threads: an entry belongs to its vCPU's thread; others ask for a flush through the attention word.

entry, 32 bytes:   read_tag | write_tag | exec_tag | addend
tag:               page address of the gva; the empty tag of slot i is a page that lives in another slot
                   (neither 0 nor ~0: those are pages that a guest can name)
addend:            host address - gva, of plain RAM; an entry for anything else is never made
write_tag          is empty also for pages that hold decoded code, or await their dirty bit or the dirty log's mark
sets:              tlb_base[slot of the PCID][mode], 512 entries each: the tag itself knows neither
"""
from vcpu.core.state cimport CpuState, TlbEntry, gva_t, uint8_t, uint32_t, uint64_t, PAGE_SHIFT, PAGE_SIZE, TLB_MASK

cdef enum:
    TLB_SLOTS = 8                # PCIDs remembered at a time
    TLB_MODES = 4
    TLB_SETS = 32                # TLB_SLOTS * TLB_MODES
    TLB_MODE_SUPERVISOR = 0
    TLB_MODE_USER = 1
    TLB_MODE_SMAP = 2            # supervisor that may not touch user pages
    TLB_MODE_SLOW = 3            # never filled: every access is looked at (alignment checks, data breakpoints)


cdef inline uint64_t tlb_empty_tag(uint64_t index) noexcept nogil:
    return (index ^ 1) << PAGE_SHIFT


cdef inline TlbEntry* tlb_entry(CpuState* cpu, gva_t gva) noexcept nogil:
    return &cpu.tlb[(gva >> PAGE_SHIFT) & TLB_MASK]


cdef inline uint8_t* probe_read(CpuState* cpu, gva_t gva, uint32_t size) noexcept nogil:
    """Host address of [gva, gva + size), or NULL: miss, other page, or not plain RAM."""
    cdef TlbEntry* entry = tlb_entry(cpu, gva)
    if (gva ^ entry.read_tag) > <uint64_t>(PAGE_SIZE - size):      # one compare: wrong tag or page crossing
        return NULL
    return <uint8_t*>(gva + entry.addend)


cdef inline uint8_t* probe_write(CpuState* cpu, gva_t gva, uint32_t size) noexcept nogil:
    cdef TlbEntry* entry = tlb_entry(cpu, gva)
    if (gva ^ entry.write_tag) > <uint64_t>(PAGE_SIZE - size):
        return NULL
    return <uint8_t*>(gva + entry.addend)


cdef inline uint8_t* probe_rmw(CpuState* cpu, gva_t gva, uint32_t size) noexcept nogil:
    """As probe_write; x86 has no page that is writable and not readable."""
    return probe_write(cpu, gva, size)


cdef inline uint8_t* probe_exec(CpuState* cpu, gva_t gva) noexcept nogil:
    """Host address of the instruction byte at gva, or NULL."""
    cdef TlbEntry* entry = tlb_entry(cpu, gva)
    if (gva ^ entry.exec_tag) >= <uint64_t>PAGE_SIZE:
        return NULL
    return <uint8_t*>(gva + entry.addend)
