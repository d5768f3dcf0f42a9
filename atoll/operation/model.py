"""Operations as plain values: who changed what, where, when, with which outcome. They are the audit."""

from enum import StrEnum

import msgspec

from atoll.base.clock import Timestamp
from atoll.base.errors import BY_CODE, AtollError, Bug
from atoll.base.ids import HostId, OperationId


class OperationStatus(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Subject(msgspec.Struct, frozen=True):
    """What is changed. `kind`: a noun in the singular ("instance"); `id` where it has one by then."""

    kind: str
    project: str = ""
    name: str = ""
    id: str = ""


class Actor(msgspec.Struct, frozen=True):
    """Who asked. `kind`: "uid" (unix socket), "token" (HTTPS) or "atoll" (the daemon itself); `name`: the uid,
    the token's name, or what in the daemon decided ("restart-policy")."""

    kind: str
    name: str


class Problem(msgspec.Struct, frozen=True):
    """An error as it is kept and sent: a code for programs, the rest for people."""

    code: str
    message: str
    hint: str = ""
    field: str = ""


class StepDone(msgspec.Struct, frozen=True):
    name: str
    at: Timestamp


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One change. `host`, `epoch`: which host's daemon carried it out, and which start of that daemon.

    `before`, `after`: store revisions of the records it changed, by key. `request`: what was asked, without
    secrets. `note`: what was taken back or left behind.
    """

    id: OperationId
    verb: str
    subject: Subject
    status: OperationStatus
    actor: Actor
    request_id: str
    host: HostId
    epoch: int
    created: Timestamp
    finished: Timestamp | None = None
    request: msgspec.Raw = msgspec.Raw(b"null")
    steps: tuple[StepDone, ...] = ()
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    result: msgspec.Raw = msgspec.Raw(b"null")
    problem: Problem | None = None
    note: str = ""


class Progress(msgspec.Struct, frozen=True):
    """Where a running operation stands. Never stored."""

    operation: OperationId
    step: str
    percent: int | None = None
    text: str = ""


class News(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the host's stream. `id` sorts and resumes; progress has none and is never kept.

    `kind`: noun and happening ("instance.started", "operation.done", "operation.progress").
    """

    kind: str
    project: str = ""
    subject: Subject
    at: Timestamp
    id: str = ""
    body: msgspec.Raw = msgspec.Raw(b"null")


def as_problem(error: AtollError) -> Problem:
    return Problem(error.code, error.message, error.hint, error.field)


def as_error(problem: Problem) -> AtollError:
    return BY_CODE.get(problem.code, Bug)(problem.message, hint=problem.hint, field=problem.field)
