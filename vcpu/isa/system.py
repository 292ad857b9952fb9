"""Rows of the system instructions (SDM 2A-2D; SDM 3A). Owner: SYSTEM. Format: table.py.

Owns:    encodings, privilege, intercepts. Handlers: vcpu/ops/system_*.pxi.
Never:   gives a row cpl=0 where the handler checks something before the privilege (#UD, then #GP).
Threads: constants.
"""

from vcpu.isa.table import ENDS, Insn


def system(name: str, encoding: str, operands: str = "", **facts: object) -> Insn:
    """A system instruction ends its block, unless it says otherwise."""
    return Insn(facts.pop("mnemonic", name), encoding, operands, handler=name, block=facts.pop("block", ENDS), **facts)


SEGMENTS = [
    system("mov_from_sreg", "8C /r", "r64/m16, sreg", block="continues", sdm="2B MOV"),
    system("mov_to_sreg", "8E /r", "sreg, r64/m16", sdm="2B MOV"),
    *(system("push_sreg", code, modes="legacy", sdm="2B PUSH") for code in ("06", "0E", "16", "1E")),
    *(system("push_sreg", code, size="d64", sdm="2B PUSH") for code in ("0F A0", "0F A8")),
    *(system("pop_sreg", code, modes="legacy", sdm="2B POP") for code in ("07", "17", "1F")),
    *(system("pop_sreg", code, size="d64", sdm="2B POP") for code in ("0F A1", "0F A9")),
    *(system(name, f"{osize} {code} /r:m", f"r, m{bits}", modes=modes, sdm="2A LDS/LES/LFS/LGS/LSS")
      for name, code, modes in (("les", "C4", "legacy"), ("lds", "C5", "legacy"), ("lss", "0F B2", "any"),
                                ("lfs", "0F B4", "any"), ("lgs", "0F B5", "any"))
      for osize, bits in (("o16", 32), ("o32", 48), ("o64", 80))),
]

TRANSFERS = [
    system("jmp_far_ptr", "EA", "ptr", modes="legacy", sdm="2A JMP"),
    system("call_far_ptr", "9A", "ptr", modes="legacy", sdm="2A CALL"),
    *(system(name, f"{osize} FF /{digit}:m", f"m{bits}", sdm="2A JMP, CALL")
      for name, digit in (("call_far_m", 3), ("jmp_far_m", 5))
      for osize, bits in (("o16", 32), ("o32", 48), ("o64", 80))),
    system("ret_far", "CB", sdm="2B RET"),
    system("ret_far", "CA iw", "imm16", sdm="2B RET"),
    system("iret", "CF", sdm="2A IRET"),
    system("int3", "CC", sdm="2A INT n"),
    system("int_n", "CD ib", "imm8", sdm="2A INT n"),
    system("into", "CE", modes="legacy", sdm="2A INT n"),
    system("int1", "F1", sdm="2A INT n"),
    system("syscall", "0F 05", sdm="2B SYSCALL"),
    system("sysret", "0F 07", sdm="2B SYSRET"),
    system("sysenter", "0F 34", sdm="2B SYSENTER"),
    system("sysexit", "0F 35", sdm="2B SYSEXIT"),
]

TABLES = [
    system("sldt", "0F 00 /0", "r64/m16", intercept="LDTR_TR", sdm="2B SLDT"),
    system("str", "0F 00 /1", "r64/m16", intercept="LDTR_TR", sdm="2B STR"),
    system("lldt", "0F 00 /2", "r64/m16", intercept="LDTR_TR", sdm="2A LLDT"),
    system("ltr", "0F 00 /3", "r64/m16", intercept="LDTR_TR", sdm="2A LTR"),
    system("verr", "0F 00 /4", "r64/m16", writes="ZF", sdm="2B VERR"),
    system("verw", "0F 00 /5", "r64/m16", writes="ZF", sdm="2B VERR"),
    system("lar", "0F 02 /r", "r, r64/m16", writes="ZF", sdm="2A LAR"),
    system("lsl", "0F 03 /r", "r, r64/m16", writes="ZF", sdm="2A LSL"),
    system("arpl", "63 /r", "r64/m16, r16", modes="legacy", writes="ZF", sdm="2A ARPL"),
    system("sgdt", "0F 01 /0:m", "m48", intercept="GDTR_IDTR", modes="legacy", sdm="2B SGDT"),
    system("sgdt", "0F 01 /0:m", "m80", intercept="GDTR_IDTR", modes="64", sdm="2B SGDT"),
    system("sidt", "0F 01 /1:m", "m48", intercept="GDTR_IDTR", modes="legacy", sdm="2B SIDT"),
    system("sidt", "0F 01 /1:m", "m80", intercept="GDTR_IDTR", modes="64", sdm="2B SIDT"),
    system("lgdt", "0F 01 /2:m", "m48", cpl=0, intercept="GDTR_IDTR", modes="legacy", sdm="2A LGDT"),
    system("lgdt", "0F 01 /2:m", "m80", cpl=0, intercept="GDTR_IDTR", modes="64", sdm="2A LGDT"),
    system("lidt", "0F 01 /3:m", "m48", cpl=0, intercept="GDTR_IDTR", modes="legacy", sdm="2A LGDT"),
    system("lidt", "0F 01 /3:m", "m80", cpl=0, intercept="GDTR_IDTR", modes="64", sdm="2A LGDT"),
    system("swapgs", "0F 01 F8", modes="64", block="continues", sdm="2B SWAPGS"),
    *(system(name, f"F3 0F AE /{digit}:r", "rr", modes="64", block="continues", cpuid="FSGSBASE", sdm="2B RDFSBASE")
      for name, digit in (("rdbase", 0), ("rdbase", 1), ("wrbase", 2), ("wrbase", 3))),
]

CONTROL = [
    system("mov_from_cr", "0F 20 /r", "rr64, cr", block="continues", intercept="CR_ACCESS", sdm="2B MOV CR"),
    system("mov_to_cr", "0F 22 /r", "cr, rr64", intercept="CR_ACCESS", sdm="2B MOV CR"),
    system("mov_from_dr", "0F 21 /r", "rr64, dr", intercept="DR_ACCESS", sdm="2B MOV DR"),
    system("mov_to_dr", "0F 23 /r", "dr, rr64", intercept="DR_ACCESS", sdm="2B MOV DR"),
    system("smsw", "0F 01 /4", "r64/m16", sdm="2B SMSW"),
    system("lmsw", "0F 01 /6", "r64/m16", intercept="CR_ACCESS", sdm="2A LMSW"),
    system("clts", "0F 06", intercept="CR_ACCESS", sdm="2A CLTS"),
    system("invlpg", "0F 01 /7:m", "m0", intercept="INVLPG", sdm="2A INVLPG"),
    system("invpcid", "66 0F 38 82 /r:m", "r, m128", cpuid="INVPCID", intercept="INVPCID", sdm="2A INVPCID"),
    system("wbinvd", "0F 08", mnemonic="invd", intercept="INVD", sdm="2A INVD"),
    system("wbinvd", "0F 09", intercept="WBINVD", sdm="2C WBINVD"),
    system("hlt", "F4", intercept="HLT", sdm="2A HLT"),
    system("pause", "F3 90", block="continues", intercept="PAUSE", sdm="2B PAUSE"),
    system("cli", "FA", block="continues", sdm="2A CLI"),
    system("sti", "FB", sdm="2B STI"),
    system("clac", "NP 0F 01 CA", block="continues", cpuid="SMAP", sdm="2A CLAC"),
    system("stac", "NP 0F 01 CB", block="continues", cpuid="SMAP", sdm="2B STAC"),
    system("rdmsr", "0F 32", intercept="MSR_READ", sdm="2B RDMSR"),
    system("wrmsr", "0F 30", intercept="MSR_WRITE", sdm="2C WRMSR"),
    system("rdtsc", "0F 31", intercept="RDTSC", sdm="2B RDTSC"),
    system("rdtscp", "0F 01 F9", intercept="RDTSCP", cpuid="RDTSCP", sdm="2B RDTSCP"),
    system("rdpmc", "0F 33", intercept="RDPMC", sdm="2B RDPMC"),
    system("rdrand", "NFx 0F C7 /6:r", "rr", block="continues", cpuid="RDRAND", writes="CF PF AF ZF SF OF",
           intercept="RDRAND", sdm="2B RDRAND"),
    system("cpuid", "0F A2", intercept="CPUID", sdm="2A CPUID"),
    system("vmcall", "NP 0F 01 C1", intercept="VMCALL", sdm="3C VMCALL"),
]

PORTS = [
    system("in_imm", "E4 ib", "imm8", mnemonic="in", intercept="IO_INSTRUCTION", sdm="2A IN"),
    system("in_imm", "E5 ib", "imm8", mnemonic="in", intercept="IO_INSTRUCTION", sdm="2A IN"),
    system("in_dx", "EC", mnemonic="in", intercept="IO_INSTRUCTION", sdm="2A IN"),
    system("in_dx", "ED", mnemonic="in", intercept="IO_INSTRUCTION", sdm="2A IN"),
    system("out_imm", "E6 ib", "imm8", mnemonic="out", intercept="IO_INSTRUCTION", sdm="2B OUT"),
    system("out_imm", "E7 ib", "imm8", mnemonic="out", intercept="IO_INSTRUCTION", sdm="2B OUT"),
    system("out_dx", "EE", mnemonic="out", intercept="IO_INSTRUCTION", sdm="2B OUT"),
    system("out_dx", "EF", mnemonic="out", intercept="IO_INSTRUCTION", sdm="2B OUT"),
    system("ins", "6C", intercept="IO_INSTRUCTION", sdm="2A INS"),
    system("ins", "6D", intercept="IO_INSTRUCTION", sdm="2A INS"),
    system("outs", "6E", intercept="IO_INSTRUCTION", sdm="2B OUTS"),
    system("outs", "6F", intercept="IO_INSTRUCTION", sdm="2B OUTS"),
]

ROWS = SEGMENTS + TRANSFERS + TABLES + CONTROL + PORTS
