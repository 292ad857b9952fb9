"""Everything that can be wrong with a request, as kinds.

Owns:    the kinds, the reasons, and what each carries.
Never:   knows gRPC: controller/api/status.py maps kinds to statuses, in one table.
Threads: pure.

    Refusal
     ├─ BadField        a field of the request is wrong                 which field, why
     ├─ NotFound        no such resource                                kind, name
     ├─ Taken           a resource of this name exists                  kind, name
     ├─ WrongState      the resource isn't in a state for that          kind, name
     ├─ NoCapacity      nothing has room
     ├─ Exhausted       our own resources end: disk, database
     ├─ Denied          the caller may not
     ├─ Unknown         who calls is not known
     ├─ Superseded      somebody newer has taken the caller's place
     ├─ Busy            too many conflicts, try again
     ├─ Unavailable     cannot be told now, try again
     └─ Corrupt         what we kept is broken
"""


class Refusal(Exception):
    """`reason` is stable and for programs, `message` for people and may change; `details` are for both."""

    def __init__(self, reason: str, message: str, **details: str) -> None:
        super().__init__(message)
        self.reason, self.message, self.details = reason, message, details


class BadField(Refusal):
    def __init__(self, field: str, why: str, reason: str = "INVALID_FIELD", **details: str) -> None:
        super().__init__(reason, f"{field}: {why}" if field else why, **details)
        self.field, self.why = field, why


class _AboutResource(Refusal):
    def __init__(self, reason: str, kind: str, name: str, message: str, **details: str) -> None:
        super().__init__(reason, message, **details)
        self.kind, self.name = kind, name


class NotFound(_AboutResource):
    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind.upper()}_NOT_FOUND", kind, name, f"no {kind} is called {name!r}")


class Taken(_AboutResource):
    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind.upper()}_NAME_TAKEN", kind, name, f"there is a {kind} called {name!r} already")


class WrongState(_AboutResource):
    pass


class NodeNameTaken(_AboutResource):
    pass


class NoCapacity(Refusal):
    pass


class Exhausted(Refusal):
    pass


class Denied(Refusal):
    pass


class Unknown(Refusal):
    pass


class Superseded(Refusal):
    pass


class Busy(Refusal):
    pass


class Unavailable(Refusal):
    pass


class Corrupt(Refusal):
    pass
