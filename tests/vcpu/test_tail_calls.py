"""Handlers jump to the next one: a call in its place would grow the stack by a frame per guest instruction."""

import re
import subprocess

import pytest
from vcpu.isa import table
from vcpu.ops import _integer, _sse, _system, _x87

OP_SIZE = 0x28                   # sizeof(Op): op[1].fn stands there
NEXT = re.compile(rf"(mov|jmp|call) +\*?{OP_SIZE:#x}\(%r")
FUNCTION = re.compile(r"^[0-9a-f]+ <(\S+_op_\w+)>:$")


def functions(path: str) -> dict[str, list[str]]:
    """Instructions of each handler of a compiled extension."""
    found: dict[str, list[str]] = {}
    body: list[str] = []
    out = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        if m := FUNCTION.match(line):
            body = found.setdefault(m.group(1), [])
        elif line.endswith(">:"):
            body = []
        else:
            body.append(line.split("\t")[-1])
    return found


@pytest.mark.parametrize("extension", [_integer, _sse, _system, _x87])
def test_handlers_jump_to_the_next(extension) -> None:
    handlers = functions(extension.__file__)
    going_on = {name: body for name, body in handlers.items() if any(NEXT.match(line) for line in body)}
    assert len(going_on) >= 5, "the layout of Op has changed: mend OP_SIZE"
    calling = [name for name, body in going_on.items() if not any(re.match(r"jmp +\*", line) for line in body)]
    assert not calling, calling


@pytest.mark.parametrize("extension", [_integer, _sse, _system, _x87])
def test_what_ends_a_block_does_not_go_on(extension) -> None:
    """Behind the last op of such a block stand its links, which are no ops."""
    ends = {name for row in table.all_rows() if row.insn.block == table.ENDS for name in row.names}
    going_on = [name for name, body in functions(extension.__file__).items()
                if name.split("_op_")[-1] in ends and any(NEXT.match(line) for line in body)]
    assert not going_on, going_on
