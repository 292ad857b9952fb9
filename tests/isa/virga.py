"""Virga's processor, given the cases of harness.py: user mode, the oracle's addresses and segments, every exception an exit."""

from vcpu import _core
from vcpu import vmcs as field

from .harness import CODE, CODE_AT, DATA, DIED, GPRS, WINDOW, WINDOW_AT, Case, Result, State

CODE_GPA = 0x10000               # two pages
DATA_GPA = 0x20000               # two pages
TABLES = 0x1000
RAM = 1 << 20
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
        self.bits = 0
        for segment in ("fs", "gs"):
            self.segment(segment, 0x2B, 0xC0F3)
        self.use(64)
        self.cpu.set("tr.limit", 0)                              # no I/O bitmap: every port is #GP
        self.vmcs[field.EXCEPTION_BITMAP] = 0xFFFFFFFF

    def segment(self, name: str, selector: int, rights: int, base: int = 0, limit: int = 0xFFFFFFFF) -> None:
        self.cpu.set(name, selector)
        self.cpu.set(f"{name}.base", base)
        self.cpu.set(f"{name}.limit", limit)
        self.cpu.set(f"{name}.rights", rights)

    def use(self, bits: int) -> None:
        """Segments for code of that width, as the oracle has them."""
        if bits == self.bits:
            return
        self.bits = bits
        rights = {64: 0xA0FB, 32: 0xC0FB, 16: 0x00FB}[bits]      # present, DPL 3, code, readable, accessed; then L, D, G
        base, limit = (DATA, 0xFFFF) if bits == 16 else (0, 0xFFFFFFFF)
        self.segment("cs", 0x33, rights, CODE if bits == 16 else 0, limit)
        for name in ("ss", "ds", "es"):
            self.segment(name, 0x2B, 0x00F3 if bits == 16 else 0xC0F3, base, limit)

    def run(self, cases: list[Case]) -> list[Result]:
        return [self.run_one(case) for case in cases]

    def run_one(self, case: Case) -> Result:
        at = CODE_GPA + (CODE_AT & 0xFFF)
        self.use(case.bits)
        self.space.write(at, case.code)
        self.space.write(DATA_GPA + WINDOW_AT - DATA, case.state.window)
        for name, value in zip(GPRS, case.state.gpr):
            self.cpu.set(name, value)
        _core.set_fpu_image(self.cpu, case.state.fx)
        self.cpu.set("rflags", case.state.rflags)
        self.cpu.set("rip", CODE_AT - self.cpu.get("cs.base"))
        exit = self.cpu.run(self.vmcs, deadline_ns=self.clock.now_ns() + CPU_SECONDS_NS)
        state = State(tuple(self.cpu.get(name) for name in GPRS), self.cpu.get("rflags"), _core.fpu_image(self.cpu),
                      self.space.read(DATA_GPA + WINDOW_AT - DATA, WINDOW))
        rip = self.cpu.get("rip") + self.cpu.get("cs.base")
        self.space.write(at, b"\xcc" * len(case.code))
        if exit.reason != EXIT_EXCEPTION:
            return Result(DIED + exit.reason, rip, state)
        vector = exit.intr_info & 0xFF
        return Result(vector, rip, state, exit.intr_error, exit.qualification if vector == 14 else 0)
