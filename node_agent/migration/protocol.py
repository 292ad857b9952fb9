"""Who may run the VM, at every instant: exactly the holder of the ownership generation in etcd.

 source                                       target
 PREPARING ──── offer, token ───────────────► LISTENING      memory, devices, port reserved
 COPYING   ──── pages, rounds ──────────────► RECEIVING      guest runs on source
 STOPPED   ──── last pages, state ──────────► RECEIVING      guest runs nowhere; the source may still take it back
 PAUSED    ◄─── ready ─────────────────────── READY          guest runs nowhere; only the decision says where it goes on
    │  the controller decides, once, by compare-and-swap on the ownership key:
    │     commit: (g, source) → (g + 1, target)      or      abort: (g, source) → (g + 1, source)
 HANDED_OVER ◄─ (the controller saw it run) ─ RUNNING        source keeps its copy until the target is seen running
 GONE

 in doubt (nobody to ask): PAUSED and READY stay as they are; whoever learns the key's value acts on it
 target dies between commit and RUNNING: the controller gives it back, (g + 1, target) → (g + 2, source)

The line between STOPPED and PAUSED is the last byte of the machine's state: before it is sent the target cannot be
READY, so nobody can have decided to commit, and a source that fails simply goes on. From then on it cannot know.

Owns:    the states, the events, the tables.
Never:   touches a socket, a machine or a clock.
Threads: the control loop's only.
"""

from __future__ import annotations

from enum import Enum


class Source(Enum):
    PREPARING = "preparing"
    COPYING = "copying"
    STOPPED = "stopped"
    PAUSED = "paused"
    HANDED_OVER = "handed over"
    BACK = "back"                    # the guest goes on here; this migration is over
    GONE = "gone"


class Target(Enum):
    LISTENING = "listening"
    RECEIVING = "receiving"
    READY = "ready"
    RUNNING = "running"
    GONE = "gone"


class Event(Enum):
    ACCEPTED = "the target takes the offer"
    CONVERGED = "little enough is left"
    SENT = "the last byte is sent"
    OFFERED = "a source with our token is here"
    LOADED = "memory and state are whole"
    FAILED = "failed"
    MINE = "the decision names this side"
    THEIRS = "the decision names the other side"
    RELEASED = "the target was seen running"


TRANSITIONS: dict[tuple[Source | Target, Event], Source | Target] = {
    (Source.PREPARING, Event.ACCEPTED): Source.COPYING,
    (Source.PREPARING, Event.FAILED): Source.BACK,           # the guest never stopped
    (Source.PREPARING, Event.MINE): Source.BACK,
    (Source.COPYING, Event.CONVERGED): Source.STOPPED,
    (Source.COPYING, Event.FAILED): Source.BACK,
    (Source.COPYING, Event.MINE): Source.BACK,
    (Source.STOPPED, Event.SENT): Source.PAUSED,
    (Source.STOPPED, Event.FAILED): Source.BACK,             # nobody can have decided to commit
    (Source.STOPPED, Event.MINE): Source.BACK,
    (Source.PAUSED, Event.FAILED): Source.PAUSED,            # in doubt
    (Source.PAUSED, Event.MINE): Source.BACK,
    (Source.PAUSED, Event.THEIRS): Source.HANDED_OVER,
    (Source.HANDED_OVER, Event.FAILED): Source.HANDED_OVER,  # the connection's end means nothing any more
    (Source.HANDED_OVER, Event.THEIRS): Source.HANDED_OVER,
    (Source.HANDED_OVER, Event.MINE): Source.BACK,           # given back
    (Source.HANDED_OVER, Event.RELEASED): Source.GONE,
    (Source.BACK, Event.FAILED): Source.BACK,
    (Source.BACK, Event.MINE): Source.BACK,
    (Target.LISTENING, Event.OFFERED): Target.RECEIVING,
    (Target.LISTENING, Event.FAILED): Target.GONE,
    (Target.LISTENING, Event.THEIRS): Target.GONE,
    (Target.RECEIVING, Event.LOADED): Target.READY,
    (Target.RECEIVING, Event.FAILED): Target.GONE,
    (Target.RECEIVING, Event.THEIRS): Target.GONE,
    (Target.READY, Event.FAILED): Target.READY,              # the source is gone; in doubt, and whole
    (Target.READY, Event.MINE): Target.RUNNING,
    (Target.READY, Event.THEIRS): Target.GONE,
    (Target.RUNNING, Event.FAILED): Target.RUNNING,
    (Target.RUNNING, Event.MINE): Target.RUNNING,
}


class NotAllowed(Exception):
    """The event has no place in this state: obeying it could run the VM twice, or half of it."""

    def __init__(self, state: Source | Target, event: Event) -> None:
        super().__init__(f"{type(state).__name__.lower()} is {state.value}: cannot obey that {event.value}")
        self.state = state
        self.event = event


def step(state: Source | Target, event: Event) -> Source | Target:
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise NotAllowed(state, event) from None


def guest_may_run(state: Source | Target) -> bool:
    """Where the guest executes; for the test that says that never both sides do."""
    return state in (Source.PREPARING, Source.COPYING, Source.BACK, Target.RUNNING)
