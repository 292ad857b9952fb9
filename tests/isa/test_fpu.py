"""x87, MMX and SSE against this machine's own processor: every form of every row, random operands.

Where Virga differs on purpose or within the architecture's freedom, the rule is in tolerated():
    RCPPS, RSQRTPS     computed by a rule of our own (sse_kernels.h); here only their error is bounded
    DPPS, DPPD         an unmasked exception of the products hides the flags of the sums: not modelled
    #XM with OE or UE  PE says whether the result would be inexact with an unbounded exponent: not modelled
    MMX store, fault   the host has passed from x87 to MMX by then; here a faulting instruction changes nothing
    FLDENV, FNSAVE …   which of several missing bytes #PF names is the host's choice
"""

import random
import struct
from collections.abc import Iterable
from dataclasses import replace
from math import isinf, isnan, sqrt

import pytest

from vcpu.isa import sse, x87
from vcpu.isa.table import Row, build_row

from .fpu_forms import MAPS, Form, case_of, random_float, random_form, random_fx
from .harness import (BREAKPOINT, CODE_AT, PAGE_FAULT, WINDOW, WINDOW_AT, Case, Host, Result, State, asm, describe, differences,
                      random_state)
from .virga import Virga

STATE = ("fxsave", "fxrstor", "xsave", "xrstor", "xsetbv", "xgetbv")     # tests of their own, below
APPROXIMATE = ("rcpps", "rcpss", "rsqrtps", "rsqrtss")
STAGED = ("dpps", "dppd")
MXCSR_PE = 0x20
MF, AC, XM = 16, 17, 19
FORMS_EACH = 8
FAMILIES = pytest.mark.parametrize("family", [sse.FORMS, x87.FORMS], ids=["sse", "x87"])


@pytest.fixture(scope="module")
def virga() -> Virga:
    return Virga()


def rows(family: Iterable) -> list[Row]:
    return [build_row(insn) for insn, _ in family if not insn.mnemonic.startswith(STATE)]


def random_pairs(rng: random.Random, family: Iterable, each: int, **fx: float) -> list[tuple[Form, Case]]:
    forms = [form for row in rows(family) for memory in (False, True) for _ in range(each)
             if (form := random_form(rng, row, memory))]
    return [(form, case_of(rng, form, random_fx(rng, **fx))) for form in forms]


def tolerated(form: Form, expected: Result, line: str) -> bool:
    if form.row.insn.mnemonic in APPROXIMATE:
        return line.startswith("xmm")
    if expected.vector in (PAGE_FAULT, AC):
        return (form.row.insn.unit == "mmx" and line.startswith(("FSW", "FTW", "st"))
                or form.name in ("fldenv", "frstor", "fnstenv", "fnsave") and line.startswith("#PF"))
    if line.startswith("MXCSR") and expected.vector == XM:
        a, b = (int(word.strip(","), 16) for word in (line.split()[1], line.split()[3]))
        return form.row.insn.mnemonic in STAGED or a ^ b == MXCSR_PE
    return False


def compare(host: Host, virga: Virga, pairs: list[tuple[Form, Case]], seed: int) -> list[Result]:
    cases = [case for _, case in pairs]
    results = host.run(cases)
    failures = []
    for (form, case), expected, found in zip(pairs, results, virga.run(cases)):
        lines = [line for line in differences(case, expected, found) if not tolerated(form, expected, line)]
        if lines:
            failures.append(describe(case, seed, lines))
    assert not failures, f"{len(failures)} of {len(cases)} differ\n" + "\n".join(failures[:5])
    return results


@FAMILIES
def test_results(host: Host, virga: Virga, seed: int, family) -> None:
    compare(host, virga, random_pairs(random.Random(seed), family, FORMS_EACH), seed)


@FAMILIES
def test_unmasked_exceptions(host: Host, virga: Virga, seed: int, family) -> None:
    compare(host, virga, random_pairs(random.Random(seed), family, FORMS_EACH, unmasked=0.9), seed)


@FAMILIES
def test_a_pending_x87_exception_comes_first(host: Host, virga: Virga, seed: int, family) -> None:
    pairs = random_pairs(random.Random(seed), family, 2, pending=1.0)
    results = compare(host, virga, pairs, seed)
    if family is x87.FORMS:
        waiting = {form.name for (form, _), result in zip(pairs, results) if result.vector != MF}
        assert waiting <= {"fnstcw", "fnstsw_m16", "fnstsw_ax", "fnclex", "fninit", "fnstenv", "fnsave", "feni", "fdisi", "fsetpm"}


@FAMILIES
def test_memory_operands_out_of_place(host: Host, virga: Virga, seed: int, family) -> None:
    """Misaligned, in part or wholly in pages that are not there: the same fault, and nothing changed."""
    rng = random.Random(seed)
    pairs = []
    for form, case in random_pairs(rng, family, 4):
        if form.memory and form.name not in ("maskmovq", "maskmovdqu"):
            size = min((form.row.operands.mem_bits or 112) // 8, 16)
            target = rng.choice((WINDOW_AT + 256 + rng.randrange(64), 0x20002000 - rng.randrange(size), 0x1FFFF000, 0x20000000 - 1))
            pairs.append((form, replace(case, state=case.state.with_gpr(rdi=target), code=form.code(0))))
    results = compare(host, virga, pairs, seed)
    assert any(result.vector == PAGE_FAULT for result in results)
    for (_, case), result in zip(pairs, results):
        if result.vector == PAGE_FAULT:
            assert result.state.gpr == case.state.gpr


@FAMILIES
def test_alignment_checks(host: Host, virga: Virga, seed: int, family) -> None:
    """EFLAGS.AC in user mode."""
    rng = random.Random(seed)
    pairs = []
    for form, case in random_pairs(rng, family, 3):
        if form.memory and form.name not in ("maskmovq", "maskmovdqu"):
            state = case.state.with_gpr(rdi=WINDOW_AT + 256 + rng.randrange(16))
            pairs.append((form, replace(case, state=replace(state, rflags=state.rflags | 0x40000), code=form.code(0))))
    results = compare(host, virga, pairs, seed)
    assert any(result.vector == AC for result in results)


def test_prefixes_in_any_order(host: Host, virga: Virga, seed: int) -> None:
    """Random prefixes before random opcodes of these families: the same instruction, or the same #UD."""
    rng = random.Random(seed)
    opcodes = sorted({(row.map, row.opcodes[0]) for family in (sse.FORMS, x87.FORMS) for row in rows(family)
                      if row.insn.mnemonic not in (*APPROXIMATE, "emms", "fwait", "ldmxcsr", "stmxcsr")})
    cases = []
    for _ in range(3000):
        map_, opcode = rng.choice(opcodes)
        prefixes = b"".join(rng.choice((b"\x66", b"\x66", b"\xf2", b"\xf3", b"\x3e", b"\x36", b"\x67")) for _ in range(rng.randrange(4)))
        rex = bytes([0x40 | rng.randrange(16)]) if rng.random() < 0.4 else b""
        modrm = rng.choice((0xC0 | rng.getrandbits(6), rng.getrandbits(6) & 0x38 | 7))
        code = prefixes + rex + MAPS[map_] + bytes([opcode, modrm, 0xCC])      # INT3: an immediate, or the end
        state = random_state(rng, pointers=("rdi", "r15"), fx=random_fx(rng, unmasked=0.1))
        state = state.with_gpr(rdi=state.gpr[7] & ~63, r15=state.gpr[15] & ~63)
        cases.append(Case(code, state, code.hex()))
    for case, expected, found in zip(cases, host.run(cases), virga.run(cases)):
        lines = [line for line in differences(case, expected, found) if expected.vector != XM or not line.startswith("MXCSR")]
        assert not lines, describe(case, seed, lines)


# ---------------------------------------------------------------- what needs another kind of comparison

def test_approximations(virga: Virga, seed: int) -> None:
    """|error| <= 1.5 * 2^-12 relative (SDM 2B RCPPS, RSQRTPS), and the special cases exactly."""
    rng = random.Random(seed)
    for name, code, exact in (("rcpps", "0f53c1", lambda x: 1 / x), ("rsqrtps", "0f52c1", lambda x: 1 / sqrt(x))):
        for _ in range(200):
            source = b"".join(random_float(rng) for _ in range(4))
            fx = bytearray(random_fx(rng))
            fx[176:192] = source
            result = virga.run_one(Case(bytes.fromhex(code), State(fx=bytes(fx))))
            assert result.vector == BREAKPOINT and result.state.fx[24:28] == bytes(fx[24:28])
            for x, y in zip(struct.unpack("<4f", source), struct.unpack("<4f", result.state.fx[160:176])):
                check_approximation(name, x, y, exact)


def check_approximation(name: str, x: float, y: float, exact) -> None:
    tiny = abs(x) < 2.0 ** -126
    if isnan(x) or (name == "rsqrtps" and x < 0 and not tiny):
        assert isnan(y)
    elif tiny:
        assert isinf(y) and str(y)[0] == str(x)[0] or (y > 0 and str(x)[0] != "-")
    elif isinf(x) or (name == "rcpps" and abs(1 / x) < 2.0 ** -126):
        assert y == 0
    else:
        assert abs(y / exact(x) - 1) <= 1.5 * 2.0 ** -12, (x, y)


@pytest.mark.parametrize("text", ["fxsave64 [rdi]", "fxsave [rdi]", "fxrstor64 [rdi]", "fxrstor [rdi]"])
def test_fxsave_images(host: Host, virga: Virga, seed: int, text: str) -> None:
    rng = random.Random(seed)
    cases = []
    for offset in (0, 16, 256, 8) * 5:
        window = bytearray(rng.randbytes(WINDOW))
        image = bytearray(random_fx(rng, unmasked=0.5))
        image[26] = rng.random() < 0.1                       # a reserved bit of MXCSR
        window[offset:offset + 464] = image[:464]
        state = State(fx=random_fx(rng, unmasked=0.5), window=bytes(window)).with_gpr(rdi=WINDOW_AT + offset)
        cases.append(Case(asm(text), state, text))
    for case, expected, found in zip(cases, host.run(cases), virga.run(cases)):
        assert not (lines := differences(case, expected, found)), describe(case, seed, lines)


def xsave_case(code: bytes, fx: bytes, area: bytes, mask: int = 3) -> Case:
    """The area at the first multiple of 64 in the window."""
    window = bytearray(WINDOW)
    window[:len(area)] = area
    return Case(code, State(fx=fx, window=bytes(window)).with_gpr(rdi=WINDOW_AT, rax=mask, rdx=0))


@pytest.mark.parametrize("save", ["xsave64", "xsavec64", "xsaveopt64", "xsave"])
def test_xsave_and_back(virga: Virga, seed: int, save: str) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        fx = random_fx(rng)
        saved = virga.run_one(xsave_case(asm(f"{save} [rdi]"), fx, bytes(576)))
        assert saved.vector == BREAKPOINT
        assert int.from_bytes(saved.state.window[512:520], "little") == 3
        assert int.from_bytes(saved.state.window[520:528], "little") == ((1 << 63 | 3) if "c" in save else 0)
        back = virga.run_one(xsave_case(asm("xrstor64 [rdi]"), random_fx(rng), saved.state.window[:576]))
        case = Case(b"\x90", State(fx=fx))
        want = Result(BREAKPOINT, back.rip, replace(back.state, fx=saved.state.fx))
        assert back.vector == BREAKPOINT and not differences(case, want, back)


def test_xsave_agrees_with_the_host(host: Host, virga: Virga, seed: int) -> None:
    """The standard form with both components in use; XCR0 of the host has more, which the mask leaves out."""
    rng = random.Random(seed)
    cases = [xsave_case(asm(f"{name} [rdi]"), random_fx(rng), bytes(576), mask)
             for name in ("xsave64", "xsave", "xsavec64") for mask in (0, 1, 2, 3) for _ in range(4)]
    cases += [xsave_case(asm("xrstor64 [rdi]"), random_fx(rng), random_fx(rng) + header + bytes(48), mask)
              for header in (struct.pack("<QQ", bv, comp) for bv in (0, 1, 2, 3)
                             for comp in (0, 1 << 63 | 3, 1 << 63 | 1)) for mask in (1, 2, 3)]
    for case, expected, found in zip(cases, host.run(cases), virga.run(cases)):
        assert not (lines := differences(case, expected, found)), describe(case, seed, lines)


@pytest.mark.parametrize(("at", "value"), [(512, 1 << 5), (520, 1), (528, 1), (560, 1 << 62)])
def test_xrstor_refuses_a_bad_header(virga: Virga, at: int, value: int) -> None:
    area = bytearray(576)
    area[24:28] = b"\x80\x1f\0\0"
    area[at:at + 8] = struct.pack("<Q", value)
    if at == 560:
        area[520:528] = struct.pack("<Q", 1 << 63 | 3)       # the compacted form looks at all 64 bytes
    assert virga.run_one(xsave_case(asm("xrstor64 [rdi]"), random_fx(random.Random(1)), bytes(area))).vector == 13


def test_xrstor_initializes_what_is_not_there(virga: Virga) -> None:
    area = bytearray(576)
    area[24:28] = b"\xa0\x1f\0\0"
    result = virga.run_one(xsave_case(asm("xrstor64 [rdi]"), random_fx(random.Random(1)), bytes(area)))
    assert result.state.fx[:6] == b"\x7f\x03\0\0\0\0" and result.state.fx[24:26] == b"\xa0\x1f"
    assert not any(result.state.fx[32:416])


@pytest.mark.parametrize(("name", "value", "code", "vector"), [
    ("cr0", 0x8005003B, "addps xmm0, xmm1", 7), ("cr0", 0x80050037, "addps xmm0, xmm1", 6), ("cr4", 0x50420, "addps xmm0, xmm1", 6),
    ("cr0", 0x8005003B, "paddb mm0, mm1", 7), ("cr0", 0x80050037, "paddb mm0, mm1", 6), ("cr4", 0x50420, "paddb mm0, mm1", 3),
    ("cr0", 0x8005003B, "fld1", 7), ("cr0", 0x80050037, "fld1", 7), ("cr4", 0x50420, "fld1", 3),
    ("cr0", 0x8005003B, "fwait", 7), ("cr0", 0x80050039, "fwait", 3), ("cr0", 0x80050037, "fwait", 3),
    ("cr0", 0x8005003B, "xsave64 [rdi]", 7), ("cr4", 0x10620, "xsave64 [rdi]", 6), ("cr4", 0x10620, "xgetbv", 6),
    ("cr0", 0x8005003B, "fxsave64 [rdi]", 7), ("cr0", 0x80050037, "fxsave64 [rdi]", 7), ("cr4", 0x50420, "fxsave64 [rdi]", 3),
    ("cr4", 0x50220, "sqrtps xmm0, xmm0", 6),                # an unmasked exception without CR4.OSXMMEXCPT
])
def test_who_may_use_which_unit(name: str, value: int, code: str, vector: int) -> None:
    virga = Virga()
    virga.cpu.set(name, value)
    fx = bytearray(random_fx(random.Random(1)))
    fx[24:28] = b"\x00\x1f\0\0" if "sqrt" in code else b"\x80\x1f\0\0"       # #I unmasked, and -1.0 below
    fx[160:176] = struct.pack("<4f", -1.0, 1.0, 1.0, 1.0)
    fx[2:4] = b"\0\0"
    state = State(fx=bytes(fx)).with_gpr(rdi=WINDOW_AT, rax=3, rdx=0, rcx=0)
    assert virga.run_one(Case(asm(code), state)).vector == vector


def test_x87_pointers_follow(virga: Virga) -> None:
    """FIP, FDP and FOP; FCS and FDS are deprecated."""
    result = virga.run_one(Case(asm("fld qword ptr [rdi]; fxsave64 [rdi + 256]"), State().with_gpr(rdi=WINDOW_AT)))
    image = result.state.window[256:]
    assert struct.unpack_from("<HQQ", image, 6) == (0x507, CODE_AT, WINDOW_AT)
