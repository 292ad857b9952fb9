"""The hypervisor's side: Vmcs, VmExit, what an entry checks and injects, what an exit reports. Owner: SYSTEM.

Owns:    the VMCS's fields over CpuState; entry checks (SDM 3C 27.2, 27.3), event injection (27.6).
Never:   copies guest state at an exit: a bound Vmcs reads and writes the vCPU's own.
Threads: a Vmcs belongs to the thread that runs its vCPU; not while run() is under way.

unbound: fields are kept in a dict ── first run() ──► bound: guest-state and control fields are the CpuState's words
Departures from VT-x, each for a reason: CPUID is answered inside unless VIRGA_CPUID_EXITING asks for it; MSRs and
ports are served inside unless a bitmap or unconditional exiting names them; the "IA-32e mode guest" entry control
follows IA32_EFER.LMA; guests are unrestricted (real mode without paging enters).
"""
from vcpu import vmcs as _names

cdef CpuState _layout

cdef enum:
    FIELD_PLAIN = 0
    FIELD_RFLAGS = 1
    FIELD_READ_ONLY = 2


cdef inline uint64_t _offset(void* field) noexcept:
    return <uint64_t>field - <uint64_t>&_layout


cdef dict _segment_fields():
    """Selector, limit, rights and base of the eight; VMCS order is ModRM's, then LDTR and TR."""
    fields = {}
    cdef int i
    for i in range(8):
        fields[0x0800 + 2 * i] = (_offset(&_layout.seg[i].selector), 2, FIELD_PLAIN)
        fields[0x4800 + 2 * i] = (_offset(&_layout.seg[i].limit), 4, FIELD_PLAIN)
        fields[0x4814 + 2 * i] = (_offset(&_layout.seg[i].rights), 4, FIELD_PLAIN)
        fields[0x6806 + 2 * i] = (_offset(&_layout.seg[i].base), 8, FIELD_PLAIN)
    for i in range(4):
        fields[0x280A + 2 * i] = (_offset(&_layout.pdpte[i]), 8, FIELD_PLAIN)
        fields[0x6008 + 2 * i] = (_offset(&_layout.cr3_target[i]), 8, FIELD_PLAIN)
    return fields


cdef dict _plain_fields():
    return {
        _names.TSC_OFFSET: (_offset(&_layout.vmcs_tsc_offset), 8),
        _names.GUEST_IA32_DEBUGCTL: (_offset(&_layout.debugctl), 8),
        _names.GUEST_IA32_PAT: (_offset(&_layout.pat), 8),
        _names.GUEST_IA32_EFER: (_offset(&_layout.efer), 8),
        _names.PIN_BASED_VM_EXEC_CONTROL: (_offset(&_layout.pin_controls), 4),
        _names.CPU_BASED_VM_EXEC_CONTROL: (_offset(&_layout.proc_controls), 4),
        _names.SECONDARY_VM_EXEC_CONTROL: (_offset(&_layout.proc2_controls), 4),
        _names.EXCEPTION_BITMAP: (_offset(&_layout.exception_bitmap), 4),
        _names.PAGE_FAULT_ERROR_CODE_MASK: (_offset(&_layout.pf_error_mask), 4),
        _names.PAGE_FAULT_ERROR_CODE_MATCH: (_offset(&_layout.pf_error_match), 4),
        _names.CR3_TARGET_COUNT: (_offset(&_layout.cr3_target_count), 4),
        _names.VM_EXIT_CONTROLS: (_offset(&_layout.exit_controls), 4),
        _names.VM_ENTRY_CONTROLS: (_offset(&_layout.entry_controls), 4),
        _names.VM_ENTRY_INTR_INFO_FIELD: (_offset(&_layout.entry_intr_info), 4),
        _names.VM_ENTRY_EXCEPTION_ERROR_CODE: (_offset(&_layout.entry_intr_error), 4),
        _names.VM_ENTRY_INSTRUCTION_LEN: (_offset(&_layout.entry_length), 4),
        _names.GUEST_GDTR_LIMIT: (_offset(&_layout.gdtr_limit), 4),
        _names.GUEST_IDTR_LIMIT: (_offset(&_layout.idtr_limit), 4),
        _names.GUEST_INTERRUPTIBILITY_INFO: (_offset(&_layout.interruptibility), 1),
        _names.GUEST_ACTIVITY_STATE: (_offset(&_layout.activity), 1),
        _names.GUEST_SYSENTER_CS: (_offset(&_layout.sysenter_cs), 8),
        _names.CR0_GUEST_HOST_MASK: (_offset(&_layout.cr0_mask), 8),
        _names.CR4_GUEST_HOST_MASK: (_offset(&_layout.cr4_mask), 8),
        _names.CR0_READ_SHADOW: (_offset(&_layout.cr0_shadow), 8),
        _names.CR4_READ_SHADOW: (_offset(&_layout.cr4_shadow), 8),
        _names.GUEST_CR0: (_offset(&_layout.cr0), 8),
        _names.GUEST_CR3: (_offset(&_layout.cr3), 8),
        _names.GUEST_CR4: (_offset(&_layout.cr4), 8),
        _names.GUEST_GDTR_BASE: (_offset(&_layout.gdtr_base), 8),
        _names.GUEST_IDTR_BASE: (_offset(&_layout.idtr_base), 8),
        _names.GUEST_DR7: (_offset(&_layout.dr[7]), 8),
        _names.GUEST_RSP: (_offset(&_layout.regs[4]), 8),
        _names.GUEST_RIP: (_offset(&_layout.rip), 8),
        _names.GUEST_PENDING_DBG_EXCEPTIONS: (_offset(&_layout.pending_debug), 8),
        _names.GUEST_SYSENTER_ESP: (_offset(&_layout.sysenter_esp), 8),
        _names.GUEST_SYSENTER_EIP: (_offset(&_layout.sysenter_eip), 8),
    }


cdef dict _report_fields():
    """What an exit reports; VMWRITE to them is refused (SDM 3C 31.3, error 13)."""
    return {
        _names.GUEST_PHYSICAL_ADDRESS: (_offset(&_layout.exit_gpa), 8),
        _names.VM_EXIT_REASON: (_offset(&_layout.last_exit_reason), 4),
        _names.VM_EXIT_INTR_INFO: (_offset(&_layout.exit_intr_info), 4),
        _names.VM_EXIT_INTR_ERROR_CODE: (_offset(&_layout.exit_intr_error), 4),
        _names.IDT_VECTORING_INFO_FIELD: (_offset(&_layout.idt_vectoring_info), 4),
        _names.IDT_VECTORING_ERROR_CODE: (_offset(&_layout.idt_vectoring_error), 4),
        _names.VM_EXIT_INSTRUCTION_LEN: (_offset(&_layout.exit_length), 4),
        _names.VMX_INSTRUCTION_INFO: (_offset(&_layout.exit_instruction_info), 4),
        _names.EXIT_QUALIFICATION: (_offset(&_layout.exit_qualification), 8),
        _names.GUEST_LINEAR_ADDRESS: (_offset(&_layout.exit_gla), 8),
    }


# encoding -> (offset in CpuState, bytes, FIELD_*)
cdef dict VMCS_FIELDS = {
    **_segment_fields(),
    **{field: (*place, FIELD_PLAIN) for field, place in _plain_fields().items()},
    **{field: (*place, FIELD_READ_ONLY) for field, place in _report_fields().items()},
    _names.GUEST_RFLAGS: (0, 8, FIELD_RFLAGS),
}
cdef dict FIELD_NAMES = {value: name for name, value in vars(_names).items()
                         if name.isupper() and type(value) is int and value in VMCS_FIELDS and not name.endswith("RIGHTS")}

# a write to these needs no look at the rest of the state; a write to those ends every translation
cdef frozenset LIGHT_FIELDS = frozenset((
    _names.GUEST_RIP, _names.GUEST_RSP, _names.GUEST_ACTIVITY_STATE, _names.VM_ENTRY_INTR_INFO_FIELD,
    _names.VM_ENTRY_EXCEPTION_ERROR_CODE, _names.VM_ENTRY_INSTRUCTION_LEN, _names.VMX_PREEMPTION_TIMER_VALUE))
cdef frozenset FLUSHING_FIELDS = frozenset((
    _names.GUEST_CR0, _names.GUEST_CR3, _names.GUEST_CR4, _names.GUEST_IA32_EFER, _names.GUEST_PDPTE0,
    _names.GUEST_PDPTE1, _names.GUEST_PDPTE2, _names.GUEST_PDPTE3))


class VmExit:
    """Why run() returned: SDM 3C 25.9. reason has bit 31 set where the entry failed, and detail says what is wrong."""

    __slots__ = ("reason", "qualification", "instruction_length", "gpa", "gla", "intr_info", "intr_error",
                 "idt_vectoring_info", "idt_vectoring_error", "instruction_info", "detail")

    def __init__(self, reason, qualification=0, instruction_length=0, gpa=0, gla=0, intr_info=0, intr_error=0,
                 idt_vectoring_info=0, idt_vectoring_error=0, instruction_info=0, detail=""):
        self.reason = reason
        self.qualification = qualification
        self.instruction_length = instruction_length
        self.gpa = gpa
        self.gla = gla
        self.intr_info = intr_info
        self.intr_error = intr_error
        self.idt_vectoring_info = idt_vectoring_info
        self.idt_vectoring_error = idt_vectoring_error
        self.instruction_info = instruction_info
        self.detail = detail

    @property
    def name(self):
        return _names.EXIT_REASON_NAMES.get(self.reason & 0xFFFF, f"reason {self.reason & 0xFFFF}")

    def __repr__(self):
        extra = f", {self.detail}" if self.detail else ""
        return (f"VmExit({self.name}, qualification={self.qualification:#x}, length={self.instruction_length}, "
                f"gpa={self.gpa:#x}{extra})")


cdef class Vmcs:
    """A virtual-machine control structure, as a dict of encodings (vcpu.GUEST_RIP …). Bound to one vCPU by its run()."""

    cdef CpuState* c
    cdef object owner                # the Vcpu, kept alive
    cdef dict held                   # before it is bound
    cdef bint changed                # state or controls were written: the next entry checks them
    cdef bint flush                  # … such that no translation may stay
    cdef bytearray io_bytes
    cdef bytearray msr_bytes

    def __cinit__(self):
        self.held = {}
        self.changed = True
        self.flush = True

    def __setitem__(self, field, value):
        """VMWRITE. KeyError: no such field, or a read-only one. ValueError: it does not fit."""
        place = VMCS_FIELDS.get(field)
        if place is None and field != _names.VMX_PREEMPTION_TIMER_VALUE:
            raise KeyError(f"no VMCS field {field:#x}")
        if place is not None and place[2] == FIELD_READ_ONLY:
            raise KeyError(f"VMCS field {FIELD_NAMES.get(field, hex(field))} is read-only")
        size = place[1] if place is not None else 4
        if value < 0:
            value += 1 << (8 * size)
        if not 0 <= value < 1 << (8 * size):
            raise ValueError(f"{value:#x} does not fit VMCS field {FIELD_NAMES.get(field, hex(field))}")
        if self.c == NULL or place is None:
            self.held[field] = value
        else:
            self.store(place, value)
        if field in FLUSHING_FIELDS:
            self.flush = True
        if field not in LIGHT_FIELDS:
            self.changed = True

    def __getitem__(self, field):
        """VMREAD."""
        cdef uint64_t value = 0
        place = VMCS_FIELDS.get(field)
        if self.c == NULL or place is None:
            if place is None and field != _names.VMX_PREEMPTION_TIMER_VALUE:
                raise KeyError(f"no VMCS field {field:#x}")
            return self.held.get(field, 0)
        if place[2] == FIELD_RFLAGS:
            return flags_get(self.c)
        memcpy(&value, <char*>self.c + <uint64_t>place[0], <size_t>place[1])
        return value

    def __contains__(self, field):
        return field in VMCS_FIELDS or field == _names.VMX_PREEMPTION_TIMER_VALUE

    def fields(self):
        """{name: value} of every field, for people."""
        return {name: self[field] for field, name in FIELD_NAMES.items()}

    @property
    def io_bitmap(self):
        """Bitmaps A and B as 8 KiB: bit n is port n. None: none. Written in place."""
        return self.io_bytes

    @io_bitmap.setter
    def io_bitmap(self, value):
        self.io_bytes = self.bitmap(value, 8192)
        self.point_bitmaps()

    @property
    def msr_bitmap(self):
        """4 KiB: read low, read high, write low, write high (SDM 3C 25.6.9). None: none. Written in place."""
        return self.msr_bytes

    @msr_bitmap.setter
    def msr_bitmap(self, value):
        self.msr_bytes = self.bitmap(value, 4096)
        self.point_bitmaps()

    cdef bytearray bitmap(self, value, int size):
        if value is None:
            return None
        if len(value) != size:
            raise ValueError(f"this bitmap has {size} bytes")
        return bytearray(value)

    cdef void point_bitmaps(self) noexcept:
        if self.c != NULL:
            self.c.io_bitmap = NULL if self.io_bytes is None else <uint8_t*><char*>self.io_bytes
            self.c.msr_bitmap = NULL if self.msr_bytes is None else <uint8_t*><char*>self.msr_bytes

    cdef store(self, tuple place, uint64_t value):
        if place[2] == FIELD_RFLAGS:
            flags_set(self.c, value, ~<uint64_t>0)
        else:
            memcpy(<char*>self.c + <uint64_t>place[0], &value, <size_t>place[1])

    cdef bind(self, CpuState* cpu, object owner):
        """VMPTRLD: from here the fields are the vCPU's. What was held is written; the rest is as the vCPU has it."""
        if self.c == cpu:
            return
        if self.c != NULL:
            raise ValueError("this VMCS is bound to another vCPU")
        self.c = cpu
        self.owner = owner
        for field, value in self.held.items():
            if field in VMCS_FIELDS:
                self.store(VMCS_FIELDS[field], value)
        self.point_bitmaps()
        self.changed = True
        self.flush = True

    cdef int64_t timer_deadline(self, int64_t now, int64_t deadline) except? -1:
        """The preemption timer counts TSC ticks from the entry on (IA32_VMX_MISC[4:0] = 0)."""
        cdef int64_t ns
        if not self.c.pin_controls & PIN_PREEMPTION_TIMER:
            return deadline
        ns = now + <int64_t>scale64(self.held.get(_names.VMX_PREEMPTION_TIMER_VALUE, 0), 1000000000,
                                    self.c.clock.tsc_hz)
        return ns if ns < deadline else deadline


# --- entry

cdef str segment_fault(CpuState* cpu):
    """SDM 3C 27.3.1.2, as far as the engine relies on it."""
    cdef Segment* cs = &cpu.seg[SEG_CS]
    cdef Segment* ss = &cpu.seg[SEG_SS]
    cdef Segment* tr = &cpu.seg[SEG_TR]
    if cpu.rflags_sys & RF_VM:
        return None
    if cs.rights & AR_UNUSABLE or not cs.rights & AR_S or not cs.rights & AR_P:
        return "CS is not a present code or data segment"
    if not cs.rights & AR_CODE and (cs.rights & AR_TYPE) != 3:
        return "CS.type is not code, nor 3 (unrestricted guest)"
    if cpu.efer & EFER_LMA and cs.rights & AR_L and cs.rights & AR_DB:
        return "CS.L and CS.D are both set"
    if not ss.rights & AR_UNUSABLE and (ss.rights & AR_TYPE) not in (3, 7):
        return "SS.type is not writable data"
    if cpu.cr0 & CR0_PE and (tr.rights & AR_UNUSABLE or (tr.rights & AR_TYPE) not in (3, 11)):
        return "TR is not a busy TSS"
    if cpu.efer & EFER_LMA and (tr.rights & AR_TYPE) != 11:
        return "TR is not a 64-bit busy TSS"
    return None


cdef str state_fault(CpuState* cpu):
    """What is wrong with the guest state, or None (SDM 3C 27.3.1)."""
    cdef uint64_t flags = flags_get(cpu)
    if cpu.cr0 & CR0_PG and not cpu.cr0 & CR0_PE:
        return "CR0.PG without CR0.PE"
    if cpu.cr0 >> 32 or (cpu.cr0 & CR0_NW and not cpu.cr0 & CR0_CD):
        return "CR0 has reserved bits, or NW without CD"
    if cpu.cr4 & ~CR4_ALLOWED:
        return "CR4 has reserved bits"
    if cpu.efer & ~<uint64_t>(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE):
        return "IA32_EFER has reserved bits"
    if (cpu.efer & EFER_LMA != 0) != (cpu.efer & EFER_LME != 0 and cpu.cr0 & CR0_PG != 0):
        return "IA32_EFER.LMA is not LME with CR0.PG"
    if cpu.efer & EFER_LMA and not cpu.cr4 & CR4_PAE:
        return "IA-32e mode without CR4.PAE"
    if cpu.cr4 & CR4_PCIDE and not cpu.efer & EFER_LMA:
        return "CR4.PCIDE outside IA-32e mode"
    if cpu.cr3 >> PHYS_BITS:
        return "CR3 has bits beyond the physical address"
    if flags & 0xFFFFFFFFFFC08028ULL or not flags & 2:
        return "RFLAGS has reserved bits"
    if flags & RF_VM and (cpu.efer & EFER_LMA or not cpu.cr0 & CR0_PE):
        return "RFLAGS.VM in IA-32e mode or without CR0.PE"
    if cpu.efer & EFER_LMA and cpu.seg[SEG_CS].rights & AR_L:
        if not canonical(cpu.rip):
            return "RIP is not canonical"
    elif cpu.rip >> 32:
        return "RIP has more than 32 bits outside 64-bit mode"
    for base in (cpu.seg[SEG_FS].base, cpu.seg[SEG_GS].base, cpu.seg[SEG_TR].base, cpu.gdtr_base, cpu.idtr_base):
        if not canonical(base):
            return "a base address is not canonical"
    if cpu.activity > 3 or cpu.interruptibility & ~0x1B or (cpu.interruptibility & 3) == 3:
        return "the activity or interruptibility state is none"
    if cpu.interruptibility & 1 and not flags & RF_IF:
        return "blocking by STI with RFLAGS.IF clear"
    return segment_fault(cpu)


cdef str event_fault(CpuState* cpu):
    """The interruption-information field of the entry (SDM 3C 27.2.1.3)."""
    cdef uint32_t info = cpu.entry_intr_info
    cdef uint32_t kind = info >> 8 & 7
    cdef uint32_t vector = info & 0xFF
    if not info >> 31:
        return None
    if info & 0x7FFFF000 or kind in (1, 7):
        return "the event to inject has reserved bits"
    if (kind == EVENT_NMI and vector != 2) or (kind == EVENT_EXCEPTION and vector > 31):
        return "the event to inject has no such vector"
    if info & 0x800 and (kind != EVENT_EXCEPTION or not has_error_code(vector) or not cpu.cr0 & CR0_PE):
        return "an error code where the event has none"
    if kind == EVENT_EXTERNAL and not flags_get(cpu) & RF_IF:
        return "an external interrupt with RFLAGS.IF clear"
    if kind == EVENT_EXTERNAL and cpu.interruptibility & 3:
        return "an external interrupt in the shadow of STI or MOV SS"
    if kind in (EVENT_SOFT_INT, EVENT_INT1, EVENT_SOFT_EXCEPTION) and not 1 <= cpu.entry_length <= 15:
        return "a software event without its instruction's length"
    return None


cdef object vmx_enter(CpuState* cpu, Vmcs vmcs, object owner):
    """VMLAUNCH: bind, check, take over what the hypervisor wrote. None: enter; else the VmExit of the failed entry."""
    vmcs.bind(cpu, owner)
    fault = state_fault(cpu) if vmcs.changed else None
    if fault is None:
        fault = event_fault(cpu)
    if fault:
        reason = EXIT_REASON_INVALID_STATE | 0x80000000
        cpu.exit_counts[<int>EXIT_REASON_INVALID_STATE] += 1
        cpu.last_exit_reason = <uint32_t>reason
        return VmExit(reason, detail=fault)
    if vmcs.changed:
        vmx_take_state(cpu, vmcs.flush)
    vmcs.changed = False
    vmcs.flush = False
    return None


cdef void vmx_take_state(CpuState* cpu, bint flush) noexcept:
    """Whatever hangs on guest state that was written from outside."""
    cpu.cr0 |= CR0_ET
    cpu.dr[7] |= DR7_FIXED
    cpu.cpl = 3 if cpu.rflags_sys & RF_VM else <uint8_t>((cpu.seg[SEG_SS].rights & AR_DPL) >> 5)
    if not cpu.cr0 & CR0_PE:
        cpu.cpl = 0
    cpu.cpuid_exiting = cpu.proc2_controls >> 31
    if flush:
        tlb_flush_all(cpu)
        tlb_forget_pcids(cpu)
        if pae_paging(cpu):
            load_pdptes(cpu, cpu.cr3)
    mode_update(cpu)
    attend(cpu, ATTN_INTERRUPT)


cdef void vmx_inject(CpuState* cpu) noexcept nogil:
    """At the entry, before the first instruction: the event of VM_ENTRY_INTR_INFO_FIELD, delivered without intercepts."""
    cdef Event event
    cdef uint32_t info = cpu.entry_intr_info
    cdef uint32_t bitmap = cpu.exception_bitmap
    if not info >> 31:
        if cpu.pending_debug & 0xE00F:
            cpu.debug_status = cpu.pending_debug & 0xE00F
            cpu.pending_debug = 0
            fault_at_rip(cpu, VECTOR_DB, NO_ERROR_CODE)
        return
    cpu.entry_intr_info = info & 0x7FFFFFFF
    event.vector = info & 0xFF
    event.kind = info >> 8 & 7
    event.error_code = cpu.entry_intr_error & 0xFFFF if info & 0x800 else NO_ERROR_CODE
    event.ext = 0 if event.kind in (EVENT_SOFT_INT, EVENT_SOFT_EXCEPTION) else 1
    event.length = 0
    event.return_rip = cpu.rip
    if event.kind in (EVENT_SOFT_INT, EVENT_INT1, EVENT_SOFT_EXCEPTION):
        event.return_rip += cpu.entry_length
    if event.kind == EVENT_NMI:
        cpu.interruptibility |= BLOCKED_BY_NMI
    cpu.pf_gva = cpu.cr2
    cpu.exception_bitmap = bitmap & ~(<uint32_t>1 << (event.vector & 31)) if event.kind != EVENT_EXTERNAL else bitmap
    raise_event(cpu, &event)
    cpu.exception_bitmap = bitmap


cdef bint vmx_window(CpuState* cpu) noexcept nogil:
    """At an instruction boundary: interrupt-window and NMI-window exiting. True: leave."""
    if (cpu.proc_controls & PROC_NMI_WINDOW and not cpu.interruptibility
            & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS | BLOCKED_BY_NMI)):
        vm_exit(cpu, EXIT_REASON_NMI_WINDOW, 0)
        return True
    if (cpu.proc_controls & PROC_INTERRUPT_WINDOW and cpu.rflags_sys & RF_IF
            and not cpu.interruptibility & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS)):
        vm_exit(cpu, EXIT_REASON_INTERRUPT_WINDOW, 0)
        return True
    return False


cdef object vmx_exit(CpuState* cpu):
    """The VmExit of cpu.exit_reason, which is NO_EXIT afterwards."""
    cdef uint32_t reason = cpu.exit_reason
    cpu.exit_reason = NO_EXIT
    cpu.last_exit_reason = reason
    return VmExit(reason, cpu.exit_qualification, cpu.exit_length,
                  cpu.exit_gpa if reason == EXIT_REASON_EPT_VIOLATION else 0,
                  cpu.exit_gla if reason == EXIT_REASON_EPT_VIOLATION else 0,
                  cpu.exit_intr_info, cpu.exit_intr_error, cpu.idt_vectoring_info, cpu.idt_vectoring_error,
                  cpu.exit_instruction_info)
