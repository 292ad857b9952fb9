# cython: language_level=3
"""The guest-physical address space: RAM, who answers at ports and frames, code pages, dirty log, safepoints. Owner: APIC.

Owns:    struct Space (state.pxd); the rules by which threads change what vCPUs have cached of it.
Never:   walks guest tables, raises, blocks while its caller holds a pointer into guest RAM got through a TLB.
Threads: any. A vCPU is `in_guest` from guest_enter to guest_leave; only then may it hold TLB entries that others
         must not touch. Halted, inside a device, or outside run() it is parked, and whoever stopped the others
         may change its TLB directly.

RAM:     [0, min(ram, 3 GiB)) and, where there is more, from 4 GiB; file offset = gpa below, gpa - 1 GiB above.
p2m:     host page | P2M_* for guest frames below space.frames; everything else is a device or nobody.

Code pages. code_pages[gfn] has a bit for each vCPU that decoded there (bit 7: the eighth and all after it, for good).
  A frame whose byte is not 0 has no write entry in any TLB. First decode: space_decoding(): the others stand still while
  the byte becomes non-zero and their write entries go. A store goes the slow way: copy, then space_wrote_code().
  A vCPU that dropped its blocks of a frame calls space_code_gone(): at 0 the frame may be written fast again.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from vcpu.core.state cimport CpuState, Space, PAGE_SHIFT, ATTN_SAFEPOINT
from vcpu.core.atomic cimport (atomic_add32, atomic_and32, atomic_load32, atomic_or32, atomic_or64, atomic_store32,
                               futex_wait, futex_wake)

cdef extern from *:              # beyond an int, so no enum's
    """
    #define GIB (1ull << 30)
    #define LOW_RAM_MAX (3ull << 30)
    #define MAXPHYADDR 40
    #define APIC_PAGE 0xFEE00000ull
    """
    const uint64_t GIB
    const uint64_t LOW_RAM_MAX
    const uint64_t MAXPHYADDR
    const uint64_t APIC_PAGE


cdef inline uint64_t p2m_entry(Space* space, uint64_t gpa) noexcept nogil:
    """Host page | P2M_* of RAM; 0: not RAM (io_frame answers there)."""
    cdef uint64_t gfn = gpa >> PAGE_SHIFT
    return space.p2m[gfn] if gfn < space.frames else 0


cdef inline uint8_t* ram_at(Space* space, uint64_t gpa) noexcept nogil:
    """Host address of one byte of RAM, or NULL. Good to the end of its page."""
    cdef uint64_t entry = p2m_entry(space, gpa)
    if entry == 0:
        return NULL
    return <uint8_t*>((entry & ~<uint64_t>0xFFF) + (gpa & 0xFFF))


cdef inline uint64_t ram_offset(Space* space, uint64_t gpa) noexcept nogil:
    """File offset of a gpa that is known to be RAM."""
    return gpa if gpa < space.low_bytes else gpa - 4 * <uint64_t>GIB + space.low_bytes


cdef inline void mark_dirty(Space* space, uint64_t gpa) noexcept nogil:
    """Note a write to the RAM frame of gpa. A TLB write entry is made after this, never before."""
    cdef uint64_t frame
    if space.dirty_on:
        frame = ram_offset(space, gpa) >> PAGE_SHIFT
        atomic_or64(&space.dirty[frame >> 6], <uint64_t>1 << (frame & 63))


cdef inline bint is_code_page(Space* space, uint64_t gpa) noexcept nogil:
    cdef uint64_t gfn = gpa >> PAGE_SHIFT
    return gfn < space.frames and space.code_pages[gfn] != 0


cdef inline void attend(CpuState* cpu, uint32_t bits) noexcept nogil:
    """Raise attention bits of any vCPU from any thread, waking it where it sleeps in HLT."""
    atomic_or32(&cpu.attention, bits)
    if atomic_load32(&cpu.sleeping):
        futex_wake(&cpu.attention, 1)


cdef inline void guest_leave(CpuState* cpu) noexcept nogil:
    """From here the vCPU is parked: its TLB may change under it. It holds no pointer into guest RAM."""
    atomic_store32(&cpu.in_guest, 0)
    if atomic_load32(&cpu.space.stop_wanted):
        atomic_add32(&cpu.space.parked, 1)
        futex_wake(&cpu.space.parked, 1)


cdef inline void guest_enter(CpuState* cpu) noexcept nogil:
    """Back into the guest; waits while someone holds the others."""
    while True:
        atomic_store32(&cpu.in_guest, 1)
        if atomic_load32(&cpu.space.stop_wanted) == 0:
            return
        guest_leave(cpu)
        futex_wait(&cpu.space.stop_wanted, 1, -1)


cdef inline void guest_safepoint(CpuState* cpu) noexcept nogil:
    """What the loop does on ATTN_SAFEPOINT, at a block boundary."""
    atomic_and32(&cpu.attention, ~<uint32_t>ATTN_SAFEPOINT)
    guest_leave(cpu)
    guest_enter(cpu)
