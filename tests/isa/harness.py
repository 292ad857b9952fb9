"""The same instruction on three processors: this machine's own, Virga's, and unicorn's. See README.md beside this file.

    results = Host().run(cases)           # [Case] -> [Result]; cases hold bytes and a State
    differences(case, a, b, undefined=…)  # [] or readable lines

Addresses are those of oracle.c: the instruction stands at CODE_AT with INT3 around it; the state's window of 1024
bytes lies at WINDOW_AT across the border of two pages; everything else faults.
"""

import ctypes
import mmap
import os
import random
import select
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

CODE = 0x10000000
CODE_AT = CODE + 0x800
CODE_BYTES = 64
DATA = 0x20000000
WINDOW = 1024
WINDOW_AT = DATA + 0x1000 - WINDOW // 2
GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
FLAGS = {"CF": 0x1, "PF": 0x4, "AF": 0x10, "ZF": 0x40, "SF": 0x80, "OF": 0x800}
ARITHMETIC = 0x8D5
COMPARED_FLAGS = ARITHMETIC | 0x400 | 0x40000 | 0x200000         # and DF, AC, ID
BATCH = 2048
CASE_SECONDS = 5
BREAKPOINT = 3
PAGE_FAULT = 14
DIED = 256                       # the oracle's process died or hung in this case


class CState(ctypes.Structure):
    _fields_ = [("gpr", ctypes.c_uint64 * 16), ("rip", ctypes.c_uint64), ("rflags", ctypes.c_uint64),
                ("fx", ctypes.c_uint8 * 512), ("window", ctypes.c_uint8 * WINDOW)]


class CCase(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8 * CODE_BYTES), ("code_length", ctypes.c_uint32), ("vector", ctypes.c_uint32),
                ("error", ctypes.c_uint64), ("address", ctypes.c_uint64),
                ("bits", ctypes.c_uint32), ("reserved", ctypes.c_uint32), ("state", CState)]


class CHead(ctypes.Structure):
    _fields_ = [("count", ctypes.c_uint32), ("done", ctypes.c_uint32), ("reserved", ctypes.c_uint64)]


def blank_fx() -> bytes:
    """FXSAVE image of a fresh processor: FCW 37F, everything empty, MXCSR 1F80."""
    image = bytearray(512)
    image[0:2] = b"\x7f\x03"
    image[24:28] = b"\x80\x1f\x00\x00"
    image[28:32] = b"\xff\xff\x00\x00"
    return bytes(image)


@dataclass(frozen=True)
class State:
    """What an instruction sees. gpr: sixteen, in encoding order; fx: the FXSAVE64 image."""

    gpr: tuple[int, ...] = (0,) * 4 + (WINDOW_AT + 512,) + (0,) * 11
    rflags: int = 0x202
    fx: bytes = field(default_factory=blank_fx)
    window: bytes = bytes(WINDOW)

    def with_gpr(self, **values: int) -> "State":
        gpr = list(self.gpr)
        for name, value in values.items():
            gpr[GPRS.index(name)] = value & (1 << 64) - 1
        return replace(self, gpr=tuple(gpr))


@dataclass(frozen=True)
class Case:
    """bits 64 and 32: flat segments. 16: CS is based at CODE, DS, ES and SS at DATA, with limits of 64 KiB."""

    code: bytes
    state: State = field(default_factory=State)
    name: str = ""
    bits: int = 64


@dataclass(frozen=True)
class Result:
    """What it left. vector: BREAKPOINT if it ran through (then rip stands behind it), else the fault's."""

    vector: int
    rip: int
    state: State
    error: int = 0
    address: int = 0


def put_case(target: CCase, case: Case) -> None:
    if len(case.code) > CODE_BYTES:
        raise ValueError(f"{case.name}: {len(case.code)} bytes of code, at most {CODE_BYTES}")
    ctypes.memmove(target.code, case.code, len(case.code))
    target.code_length = len(case.code)
    target.vector = DIED
    target.state.gpr[:] = case.state.gpr
    target.bits = case.bits
    target.state.rflags = case.state.rflags
    ctypes.memmove(target.state.fx, case.state.fx, 512)
    ctypes.memmove(target.state.window, case.state.window, WINDOW)


def get_result(source: CCase) -> Result:
    rip = source.state.rip + (CODE if source.bits == 16 else 0)
    if source.vector == BREAKPOINT:
        rip -= 1                                     # INT3 reports the address behind it
    state = State(tuple(source.state.gpr), source.state.rflags, bytes(source.state.fx), bytes(source.state.window))
    return Result(source.vector, rip, state, source.error, source.address)


class Host:
    """This machine's processor, in a child process that is started again when a case kills it."""

    def __init__(self, binary: Path | None = None) -> None:
        self._binary = binary or build_oracle()
        size = ctypes.sizeof(CHead) + BATCH * ctypes.sizeof(CCase)
        self._fd = os.memfd_create("oracle", 0)
        os.ftruncate(self._fd, size)
        self._map = mmap.mmap(self._fd, size)
        self._head = CHead.from_buffer(self._map)
        self._cases = (CCase * BATCH).from_buffer(self._map, ctypes.sizeof(CHead))
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, cases: list[Case]) -> list[Result]:
        results: list[Result] = []
        for start in range(0, len(cases), BATCH):
            batch = cases[start:start + BATCH]
            for target, case in zip(self._cases, batch):
                put_case(target, case)
            self._head.count, self._head.done = len(batch), 0
            while self._head.done < len(batch):
                if not self._advance():
                    self._head.done += 1             # this one killed it: its vector stays DIED
            results += [get_result(source) for source, _ in zip(self._cases, batch)]
        return results

    def _advance(self) -> bool:
        """Let the child go on; False: it died or hung in case `done`."""
        if self._child is None:
            self._child = subprocess.Popen([self._binary, str(self._fd)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                           pass_fds=[self._fd], bufsize=0)
        child = self._child
        assert child.stdin and child.stdout
        child.stdin.write(b".")
        while True:
            done = self._head.done
            if select.select([child.stdout], [], [], CASE_SECONDS)[0]:
                if child.stdout.read(1):
                    return True
                break
            if self._head.done == done:
                break
        self._stop()
        return False

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def close(self) -> None:
        self._stop()
        self._cases = self._head = None
        self._map.close()
        os.close(self._fd)


def build_oracle() -> Path:
    """Compile oracle.c into build/, if that has not been done."""
    source = Path(__file__).with_name("oracle.c")
    folder = Path(__file__).parents[2] / "build" / "oracle"
    binary = folder / f"oracle-{source.stat().st_mtime_ns}"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        half = folder / f"half-{os.getpid()}"
        subprocess.run(["gcc", "-O1", "-fno-stack-protector", "-o", half, source], check=True)
        half.rename(binary)
    return binary


def asm(text: str, bits: int = 64) -> bytes:
    """Machine code of Intel syntax without prefixes for registers; instructions separated by newlines or semicolons."""
    folder = Path(__file__).parents[2] / "build" / "oracle"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"asm-{os.getpid()}"
    mode = {16: ".code16", 32: ".code32", 64: ".code64"}[bits]
    source = f".intel_syntax noprefix\n{mode}\n{text}\n"
    try:
        subprocess.run(["as", "--64", "-o", f"{stem}.o"], input=source.encode(), check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", f"{stem}.o", f"{stem}.bin"], check=True)
        return Path(f"{stem}.bin").read_bytes()
    finally:
        for suffix in (".o", ".bin"):
            Path(f"{stem}{suffix}").unlink(missing_ok=True)


# ---------------------------------------------------------------- states

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
         0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0x0123456789ABCDEF, 31, 32, 33, 63, 64)


def random_word(rng: random.Random) -> int:
    """64 bits: an edge, a small number, or anything."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(EDGES)
    if kind < 0.4:
        return rng.randrange(-64, 64) & (1 << 64) - 1
    return rng.getrandbits(64)


def random_state(rng: random.Random, *, pointers: tuple[str, ...] = (), fx: bytes | None = None) -> State:
    """Random registers, flags, window; the registers in `pointers` point into the window, as does rsp."""
    gpr = [random_word(rng) for _ in GPRS]
    for name in ("rsp", *pointers):
        gpr[GPRS.index(name)] = WINDOW_AT + 256 + 8 * rng.randrange(64)
    rflags = 0x202 | rng.getrandbits(12) & ARITHMETIC
    return State(tuple(gpr), rflags, fx if fx is not None else blank_fx(), rng.randbytes(WINDOW))


# ---------------------------------------------------------------- comparison

def differences(case: Case, expected: Result, found: Result, *, undefined: int = 0, fx_mask: bytes | None = None) -> list[str]:
    """Lines that say where two results differ. undefined: flags not compared; fx_mask: 512 bytes, 1 bits are compared
    (default: all but FIP, FDP, FOP and what lies behind the registers)."""
    lines = []
    if (expected.vector, expected.rip) != (found.vector, found.rip):
        lines.append(f"vector {expected.vector} at {expected.rip:#x}, found {found.vector} at {found.rip:#x}")
    elif expected.vector == PAGE_FAULT and fault_key(expected) != fault_key(found):
        lines.append(f"#PF({expected.error:#x}) at {expected.address:#x}, found ({found.error:#x}) at {found.address:#x}")
    for name, a, b in zip(GPRS, expected.state.gpr, found.state.gpr):
        if a != b and not (case.bits == 16 and name == "rsp" and a & 0xFFFF == b & 0xFFFF):      # the host keeps its own upper half
            lines.append(f"{name} {a:#x}, found {b:#x}")
    wrong = (expected.state.rflags ^ found.state.rflags) & COMPARED_FLAGS & ~undefined
    if wrong:
        names = [name for name, bit in FLAGS.items() if wrong & bit] or [hex(wrong)]
        lines.append(f"flags {'+'.join(names)}: {expected.state.rflags:#x}, found {found.state.rflags:#x}")
    mask = fx_mask or DEFAULT_FX_MASK
    for at in range(0, 416, 2):
        a = int.from_bytes(expected.state.fx[at:at + 2], "little") & int.from_bytes(mask[at:at + 2], "little")
        b = int.from_bytes(found.state.fx[at:at + 2], "little") & int.from_bytes(mask[at:at + 2], "little")
        if a != b:
            lines.append(f"{fx_name(at)} {a:#06x}, found {b:#06x}")
    changed = [at for at in range(WINDOW) if expected.state.window[at] != found.state.window[at]]
    lines += [f"[{WINDOW_AT + at:#x}] {expected.state.window[at]:#x}, found {found.state.window[at]:#x}" for at in changed[:8]]
    if len(changed) > 8:
        lines.append(f"and {len(changed) - 8} more bytes of the window")
    return lines


def fault_key(result: Result) -> tuple[int, int]:
    """Address and error code; the upper half belongs to the host's kernel, which may have a page there."""
    return result.address, result.error | (1 if result.address >> 63 else 0)


def default_fx_mask() -> bytes:
    mask = bytearray(b"\xff" * 416 + bytes(96))
    mask[6:24] = bytes(18)                           # FOP, FIP, FDP
    mask[28:32] = bytes(4)                           # MXCSR_MASK
    for i in range(8):
        mask[32 + 16 * i + 10:32 + 16 * i + 16] = bytes(6)
    return bytes(mask)


DEFAULT_FX_MASK = default_fx_mask()


def fx_name(at: int) -> str:
    """The register that lies at an offset of the FXSAVE image."""
    if at >= 160:
        return f"xmm{(at - 160) // 16}[{(at - 160) % 16}]"
    if at >= 32:
        return f"st{(at - 32) // 16}[{(at - 32) % 16}]"
    return {0: "FCW", 2: "FSW", 4: "FTW", 24: "MXCSR", 26: "MXCSR+2"}.get(at, f"fx[{at}]")


def describe(case: Case, seed: object, lines: list[str]) -> str:
    """A failure as one reads it, with all that is needed to see it again."""
    gpr = " ".join(f"{name}={value:#x}" for name, value in zip(GPRS, case.state.gpr))
    return f"{case.name} {case.code.hex(' ')} (seed {seed})\n  {gpr} rflags={case.state.rflags:#x}\n  " + "\n  ".join(lines)


# ---------------------------------------------------------------- random FPU states

FLOATS = (0, 0x8000000000000000, 0x3FF0000000000000, 0xBFF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000,
          0x7FF8000000000000, 0x7FF0000000000001, 0x0000000000000001, 0x000FFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF,
          0x3F800000BF800000, 0x7F8000007F800001, 0x0000000180000001, 0x4B00000041200000)


def random_fx(rng: random.Random, unit: str | None) -> bytes:
    """Registers of the unit under test, with edges; exceptions masked, rounding and FTZ/DAZ at random."""
    image = bytearray(blank_fx())
    if unit in ("sse", None):
        for i in range(32):
            word = rng.choice(FLOATS) if rng.random() < 0.3 else rng.getrandbits(64)
            if rng.random() < 0.3:
                word = int.from_bytes(rng.choice(FLOATS).to_bytes(8, "little")[4:] + rng.randbytes(4), "little")
            image[160 + 8 * i:168 + 8 * i] = word.to_bytes(8, "little")
        mxcsr = 0x1F80 | rng.randrange(4) << 13 | rng.choice((0, 0, 0x8000, 0x40, 0x8040))
        image[24:28] = mxcsr.to_bytes(4, "little")
    if unit in ("x87", "mmx", "wait"):
        image[0:2] = (0x7F | rng.randrange(4) << 10 | rng.choice((0, 2, 3, 3)) << 8).to_bytes(2, "little")
        top = rng.randrange(8)
        image[2:4] = (top << 11 | rng.choice((0, 0x4700 & ~0x3800))).to_bytes(2, "little")
        image[4] = rng.choice((0xFF, 0xFF, 0, rng.getrandbits(8)))
        for i in range(8):
            image[32 + 16 * i:42 + 16 * i] = random_st(rng)
    return bytes(image)


def random_st(rng: random.Random) -> bytes:
    """Ten bytes of an x87 register: plain numbers, edges, now and then bits that no arithmetic makes."""
    kind = rng.random()
    sign = rng.randrange(2) << 15
    if kind < 0.5:
        return (rng.getrandbits(63) | 1 << 63).to_bytes(8, "little") + (sign | 0x3FFF + rng.randrange(-70, 70)).to_bytes(2, "little")
    if kind < 0.9:
        mantissa, exponent = rng.choice(((0, 0), (1 << 63, 0x3FFF), (1 << 63, 0x7FFF), (0xC << 60, 0x7FFF), (1 << 63 | 1, 0x7FFF),
                                         (1, 0), (1 << 62, 0), ((1 << 64) - 1, 0x7FFE), (1 << 63, 1), (3 << 62, 0x4000)))
        return mantissa.to_bytes(8, "little") + (sign | exponent).to_bytes(2, "little")
    return rng.randbytes(10)
