"""Random instances of the rows of sse.py and x87.py: bytes to run, and states that are worth running them on.

    form = random_form(rng, row, memory=…)      # None: the row has no such form
    case = case_of(rng, form)

Memory operands are [rdi + disp32] in the harness's window; MASKMOV has [rdi].
"""

import random
import struct
from dataclasses import dataclass

from vcpu.isa.table import RM_GPR, RM_GPR8, Row

from .harness import WINDOW_AT, Case, State, random_state

PREFIXES = {"66": b"\x66", "F3": b"\xf3", "F2": b"\xf2"}
MAPS = {0: b"", 1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}
UNALIGNED = ("movups", "movupd", "movdqu", "lddqu", "pcmpestrm", "pcmpestri", "pcmpistrm", "pcmpistri")
RDI = 7


@dataclass(frozen=True)
class Form:
    row: Row
    name: str                    # the handler's
    memory: bool
    reg: int
    rm: int
    imm: int

    @property
    def wide(self) -> bool:
        return self.row.encoding.w == 2

    def code(self, disp: int) -> bytes:
        e = self.row.encoding
        rex = (8 if self.wide else 0) | (4 if self.reg > 7 else 0) | (1 if not self.memory and self.rm > 7 else 0)
        out = PREFIXES.get(e.prefix, b"") + (bytes([0x40 | rex]) if rex else b"")
        out += MAPS[self.row.map] + bytes([self.row.opcodes[0]])
        if e.modrm:
            out += bytes([(0x80 if self.memory else 0xC0) | (self.reg & 7) << 3 | self.rm & 7])
            out += struct.pack("<i", disp) if self.memory else b""
        return out + (bytes([self.imm]) if self.row.operands.immediate == "ib" else b"")


def random_form(rng: random.Random, row: Row, memory: bool) -> Form | None:
    e, o = row.encoding, row.operands
    name = row.handlers[3 if e.w == 2 else 2][1 if memory else 0]
    if not name:
        return None
    mm, gpr = "mm" in row.insn.operands.replace("xmm", ""), o.rm in (RM_GPR, RM_GPR8)
    reg = e.reg if e.reg is not None else rng.randrange(16)
    if e.reg is None and o.reg in (RM_GPR, RM_GPR8) and reg in (4, RDI):
        reg = 0
    if e.reg is None and mm and row.insn.operands.startswith("mm1") or row.insn.operands.endswith(("/m64, mm1", ", mm1")):
        reg &= 7
    rm = e.rm if e.rm is not None else rng.randrange(8 if row.insn.unit == "x87" or mm else 16)
    if gpr and rm in (4, RDI):
        rm = 3
    return Form(row, name, memory, reg, RDI if memory else rm, rng.getrandbits(8))


def case_of(rng: random.Random, form: Form, fx: bytes) -> Case:
    state = random_state(rng, pointers=("rdi",), fx=fx)
    bits = form.row.operands.mem_bits or 0
    aligned = bits >= 128 and form.row.insn.mnemonic not in UNALIGNED
    window = bytearray(state.window)
    at = 256 + rng.randrange(512)
    if aligned:
        at &= ~63
    if form.memory and bits and rng.random() < 0.9:
        value = random_operand(rng, form.row.insn.mnemonic, bits // 8)
        window[at:at + len(value)] = value
    gpr = list(state.gpr)
    if form.name in ("maskmovq", "maskmovdqu"):
        gpr[RDI] = WINDOW_AT + at
    if "pcmpestr" in form.name:
        gpr[0], gpr[2] = (rng.choice((rng.randrange(-20, 20), rng.getrandbits(64))) & (1 << 64) - 1 for _ in "ab")
    state = State(tuple(gpr), state.rflags, fx, bytes(window))
    return Case(form.code(WINDOW_AT + at - gpr[RDI]), state, form.name)


# ---------------------------------------------------------------- operands

FLOATS = (0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0xFFA00000, 1,
          0x80000001, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x4F000000, 0xCF000000, 0x3F000000, 0x40490FDB, 0x3EAAAAAB)
DOUBLES = (0, 1 << 63, 0x3FF0000000000000, 0xBFF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000,
           0xFFF8000000000001, 0x7FF0000000000001, 0xFFF4000000000000, 1, 0x8000000000000001, 0xFFFFFFFFFFFFF,
           0x10000000000000, 0x7FEFFFFFFFFFFFFF, 0x41E0000000000000, 0xC1E0000000200000, 0x43E0000000000000,
           0xC3E0000000000000, 0x3FE0000000000000, 0x400921FB54442D18, 0x36A0000000000000, 0x47EFFFFFF0000000)
EXTENDED = (0, 0x7FFF, 0x3FFF, 0x3FFE, 0x4000, 0x7FFE, 1, 0x43FE, 0x3C01, 0x3BCD, 0x403E, 0x401E, 0x400E, 0x407F, 0x3F81)
MANTISSAS = (1 << 63, 0, (1 << 64) - 1, 3 << 62, 1 << 62, 1, (1 << 63) | 1, 0xC90FDAA22168C235, 0xA0 << 56, (1 << 62) | 1)


def random_float(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.4:
        return struct.pack("<I", rng.choice(FLOATS))
    if kind < 0.8:
        return struct.pack("<f", rng.choice((-1, 1)) * rng.randrange(1 << 12) * 2.0 ** rng.randrange(-12, 12))
    return rng.randbytes(4)


def random_double(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.4:
        return struct.pack("<Q", rng.choice(DOUBLES))
    if kind < 0.8:
        return struct.pack("<d", rng.uniform(-4, 4) * 2.0 ** rng.randrange(-40, 40))
    return rng.randbytes(8)


def random_extended(rng: random.Random) -> bytes:
    """80 bits, unsupported formats among them."""
    kind = rng.random()
    sign = rng.getrandbits(1) << 15
    if kind < 0.35:
        return struct.pack("<QH", rng.choice(MANTISSAS), sign | rng.choice(EXTENDED))
    if kind < 0.75:
        return struct.pack("<QH", rng.getrandbits(64) | 1 << 63, sign | rng.randrange(0x3FC0, 0x4050))
    if kind < 0.9:
        mantissa = rng.getrandbits(20)
        return struct.pack("<QH", mantissa << 64 - mantissa.bit_length() if mantissa else 0,
                           sign | (0x3FFE + mantissa.bit_length() if mantissa else 0))
    return rng.randbytes(10)


def random_vector(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.3:
        return b"".join(random_float(rng) for _ in range(4))
    if kind < 0.6:
        return b"".join(random_double(rng) for _ in range(2))
    if kind < 0.75:
        return bytes(rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x41, 0x42, rng.getrandbits(8))) for _ in range(16))
    return rng.randbytes(16)


def random_operand(rng: random.Random, mnemonic: str, size: int) -> bytes:
    if size == 10:
        if mnemonic == "fbld":
            return bytes(rng.randrange(10) << 4 | rng.randrange(10) for _ in range(9)) + rng.choice((b"\0", b"\x80"))
        return random_extended(rng)
    if mnemonic == "fldcw":
        return struct.pack("<H", rng.getrandbits(16) | rng.choice((0, 0x3F)))
    if mnemonic == "ldmxcsr":
        return struct.pack("<I", rng.getrandbits(rng.choice((16, 16, 16, 17))))
    if size == 4:
        return random_float(rng)
    if size == 8:
        return random_double(rng)
    return (random_vector(rng) * 4)[:size] if size <= 64 else b""


def random_fx(rng: random.Random, *, unmasked: float = 0.0, pending: float = 0.0) -> bytes:
    """An FXSAVE64 image. unmasked: how often some exceptions are unmasked; pending: how often one of x87 waits."""
    image = bytearray(512)
    fcw = 0x37F if rng.random() < 0.5 else 0x7F | rng.choice((0, 0x200, 0x300)) | rng.randrange(4) << 10
    mxcsr = 0x1F80 | rng.choice((0, 0x20, rng.getrandbits(6)))
    if rng.random() < 0.5:
        mxcsr |= rng.randrange(4) << 13 | rng.choice((0, 0x40, 0x8000, 0x8040))
    fsw = rng.choice((0, 0x20, rng.getrandbits(7))) | rng.randrange(16) << 8 & 0x4700 | rng.randrange(8) << 11
    if rng.random() < unmasked:
        fcw &= ~rng.getrandbits(6)
        fsw &= 0xFF80 | fcw                      # nothing pending yet
        mxcsr &= ~(rng.getrandbits(6) << 7)
    if rng.random() < pending:
        flag = 1 << rng.randrange(6)
        fcw, fsw = fcw & ~flag, fsw | flag | 0x8080
    tags = rng.choice((0xFF, 0, rng.getrandbits(8), rng.getrandbits(8) | rng.getrandbits(8)))
    struct.pack_into("<HHBxHQQII", image, 0, fcw, fsw, tags, 0, 0, 0, mxcsr, 0xFFFF)
    for i in range(8):
        image[32 + 16 * i:42 + 16 * i] = rng.choice((random_vector(rng)[:8] + b"\xff\xff", random_extended(rng)))
    for i in range(16):
        image[160 + 16 * i:176 + 16 * i] = random_vector(rng)
    return bytes(image)
