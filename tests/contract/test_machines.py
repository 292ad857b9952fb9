"""What a VM process expects of a machine, kept by the fake one and by the real one with the tiny guest."""

import subprocess
import sys
import threading
import time

import pytest

from node_agent.machine.spec import ExitKind
from node_agent.vmprocess.fakes import FakeMachines
from node_agent.vmprocess.machines import BadConfig, RealMachines
from virga.vmm.v1 import vmm_pb2 as pb

MIB = 1 << 20


@pytest.fixture(scope="module")
def kernel():
    return subprocess.run([sys.executable, "-m", "node_agent", "guest", "path"], capture_output=True, text=True,
                          check=True).stdout.strip()


@pytest.fixture(params=[FakeMachines, RealMachines], ids=["fake", "real"])
def machines(request):
    return request.param()


class Host:
    def __init__(self, machines, kernel, append, memory=32 * MIB):
        self.machines, self.text, self.news, self.exits = machines, b"", threading.Condition(), []
        config = pb.VmConfig(uid="vm1", memory_bytes=memory, cpus=1, kernel=kernel, append=append, clock="real")
        self.machine = machines.create(config, self.write, int(time.time()))
        self.machine.on_exit = self.ended

    def write(self, channel, data):
        assert channel in ("ttyS0", "ttyS1", "hvc0", "debug") and isinstance(data, bytes)
        with self.news:
            self.text += data
            self.news.notify_all()

    def ended(self, exit):
        with self.news:
            self.exits.append(exit)
            self.news.notify_all()

    def wait(self, what):
        with self.news:
            assert self.news.wait_for(what, 20), self.text

    def boot(self):
        self.machines.boot(self.machine)
        self.machine.start()
        return self

    def close(self):
        self.machine.stop()
        self.machine.close()


@pytest.fixture
def host(machines, kernel):
    made = []

    def make(append, **more):
        made.append(Host(machines, kernel, append, **more))
        return made[-1]
    yield make
    for one in made:
        one.close()


def test_pause_stops_everything_and_resume_goes_on(host):
    one = host("count").boot()
    one.wait(lambda: b"2" in one.text)
    one.machine.pause()
    before, text = one.machine.stats(), one.text
    time.sleep(0.1)
    after = one.machine.stats()
    assert (before.retired_instructions, before.exits) == (after.retired_instructions, after.exits)
    assert one.text == text and before.retired_instructions > 0
    one.machine.resume()
    one.wait(lambda: len(one.text) > len(text) + 4)


def test_memory_and_state_go_on_in_another_that_stood_ready(host, machines):
    one, two = host("count"), host("count")
    two.machine.start(paused=True)
    one.boot()
    one.wait(lambda: b"5" in one.text)
    one.machine.pause()
    two.machine.space.memory[:] = one.machine.space.memory
    machines.load(two.machine, machines.save(one.machine))
    two.machine.resume()
    two.wait(lambda: two.text.count(b"\n") > 5)
    lines = (one.text + two.text).replace(b"\r", b"").split(b"\n")[:-1]
    numbers = [int(line) for line in lines if line.isdigit()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_the_dirty_log_names_every_frame_that_changed(host):
    one = host("count dirty=8").boot()
    one.wait(lambda: b"2" in one.text)
    space = one.machine.space
    space.dirty_start()
    one.machine.pause()
    space.dirty_harvest()
    old = bytes(space.memory)
    one.machine.resume()
    time.sleep(0.3)
    one.machine.pause()
    bitmap, new = space.dirty_harvest(), bytes(space.memory)
    space.dirty_stop()
    changed = [n for n in range(len(old) // 4096) if old[n * 4096:n * 4096 + 4096] != new[n * 4096:n * 4096 + 4096]]
    assert changed and all(bitmap[n >> 3] >> (n & 7) & 1 for n in changed)


def test_ends(host):
    for append, kind in (("hello exit=5", ExitKind.DEBUG_EXIT), ("triplefault", ExitKind.TRIPLE_FAULT)):
        one = host(append).boot()
        one.wait(lambda one=one: one.exits)
        assert one.exits[0].kind is kind
    assert host("count").boot().machine.stats().resets == 0
    one = host("count").boot()
    one.wait(lambda: one.text)
    one.machine.power_button()
    one.wait(lambda: one.exits)
    assert [end.kind for end in one.exits] == [ExitKind.POWER_OFF]


def test_a_wish_that_cannot_be(host):
    with pytest.raises(BadConfig) as error:
        host("count", memory=4096)
    assert error.value.field == "memory"


def test_a_state_that_is_none(host, machines):
    one = host("count")
    with pytest.raises(ValueError):
        machines.load(one.machine, b"\xff\xff\xff garbage")
