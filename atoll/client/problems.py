"""Answers that say no, back into the errors they were; and the transport's own failures."""

import msgspec

from atoll.base.errors import BY_CODE, Absent, AtollError, Broken, Denied, Unauthenticated, Unreachable
from atoll.client.wire import ProblemDetails

_BY_STATUS: dict[int, type[AtollError]] = {401: Unauthenticated, 403: Denied, 404: Absent, 503: Unreachable}


class NotRunning(Unreachable):
    """Nobody listens: nothing was sent, so nothing was done."""

    def __init__(self, where: str) -> None:
        super().__init__(f"the Atoll daemon is not running (nobody answers at {where})", hint="start it: atoll up")


def from_body(status: int, body: bytes) -> AtollError:
    """The error that a problem+json body describes; Broken where it is no such body."""
    try:
        problem = msgspec.json.decode(body, type=ProblemDetails)
        kind = BY_CODE[problem.code]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
        text = body[:200].decode(errors="replace").strip()
        return _BY_STATUS.get(status, Broken)(
            f"the daemon answered {status}" + (f": {text}" if text else ""),
            hint="is this the address of an Atoll daemon, of this version?",
        )
    return kind(problem.detail, hint=problem.hint, field=problem.field)


def from_close(code: int | None, reason: str) -> AtollError | None:
    """The error in a WebSocket's close frame (`code: message`); None where it ended as it should."""
    if code in (None, 1000, 1001):
        return None
    name, _, message = reason.partition(": ")
    kind = BY_CODE.get(name)
    return kind(message) if kind else Broken(f"the connection ended: {reason or code}")
