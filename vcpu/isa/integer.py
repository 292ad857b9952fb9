"""Rows of the integer instructions (SDM 2A-2C): arithmetic, moves, bits, branches, stack, BCD, strings. Owner: CORE.

Owns:    the rows; format and meaning are in table.py.
Never:   behaviour: templates are in vcpu/isa/emit_integer.py, the rest in vcpu/ops/integer_*.pxi.
Threads: constants.
"""

from dataclasses import replace

from .table import ENDS, Insn

ARITH = "CF PF AF ZF SF OF"
CONDITIONS = ("o", "no", "b", "nb", "z", "nz", "be", "nbe", "s", "ns", "p", "np", "l", "nl", "le", "nle")


def arithmetic() -> list[Insn]:
    rows = []
    for number, name in enumerate(("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp")):
        lock = name != "cmp"
        reads = "CF" if name in ("adc", "sbb") else ""
        undefined = "AF" if name in ("or", "and", "xor") else ""
        common = {"reads": reads, "writes": ARITH, "undefined": undefined, "sdm": f"2A-2C {name.upper()}"}
        base = number * 8
        rows += [
            Insn(name, f"{base:02X} /r", "rm8, r8", lock=lock, **common),
            Insn(name, f"{base + 1:02X} /r", "rm, r", lock=lock, **common),
            Insn(name, f"{base + 2:02X} /r", "r8, rm8", **common),
            Insn(name, f"{base + 3:02X} /r", "r, rm", **common),
            Insn(name, f"{base + 4:02X} ib", "a8, imm8", **common),
            Insn(name, f"{base + 5:02X} iz", "a, imm", **common),
            Insn(name, f"80 /{number} ib", "rm8, imm8", lock=lock, **common),
            Insn(name, f"81 /{number} iz", "rm, imm", lock=lock, **common),
            Insn(name, f"82 /{number} ib", "rm8, imm8", lock=lock, modes="legacy", **common),
            Insn(name, f"83 /{number} ib", "rm, imm8s", lock=lock, **common),
        ]
    test = {"writes": ARITH, "undefined": "AF", "sdm": "2B TEST"}
    rows += [
        Insn("test", "84 /r", "rm8, r8", **test), Insn("test", "85 /r", "rm, r", **test),
        Insn("test", "A8 ib", "a8, imm8", **test), Insn("test", "A9 iz", "a, imm", **test),
        *(Insn("test", f"F6 /{digit} ib", "rm8, imm8", **test) for digit in (0, 1)),
        *(Insn("test", f"F7 /{digit} iz", "rm, imm", **test) for digit in (0, 1)),
    ]
    return rows


def one_operand() -> list[Insn]:
    step = "PF AF ZF SF OF"
    rows = [
        Insn("inc", "FE /0", "rm8", lock=True, writes=step, sdm="2A INC"),
        Insn("inc", "FF /0", "rm", lock=True, writes=step, sdm="2A INC"),
        Insn("inc", "40 +r", "o", writes=step, modes="legacy", sdm="2A INC"),
        Insn("dec", "FE /1", "rm8", lock=True, writes=step, sdm="2A DEC"),
        Insn("dec", "FF /1", "rm", lock=True, writes=step, sdm="2A DEC"),
        Insn("dec", "48 +r", "o", writes=step, modes="legacy", sdm="2A DEC"),
    ]
    for operand, code in (("rm8", "F6"), ("rm", "F7")):
        rows += [
            Insn("not", f"{code} /2", operand, lock=True, sdm="2B NOT"),
            Insn("neg", f"{code} /3", operand, lock=True, writes=ARITH, sdm="2B NEG"),
            Insn("mul", f"{code} /4", operand, writes=ARITH, undefined="SF ZF AF PF", sdm="2B MUL"),
            Insn("imul", f"{code} /5", operand, writes=ARITH, undefined="SF ZF AF PF", sdm="2A IMUL"),
            Insn("div", f"{code} /6", operand, undefined=ARITH, sdm="2A DIV"),
            Insn("idiv", f"{code} /7", operand, undefined=ARITH, sdm="2A IDIV"),
        ]
    multiply = {"writes": ARITH, "undefined": "SF ZF AF PF", "sdm": "2A IMUL"}
    return [*rows, Insn("imul2", "0F AF /r", "r, rm", **multiply), Insn("imul3", "69 /r iz", "r, rm, imm", **multiply),
            Insn("imul3", "6B /r ib", "r, rm, imm8s", **multiply)]


def shifts() -> list[Insn]:
    rows = []
    names = ("rol", "ror", "rcl", "rcr", "shl", "shr", "shl", "sar")
    for number, name in enumerate(names):
        common = {
            "reads": "CF" if name in ("rcl", "rcr") else "",
            "writes": ARITH if number >= 4 else "CF OF",
            "undefined": "AF OF>1 CF>size" if number >= 4 else "OF>1",
            "sdm": "2B RCL/RCR/ROL/ROR" if number < 4 else "2B SAL/SAR/SHL/SHR",
        }
        for size, wide in (("rm8", 0), ("rm", 1)):
            rows += [
                Insn(name, f"{0xC0 + wide:02X} /{number} ib", f"{size}, imm8", **common),
                Insn(name, f"{0xD0 + wide:02X} /{number}", f"{size}, one", **common),
                Insn(name, f"{0xD2 + wide:02X} /{number}", f"{size}, cl", **common),
            ]
    for name, code in (("shld", 0xA4), ("shrd", 0xAC)):
        common = {"writes": ARITH, "undefined": "AF OF>1 all>size", "sdm": f"2B {name.upper()}"}
        rows += [Insn(name, f"0F {code:02X} /r ib", "rm, r, imm8", **common),
                 Insn(name, f"0F {code + 1:02X} /r", "rm, r, cl", **common)]
    return rows


def moves() -> list[Insn]:
    mov = {"sdm": "2B MOV"}
    return [
        Insn("mov", "88 /r", "rm8, r8", **mov), Insn("mov", "89 /r", "rm, r", **mov),
        Insn("mov", "8A /r", "r8, rm8", **mov), Insn("mov", "8B /r", "r, rm", **mov),
        Insn("mov", "A0", "a8, moffs8", **mov), Insn("mov", "A1", "a, moffs", **mov),
        Insn("mov", "A2", "moffs8, a8", **mov), Insn("mov", "A3", "moffs, a", **mov),
        Insn("mov", "B0 +r ib", "o8, imm8", **mov), Insn("mov", "B8 +r iv", "o, immv", **mov),
        Insn("mov", "C6 /0 ib", "rm8, imm8", **mov), Insn("mov", "C7 /0 iz", "rm, imm", **mov),
        Insn("movnti", "NP REX.W0 + 0F C3 /r:m", "rm32, r32", cpuid="SSE2", sdm="2B MOVNTI"),
        Insn("movnti", "NP REX.W + 0F C3 /r:m", "rm64, r64", cpuid="SSE2", sdm="2B MOVNTI"),
        Insn("movzx", "0F B6 /r", "r, rm8", sdm="2B MOVZX"), Insn("movzx", "0F B7 /r", "r, rm16", sdm="2B MOVZX"),
        Insn("movsx", "0F BE /r", "r, rm8", sdm="2B MOVSX"), Insn("movsx", "0F BF /r", "r, rm16", sdm="2B MOVSX"),
        Insn("movsxd", "63 /r", "r, rm32", modes="64", sdm="2B MOVSXD"),
        Insn("lea", "8D /r:m", "r, ea", sdm="2A LEA"),
        Insn("xchg", "86 /r", "rm8, r8", lock=True, sdm="2C XCHG"),
        Insn("xchg", "87 /r", "rm, r", lock=True, sdm="2C XCHG"),
        Insn("nop_or_xchg", "90 +r", "o", handler="nop_or_xchg", sdm="2B NOP, 2C XCHG"),
        Insn("movbe", "NFx 0F 38 F0 /r:m", "r, rm", cpuid="MOVBE", sdm="2B MOVBE"),
        Insn("movbe", "NFx 0F 38 F1 /r:m", "rm, r", cpuid="MOVBE", sdm="2B MOVBE"),
        Insn("bswap", "0F C8 +r", "o", undefined="16-bit result", sdm="2A BSWAP"),
        Insn("cbw", "98", "a", sdm="2A CBW/CWDE/CDQE"), Insn("cwd", "99", "a", sdm="2A CWD/CDQ/CQO"),
        *(Insn(f"cmov{cc}", f"0F {0x40 + i:02X} /r", "r, rm", reads="CF PF ZF SF OF", sdm="2A CMOVcc")
          for i, cc in enumerate(CONDITIONS)),
        *(Insn(f"set{cc}", f"0F {0x90 + i:02X} /r", "rm8", reads="CF PF ZF SF OF", sdm="2B SETcc")
          for i, cc in enumerate(CONDITIONS)),
        Insn("xlat", "D7", handler="xlat", sdm="2C XLAT"),
        Insn("lahf", "9F", handler="lahf", reads="CF PF AF ZF SF", sdm="2A LAHF"),
        Insn("sahf", "9E", handler="sahf", writes="CF PF AF ZF SF", sdm="2B SAHF"),
    ]


def bits() -> list[Insn]:
    rows = []
    undefined = "PF AF SF OF"
    for name, code, digit in (("bt", 0xA3, 4), ("bts", 0xAB, 5), ("btr", 0xB3, 6), ("btc", 0xBB, 7)):
        common = {"lock": name != "bt", "writes": "CF", "undefined": undefined, "sdm": f"2A {name.upper()}"}
        rows += [Insn(name, f"0F {code:02X} /r", "rm, r", **common),
                 Insn(name, f"0F BA /{digit} ib", "rm, imm8", **common)]
    scan = {"writes": "ZF", "undefined": "CF PF AF SF OF"}
    return [
        *rows,
        Insn("bsf", "0F BC /r", "r, rm", **scan, sdm="2A BSF"), Insn("bsr", "0F BD /r", "r, rm", **scan, sdm="2A BSR"),
        Insn("popcnt", "F3 0F B8 /r", "r, rm", writes=ARITH, cpuid="POPCNT", sdm="2B POPCNT"),
        Insn("lzcnt", "F3 0F BD /r", "r, rm", writes="CF ZF", undefined="PF AF SF OF", cpuid="LZCNT", sdm="2B LZCNT"),
        Insn("crc32", "F2 0F 38 F0 /r", "r32, rm8", cpuid="SSE4_2", sdm="2A CRC32"),
        Insn("crc32", "F2 0F 38 F1 /r", "r32, rm", cpuid="SSE4_2", sdm="2A CRC32"),
        Insn("xadd", "0F C0 /r", "rm8, r8", lock=True, writes=ARITH, sdm="2C XADD"),
        Insn("xadd", "0F C1 /r", "rm, r", lock=True, writes=ARITH, sdm="2C XADD"),
        Insn("cmpxchg", "0F B0 /r", "rm8, r8", lock=True, writes=ARITH, sdm="2A CMPXCHG"),
        Insn("cmpxchg", "0F B1 /r", "rm, r", lock=True, writes=ARITH, sdm="2A CMPXCHG"),
        Insn("cmpxchg8b", "NFx REX.W0 + 0F C7 /1:m", "m64", handler="cmpxchg8b", lock=True, writes="ZF", sdm="2A CMPXCHG8B"),
        Insn("cmpxchg16b", "NFx REX.W + 0F C7 /1:m", "m128", handler="cmpxchg16b", lock=True, writes="ZF",
             cpuid="CX16", sdm="2A CMPXCHG16B"),
    ]


def branches() -> list[Insn]:
    """In 64-bit mode handlers that follow links; elsewhere one of each kind, with limits and 16-bit wrap."""
    rows = []
    for number, cc in enumerate(CONDITIONS):
        for encoding, operand in ((f"{0x70 + number:02X} cb", "rel8"), (f"0F {0x80 + number:02X} cz", "rel")):
            rows += [Insn(f"j{cc}", encoding, operand, handler=f"j{cc}", modes="64", size="f64", block=ENDS,
                          reads="CF PF ZF SF OF", sdm="2A Jcc"),
                     Insn(f"j{cc}", encoding, operand, handler="jcc_legacy", modes="legacy", block=ENDS,
                          reads="CF PF ZF SF OF", sdm="2A Jcc")]
    near = (
        ("jmp", "EB cb", "rel8", "jmp_rel"), ("jmp", "E9 cz", "rel", "jmp_rel"), ("call", "E8 cz", "rel", "call_rel"),
        ("loopne", "E0 cb", "rel8", "loop"), ("loope", "E1 cb", "rel8", "loop"), ("loop", "E2 cb", "rel8", "loop"),
        ("jcxz", "E3 cb", "rel8", "jcxz"), ("ret", "C3", "", "ret"), ("ret", "C2 iw", "imm16", "ret_imm"),
        ("call", "FF /2", "rm", "call_rm"), ("jmp", "FF /4", "rm", "jmp_rm"),
    )
    for name, encoding, operands, handler in near:
        sdm = f"2A-2B {name.upper()}"
        fixed = None if handler in ("call_rm", "jmp_rm") else handler
        rows += [Insn(name, encoding, operands, handler=fixed, modes="64", size="f64", block=ENDS, sdm=sdm),
                 Insn(name, encoding, operands, handler=f"{handler}_legacy", modes="legacy", block=ENDS, sdm=sdm)]
    return rows


def stack() -> list[Insn]:
    forms = (
        ("push", "50 +r", "o", None, "push_o_legacy"), ("pop", "58 +r", "o", None, "pop_o_legacy"),
        ("push", "FF /6", "rm", None, "push_rm_legacy"), ("pop", "8F /0", "rm", None, "pop_rm_legacy"),
        ("push", "6A ib", "imm8s", "push_imm", "push_imm_legacy"), ("push", "68 iz", "imm", "push_imm", "push_imm_legacy"),
        ("pushf", "9C", "", "pushf", "pushf_legacy"), ("popf", "9D", "", "popf", "popf_legacy"),
        ("leave", "C9", "", "leave", "leave_legacy"), ("enter", "C8 iwib", "", "enter", "enter_legacy"),
    )
    rows = []
    for name, encoding, operands, fixed, legacy in forms:
        rows += [Insn(name, encoding, operands, handler=fixed, modes="64", size="d64", sdm=f"2A-2B {name.upper()}"),
                 Insn(name, encoding, operands, handler=legacy, modes="legacy", sdm=f"2A-2B {name.upper()}")]
    return [*rows, Insn("pusha", "60", handler="pusha", modes="legacy", sdm="2B PUSHA"),
            Insn("popa", "61", handler="popa", modes="legacy", sdm="2B POPA"),
            *(Insn("bound", f"o{bits} 62 /r:m", f"r, m{2 * bits}", handler="bound", modes="legacy", reads="memory", sdm="2A BOUND")
              for bits in (16, 32))]


def others() -> list[Insn]:
    hint = {"handler": "nop", "sdm": "2B NOP"}
    return [
        *(Insn(name, code, handler=name, writes="CF", sdm=f"2A {name.upper()}")
          for name, code in (("cmc", "F5"), ("clc", "F8"), ("stc", "F9"))),
        Insn("cld", "FC", handler="cld", sdm="2A CLD"), Insn("std", "FD", handler="std", sdm="2B STD"),
        # reserved NOPs (SDM 2B NOP, appendix A table A-3): prefetches, ENDBR, multi-byte NOP
        *(Insn("nop", f"0F {code:02X} /r", "rm0", **hint) for code in range(0x19, 0x20)),
        Insn("prefetch", "0F 18 /r", "rm0", **hint), Insn("prefetchw", "0F 0D /r", "rm0", **hint),
        Insn("clflush", "NP 0F AE /7:m", "m8", handler="clflush", cpuid="CLFSH", sdm="2A CLFLUSH"),
        *(Insn(name, f"NP 0F AE /{digit}:r", "rr", handler="fence", cpuid="SSE2", sdm=f"2A {name.upper()}")
          for name, digit in (("lfence", 5), ("mfence", 6), ("sfence", 7))),
        Insn("ud0", "0F FF /r", "rm0", handler="ud", sdm="2B UD"), Insn("ud1", "0F B9 /r", "rm0", handler="ud", sdm="2B UD"),
        Insn("ud2", "0F 0B", handler="ud", block=ENDS, sdm="2B UD"),
        *(Insn(name, code, handler=name, modes="legacy", reads="CF AF", writes=ARITH, undefined=undefined, sdm=f"2A {name.upper()}")
          for name, code, undefined in (("daa", "27", "OF"), ("das", "2F", "OF"),
                                        ("aaa", "37", "PF ZF SF OF"), ("aas", "3F", "PF ZF SF OF"))),
        *(Insn(name, code, "imm8", handler=name, modes="legacy", writes=ARITH, undefined="CF AF OF", sdm=f"2A {name.upper()}")
          for name, code in (("aam", "D4 ib"), ("aad", "D5 ib"))),
        Insn("salc", "D6", handler="salc", modes="legacy", reads="CF", sdm="not in the SDM; every processor has it"),
    ]


def strings() -> list[Insn]:
    """By operand size; op.flags tell address size and repetition."""
    rows = []
    for name, code in (("movs", 0xA4), ("cmps", 0xA6), ("stos", 0xAA), ("lods", 0xAC), ("scas", 0xAE)):
        writes = ARITH if name in ("cmps", "scas") else ""
        rows += [Insn(name, f"{code:02X}", handler=f"{name}_8", size="b", writes=writes, sdm=f"2A-2B {name.upper()}"),
                 *(Insn(name, f"o{bits} {code + 1:02X}", handler=f"{name}_{bits}", writes=writes, sdm=f"2A-2B {name.upper()}")
                   for bits in (16, 32, 64))]
    return rows


def destination_first(row: Insn) -> Insn:
    """Register forms: op.b is the first operand, op.r the second, whichever of them ModRM.rm names."""
    first, _, second = row.operands.partition(", ")
    swap = row.handler is None and first in ("r8", "r", "r32") and second.startswith("rm")
    return replace(row, swap=True) if swap else row


ROWS = [destination_first(row) for row in (
    *arithmetic(), *one_operand(), *shifts(), *moves(), *bits(), *branches(), *stack(), *others(), *strings())]
