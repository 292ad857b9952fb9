"""The pure rules: a VM's life, a migration's, and who is lost."""

from dataclasses import replace

import pytest

from controller import errors
from controller.api.access import BadTokens, Role, Tokens
from controller.config import parse
from controller.model import migrations, vms
from controller.model.migrations import Seen
from controller.model.records import (
    Assignment, Decision, MigrationPhase as Phase, MigrationRecord, Power, Restart, VmRecord, VmSpec, VmState, VmStatus,
)
from controller.model.vms import Report

NOW = 1000.0
SPEC = VmSpec(image="i", memory_mib=256, cpus=1)
HERE = Assignment("node-1", 1)


def vm(**fields):
    return VmRecord(**{"uid": "u", "name": "web", "spec": SPEC, "image_name": "tiny", "create_time": NOW, "run": 1,
                       "run_time": NOW, **fields})


def status(state, run=1, **fields):
    return VmStatus(state=state, run=run, state_time=NOW, **fields)


# ── VMs ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", [VmState.STOPPED, VmState.CRASHED])
def test_start_after_an_end_is_a_new_run(state):
    power = Power.STOPPED if state is VmState.STOPPED else Power.RUNNING
    started = vms.start(vm(power=power, reset_serial=3), status(state), NOW + 5)
    assert (started.run, started.power, started.reset_serial, started.run_time) == (2, Power.RUNNING, 0, NOW + 5)


@pytest.mark.parametrize("state", [VmState.PENDING, VmState.SCHEDULED, VmState.RUNNING, VmState.PAUSED, VmState.UNKNOWN])
def test_start_where_one_goes_on_changes_nothing(state):
    assert vms.start(vm(), status(state), NOW) == vm()


def test_start_while_it_stops_is_refused():
    with pytest.raises(errors.WrongState, match="stopping"):
        vms.start(vm(power=Power.STOPPED), status(VmState.STOPPING), NOW)
    with pytest.raises(errors.WrongState, match="stopping"):
        vms.start(vm(power=Power.STOPPED), status(VmState.RUNNING), NOW)


def test_stop_twice_is_stop_and_force_may_follow():
    once = vms.stop(vm(), force=False)
    assert vms.stop(once, force=False) == once
    forced = vms.stop(once, force=True)
    assert forced.force_stop and vms.stop(forced, force=False) == forced


def test_a_reset_is_done_once_per_request():
    once = vms.reset(vm(), status(VmState.RUNNING), False, "r1")
    assert once.reset_serial == 1
    assert vms.reset(once, status(VmState.RUNNING), False, "r1") == once
    assert vms.reset(once, status(VmState.RUNNING), False, "r2").reset_serial == 2


@pytest.mark.parametrize("verb", [
    lambda record: vms.start(record, status(VmState.STOPPED), NOW), lambda record: vms.stop(record, True),
    lambda record: vms.pause(record, status(VmState.RUNNING)), lambda record: vms.resume(record, status(VmState.PAUSED)),
    lambda record: vms.reset(record, status(VmState.RUNNING), False, "")])
def test_nothing_is_done_to_what_is_being_deleted(verb):
    with pytest.raises(errors.WrongState) as refused:
        verb(vms.delete(vm(), NOW))
    assert refused.value.reason == "VM_DELETING"


def test_reports_of_an_earlier_owner_change_nothing():
    late = Report("u", 1, 1, VmState.CRASHED)
    now = status(VmState.RUNNING)
    assert vms.observed(vm(), now, Assignment("node-2", 2), late, NOW) == now


def test_reports_of_an_earlier_run_leave_it_scheduled():
    record = vms.next_run(vm(), NOW)
    seen = vms.observed(record, status(VmState.STOPPED), HERE, Report("u", 1, 1, VmState.STOPPED), NOW)
    assert (seen.state, seen.run) == (VmState.SCHEDULED, 2)


def test_stopped_before_it_began():
    record = vm(power=Power.STOPPED)
    seen = vms.observed(record, status(VmState.STOPPING), HERE, Report("u", 1, 0, VmState.STOPPED), NOW)
    assert (seen.state, seen.run) == (VmState.STOPPED, 1)
    assert vms.observed(record, seen, HERE, Report("u", 1, 0, VmState.STOPPED), NOW + 1) == seen


def test_running_while_it_is_to_stop_is_stopping():
    seen = vms.observed(vm(power=Power.STOPPED), status(VmState.STOPPING), HERE, Report("u", 1, 1, VmState.RUNNING), NOW)
    assert seen.state is VmState.STOPPING


def test_the_pause_of_a_migration_is_not_shown():
    paused = Report("u", 1, 1, VmState.PAUSED)
    assert vms.observed(vm(), status(VmState.RUNNING), HERE, paused, NOW, moving=True).state is VmState.RUNNING
    assert vms.observed(vm(), status(VmState.RUNNING), HERE, paused, NOW).state is VmState.PAUSED
    asked = vm(power=Power.PAUSED)
    assert vms.observed(asked, status(VmState.RUNNING), HERE, paused, NOW, moving=True).state is VmState.PAUSED


def test_a_lost_node_makes_running_ones_unknown_and_keeps_the_ended():
    lost = vms.node_lost(vm(), status(VmState.RUNNING), "node-1", NOW)
    assert (lost.state, lost.reason) == (VmState.UNKNOWN, "NODE_LOST")
    assert vms.node_lost(vm(), status(VmState.STOPPED), "node-1", NOW) == status(VmState.STOPPED)
    back = vms.observed(vm(), lost, HERE, Report("u", 1, 1, VmState.RUNNING), NOW)
    assert (back.state, back.reason) == (VmState.RUNNING, "")


def crashing(restarts, run_time=NOW):
    return vm(spec=replace(SPEC, restart_policy=Restart.ON_FAILURE), restarts=restarts, run_time=run_time)


def test_restarts_come_with_growing_pauses():
    waits = []
    for restarts in range(9):
        record, wait = vms.after_end(crashing(restarts), status(VmState.CRASHED), NOW)
        assert record == crashing(restarts)
        waits.append(wait)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    again, wait = vms.after_end(crashing(2), status(VmState.CRASHED), NOW + 4)
    assert (again.run, again.restarts, wait) == (2, 3, 0)


def test_after_a_good_run_the_pauses_begin_anew():
    _, wait = vms.after_end(crashing(9, run_time=NOW - vms.GOOD_RUN_S - 1), status(VmState.CRASHED), NOW)
    assert wait == 1


@pytest.mark.parametrize("record, state", [
    (vm(), VmState.CRASHED), (crashing(0), VmState.RUNNING), (crashing(0), VmState.UNKNOWN),
    (replace(crashing(0), power=Power.STOPPED), VmState.CRASHED), (replace(crashing(0), delete_time=5.0),
                                                                   VmState.CRASHED)])
def test_what_is_not_restarted(record, state):
    assert vms.after_end(record, status(state), NOW + 1000) == (record, 0.0)


# ── migrations ────────────────────────────────────────────────────────────────────────────────────────────────────────


def moving(**fields):
    return MigrationRecord(**{"uid": "m", "vm_uid": "u", "vm_name": "web", "source": "a", "target": "b", "generation": 4,
                              "token": "t", "power": Power.RUNNING, "create_time": NOW, "phase_time": NOW, **fields})


def advance(record, now=NOW + 1, **seen):
    return migrations.advance(record, Seen(**seen), now)[0]


def test_a_migration_goes_forward_by_what_both_sides_say():
    record = advance(moving(), target_step="PREPARED", address="b:1")
    assert (record.phase, record.address) == (Phase.PREPARING, "b:1")
    record = advance(record, source_step="COPYING", target_step="PREPARED", rounds=2, bytes=10)
    assert (record.phase, record.rounds, record.bytes) == (Phase.COPYING, 2, 10)
    record = advance(record, source_step="PAUSED", target_step="PREPARED")
    assert record.phase is Phase.SWITCHING
    assert advance(record, source_step="COPYING").phase is Phase.SWITCHING       # never back
    record = migrations.decide(record, "b", Decision.COMMIT, "", NOW)
    assert (record.phase, record.owner_generation) == (Phase.FINISHING, 5)
    assert advance(record, target_step="READY", target_generation=4).phase is Phase.FINISHING
    for state in (VmState.RUNNING, VmState.PAUSED, VmState.CRASHED):
        assert advance(record, target_generation=5, target_state=state, target_step="READY").phase is Phase.FINISHING
    assert advance(record, NOW + 10, target_generation=5, target_state=VmState.RUNNING).phase is Phase.SUCCEEDED
    assert advance(record, NOW + 10, target_generation=5, target_state=VmState.PAUSED).phase is Phase.FINISHING
    done = advance(record, target_generation=5, target_state=VmState.RUNNING, target_step="DONE", gap_ms=7.0)
    assert (done.phase, done.gap_ms, done.over) == (Phase.SUCCEEDED, 7.0, True)


@pytest.mark.parametrize("seen, reason", [
    ({"target_step": "FAILED"}, "TARGET_FAILED"), ({"source_step": "FAILED"}, "SOURCE_FAILED"),
    ({"target_lost": True}, "TARGET_LOST"), ({"source_lost": True}, "SOURCE_LOST"), ({"vm_gone": True}, "VM_DELETED"),
    ({"wanted": Power.STOPPED}, "POWER_CHANGED"), ({"source_state": VmState.CRASHED}, "VM_ENDED"),
    ({"target_step": "FAILED", "reason": "DISK_FULL"}, "DISK_FULL")])
@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.COPYING, Phase.SWITCHING])
def test_undecided_it_is_aborted_when_something_is_wrong(phase, seen, reason):
    record = advance(moving(phase=phase), **seen)
    assert (record.phase, record.decision, record.reason, record.owner_generation) == (
        Phase.ABORTING, Decision.ABORT, reason, 5)


@pytest.mark.parametrize("phase, limit", [(Phase.PREPARING, migrations.PREPARE_S), (Phase.COPYING, migrations.COPY_S),
                                          (Phase.SWITCHING, migrations.SWITCH_S)])
def test_undecided_it_takes_no_longer_than_its_limit(phase, limit):
    record, again = migrations.advance(moving(phase=phase), Seen(), NOW + limit - 1)
    assert (record.decision, again) == (Decision.NONE, 1)
    assert advance(moving(phase=phase), now=NOW + limit).reason == "TIMED_OUT"


def test_committed_it_is_given_back_only_by_the_targets_word():
    record = migrations.decide(moving(), "b", Decision.COMMIT, "", NOW)
    for seen in ({"target_lost": True}, {"source_lost": True}, {"vm_gone": True}, {"target_step": "READY"}, {}):
        assert advance(record, now=NOW + 10_000, **seen) == record
    back = advance(record, target_step="FAILED", reason="DISK_FULL")
    assert (back.decision, back.owner_generation, back.phase, back.reason) == (
        Decision.ABORT, 6, Phase.ABORTING, "DISK_FULL")


def test_aborted_it_ends_when_the_source_says_so_or_after_a_while():
    record = advance(moving(), target_step="FAILED")
    assert advance(record, source_generation=4) == record
    assert advance(record, source_generation=5).phase is Phase.FAILED
    assert advance(record, now=NOW + 1 + migrations.CONFIRM_S).phase is Phase.FAILED


def test_the_first_wish_is_the_decision():
    aborted = migrations.decide(moving(), "a", Decision.ABORT, "no route", NOW)
    assert migrations.decide(aborted, "b", Decision.COMMIT, "", NOW) == aborted
    committed = migrations.decide(moving(), "b", Decision.COMMIT, "", NOW)
    assert migrations.decide(committed, "a", Decision.ABORT, "", NOW) == committed
    assert migrations.decide(moving(cancel=True), "b", Decision.COMMIT, "", NOW).decision is Decision.ABORT


@pytest.mark.parametrize("node, wish", [("c", Decision.ABORT), ("c", Decision.COMMIT), ("a", Decision.COMMIT)])
def test_who_may_not_wish(node, wish):
    with pytest.raises(errors.Denied):
        migrations.decide(moving(), node, wish, "", NOW)


# ── arguments and tokens ──────────────────────────────────────────────────────────────────────────────────────────────

GOOD = {"--state": "s", "--listen": "127.0.0.1:1", "--etcd-endpoints": "127.0.0.1:2", "--token-file": "t",
        "--agent-tokens": "a"}


def arguments(**changes):
    given = {**GOOD, **{f"--{name.replace('_', '-')}": value for name, value in changes.items()}}
    return [word for pair in given.items() for word in pair]


@pytest.mark.parametrize("changes, why", [
    ({"listen": "0.0.0.0:1"}, "not loopback"), ({"listen": "example.org:1"}, "not loopback"),
    ({"listen": "127.0.0.1"}, "HOST:PORT"), ({"metrics": "x"}, "HOST:PORT"), ({"etcd_endpoints": ","}, "HOST:PORT"),
    ({"tls_cert": "c"}, "together"), ({"memory_overcommit": "0"}, "0.1 to 100"), ({"scheduler": "best"}, "choose")])
def test_arguments_that_are_refused(changes, why, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments(**changes))
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_off_loopback_with_tls():
    config = parse(arguments(listen="0.0.0.0:1", tls_cert="c", tls_key="k", etcd_endpoints="a:1,b:2"))
    assert config.etcd_endpoints == ("a:1", "b:2")


@pytest.mark.parametrize("user, agents", [("", "{}"), ("t", ""), ("t", "[]"), ("t", '{"a": 5}'), ("t", '{"a": ""}')])
def test_broken_token_files_are_refused(tmp_path, user, agents):
    (tmp_path / "u").write_text(user)
    (tmp_path / "a").write_text(agents)
    with pytest.raises(BadTokens):
        Tokens(tmp_path / "u", tmp_path / "a").load()


def test_nodes_added_to_a_running_cloud_are_known(tmp_path):
    (tmp_path / "u").write_text("t\n")
    (tmp_path / "a").write_text("{}")
    tokens = Tokens(tmp_path / "u", tmp_path / "a")
    tokens.load()
    metadata = {"authorization": "Bearer new", "virga-node": "node-4"}
    with pytest.raises(errors.Unknown):
        tokens.caller(metadata, Role.NODE)
    (tmp_path / "a").write_text('{"node-4": "new"}')
    assert tokens.caller(metadata, Role.NODE).name == "node-4"
    (tmp_path / "a").write_text("{broken")
    assert tokens.caller(metadata, Role.NODE).name == "node-4"
