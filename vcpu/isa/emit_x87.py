"""Writes build/gen/_x87.pyx: the handlers of x87.py that are one call, and the list of all.

Owns:    the shape of those handlers.
Never:   semantics: the host's x87 has them; what is done by hand stands in vcpu/ops/x87_*.pxi.
Threads: a build step.
"""

from vcpu.isa.emit_sse import registration
from vcpu.isa.table import Row, build_row
from vcpu.isa.x87 import FORMS, STORES

HEAD = '''# Generated from vcpu/isa/x87.py by vcpu/isa/emit_x87.py: do not edit.
"""x87: the handlers. Owner: FPU."""
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from vcpu.core.state cimport CpuState, Op, St80, handler_t, SEG_CS, SEG_FS, VECTOR_AC, VECTOR_MF, NO_ERROR_CODE
from vcpu.core.arch cimport CR0_AM, CR0_NE, CR0_PE
from vcpu.core.engine cimport ea, op_rip, RF_AC, RF_VM
from vcpu.core.mem cimport mem_check, mem_read, mem_write, mem_write_buf
from vcpu._core cimport fault

include "vcpu/ops/x87_state.pxi"
include "vcpu/ops/x87_fast.pxi"
include "vcpu/ops/x87_control.pxi"


'''


# handler: the call that does it; arithmetic and comparisons are added below
QUICK = {
    "fld_m32": "load(cpu, op, 1, 4, False)", "fld_m64": "load(cpu, op, 5, 8, False)",
    "fild_m16": "load(cpu, op, 7, 2, True)", "fild_m32": "load(cpu, op, 3, 4, True)", "fild_m64": "load(cpu, op, 7, 8, True)",
    "fst_m32": "store(cpu, op, q_fst_m32, 1, 4, False)", "fst_m64": "store(cpu, op, q_fst_m64, 5, 8, False)",
    "fstp_m32": "store(cpu, op, q_fst_m32, 1, 4, True)", "fstp_m64": "store(cpu, op, q_fst_m64, 5, 8, True)",
    "fist_m16": "store(cpu, op, q_fist_m16, 7, 2, False)", "fist_m32": "store(cpu, op, q_fist_m32, 3, 4, False)",
    "fistp_m16": "store(cpu, op, q_fist_m16, 7, 2, True)", "fistp_m32": "store(cpu, op, q_fist_m32, 3, 4, True)",
    "fistp_m64": "store(cpu, op, q_fist_m64, 7, 8, True)", "fisttp_m16": "store(cpu, op, q_fisttp_m16, 7, 2, True)",
    "fisttp_m32": "store(cpu, op, q_fisttp_m32, 3, 4, True)", "fisttp_m64": "store(cpu, op, q_fisttp_m64, 5, 8, True)",
    "fucomi_sti": "compare_flags(cpu, op, q_fucomi, 3, False)", "fcomi_sti": "compare_flags(cpu, op, q_fcomi, 3, False)",
    "fucomip_sti": "compare_flags(cpu, op, q_fucomi, 7, True)", "fcomip_sti": "compare_flags(cpu, op, q_fcomi, 7, True)",
    "fucom_sti": "compare(cpu, op, q_fucom, 5, 0)", "fucomp_sti": "compare(cpu, op, q_fucom, 5, 1)",
    "fucompp": "compare(cpu, op, q_fucom, 2, 2)", "fcompp": "compare(cpu, op, q_fcom, 6, 2)",
    "fsqrt": "unary(cpu, op, q_fsqrt)", "frndint": "unary(cpu, op, q_frndint)",
}
for _name in ("fadd", "fmul", "fsub", "fsubr", "fdiv", "fdivr"):
    _integer = _name.replace("f", "fi", 1)
    QUICK |= {f"{_name}_m32": f"arithmetic_memory(cpu, op, q_{_name}, 0, 4, False)",
              f"{_name}_m64": f"arithmetic_memory(cpu, op, q_{_name}, 4, 8, False)",
              f"{_integer}_m32": f"arithmetic_memory(cpu, op, q_{_name}, 2, 4, True)",
              f"{_integer}_m16": f"arithmetic_memory(cpu, op, q_{_name}, 6, 2, True)",
              f"{_name}_st_sti": f"arithmetic_sti(cpu, op, q_{_name}, 0, False, False)",
              f"{_name}_sti_st": f"arithmetic_sti(cpu, op, q_{_name}, 4, True, False)",
              f"{_name}p_sti_st": f"arithmetic_sti(cpu, op, q_{_name}, 6, True, True)"}
for _name, _pop in (("fcom", False), ("fcomp", True)):
    _integer = _name.replace("f", "fi", 1)
    QUICK |= {f"{_name}_m32": f"compare_memory(cpu, op, q_fcom, 0, 4, False, {_pop})",
              f"{_name}_m64": f"compare_memory(cpu, op, q_fcom, 4, 8, False, {_pop})",
              f"{_integer}_m32": f"compare_memory(cpu, op, q_fcom, 2, 4, True, {_pop})",
              f"{_integer}_m16": f"compare_memory(cpu, op, q_fcom, 6, 2, True, {_pop})",
              f"{_name}_st_sti": f"compare(cpu, op, q_fcom, 0, {int(_pop)})"}


def handler(name: str, row: Row, kind: str) -> str:
    opcode = row.opcodes[0] & 7
    if kind == "quick":
        call = QUICK[name]
    elif row.encoding.mod == 1:
        store = row.insn.mnemonic in STORES
        call = f"run_memory(cpu, op, {opcode}, {(row.operands.mem_bits or 0) // 8}, {store})"
    else:
        call = f"run_register(cpu, op, {opcode})"
    return (f"cdef void op_{name}(CpuState* cpu, Op* op) noexcept nogil:\n    if not {call}:\n        return\n"
            "    op[1].fn(cpu, op + 1)\n\n\n")


def emit() -> str:
    rows = [(build_row(insn), kind) for insn, kind in FORMS]
    made = [handler(name, row, kind) for row, kind in rows if kind != "own" for name in row.names]
    names = sorted({name for row, _ in rows for name in row.names})
    return HEAD + "".join(made) + registration(names) + "\nregister()\n"


if __name__ == "__main__":
    from pathlib import Path

    target = Path(__file__).parents[2] / "build" / "gen" / "_x87.pyx"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.read_text() != emit():
        target.write_text(emit())
