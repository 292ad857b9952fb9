"""The table of transitions, explored with a controller, a network that loses, and kills at every point.

The model: the source's state (or None: dead), the target's, the ownership key. Whatever can happen next is tried from
every state that can be reached.
"""

from dataclasses import dataclass, replace

import pytest

from node_agent.migration.protocol import TRANSITIONS, Event, NotAllowed, Source, Target, guest_may_run, step


@dataclass(frozen=True)
class World:
    source: Source | None = Source.PREPARING
    target: Target | None = Target.LISTENING
    target_ran: bool = False
    key: str = "undecided"            # undecided, source (abort), target (commit), given back
    linked: bool = False              # the memory stream
    all_sent: bool = False

    def running(self):
        return [side for side in (self.source, self.target) if side is not None and guest_may_run(side)]


def _try(world, **change):
    """The world after the change, or None where the table forbids an event."""
    try:
        return replace(world, **{k: step(*v) if isinstance(v, tuple) else v for k, v in change.items()})
    except NotAllowed:
        return None


def _stream(w):
    """What happens on the memory stream, and what is lost with it."""
    s, t = w.source, w.target
    if s is Source.PREPARING and t is Target.LISTENING:
        yield _try(w, source=(s, Event.ACCEPTED), target=(t, Event.OFFERED), linked=True)
    if s is Source.COPYING and w.linked:
        yield _try(w, source=(s, Event.CONVERGED))
    if s is Source.STOPPED and w.linked:
        yield _try(w, source=(s, Event.SENT), all_sent=True)
    if w.all_sent and t is Target.RECEIVING:
        yield _try(w, target=(t, Event.LOADED))
    if s is not None and s is not Source.GONE:
        yield _try(w, source=(s, Event.FAILED), linked=False)
    if t not in (None, Target.GONE):
        yield _try(w, target=(t, Event.FAILED), linked=False)


def _kills(w):
    if w.source is not None:
        yield replace(w, source=None, linked=False)
    if w.target is not None:
        yield replace(w, target=None, linked=False)


def _decisions(w):
    """The key changes once: commit only at the wish of a target that is READY; abort at any time. A target that died
    after a commit and certainly never ran is the one case where it changes again."""
    if w.key == "undecided":
        yield replace(w, key="source")
        if w.target is Target.READY:
            yield replace(w, key="target")
    if w.key == "target" and not w.target_ran and w.target in (None, Target.GONE):
        yield replace(w, key="given back")


def _learning(w):
    """Either side hears what the key says, in any order, or never."""
    if w.key == "undecided":
        return
    source_event = Event.THEIRS if w.key == "target" else Event.MINE
    if w.source not in (None, Source.GONE):
        yield _try(w, source=(w.source, source_event))
    if w.target not in (None, Target.GONE):
        mine = w.key == "target"
        yield _try(w, target=(w.target, Event.MINE if mine else Event.THEIRS), target_ran=w.target_ran or mine)
    if w.source is Source.HANDED_OVER and w.target is Target.RUNNING:
        yield _try(w, source=(w.source, Event.RELEASED))


def reachable():
    seen, todo = {World()}, [World()]
    while todo:
        world = todo.pop()
        for rule in (_stream, _kills, _decisions, _learning):
            for after in rule(world):
                if after is not None and after not in seen:
                    seen.add(after)
                    todo.append(after)
    return seen


WORLDS = reachable()


def test_never_do_both_sides_run():
    for world in WORLDS:
        assert len(world.running()) <= 1, world


def test_nobody_runs_against_the_key():
    for world in WORLDS:
        if world.target is Target.RUNNING:
            assert world.key == "target", world
        if world.source is not None and guest_may_run(world.source) and world.source is not Source.BACK:
            assert world.target is not Target.RUNNING, world


def test_where_no_process_dies_one_side_runs_in_the_end():
    """From every world with a living holder of the key, hearing the key's value is enough."""
    for world in WORLDS:
        holder = {"source": world.source, "given back": world.source, "target": world.target}.get(world.key)
        if holder in (None, Source.GONE, Target.GONE):
            continue
        if world.key == "target":
            # a commit exists only once the target was READY, and only death leads away from there
            assert step(holder, Event.MINE) is Target.RUNNING, world
        else:
            assert step(holder, Event.MINE) is Source.BACK, world


def test_the_source_never_goes_on_by_itself_once_the_last_byte_is_sent():
    for state in (Source.PAUSED, Source.HANDED_OVER):
        for event in Event:
            if event is Event.MINE:
                continue
            try:
                assert not guest_may_run(step(state, event))
            except NotAllowed:
                pass


def test_the_target_runs_only_from_ready_and_only_by_decision():
    into = [(state, event) for (state, event), after in TRANSITIONS.items() if after is Target.RUNNING]
    assert sorted(into, key=str) == sorted(
        [(Target.READY, Event.MINE), (Target.RUNNING, Event.MINE), (Target.RUNNING, Event.FAILED)], key=str)


@pytest.mark.parametrize("state,event", [
    (Source.COPYING, Event.THEIRS), (Source.STOPPED, Event.THEIRS), (Source.BACK, Event.THEIRS),
    (Target.RECEIVING, Event.MINE), (Target.LISTENING, Event.MINE), (Target.RUNNING, Event.THEIRS),
])
def test_what_cannot_have_been_decided_is_refused(state, event):
    with pytest.raises(NotAllowed):
        step(state, event)


def test_every_state_can_be_reached():
    assert {w.source for w in WORLDS} >= set(Source)
    assert {w.target for w in WORLDS} >= set(Target)
