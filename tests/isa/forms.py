"""Random machine code for a row of the instruction table, with a state in which it has something to do.

Owns:    encoding of rows for 16-, 32- and 64-bit code (prefixes, REX, ModRM, SIB, displacement, immediates), what a row leaves
         undefined in a given case.
Never:   encodes what would leave the oracle's two pages of data, but by an operand's own value.
"""

import random
from dataclasses import dataclass, replace

from vcpu.isa.table import RM_OPCODE, RM_OPCODE8, Row

from .harness import ARITHMETIC, CODE_AT, DATA, FLAGS, GPRS, WINDOW_AT, Case, State, random_state

POINTERS = ("rbx", "rbp", "rsi", "rdi", "r12", "r13")        # each addressing form's special cases are among them
INDEX = "r14"
MIDDLE = WINDOW_AT + 512
SHIFTS = ("rol", "ror", "rcl", "rcr", "shl", "shr", "sar", "shld", "shrd")


@dataclass
class Form:
    """One encoding and what it takes to judge it."""

    row: Row
    code: bytes
    size: int                    # operand size in bits
    memory: bool
    count: int | None            # of a shift; None: it is in CL
    bits: int = 64               # width of the code segment
    small: tuple[str, ...] = ()  # registers that are an index here


class Encoder:
    """Encodes one random form. Fields are what the prefixes and REX will need."""

    def __init__(self, row: Row, rng: random.Random, bits: int = 64) -> None:
        self.row, self.rng, self.e, self.bits = row, rng, row.encoding, bits
        self.middle = MIDDLE - DATA if bits == 16 else MIDDLE
        self.small: tuple[str, ...] = (INDEX,)
        self.memory = self.e.mod == 1 or (self.e.mod == 3 and rng.random() < 0.5)
        self.prefixes = bytearray()
        self.rex = 0
        self.address32 = False

    def size(self) -> int:
        """Choose the operand size, and with it 66 and REX.W."""
        e, insn = self.e, self.row.insn
        sizes = [bits for bits, mask in ((16, 1), (32, 2), (64, 4)) if not e.opsize or e.opsize & mask]
        if insn.size == "f64":
            return 64
        if insn.size == "d64":
            sizes = [16, 64]
        if e.prefix in ("66", "NP"):
            sizes = [32, 64]
        if e.w:
            sizes = [64] if e.w == 2 else [32]
        if insn.mnemonic == "bswap":
            sizes = [32, 64]                                     # 16: undefined (SDM 2A BSWAP)
        if self.bits != 64:
            return self.legacy_size([bits for bits in sizes if bits != 64] or [32])
        size = self.rng.choice(sizes)
        if size == 64 and insn.size != "d64":
            self.rex |= 0x48
        elif size == 16:
            self.prefixes.append(0x66)
        if e.prefix in ("66", "F3", "F2"):
            self.prefixes.append(int(e.prefix, 16))
        return size

    def legacy_size(self, sizes: list[int]) -> int:
        if self.e.prefix in ("66", "F3", "F2"):
            self.prefixes.append(int(self.e.prefix, 16))
        if self.e.prefix in ("66", "NP"):
            return self.bits if self.e.prefix == "NP" else 48 - self.bits
        size = self.rng.choice(sizes)
        if size != self.bits:
            self.prefixes.append(0x66)
        return size

    def register(self, bit: int) -> int:
        """A register's low three bits; the fourth goes to REX. rsp stays a stack pointer."""
        if self.bits != 64:
            return self.rng.choice((0, 1, 2, 3, 5, 6, 7))
        number = self.rng.choice([n for n in range(16) if n != 4])
        if number & 8:
            self.rex |= 0x40 | bit
        return number & 7

    def memory_operand(self, reg: int) -> bytes:
        rng = self.rng
        kind = rng.random()
        step = 16 if rng.random() < 0.7 else 1
        near = rng.randrange(-96 // step, 96 // step) * step
        # bit strings wrap at the address size only as far as their base goes: not compared with an override
        self.address32 = rng.random() < 0.1 and self.row.insn.mnemonic not in BIT_STRINGS
        if self.bits == 16 and not self.address32 or self.bits == 32 and self.address32:
            return self.memory16(reg, near)
        if self.bits != 64 and kind < 0.08:
            return bytes([reg << 3 | 5]) + (self.middle + near).to_bytes(4, "little")
        if kind < 0.08:                                          # RIP-relative: the displacement is mended later
            return bytes([reg << 3 | 5]) + b"RIP!"
        if kind < 0.14:                                          # disp32 without base
            return bytes([reg << 3 | 4, 0x25]) + (self.middle + near).to_bytes(4, "little")
        base = GPRS.index(rng.choice(POINTERS if self.bits == 64 else POINTERS[:4]))
        mod = rng.choice((0, 1, 2))
        if base & 7 == 5 and mod == 0:
            mod = 1
        disp = b"" if mod == 0 else near.to_bytes(1 if mod == 1 else 4, "little", signed=True)
        self.rex |= 0x41 if base & 8 else 0
        if kind < 0.5 or base & 7 == 4:
            scale, index = 0, 4                                  # none
            if kind < 0.5:
                scale, index = rng.randrange(4), GPRS.index(INDEX) if self.bits == 64 else 2
                self.rex |= 0x42
                self.small = (INDEX, GPRS[index])
            return bytes([mod << 6 | reg << 3 | 4, scale << 6 | (index & 7) << 3 | base & 7]) + disp
        return bytes([mod << 6 | reg << 3 | base & 7]) + disp

    def memory16(self, reg: int, near: int) -> bytes:
        """SDM 2A table 2-1. In flat 32-bit code the operand lies in the first 64 KiB, where nothing is mapped."""
        rm, mod = self.rng.randrange(8), self.rng.randrange(3)
        if rm < 4:
            self.small = ("rsi",) if rm & 1 == 0 else ("rdi",)
        if rm == 6 and mod == 0:
            return bytes([reg << 3 | 6]) + (self.middle + near & 0xFFFF).to_bytes(2, "little")
        return bytes([mod << 6 | reg << 3 | rm]) + (b"" if mod == 0 else near.to_bytes(mod, "little", signed=True))

    def modrm(self) -> bytes:
        if self.e.reg is not None:
            reg = self.e.reg
        elif "sreg" in self.row.insn.operands:
            reg = self.rng.choice((0, 3, 4, 5))
        else:
            reg = self.register(4)
        if self.memory:
            return self.memory_operand(reg)
        rm = self.e.rm if self.e.rm is not None else self.register(1)
        return bytes([0xC0 | reg << 3 | rm])

    def immediate(self, size: int) -> tuple[bytes, int | None]:
        kind, rng = self.row.operands.immediate, self.rng
        if kind == "moffs":
            width = {64: (8, 4), 32: (4, 2), 16: (2, 4)}[self.bits][self.address32]
            return (self.middle + rng.randrange(-64, 64) & (1 << 8 * width) - 1).to_bytes(width, "little"), None
        if kind in ("cb", "cz"):
            near = rng.choice((rng.randrange(100), rng.randrange(-100, -24)))        # never back into itself
            width = 1 if kind == "cb" else 2 if size == 16 and self.bits != 64 else 4
            return near.to_bytes(width, "little", signed=True), None
        width = {"": 0, "one": 0, "ib": 1, "ibs": 1, "iw": 2, "id": 4, "iwib": 3, "ibib": 2,
                 "iz": 2 if size == 16 else 4, "iv": size // 8}[kind]
        data = rng.choice((rng.randbytes(width), bytes(width), b"\xff" * width, b"\x01" + bytes(max(width - 1, 0))))[:width]
        if kind == "iwib":                                       # ENTER: a frame and a nesting that fit the window
            data = rng.randrange(64).to_bytes(2, "little") + bytes([rng.randrange(4)])
        if self.row.insn.mnemonic == "ret":
            data = rng.randrange(64).to_bytes(2, "little")
        return data, data[0] if kind == "ib" else 1 if kind == "one" else None

    def encode(self) -> Form:
        row, rng = self.row, self.rng
        size = self.size()
        modrm = self.modrm() if self.e.modrm else b""
        opcode = row.opcodes[0]
        if row.operands.rm in (RM_OPCODE, RM_OPCODE8):
            number = self.register(1)
            opcode = row.opcodes[0] + number
        immediate, count = self.immediate(size)
        if self.e.plus == "i":
            modrm = bytes([0xC0 | (self.e.reg or 0) << 3 | rng.randrange(8)])
        locked = row.insn.lock and self.memory and rng.random() < 0.3
        if locked:
            self.prefixes.append(0xF0)
        if self.address32:
            self.prefixes.append(0x67)
        if rng.random() < 0.05:
            self.prefixes.append(rng.choice((0x2E, 0x36, 0x3E, 0x26)))
        if row.insn.sdm.startswith("2A-2B") and row.insn.handler and row.insn.handler.split("_")[0] in STRINGS:
            self.prefixes += rng.choice((b"", b"\xf3", b"\xf2"))
        rng.shuffle(self.prefixes)
        rex = bytes([self.rex]) if self.rex else b""
        if self.bits != 64:
            rex = b""
        elif not rex and rng.random() < 0.1:
            rex = b"\x40"                                        # SPL..DIL instead of AH..BH
        head = bytes(self.prefixes) + rex + MAPS[row.map] + bytes([opcode])
        code = head + modrm + immediate
        if b"RIP!" in code:
            near = 8 * rng.randrange(-8, 8)
            code = code.replace(b"RIP!", (MIDDLE + near - CODE_AT - len(code)).to_bytes(4, "little"), 1)
        return Form(row, code, 8 if "8" in row.insn.operands.split(",")[0] else size, self.memory, count, self.bits, self.small)


MAPS = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
BIT_STRINGS = ("bt", "bts", "btr", "btc")
STRINGS = ("movs", "cmps", "stos", "lods", "scas")


def wide_state(form: Form, rng: random.Random, fx: bytes | None = None) -> State:
    """Pointers into the window, a small index, and for repeated strings a count that stays inside."""
    state = random_state(rng, pointers=POINTERS, fx=fx)
    aligned = {name: MIDDLE + 16 * rng.randrange(-8, 8) + (rng.randrange(16) if rng.random() < 0.2 else 0)
               for name in POINTERS}
    small = {name: rng.choice((0, 1, 2, 16, -16, -1)) for name in form.small}
    state = state.with_gpr(**{**aligned, **small})
    name = (form.row.insn.handler or "").split("_")[0]
    if name in STRINGS:
        return state.with_gpr(rcx=rng.choice((0, 1, 2, 3, 7, 16)))
    if form.row.insn.mnemonic in BIT_STRINGS:
        # a bit offset reaches as far as its register says
        return state.with_gpr(**{n: rng.randrange(-512, 512) for n in GPRS if n not in (*POINTERS, "rsp", INDEX)})
    if form.row.insn.mnemonic in ("div", "idiv") and rng.random() < 0.7:
        return state.with_gpr(rdx=rng.choice((0, -1, 1)), rax=rng.getrandbits(form.size))
    if form.row.insn.mnemonic in ("loop", "loope", "loopne", "jcxz"):
        return state.with_gpr(rcx=rng.choice((0, 1, 2, 1 << 32)))
    return state


def state_for(form: Form, rng: random.Random, fx: bytes | None = None) -> State:
    state = wide_state(form, rng, fx)
    return state if form.bits == 64 else narrow(state, form)


def narrow(state: State, form: Form) -> State:
    """For 16- and 32-bit code: upper halves are 0; in 16-bit segments pointers are offsets."""
    gpr = list(state.gpr[:8]) + [0] * 8
    for number, name in enumerate(GPRS[:8]):
        gpr[number] &= 0xFFFFFFFF
        if form.bits == 16 and gpr[number] >> 12 == DATA >> 12 or gpr[number] >> 12 == (DATA >> 12) + 1:
            gpr[number] -= DATA if form.bits == 16 else 0
        if form.bits == 16 and name in form.small:
            gpr[number] &= 0xFFFF
    if form.bits == 16:
        gpr[4] |= 0x30000000                                     # what IRETQ leaves there on the host
    return replace(state, gpr=tuple(gpr))


def make_case(row: Row, rng: random.Random, fx: bytes | None = None, bits: int = 64) -> tuple[Form, Case]:
    form = Encoder(row, rng, bits).encode()
    return form, Case(form.code, state_for(form, rng, fx), f"{row.insn.mnemonic} [{row.insn.encoding}] {bits}-bit", bits)


def undefined_flags(form: Form, case: Case) -> int | None:
    """Flags not to compare; None: the whole result is undefined."""
    if form.row.insn.mnemonic in SHIFTS:
        count = form.count if form.count is not None else case.state.gpr[1] & 0xFF
        count &= 63 if form.size == 64 else 31
        if count == 0:
            return 0
    else:
        count = 0
    mask = 0
    for word in form.row.insn.undefined.split():
        if word in FLAGS:
            mask |= FLAGS[word]
        elif word == "OF>1" and count > 1:
            mask |= FLAGS["OF"]
        elif word == "CF>size" and count >= form.size:
            mask |= FLAGS["CF"]
        elif word == "all>size" and count > form.size:
            return None
        elif word == "all":
            mask |= ARITHMETIC
    return mask
