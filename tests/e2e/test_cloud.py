"""A cloud of three nodes by the command line alone, with the tiny guest: moved under load, and every part killed."""

import os
import signal
import subprocess
import sys

import pytest

from cli import processes
from tests.e2e.virga_command import Cloud, Terminal


@pytest.fixture(scope="module")
def guest() -> str:
    return subprocess.run([sys.executable, "-m", "node_agent", "guest", "path"], capture_output=True, text=True,
                          check=True).stdout.strip()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory, guest):
    made = Cloud(tmp_path_factory.mktemp("cloud"))
    made.run("up", "--nodes", "3")
    for name, append in (("counter", "count rate=50 dirty=20"), ("echo", "echo"), ("crash", "triplefault"), ("hello", "hello")):
        made.run("image", "import", name, "--kernel", guest, "--append", append,
                 *(["--ready-marker", "# ready"] if name in ("counter", "echo") else []))
    yield made
    made.run("down")
    assert not processes.belonging_to(made.folder)


def test_up_again_starts_nothing(cloud):
    before = {name: cloud.pid(name) for name in ("etcd", "controller", "agent-node-1")}
    cloud.run("up")
    assert before == {name: cloud.pid(name) for name in before}


def test_hello_says_its_line_and_powers_off(cloud):
    cloud.run("vm", "create", "hello", "--image", "hello")
    assert cloud.becomes("hello", "STOPPED")["reason"] == "GUEST_POWEROFF"
    assert "hello from a Virga guest" in cloud.run("vm", "log", "hello").out
    cloud.run("vm", "delete", "hello")


def test_console_answers_and_power_button_works(cloud):
    cloud.run("vm", "create", "parrot", "--image", "echo")
    assert "echo: polly" in cloud.run("vm", "console", "parrot", "--send", "polly", "--until", "echo: polly").out
    assert cloud.run("vm", "stop", "parrot").out == "parrot is stopped.\n"
    cloud.run("vm", "start", "parrot")
    assert cloud.json("vm", "show", "parrot")["run"] == 2
    cloud.run("vm", "delete", "parrot")


def test_a_person_at_a_terminal_types_and_leaves(cloud):
    cloud.run("vm", "create", "typed", "--image", "echo")
    with Terminal(cloud, "vm", "console", "typed") as terminal:
        terminal.wait_for(b"Ctrl-] leaves")
        terminal.type(b"polly\r")
        terminal.wait_for(b"echo: polly")
        assert terminal.is_raw()
        terminal.type(b"\x1d")
        terminal.wait_for(b"detached from typed; it goes on")
        assert terminal.ended() == 0 and not terminal.is_raw()
    cloud.run("vm", "delete", "typed")


def test_ctrl_c_ends_the_looking_on_and_nothing_else(cloud):
    cloud.run("vm", "create", "watched", "--image", "echo")
    with Terminal(cloud, "vm", "watch", "watched") as terminal:
        terminal.wait_for(b"RUNNING")
        terminal.type(b"\x03")
        terminal.wait_for(b"detached")
        assert terminal.ended() == 130
    assert cloud.json("vm", "show", "watched")["state"] == "RUNNING"
    cloud.run("vm", "delete", "watched")


def test_a_moved_guest_counts_on_while_it_dirties_memory(cloud):
    before = len(cloud.vm_processes())
    cloud.run("vm", "create", "mover", "--image", "counter")
    last = cloud.counts_beyond("mover", 20)
    places = [cloud.json("vm", "show", "mover")["node"]]
    for _ in range(3):
        record = cloud.json("vm", "migrate", "mover")
        assert record["phase"] == "SUCCEEDED" and 0 < record["gap_ms"] <= record["total_ms"] and record["rounds"] >= 1
        places.append(record["target"])
        last = cloud.counts_beyond("mover", last + 10)
    assert all(here != there for here, there in zip(places, places[1:]))
    log = cloud.run("vm", "log", "mover").out
    assert "memory wrong" not in log
    assert cloud.json("vm", "show", "mover")["run"] == 1
    assert len(cloud.vm_processes()) == before + 1
    cloud.run("vm", "delete", "mover")


@pytest.mark.parametrize("part", ["agent", "controller", "etcd"])
def test_a_killed_part_comes_back_and_no_vm_noticed(cloud, part):
    cloud.run("vm", "create", f"survivor-{part}", "--image", "counter")
    vm = f"survivor-{part}"
    last = cloud.counts_beyond(vm, 5)
    node = cloud.json("vm", "show", vm)["node"]
    before = cloud.vm_processes()
    os.kill(cloud.pid(f"agent-{node}" if part == "agent" else part), signal.SIGKILL)
    cloud.run("up")
    cloud.counts_beyond(vm, last + 25)
    record = cloud.json("vm", "show", vm)
    assert (record["state"], record["run"], record["node"]) == ("RUNNING", 1, node)
    assert cloud.vm_processes() == before
    cloud.run("vm", "delete", vm)


def test_a_killed_vm_process_is_told_and_harms_nobody(cloud):
    before = set(cloud.vm_processes())
    cloud.run("vm", "create", "bystander", "--image", "counter")
    (bystander,) = set(cloud.vm_processes()) - before
    cloud.run("vm", "create", "victim", "--image", "counter")
    (victim,) = set(cloud.vm_processes()) - before - {bystander}
    os.kill(victim, signal.SIGKILL)
    assert cloud.becomes("victim", "CRASHED")["reason"] == "KILLED"
    cloud.counts_beyond("bystander", 10)
    cloud.run("vm", "delete", "victim", "bystander")


def test_a_triple_fault_is_a_crash_with_its_reason(cloud):
    told = cloud.run("vm", "create", "faulty", "--image", "crash", "--no-wait").out
    assert "faulty" in told
    assert cloud.becomes("faulty", "CRASHED")["reason"] == "TRIPLE_FAULT"
    cloud.run("vm", "delete", "faulty")


def test_what_fits_nowhere_is_refused_and_waits(cloud):
    refused = cloud.run("vm", "create", "big", "--image", "echo", "--memory", "900G", code=5)
    assert "3 nodes: 3 too little memory" in refused.err
    assert cloud.json("vm", "show", "big")["state"] == "PENDING"
    cloud.run("vm", "delete", "big")


def test_a_drained_node_is_empty_and_its_guests_count_on(cloud):
    cloud.run("vm", "create", "drop", "--image", "counter", "--count", "3")
    cloud.run("node", "drain", "node-2")
    assert {vm["node"] for vm in cloud.json("vm", "list")} == {"node-1", "node-3"}
    cloud.run("node", "uncordon", "node-2")
    for i in (1, 2, 3):
        cloud.counts_beyond(f"drop-{i}", 10)
    cloud.run("vm", "delete", "drop-1", "drop-2", "drop-3")


def test_two_clouds_side_by_side(cloud, tmp_path, guest):
    other = Cloud(tmp_path / "other")
    try:
        other.run("up", "--nodes", "1")
        assert other.json("vm", "list") == [] and len(other.json("node", "list")) == 1
        assert len(cloud.json("node", "list")) == 3
    finally:
        other.run("down", "--force")
    assert not processes.belonging_to(other.folder)
    assert cloud.run("node", "list").out
