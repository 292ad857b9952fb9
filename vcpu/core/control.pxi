"""Control and debug registers: what a write checks, what it changes elsewhere. Owner: SYSTEM.

Owns:    CR0, CR3, CR4, EFER.LMA, the PAE pointers, DR6 and DR7.
Never:   delivers a fault: False leaves it in cpu.pf_*.
Threads: the vCPU's own.

         CR0.PG 0 -> 1:  EFER.LME ? LMA = 1 (needs PAE) : PAE ? load PDPTEs : 32-bit paging
"""

cdef uint64_t CR4_ALLOWED = (CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR
                             | CR4_OSXMMEXCPT | CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP)
# a change of these makes every translation another one
cdef uint64_t CR4_FLUSHES = CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP


cdef bint load_pdptes(CpuState* cpu, uint64_t cr3) noexcept nogil:
    """PAE paging reads its four top entries with CR3 (SDM 3A 4.4.1). Reserved bits: #GP(0)."""
    cdef uint64_t entries[4]
    cdef uint8_t* p = phys_page(cpu, cr3 & 0xFFFFFFE0U, False)
    cdef int i
    if p == NULL:
        memset(entries, 0xFF, sizeof(entries))
    else:
        memcpy(entries, p, sizeof(entries))
    for i in range(4):
        # bits 63:40, 8:5, 2:1
        if entries[i] & PTE_P and entries[i] & 0xFFFFFF00000001E6ULL:
            return refuse(cpu, VECTOR_GP, 0)
    memcpy(cpu.pdpte, entries, sizeof(entries))
    return True


cdef inline bint pae_paging(CpuState* cpu) noexcept nogil:
    return cpu.cr0 & CR0_PG and cpu.cr4 & CR4_PAE and not cpu.efer & EFER_LMA


cdef bint load_cr3_value(CpuState* cpu, uint64_t value) noexcept nogil:
    """MOV to CR3: bit 63 with PCIDE keeps the PCID's translations."""
    cdef bint keep = cpu.cr4 & CR4_PCIDE and value >> 63
    if cpu.cr4 & CR4_PCIDE:
        value &= ~(<uint64_t>1 << 63)
    if cpu.efer & EFER_LMA:
        if value >> PHYS_BITS:
            return refuse(cpu, VECTOR_GP, 0)
    else:
        value &= 0xFFFFFFFFU
    if pae_paging(cpu) and not load_pdptes(cpu, value):
        return False
    cpu.cr3 = value
    tlb_use_pcid(cpu, <uint32_t>value & 0xFFF if cpu.cr4 & CR4_PCIDE else 0, not keep)
    return True


cdef bint load_cr0_value(CpuState* cpu, uint64_t value) noexcept nogil:
    """MOV to CR0, LMSW, CLTS. Ends with mode_update."""
    cdef uint64_t old = cpu.cr0
    cdef uint64_t changed
    if value >> 32 or (value & CR0_PG and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
        return refuse(cpu, VECTOR_GP, 0)
    value = (value & (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)) | CR0_ET
    changed = old ^ value
    if changed & CR0_PG:
        if value & CR0_PG:
            if cpu.efer & EFER_LME:
                if not cpu.cr4 & CR4_PAE or cpu.seg[SEG_CS].rights & AR_L:
                    return refuse(cpu, VECTOR_GP, 0)
            elif cpu.cr4 & CR4_PAE and not load_pdptes(cpu, cpu.cr3):
                return False
        elif cpu.code64 or cpu.cr4 & CR4_PCIDE:
            return refuse(cpu, VECTOR_GP, 0)
        cpu.efer &= ~<uint64_t>EFER_LMA
        if value & CR0_PG and cpu.efer & EFER_LME:
            cpu.efer |= EFER_LMA
    cpu.cr0 = value
    if changed & (CR0_PG | CR0_PE | CR0_WP):
        tlb_flush_all(cpu)
    if changed & CR0_PE and not value & CR0_PE:
        cpu.cpl = 0
    if changed & CR0_PE and value & CR0_PE:
        cpu.cpl = 0
        # the selectors' low bits mean nothing yet: privilege is 0 until the first far transfer
        cpu.seg[SEG_SS].rights &= ~<uint32_t>AR_DPL
    mode_update(cpu)
    return True


cdef bint load_cr4_value(CpuState* cpu, uint64_t value) noexcept nogil:
    cdef uint64_t changed = cpu.cr4 ^ value
    if value & ~CR4_ALLOWED:
        return refuse(cpu, VECTOR_GP, 0)
    if cpu.efer & EFER_LMA and not value & CR4_PAE:
        return refuse(cpu, VECTOR_GP, 0)
    if changed & value & CR4_PCIDE and (not cpu.efer & EFER_LMA or cpu.cr3 & 0xFFF):
        return refuse(cpu, VECTOR_GP, 0)
    if (changed & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP) and value & CR4_PAE and cpu.cr0 & CR0_PG
            and not cpu.efer & EFER_LMA and not load_pdptes(cpu, cpu.cr3)):
        return False
    cpu.cr4 = value
    if changed & CR4_FLUSHES:
        tlb_flush_all(cpu)
    if changed & CR4_PCIDE:
        tlb_forget_pcids(cpu)
    mode_update(cpu)
    return True


cdef void tlb_forget_pcids(CpuState* cpu) noexcept nogil:
    """All sets are empty: give the current PCID slot 0."""
    cdef uint32_t slot
    for slot in range(TLB_SLOTS):
        cpu.tlb_pcid[slot] = 0xFFFFFFFFU
        cpu.tlb_age[slot] = 0
    cpu.tlb_pcid[0] = <uint32_t>cpu.cr3 & 0xFFF if cpu.cr4 & CR4_PCIDE else 0
    cpu.tlb_slot = 0


cdef bint load_efer(CpuState* cpu, uint64_t value) noexcept nogil:
    """WRMSR to IA32_EFER; LMA is the processor's."""
    if value & ~<uint64_t>(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE):
        return refuse(cpu, VECTOR_GP, 0)
    if (value ^ cpu.efer) & EFER_LME and cpu.cr0 & CR0_PG:
        return refuse(cpu, VECTOR_GP, 0)
    value = (value & ~<uint64_t>EFER_LMA) | (cpu.efer & EFER_LMA)
    if (value ^ cpu.efer) & EFER_NXE:
        tlb_flush_all(cpu)
    cpu.efer = value
    return True


cdef bint load_debug(CpuState* cpu, uint32_t which, uint64_t value) noexcept nogil:
    """MOV to DRn; 4 and 5 were turned into 6 and 7, or #UD."""
    if which >= 6:
        if value >> 32:
            return refuse(cpu, VECTOR_GP, 0)
        if which == 6:
            cpu.dr[6] = (value & 0xE00F) | DR6_ONES
        else:
            cpu.dr[7] = (value & 0xFFFF2BFFU) | DR7_FIXED
            tlb_flush_all(cpu)
            mode_update(cpu)
        return True
    if cpu.long_mode and not canonical(value):
        return refuse(cpu, VECTOR_GP, 0)
    cpu.dr[which] = value
    return True


# --- what a guest sees and may change under the VMCS's masks (SDM 3C 26.1.3, 26.3)

cdef inline uint64_t visible_cr0(CpuState* cpu) noexcept nogil:
    return (cpu.cr0 & ~cpu.cr0_mask) | (cpu.cr0_shadow & cpu.cr0_mask)


cdef inline uint64_t visible_cr4(CpuState* cpu) noexcept nogil:
    return (cpu.cr4 & ~cpu.cr4_mask) | (cpu.cr4_shadow & cpu.cr4_mask)


cdef bint cr_write_exits(CpuState* cpu, uint32_t which, uint64_t value) noexcept nogil:
    cdef uint32_t i
    if which == 0:
        return (value ^ cpu.cr0_shadow) & cpu.cr0_mask != 0
    if which == 4:
        return (value ^ cpu.cr4_shadow) & cpu.cr4_mask != 0
    if which == 8:
        return (cpu.proc_controls & PROC_CR8_LOAD) != 0
    if which != 3 or not cpu.proc_controls & PROC_CR3_LOAD:
        return False
    for i in range(cpu.cr3_target_count):
        if cpu.cr3_target[i] == value:
            return False
    return True


cdef bint write_cr(CpuState* cpu, uint32_t which, uint64_t value) noexcept nogil:
    """Host-owned bits keep what the hypervisor gave them."""
    if which == 0:
        return load_cr0_value(cpu, (value & ~cpu.cr0_mask) | (cpu.cr0 & cpu.cr0_mask))
    if which == 2:
        cpu.cr2 = value
        return True
    if which == 3:
        if not load_cr3_value(cpu, value):
            return False
        return True
    if which == 4:
        return load_cr4_value(cpu, (value & ~cpu.cr4_mask) | (cpu.cr4 & cpu.cr4_mask))
    if value >> 4:
        return refuse(cpu, VECTOR_GP, 0)
    apic_set_cr8(cpu, value)
    return True


cdef uint64_t read_cr(CpuState* cpu, uint32_t which) noexcept nogil:
    if which == 0:
        return visible_cr0(cpu)
    if which == 2:
        return cpu.cr2
    if which == 3:
        return cpu.cr3
    if which == 4:
        return visible_cr4(cpu)
    return apic_cr8(cpu)
