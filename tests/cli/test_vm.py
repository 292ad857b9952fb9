"""The verbs of `virga vm` against a controller played by tests/cli/fake_cloud.py."""

import json
import threading

import pytest

from tests.cli.fake_cloud import BOOT, become, phase, unplaceable


def test_create_waits_for_user_space_and_tells_the_phases(virga, cloud):
    cloud.vms.scripts["web"] = list(BOOT)
    result = virga("vm create web --image img --memory 1G --cpus 2")
    assert result.code == 0
    assert "placed node-3 0.1 s · image 0.2 s · kernel 0.4 s · user space 1.3 s" in result.out
    assert "web is running on node-3.  Console: virga vm console web" in result.out
    request = cloud.vms.requests[0]
    assert (request.spec.memory_mib, request.spec.cpus) == (1024, 2) and request.request_id


def test_create_resumes_its_watch_when_the_controller_restarts(virga, cloud):
    cloud.vms.scripts["web"] = [BOOT[0], "break"]
    threading.Timer(0.1, lambda: cloud.vms.scripts.update(web=BOOT[1:])).start()
    result = virga("vm create web --image img")
    assert result.code == 0 and "user space 1.3 s" in result.out


def test_create_is_repeated_with_the_same_request_id(virga, cloud):
    cloud.vms.unavailable = 2
    cloud.vms.scripts["web"] = list(BOOT)
    assert virga("vm create web --image img").code == 0
    assert len({request.request_id for request in cloud.vms.requests}) == 1 and len(cloud.vms.requests) == 3


def test_count_makes_numbered_names(virga, cloud):
    for i in (1, 2, 3):
        cloud.vms.scripts[f"web-{i}"] = list(BOOT)
    result = virga("vm create web --image img --count 3 -o name")
    assert result.code == 0 and result.out.split() == ["web-1", "web-2", "web-3"]


def test_create_that_fits_nowhere_is_refused_and_counted(virga, cloud):
    cloud.vms.scripts["big"] = [unplaceable]
    result = virga("vm create big --image img --memory 900G")
    assert result.code == 5
    assert "error[refused.capacity]: no node can hold big (memory 900 GiB)" in result.err
    assert "3 nodes: 2 too little memory, 1 cordoned (largest free: node-1, 7.2 GiB)" in result.err
    assert "big stays PENDING" in result.err and "try:" in result.err


def test_a_crash_while_starting_is_a_failure_with_its_reason(virga, cloud):
    cloud.vms.scripts["web"] = [*BOOT[:5], become("CRASHED", "TRIPLE_FAULT", "triple fault at 0x1000")]
    result = virga("vm create web --image img")
    assert result.code == 1 and "triple fault at 0x1000" in result.err and "virga vm log web" in result.err


def test_a_time_out_never_deletes(virga, cloud):
    cloud.vms.hang = True
    result = virga("vm create web --image img --timeout 0.5")
    assert result.code == 6 and "it goes on" in result.err
    assert [vm.name for vm in cloud.vms.vms.values()] == ["web"]


def test_no_wait_returns_at_once(virga, cloud):
    result = virga("vm create web --image img --no-wait -o json")
    assert result.code == 0 and json.loads(result.out)["state"] == "PENDING"


def test_dry_run_prints_scores_and_creates_nothing(virga, cloud):
    result = virga("vm create web --image img --dry-run")
    assert result.code == 0 and "spread=0.9" in result.out and "cordoned" in result.out
    assert not cloud.vms.vms
    refused = virga("vm create web --image img --dry-run --memory 64G")
    assert refused.code == 5 and "2 nodes: 2 too little memory" in refused.err


@pytest.mark.parametrize("line, code, words", [
    ("vm show nobody", 3, "error[not_found.vm]: no vm is called nobody"),
    ("vm create web --image none", 3, "virga image list"),
    ("vm create taken --image img", 4, "virga vm delete taken"),
    ("vm create web --image img --append bad", 2, "spec.append: is bad"),
    ("vm create web --image img --memory 0", 2, "not between 1M and 1T"),
    ("vm create web --image img --memory lots", 2, "no size"),
    ("vm create web", 2, "Missing option '--image'"),
    ("vm reset halted", 4, "virga vm start"),
    ("vm list --only sleepy", 2, "PENDING"),
    ("vm migrate taken --to node-9", 3, "virga node list"),
    ("vm frobnicate", 2, "No such command"),
])
def test_errors_have_a_code_and_the_nearest_thing_to_do(virga, cloud, line, code, words):
    cloud.vms.add("taken")
    cloud.vms.add("halted", "STOPPED")
    result = virga(line)
    assert result.code == code and words in result.err
    assert result.out == ""


def test_an_unknown_token_is_refused(virga, tmp_path):
    (tmp_path / "token").write_text("wrong")
    assert virga("vm list").code == 5


def test_a_controller_that_is_away_is_unreachable(virga, monkeypatch):
    from cli import api
    monkeypatch.setattr(api, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setenv("VIRGA_ENDPOINT", "127.0.0.1:1")
    result = virga("vm list")
    assert result.code == 7 and "virga up" in result.err


def test_list_has_every_format_and_all_pages(virga, cloud):
    cloud.vms.add("web", node="node-2")
    cloud.vms.add("db", "STOPPED")
    assert virga("vm list -o name").out.split() == ["web", "db"]
    rows = json.loads(virga("vm list -o json").out)
    assert [(r["name"], r["state"], r["node"]) for r in rows] == [("web", "RUNNING", "node-2"), ("db", "STOPPED", "node-1")]
    assert "- name: \"web\"\n  state: \"RUNNING\"" in virga("vm list -o yaml").out
    narrow, wide = virga("vm list").out.splitlines()[0], virga("vm list -o wide").out.splitlines()[0]
    assert narrow.split()[:3] == ["NAME", "STATE", "NODE"] and wide.startswith(narrow[:20]) and "RESTARTS" in wide
    assert virga("vm list --only stopped -o name").out.split() == ["db"]


def test_an_empty_list_is_valid_json(virga):
    assert json.loads(virga("vm list -o json").out) == []


def test_a_unique_prefix_of_the_id_will_do(virga, cloud):
    uid = cloud.vms.add("web").uid
    assert json.loads(virga(f"vm show {uid[:8]} -o json").out)["name"] == "web"


def test_start_waits_for_the_new_run_not_the_old_one(virga, cloud):
    vm = cloud.vms.add("web", "STOPPED", run=4)
    phase("user_space", 9.9)(vm)
    result = virga("vm start web")
    assert result.code == 0 and "web is running on node-2" in result.out and vm.status.run == 5


def test_stop_and_pause_wait_for_their_state(virga, cloud):
    cloud.vms.add("web")
    assert virga("vm pause web").out == "web is paused.\n"
    assert virga("vm stop web").out == "web is stopped.\n"
    assert not cloud.vms.requests[-1].force
    assert virga("vm stop --force web").code == 0 and cloud.vms.requests[-1].force


def test_stop_that_times_out_names_force(virga, cloud):
    cloud.vms.add("web")
    cloud.vms.scripts["web"] = [become("STOPPING")]
    cloud.vms.hang = True
    result = virga("vm stop web --timeout 0.3")
    assert result.code == 6 and "virga vm stop --force web" in result.err


def test_delete_waits_until_all_are_gone(virga, cloud):
    cloud.vms.add("a")
    cloud.vms.add("b")
    assert virga("vm delete a b").out == "a is deleted.\nb is deleted.\n"
    assert not cloud.vms.vms


def test_delete_that_times_out_names_forget(virga, cloud):
    cloud.vms.add("web")
    cloud.vms.scripts["web"] = [become("DELETING")]
    cloud.vms.hang = True
    result = virga("vm delete web --timeout 0.3")
    assert result.code == 6 and "virga vm delete --forget NAME, if its node never comes back" in result.err
    assert not cloud.vms.requests[0].forget


def test_forget_takes_the_answer_for_the_deletion_and_warns(virga, cloud):
    cloud.vms.add("web", "UNKNOWN", "node-3")
    cloud.vms.add("new", "PENDING", "")
    cloud.vms.hang = True                                       # no node will ever say that it is gone
    result = virga("vm delete --forget web new")
    assert result.code == 0 and result.out == "web is forgotten.\nnew is forgotten.\n"
    assert [request.forget for request in cloud.vms.requests] == [True, True] and not cloud.vms.vms
    assert "warning: web is forgotten without node-3's word" in result.err
    assert "warning: new" not in result.err                     # no node ever had it


def test_migrate_reports_gap_and_decision(virga, cloud):
    cloud.vms.add("web")
    record = json.loads(virga("vm migrate web --to node-2 -o json").out)
    assert {key: record[key] for key in ("total_ms", "gap_ms", "decision_ms", "rounds", "bytes")} == {
        "total_ms": 812.5, "gap_ms": 8.25, "decision_ms": 2.5, "rounds": 3, "bytes": 1 << 24}
    assert "stood still for 8.2 ms" in virga("vm migrate web").out


def test_a_failed_migration_says_where_the_vm_is(virga, cloud):
    cloud.vms.add("web")
    cloud.migrations.fails = True
    result = virga("vm migrate web")
    assert result.code == 1 and "web stays on node-1" in result.err


def test_exits_by_reason(virga, cloud):
    cloud.vms.add("web")
    assert json.loads(virga("vm exits web -o json").out)["exits"] == {"IO_INSTRUCTION": 30, "HLT": 10}
    assert "75.0 %" in virga("vm exits web").out


def test_log_is_bytes_as_they_are(virga, cloud):
    cloud.vms.add("web")
    assert virga("vm log web").out.startswith("Linux version 6.1")


def test_console_sends_a_pipe_and_leaves_when_it_is_quiet(virga, cloud, monkeypatch):
    from cli import vm_console
    monkeypatch.setattr(vm_console, "QUIET_SECONDS", 0.3)
    cloud.vms.add("web")
    result = virga("vm console web --send date")
    assert result.code == 0 and "guest says date" in result.out and cloud.vms.console_input == b"date\n"


def test_console_until_a_pattern(virga, cloud):
    cloud.vms.add("web")
    assert virga("vm console web --send uptime --until says.*time").code == 0
    assert virga("vm console web --send x --until never --timeout 0.3").code == 6


def test_console_taken_by_another_names_the_ways_out(virga, cloud):
    cloud.vms.add("web")
    cloud.vms.console_input = None
    result = virga("vm console web --send x")
    assert result.code == 4 and "--steal" in result.err


def test_watch_prints_changes_until_the_vm_is_gone(virga, cloud):
    cloud.vms.add("web")
    cloud.vms.scripts["web"] = [become("STOPPING"), become("STOPPED", "GUEST_POWEROFF"), "delete"]
    lines = virga("vm watch web").out.splitlines()
    assert [line.split()[1] for line in lines] == ["RUNNING", "STOPPING", "STOPPED", "DELETED"]
