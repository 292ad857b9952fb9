"""What a VM process may be doing, and what leads where.

    CREATED ── START ──► RUNNING ◄── PAUSE, RESUME ──► PAUSED
    CREATED ── EXPECT ─► INCOMING ── ENTER ──► RUNNING, or PAUSED where it was paused at the source
    RUNNING, PAUSED ── HOLD ──► HELD ── UNHOLD ──► whichever it was
    everything ── END ──► ENDED

HELD and INCOMING are the two sides of a migration: nothing but a decision (or END) leads out of them.

Owns:    the states and the table.
Never:   touches a machine.
Threads: the control loop's only.
"""

from __future__ import annotations

from enum import Enum

from virga.vmm.v1 import vmm_pb2 as pb


class State(Enum):
    CREATED = pb.VM_STATE_CREATED
    RUNNING = pb.VM_STATE_RUNNING
    PAUSED = pb.VM_STATE_PAUSED
    INCOMING = pb.VM_STATE_INCOMING
    HELD = pb.VM_STATE_HELD
    ENDED = pb.VM_STATE_ENDED


class Event(Enum):
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    EXPECT = "expect a migration"
    ENTER = "enter"
    ENTER_PAUSED = "enter paused"
    HOLD = "hold"
    UNHOLD = "go on"
    UNHOLD_PAUSED = "go on paused"
    END = "end"


TRANSITIONS = {
    (State.CREATED, Event.START): State.RUNNING,
    (State.CREATED, Event.EXPECT): State.INCOMING,
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.PAUSED, Event.RESUME): State.RUNNING,
    (State.RUNNING, Event.HOLD): State.HELD,
    (State.PAUSED, Event.HOLD): State.HELD,
    (State.HELD, Event.UNHOLD): State.RUNNING,
    (State.HELD, Event.UNHOLD_PAUSED): State.PAUSED,
    (State.INCOMING, Event.ENTER): State.RUNNING,
    (State.INCOMING, Event.ENTER_PAUSED): State.PAUSED,
    **{(state, Event.END): State.ENDED for state in State},
}


class NotNow(Exception):
    """The event has no place in this state."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"cannot {event.value}: the VM is {state.name.lower()}")
        self.state = state
        self.event = event


class Lifecycle:
    def __init__(self) -> None:
        self.state = State.CREATED

    def check(self, event: Event) -> State:
        """Where `event` would lead."""
        try:
            return TRANSITIONS[self.state, event]
        except KeyError:
            raise NotNow(self.state, event) from None

    def take(self, event: Event) -> State:
        self.state = self.check(event)
        return self.state
