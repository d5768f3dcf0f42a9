"""What a verb is to the runner: named steps, undo as data, and what a crash at each step leads to."""

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from atoll.base.errors import Refused
from atoll.base.ids import OperationId
from atoll.operation.model import Operation


class Recovery(StrEnum):
    """What the next start of the daemon does with an operation whose last journalled step this was."""

    TAKE_BACK = "take-back"
    FINISH = "finish"
    RESUME = "resume"
    """Finished, too, beside what the next daemon does meanwhile: it takes long. It may still be cancelled."""


class UndoStep(msgspec.Struct, frozen=True):
    """One act that takes something back: the name of an undoer and what it needs to know. Plain data."""

    name: str
    args: dict[str, str] = {}


Undoer = Callable[[Mapping[str, str]], Awaitable[None]]
"""Takes something back. Absent is success: it may run twice, or for an act that never happened."""


class Work(Protocol):
    """An operation as its verb sees it."""

    id: OperationId
    operation: Operation

    async def step(self, name: str, *undo: UndoStep, percent: int | None = None, text: str = "") -> None:
        """Journal what would take the *coming* act back, then tell where we stand."""

    def tell(self, percent: int | None = None, text: str = "") -> None:
        """Progress within a step. Cheap, never stored."""

    def changed(self, key: str, before: int, after: int) -> None:
        """For the audit: a record and its revisions before and after (0: absent)."""

    def about(self, *, name: str = "", id: str = "") -> None:
        """Complete the subject once the verb knows it."""


class Verb(Protocol):
    """One use case. `steps` is its recovery table, in order; `args` is what the API takes, stored with the audit.

    `run` may be called again with the same arguments after a crash at a FINISH or RESUME step, with `work.resumed`
    naming that step; it then goes on from there.
    """

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> Mapping[str, Recovery]: ...
    @property
    def args(self) -> Any: ...

    async def run(self, work: Any, args: Any) -> Any: ...


class Unknown(msgspec.Struct, frozen=True):
    """A verb of another Atoll's: what it began can be taken back, no more."""

    name: str
    args: Any = None
    steps: Mapping[str, Recovery] = {}

    async def run(self, work: Any, args: Any) -> Any:  # noqa: ARG002
        raise Refused(f"this Atoll knows no {self.name}")
