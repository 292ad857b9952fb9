# Owner: APIC. Included by vcpu/_core.pyx: guest time, the vCPU's deadlines as a budget of instructions (clock.pxd).

from vcpu.core.clock cimport *

cdef int64_t clock_now(CpuState* cpu) noexcept nogil:
    return clock_read(cpu.clock)


cdef uint64_t clock_tsc(CpuState* cpu) noexcept nogil:
    return ns_to_tsc(cpu.clock, clock_read(cpu.clock)) + <uint64_t>cpu.apic.tsc_offset


cdef void clock_begin(CpuState* cpu, int64_t deadline_ns, int64_t quantum) noexcept nogil:
    """run() starts: the vCPU enters the guest, its time is the machine's."""
    cpu.deadline_ns = deadline_ns
    cpu.quantum = quantum
    sync_retired(cpu)
    cpu.retired_start = cpu.retired
    set_budget(cpu, 0)
    if cpu.clock.is_virtual:
        cpu.clock.running = cpu
    guest_enter(cpu)


cdef void clock_end(CpuState* cpu) noexcept nogil:
    """run() ends."""
    guest_leave(cpu)
    sync_retired(cpu)
    if cpu.clock.is_virtual:
        cpu.clock.base_ns += <int64_t>(cpu.retired - cpu.retired_start)
        cpu.clock.running = NULL
    cpu.retired_start = cpu.retired


cdef bint clock_arm(CpuState* cpu) noexcept nogil:
    """Fire what is due; give the vCPU instructions until the next deadline. True: this run() is over."""
    cdef int64_t now, until, budget
    sync_retired(cpu)
    now = clock_read(cpu.clock)
    if cpu.apic.timer_ns <= now:
        apic_timer_fire(cpu, now)
    if cpu.deadline_ns <= now:
        return True
    until = (cpu.apic.timer_ns if cpu.apic.timer_ns < cpu.deadline_ns else cpu.deadline_ns) - now
    budget = until if until > 1 else 1
    if not cpu.clock.is_virtual:
        budget = REAL_SLICE_MIN if until < REAL_SLICE_MIN else REAL_SLICE if until > REAL_SLICE else until
    if cpu.quantum >= 0:
        until = cpu.quantum - <int64_t>(cpu.retired - cpu.retired_start)
        if until <= 0:
            return True
        if until < budget:
            budget = until
    set_budget(cpu, budget)
    return False


cdef void check_tsc_hz(uint64_t tsc_hz) except *:
    """Also of a saved clock: time is divided by it."""
    if not 1000000 <= tsc_hz <= 100000000000:
        raise ValueError(f"TSC rate of {tsc_hz} Hz: 1 MHz to 100 GHz")


cdef class Clock:
    """The time of one machine. mode: 'real' or 'virtual'; tsc_hz: rate of the guest's TSC; seed: for RDRAND;
    wall_ns: UNIX time in ns at guest time 0 (real: now, if not given).

    Guest time starts at 0, is monotonic and counts ns."""
    cdef ClockState c

    def __cinit__(self, mode="real", *, uint64_t tsc_hz=NS, uint64_t seed=0, wall_ns=None):
        if mode not in ("real", "virtual"):
            raise ValueError(f"clock mode {mode!r}: 'real' or 'virtual'")
        check_tsc_hz(tsc_hz)
        self.c.is_virtual = mode == "virtual"
        self.c.tsc_hz = tsc_hz
        self.c.seed = seed
        if not self.c.is_virtual:
            self.c.base_ns = -monotonic_ns()
        if wall_ns is None:
            wall_ns = <int64_t>1767225600 * NS if self.c.is_virtual else realtime_ns()     # virtual: 2026-01-01
        self.c.wall_ns = wall_ns

    @property
    def mode(self):
        return "virtual" if self.c.is_virtual else "real"

    @property
    def is_virtual(self):
        return self.c.is_virtual != 0

    @property
    def tsc_hz(self):
        return self.c.tsc_hz

    @property
    def seed(self):
        return self.c.seed

    @property
    def wall_ns(self):
        """UNIX time in ns at guest time 0."""
        return self.c.wall_ns

    def now_ns(self):
        """Guest time in ns."""
        return clock_read(&self.c)

    def advance_to(self, int64_t ns):
        """Skip idle time (virtual only, while no vCPU runs). Never goes back."""
        if not self.c.is_virtual:
            raise ValueError("a real clock cannot be advanced")
        if self.c.running != NULL:
            raise RuntimeError("a vCPU is running: time is its instructions")
        if ns > self.c.base_ns:
            self.c.base_ns = ns

    def pause(self):
        """Guest time stands still until resume(). Virtual time does so whenever no vCPU runs."""
        if not self.c.is_virtual and not self.c.paused:
            self.c.paused_at_ns = clock_read(&self.c)
            self.c.paused = 1

    def resume(self):
        if self.c.paused:
            self.c.base_ns = self.c.paused_at_ns - monotonic_ns()
            self.c.paused = 0

    def save(self):
        return {"version": 1, "now_ns": clock_read(&self.c), "wall_ns": self.c.wall_ns, "tsc_hz": self.c.tsc_hz,
                "seed": self.c.seed, "is_virtual": self.c.is_virtual != 0}

    def load(self, state):
        """Go on from a saved time; a clock that is paused stays so."""
        if state["version"] != 1:
            raise ValueError(f"clock state of version {state['version']}: this one reads 1")
        if bool(state["is_virtual"]) != (self.c.is_virtual != 0):
            raise ValueError("a clock's mode does not change by loading")
        cdef uint64_t tsc_hz = state["tsc_hz"], seed = state["seed"]
        cdef int64_t wall_ns = state["wall_ns"], now_ns = state["now_ns"]
        check_tsc_hz(tsc_hz)
        if now_ns < 0:
            raise ValueError(f"clock state: a guest time of {now_ns} ns")
        self.c.tsc_hz = tsc_hz
        self.c.wall_ns = wall_ns
        self.c.seed = seed
        if self.c.is_virtual:
            self.c.base_ns = now_ns
        elif self.c.paused:
            self.c.paused_at_ns = now_ns
        else:
            self.c.base_ns = now_ns - monotonic_ns()
