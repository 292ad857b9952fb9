"""MMX, SSE to SSE4.2, AES, PCLMULQDQ and the state-saving instructions as rows.

Owns:    their encodings, and for each row the kind of kernel that carries it out (KINDS of emit_sse.py).
Never:   behaviour: kernels are in vcpu/ops/sse_kernels.h, irregular handlers in vcpu/ops/sse_*.pxi.
Threads: built once at import.

A line of a group is `mnemonic encoding | operands`, or with the operands given once for the group.
"""

from vcpu.isa.table import ENDS, Insn

FORMS: list[tuple[Insn, str]] = []       # (row, kind)


def add(kind: str, unit: str | None, cpuid: str, text: str, operands: str = "", **more: object) -> None:
    for line in text.strip().splitlines():
        head, _, own = line.partition("|")
        mnemonic, encoding = head.split(None, 1)
        FORMS.append((Insn(mnemonic, encoding.strip(), own.strip() or operands, unit=unit, cpuid=cpuid,
                           sdm=f"2 {mnemonic.upper()}", **more), kind))      # type: ignore[arg-type]


def packed(cpuid: str, prefix: str, text: str, kind_mm: str = "mm", mm_memory: int = 64, mm_cpuid: str = "") -> None:
    """Pairs of `mnemonic opcode`: an MMX form without prefix and an XMM form with 66."""
    words = text.split()
    for mnemonic, opcode in zip(words[::2], words[1::2]):
        add("op", "sse", cpuid, f"{mnemonic} 66 {prefix} {opcode} /r | xmm1, xmm2/m128")
        add(kind_mm, "mmx", mm_cpuid or "mmx", f"{mnemonic} NP {prefix} {opcode} /r | mm1, mm2/m{mm_memory}")


# --- integer operations that MMX and SSE2 share
packed("sse2", "0F", "punpcklbw 60 punpcklwd 61 punpckldq 62", mm_memory=32)
packed("sse2", "0F", "punpckhbw 68 punpckhwd 69 punpckhdq 6A", "mm_high")
packed("sse2", "0F", "packsswb 63 packuswb 67 packssdw 6B", "mm_join")
packed("sse2", "0F", """
    pcmpgtb 64 pcmpgtw 65 pcmpgtd 66 pcmpeqb 74 pcmpeqw 75 pcmpeqd 76 psrlw D1 psrld D2 psrlq D3 pmullw D5
    psubusb D8 psubusw D9 pand DB paddusb DC paddusw DD pandn DF psraw E1 psrad E2 pmulhw E5 psubsb E8 psubsw E9
    por EB paddsb EC paddsw ED pxor EF psllw F1 pslld F2 psllq F3 pmaddwd F5 psubb F8 psubw F9 psubd FA
    paddb FC paddw FD paddd FE""")
packed("sse2", "0F", "pminub DA pmaxub DE pavgb E0 pavgw E3 pmulhuw E4 pminsw EA pmaxsw EE psadbw F6", mm_cpuid="sse")
packed("sse2", "0F", "paddq D4 pmuludq F4 psubq FB", mm_cpuid="sse2")
packed("ssse3", "0F 38", "pshufb 00", "mm_pshufb", mm_cpuid="ssse3")
packed("ssse3", "0F 38", "phaddw 01 phaddd 02 phaddsw 03 phsubw 05 phsubd 06 phsubsw 07", "mm_join", mm_cpuid="ssse3")
packed("ssse3", "0F 38", """
    pmaddubsw 04 psignb 08 psignw 09 psignd 0A pmulhrsw 0B pabsb 1C pabsw 1D pabsd 1E""", mm_cpuid="ssse3")

# --- shifts by an immediate count
SHIFTS = {"psrlw": (0x71, 2), "psraw": (0x71, 4), "psllw": (0x71, 6), "psrld": (0x72, 2), "psrad": (0x72, 4),
          "pslld": (0x72, 6), "psrlq": (0x73, 2), "psllq": (0x73, 6)}
for _name, (_opcode, _digit) in SHIFTS.items():
    add("shift", "sse", "sse2", f"{_name} 66 0F {_opcode:02X} /{_digit} ib | xmm2, imm8")
    add("mm_shift", "mmx", "mmx", f"{_name} NP 0F {_opcode:02X} /{_digit} ib | mm2, imm8")
add("shift_bytes", "sse", "sse2", """
    psrldq 66 0F 73 /3 ib
    pslldq 66 0F 73 /7 ib""", "xmm2, imm8")

# --- two XMM operands, no MXCSR
add("op", "sse", "sse2", """
    punpcklqdq 66 0F 6C /r
    punpckhqdq 66 0F 6D /r
    unpcklps NP 0F 14 /r
    unpcklpd 66 0F 14 /r
    unpckhps NP 0F 15 /r
    unpckhpd 66 0F 15 /r
    andps NP 0F 54 /r
    andpd 66 0F 54 /r
    andnps NP 0F 55 /r
    andnpd 66 0F 55 /r
    orps NP 0F 56 /r
    orpd 66 0F 56 /r
    xorps NP 0F 57 /r
    xorpd 66 0F 57 /r
    movsldup F3 0F 12 /r
    movshdup F3 0F 16 /r""", "xmm1, xmm2/m128")
add("op", "sse", "sse3", "movddup F2 0F 12 /r | xmm1, xmm2/m64")
add("op", "sse", "sse4.1", """
    pmovsxbw 66 0F 38 20 /r | xmm1, xmm2/m64
    pmovsxbd 66 0F 38 21 /r | xmm1, xmm2/m32
    pmovsxbq 66 0F 38 22 /r | xmm1, xmm2/m16
    pmovsxwd 66 0F 38 23 /r | xmm1, xmm2/m64
    pmovsxwq 66 0F 38 24 /r | xmm1, xmm2/m32
    pmovsxdq 66 0F 38 25 /r | xmm1, xmm2/m64
    pmovzxbw 66 0F 38 30 /r | xmm1, xmm2/m64
    pmovzxbd 66 0F 38 31 /r | xmm1, xmm2/m32
    pmovzxbq 66 0F 38 32 /r | xmm1, xmm2/m16
    pmovzxwd 66 0F 38 33 /r | xmm1, xmm2/m64
    pmovzxwq 66 0F 38 34 /r | xmm1, xmm2/m32
    pmovzxdq 66 0F 38 35 /r | xmm1, xmm2/m64""")
_SSE41 = """pmuldq 28 pcmpeqq 29 packusdw 2B pminsb 38 pminsd 39 pminuw 3A pminud 3B pmaxsb 3C pmaxsd 3D
    pmaxuw 3E pmaxud 3F pmulld 40 phminposuw 41""".split()
for _name, _code in zip(_SSE41[::2], _SSE41[1::2]):
    add("op", "sse", "sse4.1", f"{_name} 66 0F 38 {_code} /r | xmm1, xmm2/m128")
add("op", "sse", "sse4.2", "pcmpgtq 66 0F 38 37 /r | xmm1, xmm2/m128")
add("op", "sse", "aes", """
    aesimc 66 0F 38 DB /r
    aesenc 66 0F 38 DC /r
    aesenclast 66 0F 38 DD /r
    aesdec 66 0F 38 DE /r
    aesdeclast 66 0F 38 DF /r""", "xmm1, xmm2/m128")
add("blendv", "sse", "sse4.1", """
    pblendvb 66 0F 38 10 /r
    blendvps 66 0F 38 14 /r
    blendvpd 66 0F 38 15 /r""", "xmm1, xmm2/m128, xmm0")
add("approximate", "sse", "sse", """
    rsqrtps NP 0F 52 /r | xmm1, xmm2/m128
    rsqrtss F3 0F 52 /r | xmm1, xmm2/m32
    rcpps NP 0F 53 /r | xmm1, xmm2/m128
    rcpss F3 0F 53 /r | xmm1, xmm2/m32""")

# --- with an immediate: one stub of the host's instruction for each of the 256 values
add("op_imm", "sse", "sse2", """
    pshufd 66 0F 70 /r ib
    pshufhw F3 0F 70 /r ib
    pshuflw F2 0F 70 /r ib
    shufps NP 0F C6 /r ib
    shufpd 66 0F C6 /r ib""", "xmm1, xmm2/m128, imm8")
add("op_imm", "sse", "sse4.1", """
    blendps 66 0F 3A 0C /r ib
    blendpd 66 0F 3A 0D /r ib
    pblendw 66 0F 3A 0E /r ib
    palignr 66 0F 3A 0F /r ib
    mpsadbw 66 0F 3A 42 /r ib
    pclmulqdq 66 0F 3A 44 /r ib
    aeskeygenassist 66 0F 3A DF /r ib""", "xmm1, xmm2/m128, imm8")
add("insertps", "sse", "sse4.1", "insertps 66 0F 3A 21 /r ib | xmm1, xmm2/m32, imm8")
add("mm_palignr", "mmx", "ssse3", "palignr NP 0F 3A 0F /r ib | mm1, mm2/m64, imm8")
add("mm_pshufw", "mmx", "sse", "pshufw NP 0F 70 /r ib | mm1, mm2/m64, imm8")

# --- floating point, under MXCSR. Kind: fp_<lanes of the result>, for the check of tiny results
_PREFIX = {"ps": ("NP", 128), "pd": ("66", 128), "ss": ("F3", 32), "sd": ("F2", 64)}
for _type, (_prefix, _bits) in _PREFIX.items():
    for _name, _code in (("add", "58"), ("mul", "59"), ("sub", "5C"), ("div", "5E")):
        add(f"fp_{_type}", "sse", "sse2", f"{_name}{_type} {_prefix} 0F {_code} /r | xmm1, xmm2/m{_bits}")
    for _name, _code in (("sqrt", "51"), ("min", "5D"), ("max", "5F")):
        add("fp_exact", "sse", "sse2", f"{_name}{_type} {_prefix} 0F {_code} /r | xmm1, xmm2/m{_bits}")
    add("fp_imm", "sse", "sse2", f"cmp{_type} {_prefix} 0F C2 /r ib | xmm1, xmm2/m{_bits}, imm8")
add("fp_ps", "sse", "sse3", """
    haddps F2 0F 7C /r
    hsubps F2 0F 7D /r
    addsubps F2 0F D0 /r""", "xmm1, xmm2/m128")
add("fp_pd", "sse", "sse3", """
    haddpd 66 0F 7C /r
    hsubpd 66 0F 7D /r
    addsubpd 66 0F D0 /r""", "xmm1, xmm2/m128")
add("fp_imm", "sse", "sse4.1", """
    roundps 66 0F 3A 08 /r ib | xmm1, xmm2/m128, imm8
    roundpd 66 0F 3A 09 /r ib | xmm1, xmm2/m128, imm8
    roundss 66 0F 3A 0A /r ib | xmm1, xmm2/m32, imm8
    roundsd 66 0F 3A 0B /r ib | xmm1, xmm2/m64, imm8""")
add("fp_imm_ps", "sse", "sse4.1", "dpps 66 0F 3A 40 /r ib | xmm1, xmm2/m128, imm8")
add("fp_imm_pd", "sse", "sse4.1", "dppd 66 0F 3A 41 /r ib | xmm1, xmm2/m128, imm8")
add("fp_exact", "sse", "sse2", """
    cvtps2pd NP 0F 5A /r | xmm1, xmm2/m64
    cvtss2sd F3 0F 5A /r | xmm1, xmm2/m32
    cvtdq2ps NP 0F 5B /r | xmm1, xmm2/m128
    cvtps2dq 66 0F 5B /r | xmm1, xmm2/m128
    cvttps2dq F3 0F 5B /r | xmm1, xmm2/m128
    cvttpd2dq 66 0F E6 /r | xmm1, xmm2/m128
    cvtpd2dq F2 0F E6 /r | xmm1, xmm2/m128
    cvtdq2pd F3 0F E6 /r | xmm1, xmm2/m64""")
add("fp_half_ps", "sse", "sse2", "cvtpd2ps 66 0F 5A /r | xmm1, xmm2/m128")
add("fp_ss", "sse", "sse2", "cvtsd2ss F2 0F 5A /r | xmm1, xmm2/m64")
add("compare", "sse", "sse2", """
    ucomiss NP 0F 2E /r | xmm1, xmm2/m32
    ucomisd 66 0F 2E /r | xmm1, xmm2/m64
    comiss NP 0F 2F /r | xmm1, xmm2/m32
    comisd 66 0F 2F /r | xmm1, xmm2/m64""", writes="CF PF AF ZF SF OF")
for _type in ("ss", "sd"):
    _prefix, _bits = _PREFIX[_type]
    add("from_int", "sse", "sse2", f"""
        cvtsi2{_type} {_prefix} REX.W0 + 0F 2A /r | xmm1, rm32
        cvtsi2{_type} {_prefix} REX.W + 0F 2A /r | xmm1, rm64""")
    for _name, _code in (("cvtt", "2C"), ("cvt", "2D")):
        add("to_int", "sse", "sse2", f"""
            {_name}{_type}2si {_prefix} REX.W0 + 0F {_code} /r | r32, xmm2/m{_bits}
            {_name}{_type}2si {_prefix} REX.W + 0F {_code} /r | r64, xmm2/m{_bits}""")
add("from_mm", "sse", "sse2", """
    cvtpi2ps NP 0F 2A /r
    cvtpi2pd 66 0F 2A /r""", "xmm1, mm2/m64")
add("to_mm", "sse", "sse2", """
    cvttps2pi NP 0F 2C /r | mm1, xmm2/m64
    cvttpd2pi 66 0F 2C /r | mm1, xmm2/m128
    cvtps2pi NP 0F 2D /r | mm1, xmm2/m64
    cvtpd2pi 66 0F 2D /r | mm1, xmm2/m128""")

# --- flags, masks, strings
add("ptest", "sse", "sse4.1", "ptest 66 0F 38 17 /r | xmm1, xmm2/m128", writes="CF PF AF ZF SF OF")
add("string", "sse", "sse4.2", """
    pcmpestrm 66 0F 3A 60 /r ib
    pcmpestri 66 0F 3A 61 /r ib
    pcmpistrm 66 0F 3A 62 /r ib
    pcmpistri 66 0F 3A 63 /r ib""", "xmm1, xmm2/m128, imm8", writes="CF PF AF ZF SF OF")

# --- moves: handlers in vcpu/ops/sse_moves.pxi
for _name, _prefix, _load, _store in (("movups", "NP", "10", "11"), ("movupd", "66", "10", "11"),
                                      ("movaps", "NP", "28", "29"), ("movapd", "66", "28", "29"),
                                      ("movdqa", "66", "6F", "7F"), ("movdqu", "F3", "6F", "7F")):
    add("own", "sse", "sse2", f"{_name} {_prefix} 0F {_load} /r | xmm1, xmm2/m128")
    add("own", "sse", "sse2", f"{_name} {_prefix} 0F {_store} /r | xmm2/m128, xmm1", swap=True)
for _name, _prefix, _bits in (("movss", "F3", 32), ("movsd", "F2", 64)):
    add("own", "sse", "sse2", f"{_name} {_prefix} 0F 10 /r | xmm1, xmm2/m{_bits}")
    add("own", "sse", "sse2", f"{_name} {_prefix} 0F 11 /r | xmm2/m{_bits}, xmm1", swap=True)
for _name, _prefix, _load, _store in (("movlps", "NP", "12", "13"), ("movlpd", "66", "12", "13"),
                                      ("movhps", "NP", "16", "17"), ("movhpd", "66", "16", "17")):
    add("own", "sse", "sse2", f"""
        {_name} {_prefix} 0F {_load} /r:m | xmm1, m64
        {_name} {_prefix} 0F {_store} /r:m | m64, xmm1""")
add("own", "sse", "sse2", """
    movhlps NP 0F 12 /r:r | xmm1, xmm2
    movlhps NP 0F 16 /r:r | xmm1, xmm2
    movd 66 REX.W0 + 0F 6E /r | xmm1, rm32
    movq 66 REX.W + 0F 6E /r | xmm1, rm64
    movd 66 REX.W0 + 0F 7E /r | rm32, xmm1
    movq 66 REX.W + 0F 7E /r | rm64, xmm1
    movq F3 0F 7E /r | xmm1, xmm2/m64
    lddqu F2 0F F0 /r:m | xmm1, m128
    movntdqa 66 0F 38 2A /r:m | xmm1, m128
    movntps NP 0F 2B /r:m | m128, xmm1
    movntpd 66 0F 2B /r:m | m128, xmm1
    movntdq 66 0F E7 /r:m | m128, xmm1
    movmskps NP 0F 50 /r:r | r32, xmm2
    movmskpd 66 0F 50 /r:r | r32, xmm2
    pmovmskb 66 0F D7 /r:r | r32, xmm2
    movq2dq F3 0F D6 /r:r | xmm1, mm2
    movdq2q F2 0F D6 /r:r | mm1, xmm2
    pinsrw 66 0F C4 /r ib | xmm1, r32/m16, imm8
    pextrw 66 0F C5 /r:r ib | r32, xmm2, imm8""")
add("own", "sse", "sse2", "movq 66 0F D6 /r | xmm2/m64, xmm1", swap=True)
add("own", "sse", "sse2", "maskmovdqu 66 0F F7 /r:r | xmm1, xmm2", handler="maskmovdqu")
add("own", "sse", "sse4.1", """
    pextrb 66 0F 3A 14 /r ib | r32/m8, xmm1, imm8
    pextrd 66 REX.W0 + 0F 3A 16 /r ib | rm32, xmm1, imm8
    pextrq 66 REX.W + 0F 3A 16 /r ib | rm64, xmm1, imm8
    extractps 66 0F 3A 17 /r ib | r32/m32, xmm1, imm8
    pinsrb 66 0F 3A 20 /r ib | xmm1, r32/m8, imm8
    pinsrd 66 REX.W0 + 0F 3A 22 /r ib | xmm1, rm32, imm8
    pinsrq 66 REX.W + 0F 3A 22 /r ib | xmm1, rm64, imm8""")
add("own", "sse", "sse4.1", "pextrw 66 0F 3A 15 /r ib | r32/m16, xmm1, imm8", swap=True)
add("own", "mmx", "mmx", """
    movd NP REX.W0 + 0F 6E /r | mm1, rm32
    movq NP REX.W + 0F 6E /r | mm1, rm64
    movd NP REX.W0 + 0F 7E /r | rm32, mm1
    movq NP REX.W + 0F 7E /r | rm64, mm1
    movq NP 0F 6F /r | mm1, mm2/m64
    movntq NP 0F E7 /r:m | m64, mm1
    pmovmskb NP 0F D7 /r:r | r32, mm2
    pinsrw NP 0F C4 /r ib | mm1, r32/m16, imm8
    pextrw NP 0F C5 /r:r ib | r32, mm2, imm8""")
add("own", "mmx", "mmx", "movq NP 0F 7F /r | mm2/m64, mm1", swap=True)
add("own", "mmx", "sse", "maskmovq NP 0F F7 /r:r | mm1, mm2", handler="maskmovq")
add("own", "mmx", "mmx", "emms NP 0F 77", handler="emms")

# --- state: handlers in vcpu/ops/sse_state.pxi. Images begin with a read, so no row says "write" by its first operand
for _w, _suffix in (("REX.W0", ""), ("REX.W", "64")):
    for _name, _code, _reads in (("fxsave", "0F AE /0:m", False), ("fxrstor", "0F AE /1:m", True)):
        add("own", "x87", "fxsr", f"{_name}{_suffix} NP {_w} + {_code} | m4096", handler=f"{_name}{_suffix}",
            reads="memory" if _reads else "")
    for _name, _code, _reads in (("xsave", "0F AE /4:m", False), ("xrstor", "0F AE /5:m", True),
                                 ("xsaveopt", "0F AE /6:m", False), ("xsavec", "0F C7 /4:m", False)):
        add("own", None, "xsave", f"{_name}{_suffix} NP {_w} + {_code} | m0", handler=f"{_name}{_suffix}",
            reads="memory" if _reads else "")
add("own", "sse", "sse", "ldmxcsr NP 0F AE /2:m | m32", handler="ldmxcsr", reads="memory")
add("own", "sse", "sse", "stmxcsr NP 0F AE /3:m | m32", handler="stmxcsr")
add("own", None, "xsave", "xgetbv NP 0F 01 D0", handler="xgetbv")
add("own", None, "xsave", "xsetbv NP 0F 01 D1", handler="xsetbv", cpl=0, block=ENDS)

ROWS = [insn for insn, _ in FORMS]
