"""Nodes, images, events, help and output, against the fake; the state folder and processes against the real system."""

import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest

from cli import cloud as cloud_module
from cli import etcd_binary, output, processes, state
from cli.errors import CliError
from tests.cli.conftest import invoke


def test_nodes_sorted_by_what_is_free(virga):
    assert virga("node list --sort free -o name").out.split() == ["node-3", "node-2", "node-1"]


def test_cordon_and_drain(virga):
    assert virga("node cordon node-1").out == "node-1 is cordoned: it takes no new VMs.\n"
    assert virga("node drain node-2").out == "node-2 is drained: 2 VMs moved away.\n"
    assert virga("node show node-7").code == 3
    refused = virga("node delete node-1")
    assert refused.code == 4 and "virga vm delete --forget VM" in refused.err


def test_import_sends_only_what_is_missing_in_order(virga, cloud, tmp_path):
    kernel, initrd = tmp_path / "k", tmp_path / "i"
    kernel.write_bytes(bytes(0x202) + b"HdrS" + os.urandom(3 << 20))
    initrd.write_bytes(b"initrd")
    result = virga(f"image import mine --kernel {kernel} --initrd {initrd} -o json")
    record = json.loads(result.out)
    assert result.code == 0 and record["kind"] == "linux"
    assert record["files"]["kernel"]["sha256"] == hashlib.sha256(kernel.read_bytes()).hexdigest()
    assert cloud.images.received == {1: kernel.read_bytes()}
    assert "was there already" in virga(f"image import mine --kernel {kernel} --initrd {initrd}").out
    initrd.write_bytes(b"another")
    assert virga(f"image import mine --kernel {kernel} --initrd {initrd}").code == 4


def test_a_multiboot_kernel_is_told_apart(virga, cloud, tmp_path):
    kernel = tmp_path / "k"
    kernel.write_bytes(b"\x7fELF" + bytes(4092) + b"\x02\xb0\xad\x1b" + bytes(100))
    assert json.loads(virga(f"image import tiny --kernel {kernel} -o json").out)["kind"] == "multiboot"


def test_import_needs_a_kernel(virga):
    assert virga("image import x").code == 2
    assert virga("image import x --kernel /nowhere/at/all").code == 2


def test_an_image_in_use_is_a_conflict(virga):
    result = virga("image delete img")
    assert result.code == 4 and "virga vm list" in result.err


def test_events_of_one_object(virga):
    assert [e["reason"] for e in json.loads(virga("events --for vm/web -o json").out)] == ["Started"]
    assert "! NodeLost" in virga("events").out
    assert virga("events --for web").code == 2


def test_help_imports_neither_grpc_nor_rich_nor_stubs():
    code = "import sys; from cli.main import run; run(['--help']); print([m for m in ('grpc', 'rich', 'virga') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "Exit codes" in done.stdout


def test_yaml_of_nested_records():
    assert output.yaml_lines([{"a": 1, "b": {"c": ["x", True]}, "d": []}]) == [
        "- a: 1", "  b:", "    c:", "      - \"x\"", "      - true", "  d: []"]


@pytest.mark.parametrize("text, mib", [("256M", 256), ("2G", 2048), ("512", 512), ("1GiB", 1024), ("1.5g", 1536)])
def test_sizes(text, mib):
    from cli.options import MemoryType
    assert MemoryType().convert(text, None, None) == mib


def test_without_a_cloud_the_error_names_up(tmp_path):
    result = invoke(["vm", "list", "--state", str(tmp_path / "none")])
    assert result.code == 3 and "virga up" in result.err
    assert not (tmp_path / "none").exists()


def test_a_corrupt_cloud_file_is_told_and_kept(tmp_path):
    (tmp_path / "cloud.json").write_text('{"version": 1, "nodes":')
    for command in ("status", "up"):
        result = invoke([command, "--state", str(tmp_path)])
        assert result.code == 1 and "error[state.corrupt]" in result.err and str(tmp_path) in result.err
    assert (tmp_path / "cloud.json").read_text() == '{"version": 1, "nodes":'


def test_the_state_folder_is_locked_while_up_works(tmp_path):
    with state.locked(tmp_path):
        assert invoke(["up", "--state", str(tmp_path)]).code == 4


def test_cloud_file_round_trip(tmp_path):
    cloud = state.Cloud(["node-1"], {"etcd": 1}, processes={"etcd": state.Process(5, 7)})
    state.save(tmp_path, cloud)
    assert state.load(tmp_path) == cloud


def test_tokens_are_secret_and_kept(tmp_path):
    cloud = state.Cloud(["node-1", "node-2"], {})
    cloud_module.write_tokens(tmp_path, cloud)
    before = (tmp_path / "token").read_text(), (tmp_path / "agent-tokens.json").read_text()
    cloud_module.write_tokens(tmp_path, cloud)
    assert before == ((tmp_path / "token").read_text(), (tmp_path / "agent-tokens.json").read_text())
    for path in (tmp_path / "token", tmp_path / "agent-tokens.json", tmp_path / "nodes" / "node-2" / "token"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(before[1])["node-2"] == (tmp_path / "nodes" / "node-2" / "token").read_text()


def test_ports_are_kept_and_differ():
    cloud = state.Cloud([], {})
    cloud_module.plan(cloud, 2, None, None, "")
    first = dict(cloud.ports)
    cloud_module.plan(cloud, 3, None, None, "")
    assert len(set(cloud.ports.values())) == len(cloud.ports) == 7 and first.items() <= cloud.ports.items()
    with pytest.raises(CliError):
        cloud_module.plan(cloud, 1, None, None, "")


def test_a_process_is_its_pid_and_its_start(tmp_path):
    process = processes.spawn(tmp_path, "sleeper", ["sleep", "60"])
    assert processes.alive(process) and not processes.alive(state.Process(process.pid, process.start_time + 1))
    assert set(processes.belonging_to(tmp_path)) == {process.pid} and not processes.belonging_to(tmp_path / "other")
    processes.stop(processes.belonging_to(tmp_path).values(), 5)
    assert not processes.alive(process)
    processes.reap()


def test_a_process_that_dies_at_once_shows_its_last_words(tmp_path):
    process = processes.spawn(tmp_path, "etcd", ["sh", "-c", "echo no luck >&2; sleep 0.2; exit 1"])
    with pytest.raises(CliError) as caught:
        processes.wait_until(tmp_path, "etcd", process, lambda: False, 5)
    assert "no luck" in "\n".join(caught.value.lines())


def test_down_ends_what_carries_the_mark_even_without_cloud_file(tmp_path):
    process = processes.spawn(tmp_path, "stray", ["sh", "-c", "trap '' TERM; sleep 60"])
    (tmp_path / "cloud.json").write_text("garbage")
    result = invoke(["down", "--state", str(tmp_path)])
    processes.reap()
    assert result.code == 0 and not processes.alive(process)


def test_purge_refuses_a_folder_that_is_no_cloud(tmp_path):
    (tmp_path / "precious").write_text("x")
    assert invoke(["down", "--purge", "--state", str(tmp_path)]).code == 1
    assert (tmp_path / "precious").exists()


def test_a_taken_port_is_not_free():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not processes.is_free(port) and processes.listening(port)
    assert port not in processes.free_ports(5, [port])


@pytest.mark.parametrize("version, good", [((3, 4, 21), False), ((3, 4, 23), True), ((3, 5, 1), False), ((3, 5, 6), True)])
def test_etcd_versions(version, good):
    assert etcd_binary.acceptable(version) is good
