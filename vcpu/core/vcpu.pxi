# Owner: CORE. Included by vcpu/_core.pyx: the Python face of one processor.
#
# Owns:    class Vcpu: life of a CpuState, run(), registers by name.
# Never:   runs guest code with the GIL.
# Threads: run() in one thread at a time; kick() from any.

cdef tuple GPR_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
cdef dict GPR_NUMBERS = {name: number for number, name in enumerate(GPR_NAMES)}
cdef dict SEGMENT_NUMBERS = {"es": 0, "cs": 1, "ss": 2, "ds": 3, "fs": 4, "gs": 5, "ldtr": 6, "tr": 7}

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void** p, size_t alignment, size_t size)


@cython.no_gc_clear              # __dealloc__ still needs the address space
cdef class Vcpu:
    """One virtual processor. index: its APIC id; 0 is the bootstrap processor, the others wait for INIT and SIPI."""
    cdef CpuState* c
    cdef readonly AddressSpace space
    cdef readonly Clock clock
    cdef bint running
    cdef object __weakref__

    def __cinit__(self, AddressSpace space not None, Clock clock not None, uint32_t index=0, uint32_t count=1):
        cdef void* memory = NULL
        if posix_memalign(&memory, 64, sizeof(CpuState)):
            raise MemoryError()
        memset(memory, 0, sizeof(CpuState))
        self.c = <CpuState*>memory
        self.c.index = index
        self.c.exit_reason = NO_EXIT
        self.c.clock = &clock.c
        self.c.rng = (clock.c.seed + index) * <uint64_t>0xD1342543DE82EF95ULL
        self.space = space
        self.clock = clock
        self.c.tlb_base = <TlbEntry*>map_memory(TLB_SETS * TLB_SIZE * sizeof(TlbEntry))
        if self.c.tlb_base == NULL or not code_cache_init(self.c, &space.c):
            raise MemoryError()
        tlb_init(self.c)
        space.attach(self.c)
        cpu_power_up(self.c, False)

    def __dealloc__(self):
        if self.c == NULL:
            return
        if self.c.space != NULL:
            self.space.detach(self.c)
        code_cache_free(self.c, self.space.c.frames)
        if self.c.tlb_base != NULL:
            munmap(self.c.tlb_base, TLB_SETS * TLB_SIZE * sizeof(TlbEntry))
        free(self.c)

    def reset(self):
        """The architectural state after RESET."""
        cpu_power_up(self.c, False)

    def kick(self):
        """From any thread: run() returns EXIT_REASON_EXTERNAL_INTERRUPT soon."""
        attend(self.c, ATTN_KICK)

    def run(self, Vmcs vmcs=None, deadline_ns=None, quantum=None):
        """VMLAUNCH or VMRESUME: run the guest until something leaves it.

        deadline_ns: guest time, then EXIT_REASON_PREEMPTION_TIMER; quantum: so many retired instructions, then the same."""
        cdef int64_t deadline = TIMER_NEVER if deadline_ns is None else deadline_ns
        cdef int64_t instructions = -1 if quantum is None else quantum
        if self.running:
            raise RuntimeError("this vCPU is running in another thread")
        self.running = True
        try:
            if vmcs is not None:
                failed = vmx_enter(self.c, vmcs, self)
                if failed is not None:
                    return failed
                deadline = (<Vmcs>vmcs).timer_deadline(clock_now(self.c), deadline)
            self.c.exit_reason = NO_EXIT
            with nogil:
                clock_begin(self.c, deadline, instructions)
                vmx_inject(self.c)
                engine_run(self.c)
                clock_end(self.c)
            return vmx_exit(self.c)
        finally:
            self.running = False

    # ---------------------------------------------------------------- registers by name

    def get(self, str name):
        """A register by its name: rax..r15, rip, rflags, cr0..cr8, efer, xcr0, dr0..dr7, cs, cs.base, cs.limit, cs.rights,
        gdtr.base …, fs.base. KeyError for a name that is none."""
        cdef CpuState* c = self.c
        if name in GPR_NUMBERS:
            return c.regs[<int>GPR_NUMBERS[name]]
        if name == "rip":
            return c.rip
        if name == "rflags":
            return flags_get(c)
        if name == "cr8":
            return apic_cr8(c)
        if name in ("cr0", "cr2", "cr3", "cr4", "efer", "xcr0", "cpl"):
            return {"cr0": c.cr0, "cr2": c.cr2, "cr3": c.cr3, "cr4": c.cr4, "efer": c.efer, "xcr0": c.xcr0, "cpl": c.cpl}[name]
        if name.startswith("dr") and name[2:] in ("0", "1", "2", "3", "6", "7"):
            return c.dr[<int>int(name[2:])]
        part, _, field = name.partition(".")
        if part in SEGMENT_NUMBERS:
            number = SEGMENT_NUMBERS[part]
            return {"": c.seg[<int>number].selector, "base": c.seg[<int>number].base,
                    "limit": c.seg[<int>number].limit, "rights": c.seg[<int>number].rights}[field]
        return {"gdtr.base": c.gdtr_base, "gdtr.limit": c.gdtr_limit,
                "idtr.base": c.idtr_base, "idtr.limit": c.idtr_limit}[name]

    def set(self, str name, value):
        """Set a register as a hypervisor does, without the instruction's checks; not while run() is under way."""
        cdef CpuState* c = self.c
        cdef uint64_t v = value & 0xFFFFFFFFFFFFFFFFULL
        cdef int number
        if self.running:
            raise RuntimeError("this vCPU is running")
        part, _, field = name.partition(".")
        if name in GPR_NUMBERS:
            c.regs[<int>GPR_NUMBERS[name]] = v
        elif name == "rip":
            c.rip = v
        elif name == "rflags":
            flags_set(c, v, ~<uint64_t>0)
        elif name == "cr8":
            apic_set_cr8(c, v)
        elif part in SEGMENT_NUMBERS:
            number = SEGMENT_NUMBERS[part]
            self.set_segment(number, field, v)
        elif name.startswith("dr") and name[2:] in ("0", "1", "2", "3", "6", "7"):
            c.dr[<int>int(name[2:])] = v
        else:
            self.set_control(name, v)
        mode_update(c)

    cdef set_segment(self, int number, str field, uint64_t v):
        cdef Segment* seg = &self.c.seg[number]
        if field == "":
            seg.selector = <uint16_t>v
        elif field == "base":
            seg.base = v
        elif field == "limit":
            seg.limit = <uint32_t>v
        elif field == "rights":
            seg.rights = <uint32_t>v
            if number == SEG_SS:
                self.c.cpl = (v >> 5) & 3
        else:
            raise KeyError(field)

    cdef set_control(self, str name, uint64_t v):
        cdef CpuState* c = self.c
        if name == "cr0":
            c.cr0 = v
        elif name == "cr2":
            c.cr2 = v
        elif name == "cr3":
            c.cr3 = v
        elif name == "cr4":
            c.cr4 = v
        elif name == "efer":
            c.efer = v
        elif name == "xcr0":
            c.xcr0 = v
        elif name == "gdtr.base":
            c.gdtr_base = v
        elif name == "gdtr.limit":
            c.gdtr_limit = <uint32_t>v
        elif name == "idtr.base":
            c.idtr_base = v
        elif name == "idtr.limit":
            c.idtr_limit = <uint32_t>v
        else:
            raise KeyError(name)
        tlb_flush_all(c)

    def registers(self):
        """All of them by name, for people."""
        names = [*GPR_NAMES, "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0", "cpl"]
        for segment in SEGMENT_NUMBERS:
            names += [segment, f"{segment}.base", f"{segment}.limit", f"{segment}.rights"]
        names += ["gdtr.base", "gdtr.limit", "idtr.base", "idtr.limit", "dr6", "dr7"]
        return {name: self.get(name) for name in names}

    def save(self):
        """All of the processor as a record of plain values; not while run() is under way. See snapshot.pxi."""
        if self.running:
            raise RuntimeError("this vCPU is running")
        return cpu_save(self.c)

    def load(self, state):
        """Become the processor that was saved. ValueError, KeyError, …: it is none, and nothing was changed."""
        if self.running:
            raise RuntimeError("this vCPU is running")
        cpu_load(self.c, state)

    # ---------------------------------------------------------------- counters

    @property
    def retired_instructions(self):
        """What counts: docs/design/ on the engine."""
        return retired_at_boundary(self.c)

    @property
    def halted(self):
        return self.c.activity != 0

    def next_timer_ns(self):
        """Guest time at which the local APIC's timer will interrupt, or None."""
        if self.c.apic.timer_ns == TIMER_NEVER or self.c.apic.lvt[<int>LVT_TIMER] & LVT_MASKED:
            return None
        return self.c.apic.timer_ns

    def exit_counts(self):
        """{basic exit reason: how often}, those served inside included."""
        return {reason: self.c.exit_counts[<int>reason] for reason in range(EXIT_REASONS)
                if self.c.exit_counts[<int>reason]}

    def code_stats(self):
        """What the block cache did: blocks decoded and dropped, times it was emptied, bytes in use."""
        cdef CodeCache* cache = code_cache(self.c)
        return {"decoded": cache.decoded, "dropped": cache.dropped, "flushed": cache.flushed, "bytes": cache.arena_used}
