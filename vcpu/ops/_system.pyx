# cython: language_level=3
"""System instructions: handlers. Rows: vcpu/isa/system.py; what they do to the machine: vcpu/core. Owner: SYSTEM.

Owns:    operands, privilege, intercepts of each system instruction.
Never:   keeps state of its own.
Threads: the vCPU's own.
"""
from vcpu._core cimport *
from vcpu.core.arch cimport *
from vcpu.core.engine cimport *
from vcpu.core.mem cimport (mem_check, mem_read, mem_write, mem_write_buf)
from vcpu.core.space cimport attend
from vcpu.core.state cimport *
from vcpu._core import register_handler
from libc.string cimport memcpy

include "system_common.pxi"
include "system_segments.pxi"
include "system_control.pxi"
include "system_io.pxi"

cdef extern from *:
    ctypedef unsigned long uintptr_t


cdef register(str name, handler_t handler):
    register_handler(name, <uintptr_t>handler)


register("ea_seg", op_ea_seg)
register("mov_from_sreg", op_mov_from_sreg)
register("mov_to_sreg", op_mov_to_sreg)
register("push_sreg", op_push_sreg)
register("pop_sreg", op_pop_sreg)
register("pause", op_pause)
register("les", op_les)
register("lds", op_lds)
register("lss", op_lss)
register("lfs", op_lfs)
register("lgs", op_lgs)
register("jmp_far_ptr", op_jmp_far_ptr)
register("jmp_far_m", op_jmp_far_m)
register("call_far_ptr", op_call_far_ptr)
register("call_far_m", op_call_far_m)
register("ret_far", op_ret_far)
register("iret", op_iret)
register("int_n", op_int_n)
register("int3", op_int3)
register("into", op_into)
register("int1", op_int1)
register("syscall", op_syscall)
register("sysret", op_sysret)
register("sysenter", op_sysenter)
register("sysexit", op_sysexit)
register("sldt", op_sldt)
register("str", op_str)
register("lldt", op_lldt)
register("ltr", op_ltr)
register("verr", op_verr)
register("verw", op_verw)
register("lar", op_lar)
register("lsl", op_lsl)
register("arpl", op_arpl)
register("sgdt", op_sgdt)
register("sidt", op_sidt)
register("lgdt", op_lgdt)
register("lidt", op_lidt)
register("smsw", op_smsw)
register("lmsw", op_lmsw)
register("swapgs", op_swapgs)
register("rdbase", op_rdbase)
register("wrbase", op_wrbase)
register("mov_from_cr", op_mov_from_cr)
register("mov_to_cr", op_mov_to_cr)
register("mov_from_dr", op_mov_from_dr)
register("mov_to_dr", op_mov_to_dr)
register("clts", op_clts)
register("invlpg", op_invlpg)
register("invpcid", op_invpcid)
register("wbinvd", op_wbinvd)
register("hlt", op_hlt)
register("cli", op_cli)
register("sti", op_sti)
register("clac", op_clac)
register("stac", op_stac)
register("rdmsr", op_rdmsr)
register("wrmsr", op_wrmsr)
register("rdtsc", op_rdtsc)
register("rdtscp", op_rdtscp)
register("rdpmc", op_rdpmc)
register("rdrand", op_rdrand)
register("cpuid", op_cpuid)
register("vmcall", op_vmcall)
register("in_imm", op_in_imm)
register("in_dx", op_in_dx)
register("out_imm", op_out_imm)
register("out_dx", op_out_dx)
register("ins", op_ins)
register("outs", op_outs)
