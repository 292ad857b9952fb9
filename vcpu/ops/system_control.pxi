"""Control and debug registers, MSRs, CPUID, time, halt, interrupt flag. Owner: SYSTEM."""


cdef inline void count_exit(CpuState* cpu, uint32_t reason) noexcept nogil:
    """An exit that was served inside."""
    cpu.exit_counts[reason] += 1


cdef inline uint32_t gpr_number(uint32_t offset) noexcept nogil:
    return offset >> 3


# --- MOV CR, DR

cdef inline bint cr_exists(uint32_t which, bint code64) noexcept nogil:
    return which in (0, 2, 3, 4) or (which == 8 and code64)


cdef inline uint64_t cr_qualification(Op* op, uint32_t which, uint32_t access) noexcept nogil:
    """SDM 3C table 28-3: control register, access type, general register."""
    return which | access << 4 | gpr_number(op.b) << 8


cdef void op_mov_from_cr(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t value
    if not cr_exists(op.r, cpu.code64):
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if ((op.r == 3 and cpu.proc_controls & PROC_CR3_STORE) or (op.r == 8 and cpu.proc_controls & PROC_CR8_STORE)):
        vm_exit_op(cpu, op, EXIT_REASON_CR_ACCESS, cr_qualification(op, op.r, 1))
        return
    value = read_cr(cpu, op.r)
    reg64(cpu, op.b)[0] = value if cpu.code64 else value & 0xFFFFFFFFU
    op[1].fn(cpu, op + 1)


cdef void op_mov_to_cr(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t value = reg64(cpu, op.b)[0]
    if not cr_exists(op.r, cpu.code64):
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if not cpu.code64:
        value &= 0xFFFFFFFFU
    if cr_write_exits(cpu, op.r, value):
        vm_exit_op(cpu, op, EXIT_REASON_CR_ACCESS, cr_qualification(op, op.r, 0))
        return
    if op.r != 2:
        count_exit(cpu, EXIT_REASON_CR_ACCESS)
    if not write_cr(cpu, op.r, value):
        fault_refused(cpu, op)
        return
    attend(cpu, ATTN_INTERRUPT)
    finish_op(cpu, op)


cdef bint debug_allowed(CpuState* cpu, Op* op, uint32_t* which, bint is_read) noexcept nogil:
    """MOV DR: #UD, #GP, exit, #DB by general detect, in this order (SDM 3B 18.2)."""
    which[0] = op.r
    if op.r > 7 or (op.r in (4, 5) and cpu.cr4 & CR4_DE):
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return False
    if op.r in (4, 5):
        which[0] = op.r + 2
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    if cpu.proc_controls & PROC_MOV_DR:
        vm_exit_op(cpu, op, EXIT_REASON_DR_ACCESS, op.r | (16 if is_read else 0) | gpr_number(op.b) << 8)
        return False
    if cpu.dr[7] & DR7_GD:
        cpu.debug_status = DR6_BD
        cpu.debug_is_fault = 1
        fault(cpu, op, VECTOR_DB, NO_ERROR_CODE)
        cpu.debug_is_fault = 0
        return False
    return True


cdef void op_mov_from_dr(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t which = 0
    if not debug_allowed(cpu, op, &which, True):
        return
    reg64(cpu, op.b)[0] = cpu.dr[which]
    finish_op(cpu, op)


cdef void op_mov_to_dr(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t which = 0
    cdef uint64_t value = reg64(cpu, op.b)[0]
    if not debug_allowed(cpu, op, &which, False):
        return
    if not load_debug(cpu, which, value if cpu.code64 else value & 0xFFFFFFFFU):
        fault_refused(cpu, op)
        return
    finish_op(cpu, op)


cdef void op_clts(CpuState* cpu, Op* op) noexcept nogil:
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if cpu.cr0_mask & CR0_TS and cpu.cr0_shadow & CR0_TS:
        vm_exit_op(cpu, op, EXIT_REASON_CR_ACCESS, 2 << 4)
        return
    if not cpu.cr0_mask & CR0_TS:
        write_cr(cpu, 0, read_cr(cpu, 0) & ~<uint64_t>CR0_TS)
    finish_op(cpu, op)


cdef void op_smsw(CpuState* cpu, Op* op) noexcept nogil:
    """To memory always 16 bits; to a register by operand size."""
    if cpu.cr4 & CR4_UMIP and cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if store_word(cpu, op, read_cr(cpu, 0)):
        finish_op(cpu, op)


cdef void op_lmsw(CpuState* cpu, Op* op) noexcept nogil:
    """PE, MP, EM, TS; PE cannot be cleared."""
    cdef uint16_t word = 0
    cdef uint64_t value
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if not read_word(cpu, op, &word):
        return
    value = read_cr(cpu, 0)
    value = (value & ~<uint64_t>0xE) | (word & 0xF)
    if cr_write_exits(cpu, 0, value):
        vm_exit_op(cpu, op, EXIT_REASON_CR_ACCESS, 3 << 4 | (64 if op.flags & OPF_MEM else 0) | <uint64_t>word << 16)
        return
    if not write_cr(cpu, 0, value):
        fault_refused(cpu, op)
        return
    finish_op(cpu, op)


# --- the TLB and caches

cdef void op_invlpg(CpuState* cpu, Op* op) noexcept nogil:
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if cpu.proc_controls & PROC_INVLPG:
        vm_exit_op(cpu, op, EXIT_REASON_INVLPG, ea(cpu, op))
        return
    count_exit(cpu, EXIT_REASON_INVLPG)
    tlb_flush_page(cpu, ea(cpu, op))
    finish_op(cpu, op)


cdef void op_invpcid(CpuState* cpu, Op* op) noexcept nogil:
    """SDM 2A INVPCID: 0 address, 1 PCID, 2 all, 3 all but global."""
    cdef uint64_t kind = reg64(cpu, op.r)[0]
    cdef uint64_t pcid, address
    cdef uint8_t* p
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if cpu.proc_controls & PROC_INVLPG and cpu.proc2_controls & PROC2_INVPCID:
        vm_exit_op(cpu, op, EXIT_REASON_INVPCID, 0)
        return
    if not cpu.code64:
        kind &= 0xFFFFFFFFU
    p = mem_read(cpu, op, ea(cpu, op), 16)
    if p == NULL:
        return
    pcid = (<uint64_t*>p)[0]
    address = (<uint64_t*>p)[1]
    if kind > 3 or (kind < 2 and (pcid >> 12 or (pcid and not cpu.cr4 & CR4_PCIDE))) or (kind == 0
                                                                                     and not canonical(address)):
        fault(cpu, op, VECTOR_GP, 0)
        return
    if kind == 0:
        tlb_flush_page(cpu, address)
    elif kind == 1:
        tlb_flush_pcid(cpu, <uint32_t>pcid)
    elif kind == 2:
        tlb_flush_all(cpu)
    else:
        tlb_flush_nonglobal(cpu)
    finish_op(cpu, op)


cdef void op_wbinvd(CpuState* cpu, Op* op) noexcept nogil:
    """WBINVD and INVD: guest memory is coherent. INVD always exits in VMX; here it is served, as nothing is lost."""
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if op.modrm == 9 and cpu.proc_controls & PROC_SECONDARY and cpu.proc2_controls & PROC2_WBINVD:
        vm_exit_op(cpu, op, EXIT_REASON_WBINVD, 0)
        return
    count_exit(cpu, EXIT_REASON_WBINVD if op.modrm == 9 else EXIT_REASON_INVD)
    finish_op(cpu, op)


# --- halt and the interrupt flag

cdef void op_hlt(CpuState* cpu, Op* op) noexcept nogil:
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    count_exit(cpu, EXIT_REASON_HLT)
    if cpu.proc_controls & PROC_HLT:
        vm_exit_op(cpu, op, EXIT_REASON_HLT, 0)
        return
    finish_op(cpu, op)
    cpu.activity = ACTIVITY_HLT


cdef void op_pause(CpuState* cpu, Op* op) noexcept nogil:
    """F3 90: a spin loop's hint; on Intel's processors also with REX.B, where 90 alone would be XCHG with R8."""
    if cpu.proc_controls & PROC_PAUSE:
        vm_exit_op(cpu, op, EXIT_REASON_PAUSE, 0)
        return
    cpu_spins(cpu)
    op[1].fn(cpu, op + 1)


cdef inline bint may_change_if(CpuState* cpu) noexcept nogil:
    """CPL <= IOPL; in virtual-8086 mode (CPL 3) the same. Neither VME nor PVI is announced."""
    return not cpu.cr0 & CR0_PE or cpu.cpl <= (cpu.rflags_sys & RF_IOPL) >> 12


cdef void op_cli(CpuState* cpu, Op* op) noexcept nogil:
    if not may_change_if(cpu):
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.rflags_sys &= ~<uint32_t>RF_IF
    op[1].fn(cpu, op + 1)


cdef void op_sti(CpuState* cpu, Op* op) noexcept nogil:
    if not may_change_if(cpu):
        fault(cpu, op, VECTOR_GP, 0)
        return
    if cpu.rflags_sys & RF_IF:
        finish_op(cpu, op)
        return
    cpu.rflags_sys |= RF_IF
    finish_op(cpu, op)
    cpu.interruptibility |= BLOCKED_BY_STI
    attend(cpu, ATTN_SHADOW)


cdef void set_ac(CpuState* cpu, Op* op, bint on) noexcept nogil:
    if cpu.cpl != 0 or not cpu.cr0 & CR0_PE:
        fault(cpu, op, VECTOR_UD, NO_ERROR_CODE)
        return
    if on:
        cpu.rflags_sys |= RF_AC
    else:
        cpu.rflags_sys &= ~<uint32_t>RF_AC
    mode_update(cpu)
    op[1].fn(cpu, op + 1)


cdef void op_clac(CpuState* cpu, Op* op) noexcept nogil:
    set_ac(cpu, op, False)


cdef void op_stac(CpuState* cpu, Op* op) noexcept nogil:
    set_ac(cpu, op, True)


# --- MSRs

cdef bint msr_exits(CpuState* cpu, uint32_t msr, bint is_write) noexcept nogil:
    """With MSR bitmaps the bit decides (SDM 3C 25.6.9); without them MSRs are served inside: see docs/design on exits."""
    cdef uint32_t place = msr & 0x1FFF
    if not cpu.proc_controls & PROC_MSR_BITMAPS or cpu.msr_bitmap == NULL:
        return False
    if msr <= 0x1FFF:
        place += 0
    elif 0xC0000000U <= msr <= 0xC0001FFFU:
        place += 0x2000
    else:
        return True
    if is_write:
        place += 0x4000
    return cpu.msr_bitmap[place >> 3] >> (place & 7) & 1


cdef void op_rdmsr(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t msr = <uint32_t>cpu.regs[1]
    cdef uint64_t value = 0
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if msr_exits(cpu, msr, False):
        vm_exit_op(cpu, op, EXIT_REASON_MSR_READ, 0)
        return
    count_exit(cpu, EXIT_REASON_MSR_READ)
    cpu.op_index = op.index
    if not read_msr(cpu, msr, &value):
        fault(cpu, op, VECTOR_GP, 0)
        return
    cpu.regs[0] = value & 0xFFFFFFFFU
    cpu.regs[2] = value >> 32
    finish_op(cpu, op)


cdef void op_wrmsr(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint32_t msr = <uint32_t>cpu.regs[1]
    cdef uint64_t value = (cpu.regs[0] & 0xFFFFFFFFU) | cpu.regs[2] << 32
    if cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return
    if msr_exits(cpu, msr, True):
        vm_exit_op(cpu, op, EXIT_REASON_MSR_WRITE, 0)
        return
    count_exit(cpu, EXIT_REASON_MSR_WRITE)
    cpu.op_index = op.index
    if not write_msr(cpu, msr, value):
        fault(cpu, op, VECTOR_GP, 0)
        return
    attend(cpu, ATTN_INTERRUPT)
    finish_op(cpu, op)


# --- time, randomness, identity

cdef inline uint64_t guest_tsc(CpuState* cpu) noexcept nogil:
    cdef uint64_t tsc = clock_tsc(cpu)
    if cpu.proc_controls & PROC_TSC_OFFSETTING:
        tsc += <uint64_t>cpu.vmcs_tsc_offset
    return tsc


cdef bint tsc_allowed(CpuState* cpu, Op* op, uint32_t reason) noexcept nogil:
    if cpu.cr4 & CR4_TSD and cpu.cpl != 0:
        fault(cpu, op, VECTOR_GP, 0)
        return False
    if cpu.proc_controls & PROC_RDTSC:
        vm_exit_op(cpu, op, reason, 0)
        return False
    return True


cdef void op_rdtsc(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t tsc
    if not tsc_allowed(cpu, op, EXIT_REASON_RDTSC):
        return
    finish_op(cpu, op)
    tsc = guest_tsc(cpu)
    cpu.regs[0] = tsc & 0xFFFFFFFFU
    cpu.regs[2] = tsc >> 32


cdef void op_rdtscp(CpuState* cpu, Op* op) noexcept nogil:
    cdef uint64_t tsc
    if not tsc_allowed(cpu, op, EXIT_REASON_RDTSCP):
        return
    finish_op(cpu, op)
    tsc = guest_tsc(cpu)
    cpu.regs[0] = tsc & 0xFFFFFFFFU
    cpu.regs[2] = tsc >> 32
    cpu.regs[1] = cpu.tsc_aux & 0xFFFFFFFFU


cdef void op_rdpmc(CpuState* cpu, Op* op) noexcept nogil:
    """No counter exists (CPUID leaf 0xA): #GP for each number."""
    if cpu.proc_controls & PROC_RDPMC and (cpu.cpl == 0 or cpu.cr4 & CR4_PCE):
        vm_exit_op(cpu, op, EXIT_REASON_RDPMC, 0)
        return
    fault(cpu, op, VECTOR_GP, 0)


cdef void op_rdrand(CpuState* cpu, Op* op) noexcept nogil:
    """CF = 1: there is always a number. OF SF ZF AF PF are 0."""
    if cpu.proc_controls & PROC_SECONDARY and cpu.proc2_controls & PROC2_RDRAND:
        vm_exit_op(cpu, op, EXIT_REASON_RDRAND, 0)
        return
    write_reg(cpu, op.b, random64(cpu), op.opsize)
    cpu.aflags = AF_CF
    op[1].fn(cpu, op + 1)


cdef void op_cpuid(CpuState* cpu, Op* op) noexcept nogil:
    """Counted as the exit that VT-x makes of it, and answered from the model table."""
    cdef uint32_t out[4]
    count_exit(cpu, EXIT_REASON_CPUID)
    if cpu.cpuid_exiting:
        vm_exit_op(cpu, op, EXIT_REASON_CPUID, 0)
        return
    cpuid(cpu, <uint32_t>cpu.regs[0], <uint32_t>cpu.regs[1], out)
    cpu.regs[0] = out[0]
    cpu.regs[3] = out[1]
    cpu.regs[1] = out[2]
    cpu.regs[2] = out[3]
    finish_op(cpu, op)


cdef void op_vmcall(CpuState* cpu, Op* op) noexcept nogil:
    vm_exit_op(cpu, op, EXIT_REASON_VMCALL, 0)
