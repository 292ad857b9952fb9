"""Virga's processor, given the cases of harness.py: 64-bit user mode, the oracle's addresses, every exception an exit."""

import vcpu
from vcpu import _core
from vcpu import vmcs as field

from .harness import CODE_AT, DATA, DIED, GPRS, WINDOW, WINDOW_AT, Case, Result, State

CODE = CODE_AT & ~0xFFF
CODE_GPA = 0x10000               # two pages
DATA_GPA = 0x20000               # two pages
TABLES = 0x1000
RAM = 1 << 20
USER_CODE = 0xA0FB               # rights: present, DPL 3, code, readable, accessed, L, G
USER_DATA = 0xC0F3
CPU_SECONDS_NS = 5_000_000_000
EXIT_EXCEPTION = 0
EXIT_TRIPLE_FAULT = 2


def map_pages(space: _core.AddressSpace, pages: dict[int, int]) -> int:
    """Four-level tables for {gva: gpa}, user, writable, executable. Returns CR3."""
    tables: dict[tuple[int, int], int] = {}
    free = TABLES + 0x1000
    for gva, gpa in pages.items():
        at = TABLES
        for level in (4, 3, 2):
            key = (level, gva >> (3 + 9 * level))
            if key not in tables:
                tables[key], free = free, free + 0x1000
                space.write(at + (gva >> (3 + 9 * level) & 511) * 8, (tables[key] | 7).to_bytes(8, "little"))
            at = tables[key]
        rights = 7 if gva < DATA else 7 | 1 << 63                # data is no code, as on the host
        space.write(at + (gva >> 12 & 511) * 8, (gpa | rights).to_bytes(8, "little"))
    return TABLES


class Virga:
    """One vCPU, used for every case. Its memory is laid out once."""

    def __init__(self) -> None:
        self.space = _core.AddressSpace(RAM)
        self.clock = _core.Clock("real")
        self.cpu = _core.Vcpu(self.space, self.clock, 0, 1)
        self.vmcs = _core.Vmcs()
        cr3 = map_pages(self.space, {CODE: CODE_GPA, CODE + 0x1000: CODE_GPA + 0x1000,
                                     DATA: DATA_GPA, DATA + 0x1000: DATA_GPA + 0x1000})
        self.space.write(CODE_GPA, b"\xcc" * 0x2000)
        for name, value in (("cr0", 0x80050033), ("cr4", 0x50620), ("cr3", cr3), ("efer", 0xD01), ("xcr0", 3)):
            self.cpu.set(name, value)
        for segment in ("es", "ds", "fs", "gs", "ss"):
            self.segment(segment, 0x2B, USER_DATA)
        self.segment("cs", 0x33, USER_CODE)
        self.cpu.set("tr.limit", 0)                              # no I/O bitmap: every port is #GP
        self.vmcs[field.EXCEPTION_BITMAP] = 0xFFFFFFFF

    def segment(self, name: str, selector: int, rights: int) -> None:
        self.cpu.set(name, selector)
        self.cpu.set(f"{name}.limit", 0xFFFFFFFF)
        self.cpu.set(f"{name}.rights", rights)

    def run(self, cases: list[Case]) -> list[Result]:
        return [self.run_one(case) for case in cases]

    def run_one(self, case: Case) -> Result:
        at = CODE_GPA + (CODE_AT & 0xFFF)
        self.space.write(at, case.code)
        self.space.write(DATA_GPA + WINDOW_AT - DATA, case.state.window)
        for name, value in zip(GPRS, case.state.gpr):
            self.cpu.set(name, value)
        _core.set_fpu_image(self.cpu, case.state.fx)
        self.cpu.set("rflags", case.state.rflags)
        self.cpu.set("rip", CODE_AT)
        exit = self.cpu.run(self.vmcs, deadline_ns=self.clock.now_ns() + CPU_SECONDS_NS)
        state = State(tuple(self.cpu.get(name) for name in GPRS), self.cpu.get("rflags"), _core.fpu_image(self.cpu),
                      self.space.read(DATA_GPA + WINDOW_AT - DATA, WINDOW))
        rip = self.cpu.get("rip")
        self.space.write(at, b"\xcc" * len(case.code))
        if exit.reason != EXIT_EXCEPTION:
            return Result(DIED + exit.reason, rip, state)
        vector = exit.intr_info & 0xFF
        return Result(vector, rip, state, exit.intr_error, exit.qualification if vector == 14 else 0)
