"""Every error Atoll raises on purpose, and what the caller may do about it.

    AtollError
    |-- Invalid           the request cannot work as written: fix it (`field` names where)
    |-- Unauthenticated   who are you? no token, or one that is not valid
    |-- Denied            this actor may not do this
    |-- Absent            there is no such thing
    |-- Exists            the name, address or key is taken
    |-- Refused           its present state, or something that depends on it, forbids this
    |-- Conflict          somebody else changed it first: read again, retry
    |-- Compacted         the history asked for is no longer kept: read afresh, then watch
    |-- Cancelled         somebody cancelled the operation; what it had begun was taken back
    |-- Interrupted       the daemon ended in the middle; what it had begun was taken back
    |-- Exhausted         no host, space, memory or address is left
    |-- Lacking           this host lacks a program, kernel part or right (the hint names it)
    |-- Unreachable       no answer in time, so the outcome is UNKNOWN: look before retrying
    |-- Broken            a tool, device or guest failed
    `-- Bug               Atoll itself failed: anything else that escapes a verb is shown as this

Only `main` exits. Foreign errors become one of these once, at the boundary.
"""

from typing import ClassVar


class AtollError(Exception):
    """A message for a person, a `code` for a program, a `hint` for the next step.

    `field` names the part of the request that is wrong, as a dotted path ("spec.memory").
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field


class Invalid(AtollError):
    code = "invalid"


class Unauthenticated(AtollError):
    code = "unauthenticated"


class Denied(AtollError):
    code = "denied"


class Absent(AtollError):
    code = "absent"


class Exists(AtollError):
    code = "exists"


class Refused(AtollError):
    code = "refused"


class Conflict(AtollError):
    code = "conflict"


class Compacted(AtollError):
    code = "compacted"


class Cancelled(AtollError):
    code = "cancelled"


class Interrupted(AtollError):
    code = "interrupted"


class Exhausted(AtollError):
    code = "exhausted"


class Lacking(AtollError):
    code = "lacking"


class Unreachable(AtollError):
    code = "unreachable"


class Broken(AtollError):
    code = "broken"


class Bug(AtollError):
    code = "bug"


BY_CODE: dict[str, type[AtollError]] = {kind.code: kind for kind in AtollError.__subclasses__()}
"""Every leaf by its code, for a client that turns a problem+json body back into an error."""

EXIT = {
    "error": 1,
    "broken": 1,
    "invalid": 2,
    "unreachable": 3,
    "absent": 4,
    "exists": 5,
    "refused": 6,
    "conflict": 7,
    "compacted": 8,
    "exhausted": 9,
    "lacking": 10,
    "denied": 11,
    "unauthenticated": 12,
    "cancelled": 13,
    "interrupted": 14,
    "bug": 70,
}
"""Exit codes of our programs by error code; every leaf has one."""
