"""Writes build/gen/_sse.pyx: a handler for each form of each row of sse.py, by its kind.

Owns:    the shape of the regular handlers; which macro of vcpu/ops/sse_kernels.h makes each kernel.
Never:   instruction semantics (the kernels), irregular handlers (vcpu/ops/sse_*.pxi, kind "own").
Threads: a build step.
"""

import re

from vcpu.isa.sse import FORMS
from vcpu.isa.table import Insn, Operands, build_row

HEAD = '''# Generated from vcpu/isa/sse.py by vcpu/isa/emit_sse.py: do not edit.
"""MMX, SSE to SSE4.2, AES, PCLMULQDQ, saved state: the handlers. Owner: FPU."""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from vcpu.core.state cimport (CpuState, Op, handler_t, VECTOR_GP, VECTOR_MF, VECTOR_NM, VECTOR_UD, VECTOR_XM,
                              OPF_ADDR32, OPF_ADDR64, OPF_REXW, NO_ERROR_CODE)
from vcpu.core.engine cimport ea, finish_op, reg32, reg64
from vcpu.core.mem cimport mem_check, mem_read, mem_write, mem_write_buf
from vcpu._core cimport fault, fault_refused, seg_linear

'''

# what stands for a call that may fault, in the handler that gives up instead
QUICK = (
    (r"mem_read\(cpu, op, ", "probe_read(cpu, "),
    (r"read_aligned\(cpu, op\)", "probe_aligned(cpu, ea(cpu, op))"),
    (r"if not mem_write\(cpu, op, ", "if not put(cpu, "),
    (r"if not mem_write_buf\(cpu, op, ea\(cpu, op\), (.*), 16\):", r"if not put128(cpu, ea(cpu, op), load128(\1)):"),
    (r"if not write_aligned\(cpu, op, (.*)\):", r"if not put_aligned(cpu, ea(cpu, op), load128(\1)):"),
    (r"if not k_", "if not q_"),
    (r"    fault_xm\(cpu, op\)", "    {give_up}"),
)


def definition(name: str, lines: list[str]) -> str:
    body = "\n".join(f"    {line}" for line in lines)
    return f"cdef void {name}(CpuState* cpu, Op* op) noexcept nogil:\n{body}\n    op[1].fn(cpu, op + 1)\n\n\n"


def function(name: str, lines: list[str]) -> str:
    """The handler; where it may fault, two: the complete one, and one without a call, which goes on to it."""
    give_up = f"go_on(cpu, op, <void*>complete_{name})"
    quick = []
    for line in lines:
        if line == "    return" and quick[-1].startswith("if "):
            quick.append(f"    {give_up}")
        for pattern, to in QUICK:
            line = re.sub(pattern, to, line)
        quick.append(line.format(give_up=give_up) if "give_up" in line else line)
    if quick == lines:
        return definition(f"op_{name}", lines)
    return definition(f"complete_{name}", lines) + definition(f"op_{name}", quick)


def fallible(call: str) -> list[str]:
    """A floating-point kernel: 0 is an unmasked exception."""
    return [f"if not {call}:", "    fault_xm(cpu, op)", "    return"]


def memory_source(bits: int, aligned: bool) -> tuple[list[str], str]:
    """Lines that read the memory operand, and the expression of its value as v128."""
    read = {128: "read_aligned(cpu, op)" if aligned else "mem_read(cpu, op, ea(cpu, op), 16)"}.get(
        bits, f"mem_read(cpu, op, ea(cpu, op), {bits // 8})")
    return ["cdef uint8_t* p = " + read, "if p == NULL:", "    return"], f"load{bits}(p)"


def lanes_of(kind: str) -> str:
    last = kind.removeprefix("fp_").removeprefix("imm_")
    return {"exact": "LANES_NONE", "imm": "LANES_NONE", "fp_imm": "LANES_NONE"}.get(last, f"LANES_{last.upper()}")


ALIGNED_MOVES = ("movaps", "movapd", "movdqa", "movntps", "movntpd", "movntdq", "movntdqa")
FULL_MOVES = (*ALIGNED_MOVES, "movups", "movupd", "movdqu", "lddqu")
# name: (bits, destination or source in the XMM register)
LOW_MOVES = {"movss": 32, "movsd": 64, "movd": 32, "movq": 64}
LANES = {"pinsrb": 8, "pinsrw": 16, "pinsrd": 32, "pinsrq": 64,
         "pextrb": 8, "pextrw": 16, "pextrd": 32, "pextrq": 64, "extractps": 32}

D = "&cpu.xmm[op.r]"
MX = "&cpu.mxcsr"
RD = "reg64(cpu, op.r)"


def xmm_body(kind: str, mnemonic: str, name: str, source: str) -> list[str]:
    """What a handler of two XMM operands does with the value `source`."""
    kernel = f"k_{mnemonic}"
    if kind == "op":
        return [f"{kernel}({D}, {source})"]
    if kind == "op_imm":
        return [f"{kernel}({D}, {source}, <uint32_t>op.imm)"]
    if kind == "insertps":       # a memory operand has no lane to select
        imm = "op.imm" if name.endswith("x_x_i") else "op.imm & 0x3F"
        return [f"{kernel}({D}, {source}, <uint32_t>({imm}))"]
    if kind == "blendv":
        return [f"{kernel}({D}, {source}, &cpu.xmm[0])"]
    if kind == "approximate":
        lanes = 4 if mnemonic.endswith("ps") else 1
        return [f"k_{mnemonic[:-2]}({D}, {source}, {lanes})"]
    if kind == "ptest":
        return [f"k_ptest(&cpu.aflags, {D}, {source})"]
    if kind == "compare":
        return fallible(f"{kernel}({MX}, &cpu.aflags, {D}, {source})")
    if kind == "to_int":
        return fallible(f"{kernel}_{name.split('_')[1]}({MX}, {RD}, {source})")
    if kind == "string":
        return string_body(mnemonic, source)
    if kind.startswith("fp_imm"):
        return fallible(f"{kernel}({MX}, {D}, {source}, <uint32_t>op.imm)")
    if kind.startswith("fp_"):
        return fallible(f"{kernel}({MX}, {D}, {source})")
    raise ValueError(kind)


def string_body(mnemonic: str, source: str) -> list[str]:
    explicit, mask = "estr" in mnemonic, mnemonic.endswith("m")
    lengths = [f"string_length(cpu.regs[{n}], op.flags & OPF_REXW)" if explicit else "0" for n in (0, 2)]
    return [f"k_{mnemonic}(&cpu.aflags, {D}, {source}, <uint32_t>op.imm, {', '.join(lengths)},",
            f"    {'NULL' if mask else '&cpu.regs[1]'}, {'&cpu.xmm[0]' if mask else 'NULL'})"]


def mm_body(kind: str, mnemonic: str, source: str) -> list[str]:
    if kind == "mm_palignr":
        value = f"align_right(mm(cpu, op.r), {source}, <uint32_t>op.imm)"
    elif kind == "mm_pshufw":
        value = f"shuffle_words({source}, <uint32_t>op.imm)"
    else:
        value = f"mm_{mnemonic}(mm(cpu, op.r), {source})"
    return [f"set_mm(cpu, op.r, {value})"]


def handler(insn: Insn, kind: str, o: Operands, name: str, in_memory: bool) -> str:
    bits, m = o.mem_bits or 0, insn.mnemonic
    if kind == "shift":
        return function(name, [f"k_{m}(&cpu.xmm[op.b], from64(op.imm))"])
    if kind == "shift_bytes":
        return function(name, [f"k_{m}_i(&cpu.xmm[op.b], <uint32_t>op.imm)"])
    if kind == "mm_shift":
        return function(name, ["if not mmx_begin(cpu, op):", "    return", "mmx_enter(cpu)",
                               f"set_mm(cpu, op.b, mm_{m}(mm(cpu, op.b), op.imm))"])
    if kind == "from_int":
        return function(name, from_int(m, name, in_memory))
    if kind in ("to_mm", "from_mm") or kind.startswith("mm"):
        return definition(f"op_{name}", with_mmx(kind, m, bits, in_memory))
    if not in_memory:
        return function(name, xmm_body(kind, m, name, "load128(&cpu.xmm[op.b])"))
    lines, source = memory_source(bits, kind != "string")
    return function(name, lines + xmm_body(kind, m, name, source))


def from_int(mnemonic: str, name: str, in_memory: bool) -> list[str]:
    bits = name[-2:]
    lines = [f"cdef uint8_t* p = mem_read(cpu, op, ea(cpu, op), {int(bits) // 8})", "if p == NULL:", "    return"]
    source = f"(<uint{bits}_t*>p)[0]" if in_memory else f"reg{bits}(cpu, op.b)[0]"
    call = fallible(f"k_{mnemonic}_r{bits}({MX}, {D}, {source})")
    return lines + call if in_memory else call


def with_mmx(kind: str, mnemonic: str, bits: int, in_memory: bool) -> list[str]:
    """Handlers with an MMX operand. x87's pending exception comes first; the tags change before #XM, as on
    the host."""
    lines = ["cdef uint8_t* p"] if in_memory else []
    if not (kind == "from_mm" and in_memory):                # which leaves x87 alone (SDM 2A CVTPI2PD)
        lines += ["if not mmx_begin(cpu, op):", "    return"]
    if in_memory:
        read, value = memory_source(bits, True)
        lines += [read[0].removeprefix("cdef uint8_t* "), *read[1:]]
    if kind == "from_mm":
        source = "(<uint64_t*>p)[0]" if in_memory else "mm(cpu, op.b)"
        return [*lines, *([] if in_memory else ["mmx_enter(cpu)"]), *fallible(f"k_{mnemonic}({MX}, {D}, {source})")]
    if kind == "to_mm":
        source = value if in_memory else ("load128(&cpu.xmm[op.b])" if bits == 128 else "load64(&cpu.xmm[op.b])")
        return [*lines, "mmx_enter(cpu)", *fallible(f"k_{mnemonic}({MX}, &cpu.fpu_temp, {source})"),
                "set_mm(cpu, op.r, cpu.fpu_temp)"]
    source = f"(<uint{bits}_t*>p)[0]" if in_memory else "mm(cpu, op.b)"
    return [*lines, "mmx_enter(cpu)", *mm_body(kind, mnemonic, source)]


def kernel(insn: Insn, kind: str) -> tuple[list[str], list[str]]:
    """(macro uses, declarations) that make the kernels of a row."""
    m = insn.mnemonic
    if kind == "op":
        return [f"SSE_OP({m})"], [f"void k_{m}(void* d, v128 s)"]
    if kind == "op_imm" or kind == "insertps":
        return [f"SSE_OP_IMM({m})"], [f"void k_{m}(void* d, v128 s, uint32_t imm)"]
    if kind == "blendv":
        return [f"SSE_BLENDV({m})"], [f"void k_{m}(void* d, v128 s, const void* mask)"]
    if kind == "shift_bytes":
        return [f"SSE_SHIFT_BYTES({m})"], [f"void k_{m}_i(void* d, uint32_t imm)"]
    if kind == "compare":
        return [f"SSE_COMPARE({m})"], [f"int k_{m}(uint32_t* mx, uint32_t* aflags, const void* d, v128 s)"]
    if kind == "string":
        return [f"SSE_STRING({m})"], [f"void k_{m}(uint32_t* aflags, const void* d, v128 s, uint32_t imm, int32_t la, "
                                      "int32_t lb, uint64_t* index, void* mask)"]
    if kind in ("to_int", "from_int"):
        return int_kernel(m, kind, "64" if "REX.W +" in insn.encoding else "32")
    if kind == "from_mm":
        instead, keep = ("cvtdq2ps", 1) if m == "cvtpi2ps" else ("cvtdq2pd", 0)
        return [f"SSE_FROM_MM({m}, {instead}, {keep})"], [f"int k_{m}(uint32_t* mx, void* d, uint64_t s)"]
    if kind == "to_mm":
        return [f"SSE_TO_MM({m}, {m[:-2]}dq)"], [f"int k_{m}(uint32_t* mx, uint64_t* d, v128 s)"]
    if kind.startswith("fp_imm"):
        return [f"SSE_FP_IMM({m}, {lanes_of(kind)})"], [f"int k_{m}(uint32_t* mx, void* d, v128 s, uint32_t imm)"]
    if kind.startswith("fp_"):
        return [f"SSE_FP({m}, {lanes_of(kind)})"], [f"int k_{m}(uint32_t* mx, void* d, v128 s)"]
    if kind in ("mm", "mm_join", "mm_high", "mm_pshufb"):
        macro = {"mm": f"SSE_OP_MM({m})", "mm_join": f"SSE_OP_MM_JOIN({m})", "mm_pshufb": f"SSE_OP_MM_PSHUFB({m})",
                 "mm_high": f"SSE_OP_MM_HIGH({m}, {m.replace('pckh', 'pckl')})"}[kind]
        return [macro], [f"uint64_t mm_{m}(uint64_t d, uint64_t s)"]
    return [], []


def int_kernel(m: str, kind: str, bits: str) -> tuple[list[str], list[str]]:
    name, insn = f"k_{m}_r{bits}", f'"{m}{"q" if bits == "64" else "l" if kind == "from_int" else ""}"'
    if kind == "from_int":
        return [f"SSE_FROM_INT({m}, {bits}, {insn})"], [f"int {name}(uint32_t* mx, void* d, uint{bits}_t s)"]
    return [f"SSE_TO_INT({m}, {bits}, {insn})"], [f"int {name}(uint32_t* mx, uint64_t* d, v128 s)"]


def move(m: str, name: str) -> str:
    """Handlers of kind "own" that are regular after all: moves and lanes. "" for the others."""
    load = ["cdef uint8_t* p = mem_read(cpu, op, ea(cpu, op), {n})", "if p == NULL:", "    return"]
    store = ["if not mem_write(cpu, op, ea(cpu, op), {value}, {n}):", "    return"]
    form = name.removeprefix(m + "_")
    if m in FULL_MOVES and form == "x_x":
        return function(name, ["store128(&cpu.xmm[op.r], load128(&cpu.xmm[op.b]))"])
    if m in FULL_MOVES and form == "x_m":
        read = ["cdef uint8_t* p = read_aligned(cpu, op)", *load[1:]] if m in ALIGNED_MOVES else load
        return function(name, [line.format(n=16) for line in read] + ["store128(&cpu.xmm[op.r], load128(p))"])
    if m in FULL_MOVES:
        write = "write_aligned(cpu, op, {d})" if m in ALIGNED_MOVES else "mem_write_buf(cpu, op, ea(cpu, op), {d}, 16)"
        return function(name, [f"if not {write.format(d=D)}:", "    return"])
    if m in LOW_MOVES and form in ("x_m", "x_m32", "x_m64"):
        bits = LOW_MOVES[m]
        return function(name, [line.format(n=bits // 8) for line in load] + [
            f"store128(&cpu.xmm[op.r], load{bits}(p))"])
    if m in LOW_MOVES and form in ("m_x", "m32_x", "m64_x") or m in ("movlps", "movlpd") and form == "m_x":
        bits = LOW_MOVES.get(m, 64)
        return function(name, [line.format(n=bits // 8, value="cpu.xmm[op.r].lo") for line in store])
    if m in ("movlpd", "movhpd"):
        return f"cdef void op_{name}(CpuState* cpu, Op* op) noexcept nogil:\n    op_{m[:-1]}s_{form}(cpu, op)\n\n"
    if m in LANES and "_mm_" not in name:
        return lanes(m, name, form, load, store)
    return ""


def lanes(m: str, name: str, form: str, load: list[str], store: list[str]) -> str:
    bits = LANES[m]
    n = bits // 8
    pointer = f"(<uint{bits}_t*>lane(cpu, op.{{r}}, op.imm, {n}))[0]"
    if m.startswith("pinsr") and "_m" in form:
        return function(name, [line.format(n=n) for line in load] + [
            f"k_{m}({D}, (<uint{bits}_t*>p)[0], <uint32_t>op.imm)"])
    if m.startswith("pinsr"):
        return function(name, [f"k_{m}({D}, reg64(cpu, op.b)[0], <uint32_t>op.imm)"])
    if form.startswith("m"):
        return function(name, [line.format(n=n, value=pointer.format(r="r")) for line in store])
    if m == "pextrw":            # both encodings share it: the older has the general register in ModRM.reg
        return function(name, [f"reg64(cpu, op.r)[0] = {pointer.format(r='b')}"])
    return function(name, [f"reg64(cpu, op.b)[0] = {pointer.format(r='r')}"])


def registration(names: list[str]) -> str:
    lines = [f"cdef handler_t table[{len(names)}]", "cdef void fill() noexcept nogil:"]
    lines += [f"    table[{i}] = op_{name}" for i, name in enumerate(names)]
    return "\n".join([*lines, "", "", "def register():",
                      '    """Tell the core every handler of this extension."""',
                      "    from vcpu import _core", "    fill()",
                      f'    for i, name in enumerate("{" ".join(names)}".split()):',
                      "        _core.register_handler(name, <uintptr_t>table[i])", "", ""])


def emit() -> str:
    macros: dict[str, None] = {}
    declarations: dict[str, None] = {}
    handlers: dict[str, str] = {}
    for insn, kind in FORMS:
        row = build_row(insn)
        for made, into in zip(kernel(insn, kind), (macros, declarations)):
            into.update(dict.fromkeys(made))
            if into is declarations and made and made[0].startswith("int k_") and not kind.endswith("_mm"):
                into.update(dict.fromkeys([made[0].replace("int k_", "int q_")]))
        for forms in row.handlers:
            for name, in_memory in zip(forms, (False, True)):
                if name:
                    handlers.setdefault(name, move(insn.mnemonic, name) if kind == "own" else handler(insn, kind, row.operands, name, in_memory))
    extern = ['cdef extern from *:', '    """', '    #include "vcpu/ops/sse_kernels.h"',
              *(f"    {m}" for m in macros), '    """', *(f"    {d} noexcept nogil" for d in declarations), "", ""]
    refuse = ("if host_lacks() != NULL:\n"
              '    raise ImportError(f"vcpu: this host has no {host_lacks().decode()}; x86-64-v2 with AES and PCLMULQDQ is needed")\n')
    return (HEAD + 'include "vcpu/ops/sse_common.pxi"\n\n' + "\n".join(extern) + 'include "vcpu/ops/sse_moves.pxi"\n'
            + 'include "vcpu/ops/sse_state.pxi"\n\n\n' + "\n".join(h for h in handlers.values() if h) + "\n"
            + registration(sorted(handlers)) + f"\n{refuse}register()\n")


if __name__ == "__main__":
    from pathlib import Path

    target = Path(__file__).parents[2] / "build" / "gen" / "_sse.pyx"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = emit()
    if not target.exists() or target.read_text() != text:
        target.write_text(text)
