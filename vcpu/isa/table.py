"""The instruction table: what a row says, how it is read, and the families joined.

Owns:    the row format (Insn), the parser of encodings and operands, the packed form that the decoder searches.
Never:   behaviour; a handler is found by name only.
Threads: built once at import.

Format of a row
---------------
    Insn("shld", "0F A4 /r ib", "rm, r, imm8", writes="CF PF AF ZF SF OF", sdm="2B SHLD")

encoding, in the manual's notation (SDM 2A 3.1.1.1):
    [NP | NFx | 66 | F3 | F2] [REX.W + | REX.W0 +] bytes [+r | +i] [/r | /0../7] [ib iw id iz iv iq ib,ib …]
        NP   none of 66, F3, F2          NFx  neither F3 nor F2; 66 is the operand size
        none no word: 66 is the operand size, F2/F3 go to op.flags (rep, repne), the row matches with any of them
        REX.W +   only with W = 1        REX.W0 +   only with W = 0
        o16 o32 o64   only with this effective operand size        a16 a32 a64  address size
    "D9 C0+i", "0F 01 C1": a second byte C0..FF that follows an opcode with ModRM is a ModRM byte, mod = 3
    "D9 /6" with an m operand is the memory form only; "/r:m" or "/6:m" memory only, "/r:r" register only
operands, in the manual's order, separated by commas:
    r8 r16 r32 r64 r          general register in ModRM.reg (r: by operand size)
    rm8 rm16 rm32 rm64 rm     general register or memory in ModRM.rm
    r32/m8 r32/m16 …          ModRM.rm: register of the first size, memory of the second
    rm0                       either form, and neither is looked at (reserved NOPs)
    rr16 rr32 rr64 rr         ModRM.rm, register form only
    o8 o                      register in the opcode's low three bits (+r)
    a8 a                      AL, or AX/EAX/RAX: a register operand in op.b
    cl                        CL
    m8 … m512, m, m0          memory only, of so many bits; m: by operand size; m0: an address, nothing is accessed
    ea                        memory form, but the offset alone is meant (LEA): no segment, no address step
    moffs8 moffs              memory at an address in the instruction
    imm8 imm8s imm16 imm immv one       zero-extended byte, sign-extended byte, word, z (sign-extended), v, constant 1
    rel8 rel                  branch distance
    ptr                       far pointer: op.imm = offset | selector << 32
    sreg cr dr                in ModRM.reg: raw number in op.r
    xmm1 xmm2 xmm2/m128 …     ModRM.reg; ModRM.rm register only; ModRM.rm register or memory of so many bits
    mm1 mm2 mm2/m64 …         the same for MMX                  xmm0: implied, ignored
    st sti                    implied; ST(i) of the second opcode byte: number in op.b
handler: without handler=, the name is mnemonic + one suffix for each operand:
    general register r8/r16/r32/r64; memory of an rm/m/moffs operand m8/m16/m32/m64 (by operand size or its own);
    other memory m; immediates i; rel rel; x, mm, s, c, d, cl, st, sti
    e.g. add_r64_m64, add_m32_i, shld_r64_r64_i, pshufb_x_m, cvtsi2sd_x_m64, movq_mm_m.
    handler="name": this name for every form; op.opsize, op.modrm, op.flags tell the rest.
size: how the operand size is found:
    ""    66 and REX.W by mode                      "d64"  in 64-bit mode 64, with 66: 16 (push, pop)
    "f64" in 64-bit mode always 64 (near branches)  "b"    one byte
unit:  "x87", "mmx", "sse", "wait": the decoder turns the instruction into #UD or #NM by CR0.EM/TS/MP and
       CR4.OSFXSR (bits of the mode key), so that handlers need not look.
block: ENDS: nothing is decoded behind it in this block (branches, mode changes, whatever needs the loop).
lock:  LOCK is allowed with a memory destination; elsewhere it is #UD. Handlers named lock_* take it.
swap:  register forms only: op.b and op.r exchange places, so that "add r, rm" shares add_r64_r64.
modes: "any", "64", "legacy".     cpl: highest CPL allowed (None: no check here).
"""

import re
import struct
from dataclasses import dataclass, field

CONTINUES = "continues"
ENDS = "ends"

MODES = {"any": 3, "64": 2, "legacy": 1}
PREFIXES = {"": 0, "NP": 1, "66": 2, "F3": 3, "F2": 4, "NFx": 5}
SIZES = {"": 0, "d64": 1, "f64": 2, "b": 3}
UNITS = {None: 0, "x87": 1, "mmx": 2, "sse": 3, "wait": 4}
IMMEDIATES = {"": 0, "ib": 1, "ibs": 2, "iw": 3, "iz": 4, "iv": 5, "iwib": 6, "ptr": 7, "one": 8, "moffs": 9,
              "cb": 10, "cz": 11, "id": 12, "ibib": 13}

# what the decoder puts into op.r and op.b
REG_NONE, REG_GPR8, REG_GPR, REG_RAW = range(4)
RM_NONE, RM_GPR8, RM_GPR, RM_RAW, RM_OPCODE8, RM_OPCODE, RM_ACC, RM_STI = range(8)

ROW_FLAGS = {"ends": 1, "lock": 2, "swap": 4, "cpl0": 8, "modrm": 16, "write": 32, "no_ea": 64}


@dataclass(frozen=True)
class Insn:
    mnemonic: str
    encoding: str
    operands: str = ""
    handler: str | None = None
    reads: str = ""
    writes: str = ""
    undefined: str = ""
    cpl: int | None = None
    cpuid: str = ""
    intercept: str | None = None
    block: str = CONTINUES
    modes: str = "any"
    lock: bool = False
    swap: bool = False
    size: str = ""
    unit: str | None = None
    sdm: str = ""


@dataclass
class Encoding:
    """An encoding, taken apart."""

    prefix: str = ""
    w: int = 0                   # 0 any, 1: W = 0, 2: W = 1
    opsize: int = 0              # bits: 1 16, 2 32, 4 64; 0 any
    adsize: int = 0
    opcode: list[int] = field(default_factory=list)
    plus: str = ""               # r or i
    modrm: bool = False
    reg: int | None = None       # /digit
    mod: int = 3                 # 1 memory, 2 register, 3 both
    rm: int | None = None        # a ModRM byte that is part of the opcode
    immediates: str = ""


def parse_encoding(text: str) -> Encoding:
    e = Encoding()
    for word in text.replace("+r", " +r").replace("+i", " +i").replace(" + ", " ").split():
        if word in ("NP", "NFx") or (word in ("66", "F3", "F2") and not e.opcode):
            e.prefix = word
        elif word in ("REX.W", "REX.W0"):
            e.w = 2 if word == "REX.W" else 1
        elif word in ("o16", "o32", "o64"):
            e.opsize |= {"o16": 1, "o32": 2, "o64": 4}[word]
        elif word in ("a16", "a32", "a64"):
            e.adsize |= {"a16": 1, "a32": 2, "a64": 4}[word]
        elif word.startswith("/"):
            e.modrm = True
            digit, _, which = word[1:].partition(":")
            e.reg = None if digit == "r" else int(digit)
            e.mod = {"": 3, "m": 1, "r": 2}[which]
        elif word in ("+r", "+i"):
            e.plus = word[1]
        elif re.fullmatch("[0-9A-F]{2}", word):
            e.opcode.append(int(word, 16))
        elif word == "+":
            continue
        else:
            e.immediates += word
    return e


def split_opcode(e: Encoding) -> tuple[int, int]:
    """(map, opcode byte); a trailing ModRM byte moves to e.reg, e.rm, e.mod."""
    code = e.opcode
    if code[:2] == [0x0F, 0x38]:
        map_, rest = 2, code[2:]
    elif code[:2] == [0x0F, 0x3A]:
        map_, rest = 3, code[2:]
    elif code[0] == 0x0F and len(code) > 1:
        map_, rest = 1, code[1:]
    else:
        map_, rest = 0, code
    if len(rest) == 2:
        e.modrm, e.mod = True, 2
        e.reg = rest[1] >> 3 & 7
        e.rm = None if e.plus == "i" else rest[1] & 7
    return map_, rest[0]


RM_TOKEN = re.compile(r"(r\d+|xmm2|mm2)/m(\d+)")
SIZED = {8: "8", 16: "16", 32: "32", 64: "64"}


@dataclass
class Operands:
    """What the operands say to the decoder, and the suffix of each form's handler."""

    reg: int = REG_NONE
    rm: int = RM_NONE
    mem_bits: int | None = None  # None: by operand size; 0: nothing is accessed
    mod: int = 3
    immediate: str = ""
    no_ea: bool = False
    sized: bool = False          # the names depend on the operand size
    reg_form: list[str] = field(default_factory=list)
    mem_form: list[str] = field(default_factory=list)

    def add(self, reg_kind: str, mem_kind: str | None = None) -> None:
        self.reg_form.append(reg_kind)
        self.mem_form.append(mem_kind if mem_kind is not None else reg_kind)


IMM_TOKENS = {"imm8": "ib", "imm8s": "ibs", "imm16": "iw", "imm": "iz", "immv": "iv", "one": "one", "imm32": "id"}


def parse_operands(text: str) -> Operands:
    o = Operands()
    for token in (t.strip() for t in text.split(",")):
        if not token or token == "xmm0":
            continue
        parse_operand(o, token.replace("r/m", "rm"))
    o.sized = any("{s}" in kind for kind in o.reg_form + o.mem_form)
    return o


def parse_operand(o: Operands, token: str) -> None:
    if m := RM_TOKEN.fullmatch(token):
        register, bits = m.group(1), int(m.group(2))
        o.mem_bits = bits
        if register.startswith("r"):
            o.rm = RM_GPR8 if register == "r8" else RM_GPR
            o.add(register, f"m{bits}")
        else:
            o.rm = RM_RAW
            o.add("x" if register == "xmm2" else "mm", "m")
    elif token in ("xmm2", "mm2"):
        o.rm, o.mod = RM_RAW, 2
        o.add("x" if token == "xmm2" else "mm")
    elif token in ("xmm1", "mm1", "sreg", "cr", "dr"):
        o.reg = REG_RAW
        o.add({"xmm1": "x", "mm1": "mm", "sreg": "s", "cr": "c", "dr": "d"}[token])
    elif m := re.fullmatch(r"rm(\d*)", token):
        bits = m.group(1)
        o.rm = RM_GPR8 if bits == "8" else RM_GPR
        o.mem_bits = int(bits) if bits else None
        o.no_ea = bits == "0"
        o.add(f"r{bits or '{s}'}", f"m{bits or '{s}'}")
    elif m := re.fullmatch(r"rr(\d*)", token):
        o.rm, o.mod = RM_GPR, 2
        o.add(f"r{m.group(1) or '{s}'}")
    elif m := re.fullmatch(r"r(\d*)", token):
        o.reg = REG_GPR8 if m.group(1) == "8" else REG_GPR
        o.add(f"r{m.group(1) or '{s}'}")
    elif token in ("o8", "o"):
        o.rm = RM_OPCODE8 if token == "o8" else RM_OPCODE
        o.add("r8" if token == "o8" else "r{s}")
    elif token in ("a8", "a"):
        o.rm = RM_ACC if o.rm == RM_NONE else o.rm
        o.add("r8" if token == "a8" else "r{s}")
    elif token in ("moffs8", "moffs"):
        o.mem_bits = 8 if token == "moffs8" else None
        o.immediate, o.mod = "moffs", 1
        o.add("m8" if token == "moffs8" else "m{s}")
    elif token == "ea":
        o.mod, o.mem_bits, o.no_ea = 1, 0, True
        o.add("m")
    elif m := re.fullmatch(r"m(\d*)", token):
        o.mod = 1
        o.mem_bits = int(m.group(1)) if m.group(1) else None
        o.add("m" if m.group(1) else "m{s}")
    elif token in IMM_TOKENS:
        o.immediate = o.immediate + IMM_TOKENS[token] if o.immediate != "moffs" else o.immediate
        o.add("i")
    elif token in ("rel8", "rel", "ptr"):
        o.immediate = {"rel8": "cb", "rel": "cz", "ptr": "ptr"}[token]
        o.add("rel" if token != "ptr" else "ptr")
    elif token in ("st", "sti", "cl"):
        if token == "sti":
            o.rm = RM_STI
        o.add(token)
    else:
        raise ValueError(f"unknown operand {token!r}")


@dataclass(frozen=True)
class Row:
    """A row as the decoder sees it: keys, operand kinds, and a handler name for each size and form."""

    insn: Insn
    map: int
    opcodes: tuple[int, ...]
    encoding: Encoding
    operands: Operands
    handlers: tuple[tuple[str, str], ...]       # for operand sizes 8, 16, 32, 64: (register form, memory form)

    @property
    def names(self) -> set[str]:
        return {name for pair in self.handlers for name in pair if name}


def build_row(insn: Insn) -> Row:
    e = parse_encoding(insn.encoding)
    o = parse_operands(insn.operands)
    map_, opcode = split_opcode(e)
    e.mod &= o.mod
    if not e.modrm:
        e.mod = 1 if o.immediate == "moffs" else 2
    if insn.handler is None and o.immediate == "" and e.immediates == "ib":
        o.immediate = "ib"
    if insn.handler is not None and not o.immediate:
        o.immediate = {"": "", "ib": "ib", "iw": "iw", "iwib": "iwib", "iz": "iz"}.get(e.immediates, "")
    handlers = tuple(names_of(insn, o, e, bits) for bits in (8, 16, 32, 64))
    opcodes = tuple(range(opcode, opcode + 8)) if e.plus == "r" else (opcode,)
    return Row(insn, map_, opcodes, e, o, handlers)


def names_of(insn: Insn, o: Operands, e: Encoding, bits: int) -> tuple[str, str]:
    """Handler names of the register form and the memory form at one operand size; "" where there is none."""
    if insn.handler is not None:
        return (insn.handler if e.mod & 2 else "", insn.handler if e.mod & 1 else "")
    if o.sized and bits not in sizes_of(insn):
        return ("", "")

    def name(kinds: list[str]) -> str:
        return "_".join([insn.mnemonic, *(k.replace("{s}", str(bits)) for k in kinds)])

    return (name(o.reg_form) if e.mod & 2 else "", name(o.mem_form) if e.mod & 1 else "")


def sizes_of(insn: Insn) -> tuple[int, ...]:
    """Operand sizes that can occur, in bits."""
    if insn.modes == "legacy":
        return (16, 32)
    if insn.modes == "64" and insn.size:
        return (64,) if insn.size == "f64" else (16, 64)
    return (16, 32, 64)


def specificity(row: Row) -> tuple[int, ...]:
    """Rows of one opcode are tried from the most to the least specific."""
    e = row.encoding
    return (e.rm is None, row.insn.modes == "any", e.prefix not in ("F3", "F2"), e.prefix == "",
            e.w == 0, e.opsize == 0, e.adsize == 0, e.reg is None)


# their first operand is only read: it may lie in a segment that cannot be written
READ_ONLY = ("cmp", "test", "bt", "mul", "imul", "div", "idiv", "push", "call", "jmp", "nop", "clflush")

# one packed row, 48 bytes: see RowRecord in vcpu/core/decode.pxd
RECORD = struct.Struct("<12B2H8H8s2I")


def pack_row(row: Row, number: int, ids: dict[str, int]) -> bytes:
    e, o, insn = row.encoding, row.operands, row.insn
    flags = 0
    for name, on in (("ends", insn.block == ENDS), ("lock", insn.lock), ("swap", insn.swap),
                     ("cpl0", insn.cpl == 0), ("modrm", e.modrm), ("no_ea", o.no_ea)):
        flags |= ROW_FLAGS[name] if on else 0
    first = insn.operands.split(",")[0].strip()
    reads_only = insn.mnemonic in READ_ONLY or insn.reads == "memory"
    if not reads_only and re.match(r"(rm|m|moffs|r\d+/m|xmm2/m|mm2/m)", first):
        flags |= ROW_FLAGS["write"]
    memory = 0xFFFF if o.mem_bits is None else o.mem_bits // 8
    handler_ids = [ids[name] if name else 0 for pair in row.handlers for name in pair]
    return RECORD.pack(
        PREFIXES[e.prefix], e.w, e.opsize, e.adsize,
        0xFF if e.reg is None else 1 << e.reg, 0xFF if e.rm is None else 1 << e.rm, e.mod, MODES[insn.modes],
        o.reg, o.rm, SIZES[insn.size], UNITS[insn.unit],
        IMMEDIATES[o.immediate], memory, *handler_ids, insn.mnemonic.encode()[:8], flags, number)


def pack(rows: list[Row], ids: dict[str, int]) -> tuple[bytes, bytes]:
    """(index, records): index has for each of 4 × 256 opcodes the first record and their number, as two uint16."""
    by_opcode: dict[tuple[int, int], list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows):
        for opcode in row.opcodes:
            by_opcode.setdefault((row.map, opcode), []).append((number, row))
    index, records = bytearray(), bytearray()
    for map_ in range(4):
        for opcode in range(256):
            found = sorted(by_opcode.get((map_, opcode), []), key=lambda pair: specificity(pair[1]))
            index += struct.pack("<2H", len(records) // RECORD.size, len(found))
            for number, row in found:
                records += pack_row(row, number, ids)
    return bytes(index), bytes(records)


def families() -> list[Insn]:
    """Every row of every family that is there."""
    from importlib import import_module
    from importlib.util import find_spec

    rows: list[Insn] = []
    for name in ("integer", "strings", "system", "x87", "sse", "mmx"):
        if find_spec(f"{__package__}.{name}") is not None:
            rows += import_module(f"{__package__}.{name}").ROWS
    return rows


def all_rows() -> list[Row]:
    return [build_row(insn) for insn in families()]
