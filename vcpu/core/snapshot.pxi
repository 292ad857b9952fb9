# Included by vcpu/_core.pyx: a vCPU as a record of plain values and back, for snapshots and migration. Owner: CORE.
#
# Owns:    which fields make a processor; the record's names and version.
# Never:   saves what can be found anew (TLB, decoded blocks), or what is the hypervisor's (VM-execution controls).
# Threads: while the vCPU does not run.

CPU_STATE_VERSION = 1


cdef dict _snapshot_words():
    """name -> (offset in CpuState, bytes)."""
    return {
        "rip": (_offset(&_layout.rip), 8), "cpl": (_offset(&_layout.cpl), 1),
        "interruptibility": (_offset(&_layout.interruptibility), 1), "activity": (_offset(&_layout.activity), 1),
        "gdtr_base": (_offset(&_layout.gdtr_base), 8), "gdtr_limit": (_offset(&_layout.gdtr_limit), 4),
        "idtr_base": (_offset(&_layout.idtr_base), 8), "idtr_limit": (_offset(&_layout.idtr_limit), 4),
        "cr0": (_offset(&_layout.cr0), 8), "cr2": (_offset(&_layout.cr2), 8), "cr3": (_offset(&_layout.cr3), 8),
        "cr4": (_offset(&_layout.cr4), 8), "cr8": (_offset(&_layout.cr8), 8), "xcr0": (_offset(&_layout.xcr0), 8),
        "efer": (_offset(&_layout.efer), 8), "fcs": (_offset(&_layout.fcs), 2), "fds": (_offset(&_layout.fds), 2),
        "star": (_offset(&_layout.star), 8), "lstar": (_offset(&_layout.lstar), 8),
        "cstar": (_offset(&_layout.cstar), 8), "sfmask": (_offset(&_layout.sfmask), 8),
        "kernel_gs_base": (_offset(&_layout.kernel_gs_base), 8), "sysenter_cs": (_offset(&_layout.sysenter_cs), 8),
        "sysenter_esp": (_offset(&_layout.sysenter_esp), 8), "sysenter_eip": (_offset(&_layout.sysenter_eip), 8),
        "pat": (_offset(&_layout.pat), 8), "tsc_aux": (_offset(&_layout.tsc_aux), 8),
        "misc_enable": (_offset(&_layout.misc_enable), 8), "debugctl": (_offset(&_layout.debugctl), 8),
        "spec_ctrl": (_offset(&_layout.spec_ctrl), 8), "mtrr_def_type": (_offset(&_layout.mtrr_def_type), 8),
        "rng": (_offset(&_layout.rng), 8), "pending_debug": (_offset(&_layout.pending_debug), 8),
        "entry_intr_info": (_offset(&_layout.entry_intr_info), 4),
        "entry_intr_error": (_offset(&_layout.entry_intr_error), 4),
        "entry_length": (_offset(&_layout.entry_length), 4),
    }


cdef dict _snapshot_blocks():
    """name -> (offset, 8-byte words): arrays."""
    return {
        "regs": (_offset(&_layout.regs), 16), "dr": (_offset(&_layout.dr), 8), "pdpte": (_offset(&_layout.pdpte), 4),
        "mtrr_fixed": (_offset(&_layout.mtrr_fixed), 11), "mtrr_base": (_offset(&_layout.mtrr_base), 8),
        "mtrr_mask": (_offset(&_layout.mtrr_mask), 8),
    }


cdef dict SNAPSHOT_WORDS = _snapshot_words()
cdef dict SNAPSHOT_BLOCKS = _snapshot_blocks()


cdef dict cpu_save(CpuState* c):
    cdef uint8_t image[512]
    cdef uint64_t word
    cdef int i
    sync_retired(c)
    fpu_to_image(c, image)
    state = {"version": CPU_STATE_VERSION, "index": c.index, "rflags": flags_get(c), "retired": c.retired,
             "fxsave": (<char*>image)[:512], "apic": apic_save(c)}
    for name, (offset, size) in SNAPSHOT_WORDS.items():
        word = 0
        memcpy(&word, <char*>c + <uint64_t>offset, <size_t>size)
        state[name] = word
    for name, (offset, count) in SNAPSHOT_BLOCKS.items():
        state[name] = (<char*>c + <uint64_t>offset)[:8 * <int>count]
    for i in range(8):
        state[f"seg{i}"] = (c.seg[i].selector, c.seg[i].base, c.seg[i].limit, c.seg[i].rights)
    state["exit_counts"] = tuple(c.exit_counts[i] for i in range(EXIT_REASONS))
    return state


cdef void cpu_check_saved(CpuState* c, dict state) except *:
    """Everything there, of its size: so that taking it over cannot fail in the middle."""
    if state["version"] != CPU_STATE_VERSION:
        raise ValueError(f"vCPU state of version {state['version']}: this one reads {CPU_STATE_VERSION}")
    if state["index"] != c.index:
        raise ValueError(f"the state of vCPU {state['index']} for vCPU {c.index}")
    for name, (_, size) in SNAPSHOT_WORDS.items():
        if not 0 <= state[name] < 1 << 8 * size:
            raise ValueError(f"vCPU state: {name} has more than {size} bytes")
    for name, (_, count) in SNAPSHOT_BLOCKS.items():
        if not isinstance(state[name], bytes) or len(state[name]) != 8 * count:
            raise ValueError(f"vCPU state: {name} has not {8 * count} bytes")
    for i in range(8):
        selector, base, limit, rights = state[f"seg{i}"]
        if not (0 <= selector < 1 << 16 and 0 <= base < 1 << 64 and 0 <= limit < 1 << 32 and 0 <= rights < 1 << 32):
            raise ValueError(f"vCPU state: seg{i} is no segment")
    if not isinstance(state["fxsave"], bytes) or len(state["fxsave"]) != 512:
        raise ValueError("vCPU state: fxsave has not 512 bytes")
    if state["activity"] > 3 or state["cpl"] > 3 or len(state["exit_counts"]) > EXIT_REASONS:
        raise ValueError("vCPU state: activity, cpl or exit_counts out of range")


cdef void cpu_load(CpuState* c, dict state) except *:
    """Take a saved vCPU over whole, or raise and change nothing (ValueError, KeyError, OverflowError, TypeError)."""
    cdef uint64_t word, rflags = state["rflags"], retired = state["retired"]
    cdef bytes block
    cdef int i
    cpu_check_saved(c, state)
    counts = [<uint64_t>count for count in state["exit_counts"]]
    apic_load(c, state["apic"])                          # checks itself before it changes anything
    sync_retired(c)
    for name, (offset, size) in SNAPSHOT_WORDS.items():
        word = state[name]
        memcpy(<char*>c + <uint64_t>offset, &word, <size_t>size)
    for name, (offset, count) in SNAPSHOT_BLOCKS.items():
        block = state[name]
        memcpy(<char*>c + <uint64_t>offset, <char*>block, 8 * <size_t>count)
    for i in range(8):
        selector, base, limit, rights = state[f"seg{i}"]
        c.seg[i].selector, c.seg[i].base, c.seg[i].limit, c.seg[i].rights = selector, base, limit, rights
    block = state["fxsave"]
    word = c.fcs | <uint64_t>c.fds << 16
    fpu_from_image(c, <const uint8_t*><char*>block)
    c.fcs, c.fds = <uint16_t>word, <uint16_t>(word >> 16)
    flags_set(c, rflags, ~<uint64_t>0)
    c.retired = retired
    for i in range(len(counts)):
        c.exit_counts[i] = counts[i]
    mode_update(c)
    tlb_flush_all(c)
    tlb_forget_pcids(c)
    attend(c, ATTN_INTERRUPT | ATTN_NMI | ATTN_INIT | ATTN_TIMER | ATTN_SHADOW)
