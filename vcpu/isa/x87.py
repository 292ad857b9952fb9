"""x87 as rows.

Owns:    encodings, and for each row how it is carried out (FORMS: kind).
Never:   behaviour: handlers are in vcpu/ops/x87_*.pxi, or one line around the host's instruction (emit_x87.py).
Threads: built once at import.

kind "thunk": the whole state goes to the host's x87, which executes the guest's instruction.
kind "own":   a handler by hand: control instructions, environments, moves within the registers.
kind "quick": one call of a function of x87_fast.pxi, which falls back to the thunk for all that is not plain (QUICK).
"""

from vcpu.isa.table import Insn

FORMS: list[tuple[Insn, str]] = []
STORES = ("fst", "fstp", "fist", "fistp", "fisttp", "fbstp", "fnstenv", "fnsave", "fnstcw", "fnstsw")


def add(kind: str, text: str, unit: str = "x87") -> None:
    """Lines of `handler encoding`, or `handler encoding | bits of the memory operand`."""
    for line in text.strip().splitlines():
        head, _, bits = line.partition("|")
        handler, encoding = head.split(None, 1)
        mnemonic = handler.split("_")[0]
        FORMS.append((Insn(mnemonic, encoding.strip(), f"m{bits.strip()}" if bits else "", handler=handler, unit=unit,
                           cpuid="fpu", reads="" if mnemonic in STORES else "memory",
                           writes="CF PF AF ZF SF OF" if "comi" in mnemonic else "", sdm=f"2A {mnemonic.upper()}"), kind))


ARITHMETIC = ("fadd", "fmul", "fcom", "fcomp", "fsub", "fsubr", "fdiv", "fdivr")
for _digit, _name in enumerate(ARITHMETIC):
    add("quick", f"{_name}_m32 D8 /{_digit}:m | 32")
    add("quick", f"{_name}_m64 DC /{_digit}:m | 64")
    add("quick", f"{_name.replace('f', 'fi', 1)}_m32 DA /{_digit}:m | 32")
    add("quick", f"{_name.replace('f', 'fi', 1)}_m16 DE /{_digit}:m | 16")
    add("quick", f"{_name}_st_sti D8 {0xC0 + 8 * _digit:02X}+i")
# DC and DE: the destination is ST(i), and subtractions and divisions change places (SDM 2A FSUB, FDIV)
for _name, _code in (("fadd", 0xC0), ("fmul", 0xC8), ("fsubr", 0xE0), ("fsub", 0xE8), ("fdivr", 0xF0), ("fdiv", 0xF8)):
    add("quick", f"{_name}_sti_st DC {_code:02X}+i")
    add("quick", f"{_name}p_sti_st DE {_code:02X}+i")

add("own", """
    fld_m80 DB /5:m | 80
    fld_sti D9 C0+i
    fstp_m80 DB /7:m | 80
    fst_sti DD D0+i
    fstp_sti DD D8+i
    fxch_sti D9 C8+i
    fld1 D9 E8
    fldz D9 EE
    fchs D9 E0
    fabs D9 E1""")
add("quick", """
    fld_m32 D9 /0:m | 32
    fld_m64 DD /0:m | 64
    fild_m16 DF /0:m | 16
    fild_m32 DB /0:m | 32
    fild_m64 DF /5:m | 64
    fst_m32 D9 /2:m | 32
    fst_m64 DD /2:m | 64
    fstp_m32 D9 /3:m | 32
    fstp_m64 DD /3:m | 64
    fucomi_sti DB E8+i
    fcomi_sti DB F0+i
    fucomip_sti DF E8+i
    fcomip_sti DF F0+i
    fist_m32 DB /2:m | 32
    fistp_m32 DB /3:m | 32
    fistp_m64 DF /7:m | 64
    fisttp_m32 DB /1:m | 32
    fisttp_m64 DD /1:m | 64
    fist_m16 DF /2:m | 16
    fistp_m16 DF /3:m | 16
    fisttp_m16 DF /1:m | 16
    fsqrt D9 FA
    frndint D9 FC
    fucompp DA E9
    fucom_sti DD E0+i
    fucomp_sti DD E8+i
    fcompp DE D9""")
add("thunk", """
    fbld_m80 DF /4:m | 80
    fbstp_m80 DF /6:m | 80
    fnop D9 D0
    ftst D9 E4
    fxam D9 E5
    fldl2t D9 E9
    fldl2e D9 EA
    fldpi D9 EB
    fldlg2 D9 EC
    fldln2 D9 ED
    f2xm1 D9 F0
    fyl2x D9 F1
    fptan D9 F2
    fpatan D9 F3
    fxtract D9 F4
    fprem1 D9 F5
    fdecstp D9 F6
    fincstp D9 F7
    fprem D9 F8
    fyl2xp1 D9 F9
    fsincos D9 FB
    fscale D9 FD
    fsin D9 FE
    fcos D9 FF
    fcmovb_sti DA C0+i
    fcmove_sti DA C8+i
    fcmovbe_sti DA D0+i
    fcmovu_sti DA D8+i
    fcmovnb_sti DB C0+i
    fcmovne_sti DB C8+i
    fcmovnbe_sti DB D0+i
    fcmovnu_sti DB D8+i
    ffree_sti DD C0+i""")
# not in the manual's list, but every maker's x87 knows them: other encodings of the same
add("thunk", """
    fstpnce_sti D9 D8+i
    fcom2_sti DC D0+i
    fcomp3_sti DC D8+i
    fxch4_sti DD C8+i
    fcomp5_sti DE D0+i
    ffreep_sti DF C0+i
    fxch7_sti DF C8+i
    fstp8_sti DF D0+i
    fstp9_sti DF D8+i""")
add("own", """
    fldenv D9 /4:m | 0
    fnstenv D9 /6:m | 0
    frstor DD /4:m | 0
    fnsave DD /6:m | 0
    fldcw D9 /5:m | 16
    fnstcw D9 /7:m | 16
    fnstsw_m16 DD /7:m | 16
    fnstsw_ax DF E0
    fnclex DB E2
    fninit DB E3
    feni DB E0
    fdisi DB E1
    fsetpm DB E4""")
add("own", "fwait 9B", unit="wait")

ROWS = [insn for insn, _ in FORMS]
