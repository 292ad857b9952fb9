"""Task switches through 32- and 16-bit task-state segments (SDM 3A 7.3). Owner: SYSTEM.

Owns:    the order of a switch: check, save the old task, load the new one, and only then its segments.
Never:   exists in long mode.
Threads: the vCPU's own.

Up to the commit point a refusal leaves the old task as it was. Behind it cpu.task_switched is 1: the new task's
registers are loaded, and a segment that cannot be is the new task's fault (#TS, #NP, #SS).
"""

cdef enum:
    TASK_JUMP = 0
    TASK_CALL = 1
    TASK_INTERRUPT = 2
    TASK_RETURN = 3

cdef struct Task:                # what a TSS holds, of either width
    uint32_t cr3
    uint32_t eip
    uint32_t eflags
    uint32_t regs[8]             # EAX ECX EDX EBX ESP EBP ESI EDI: the register numbers
    uint16_t segs[6]             # ES CS SS DS FS GS: the segment numbers
    uint16_t ldt
    uint16_t trap


cdef bint tss_save(CpuState* cpu, uint64_t base, bint wide, uint64_t flags) noexcept nogil:
    """Write EIP … GS of the running task."""
    cdef uint8_t image[104]
    cdef uint32_t i
    cdef uint32_t width = 4 if wide else 2
    cdef uint32_t first = 0x20 if wide else 0x0E
    cdef uint32_t count = 16 if wide else 14
    memset(image, 0, sizeof(image))
    for i in range(count):
        if i == 0:
            put_field(image, i, width, cpu.rip)
        elif i == 1:
            put_field(image, i, width, flags)
        elif i < 10:
            put_field(image, i, width, cpu.regs[i - 2])
        else:
            put_field(image, i, width, cpu.seg[i - 10].selector)
    return sys_write(cpu, (base + first) & 0xFFFFFFFFU, image, count * width)


cdef inline void put_field(uint8_t* image, uint32_t i, uint32_t width, uint64_t value) noexcept nogil:
    memcpy(image + i * width, &value, width)


cdef bint tss_load(CpuState* cpu, uint64_t base, bint wide, Task* task) noexcept nogil:
    cdef uint8_t image[104]
    cdef uint32_t i, value
    cdef uint32_t width = 4 if wide else 2
    cdef uint32_t first = 0x20 if wide else 0x0E
    cdef uint32_t count = 17 if wide else 15
    memset(task, 0, sizeof(Task))
    if not sys_read(cpu, base & 0xFFFFFFFFU, image, 104 if wide else 44):
        return False
    if wide:
        memcpy(&task.cr3, image + 0x1C, 4)
        memcpy(&task.trap, image + 0x64, 2)
    for i in range(count):
        value = 0
        memcpy(&value, image + first + i * width, width)
        if i == 0:
            task.eip = value
        elif i == 1:
            task.eflags = value
        elif i < 10:
            task.regs[i - 2] = value if wide else value | 0xFFFF0000U
        elif i == count - 1:
            task.ldt = <uint16_t>value
        else:
            task.segs[i - 10] = <uint16_t>value
    return True


cdef bint task_descriptor(CpuState* cpu, uint16_t selector, uint32_t how, uint32_t ext, uint64_t* d) noexcept nogil:
    """The new TSS: available (busy for a return), present, large enough."""
    cdef Segment tss
    cdef uint32_t vector = VECTOR_TS if how == TASK_RETURN else VECTOR_GP
    cdef uint32_t code = (selector & 0xFFFC) | ext
    cdef uint32_t type_
    if selector & 4 or not selector & 0xFFFC:
        return refuse(cpu, vector, code)
    if not read_descriptor(cpu, selector, vector, ext, d):
        return False
    unpack_descriptor(&tss, selector, d[0])
    type_ = tss.rights & (AR_S | AR_TYPE)
    if how == TASK_RETURN:
        if type_ not in (TYPE_TSS_BUSY, TYPE_TSS16_BUSY):
            return refuse(cpu, vector, code)
    elif type_ not in (TYPE_TSS, TYPE_TSS16):
        return refuse(cpu, vector, code)
    if not tss.rights & AR_P:
        return refuse(cpu, VECTOR_NP, code)
    if tss.limit < (0x67 if type_ & 8 else 0x2B):
        return refuse(cpu, VECTOR_TS, code)
    return True


cdef bint task_switch(CpuState* cpu, uint16_t selector, uint32_t how, uint32_t ext) noexcept nogil:
    """Switch; cpu.rip is what the old task resumes at. True: rip and all else are the new task's."""
    cdef uint64_t d = 0
    cdef Segment tss
    cdef Task task
    cdef uint64_t flags = flags_get(cpu)
    cdef uint16_t old = cpu.seg[SEG_TR].selector
    cdef uint64_t old_base = cpu.seg[SEG_TR].base
    cdef bint old_wide = (cpu.seg[SEG_TR].rights & 8) != 0
    cpu.task_switched = 0
    if cpu.long_mode or not task_descriptor(cpu, selector, how, ext, &d):
        return refuse(cpu, VECTOR_GP, (selector & 0xFFFC) | ext) if cpu.long_mode else False
    unpack_descriptor(&tss, selector, d)
    if not tss_load(cpu, tss.base, (tss.rights & 8) != 0, &task):
        return False
    if how == TASK_RETURN:
        flags &= ~<uint64_t>RF_NT
    if how in (TASK_JUMP, TASK_RETURN) and not change_rights(cpu, old, 0, 2):
        return False
    if not tss_save(cpu, old_base, old_wide, flags):
        return False
    if how in (TASK_CALL, TASK_INTERRUPT):
        if not sys_write(cpu, tss.base & 0xFFFFFFFFU, &old, 2):
            return False
        task.eflags |= RF_NT
    if how != TASK_RETURN and not change_rights(cpu, selector, 2, 0):
        return False
    cpu.task_switched = 1
    cpu.seg[SEG_TR] = tss
    cpu.seg[SEG_TR].rights |= 2
    return task_enter(cpu, &task, ext)


cdef bint task_enter(CpuState* cpu, Task* task, uint32_t ext) noexcept nogil:
    """Behind the commit point: registers first, then LDTR, CS, SS and the data segments, each with its checks."""
    cdef uint32_t i
    cpu.cr0 |= CR0_TS
    cpu.dr[7] &= ~<uint64_t>0x55             # local breakpoints
    if cpu.cr0 & CR0_PG and cpu.seg[SEG_TR].rights & 8:
        if not load_cr3_value(cpu, task.cr3):
            mode_update(cpu)
            return refuse(cpu, VECTOR_TS, (cpu.seg[SEG_TR].selector & 0xFFFC) | ext)
    cpu.rip = task.eip
    for i in range(8):
        cpu.regs[i] = task.regs[i]
    flags_set(cpu, task.eflags, RF_ARITH | RF_TF | RF_IF | RF_DF | RF_IOPL | RF_NT | RF_RF | RF_VM | RF_AC | RF_VIF
              | RF_VIP | RF_ID)
    for i in range(6):
        load_null(cpu, i, task.segs[i])
        cpu.seg[i].selector = task.segs[i]
    cpu.cpl = 3 if task.eflags & RF_VM else task.segs[SEG_CS] & 3
    mode_update(cpu)
    if task.trap & 1:
        cpu.step_traps |= DR6_BT
        cpu.step_live = 1
    if not load_ldtr(cpu, task.ldt, VECTOR_TS):
        return refuse(cpu, cpu.pf_vector, cpu.pf_error | ext)
    if in_vm86(cpu):
        for i in range(6):
            load_real_segment(cpu, i, task.segs[i])
    elif not task_segments(cpu, task, ext):
        return False
    mode_update(cpu)
    if cpu.rip > cpu.seg[SEG_CS].limit:
        return refuse(cpu, VECTOR_GP, ext)
    return True


cdef bint task_segments(CpuState* cpu, Task* task, uint32_t ext) noexcept nogil:
    cdef uint64_t d = 0
    cdef Segment cs
    cdef Segment ss
    cdef uint16_t selector = task.segs[SEG_CS]
    cdef uint32_t dpl, which
    if not selector & 0xFFFC:
        return refuse(cpu, VECTOR_TS, ext)
    if not read_descriptor(cpu, selector, VECTOR_TS, ext, &d):
        return False
    unpack_descriptor(&cs, selector, d)
    dpl = (cs.rights & AR_DPL) >> 5
    if ((cs.rights & (AR_S | AR_CODE)) != (AR_S | AR_CODE)
            or (dpl > cpu.cpl if cs.rights & AR_EXPAND else dpl != cpu.cpl)):
        return refuse(cpu, VECTOR_TS, (selector & 0xFFFC) | ext)
    if not cs.rights & AR_P:
        return refuse(cpu, VECTOR_NP, (selector & 0xFFFC) | ext)
    if not load_stack_segment(cpu, task.segs[SEG_SS], cpu.cpl, VECTOR_TS, ext, &ss):
        return False
    if not mark_descriptor(cpu, selector, &d):
        return False
    cs.rights |= AR_ACCESSED
    cpu.seg[SEG_CS] = cs
    cpu.seg[SEG_SS] = ss
    mode_update(cpu)
    for which in range(6):
        if which == SEG_CS or which == SEG_SS:
            continue
        if not load_segment(cpu, which, task.segs[which]):
            # what is #GP elsewhere is #TS here
            return refuse(cpu, VECTOR_TS if cpu.pf_vector == VECTOR_GP else cpu.pf_vector, cpu.pf_error | ext)
    return True
