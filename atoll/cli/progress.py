"""Waiting for operations: one line that moves on a terminal, a line a step elsewhere. All on stderr."""

import asyncio
import contextlib
import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from atoll.base.errors import AtollError, Cancelled, Refused
from atoll.cli.errors import plain
from atoll.cli.output import width
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Operation, Progress

TICK = 0.1
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Line:
    """The last line of a terminal, written again and again. `print` puts a lasting line above it."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, text: str) -> None:
        columns = _columns()
        while width(text) >= columns:
            text = text[:-1]
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False

    def print(self, text: str) -> None:
        self.clear()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


class Waiting:
    """Shows how operations go on, from the daemon's events, while `wait` waits for them.

    Events are a courtesy: where they fail, waiting goes on without them. Ctrl-C asks the daemon to cancel what
    is waited for, and waits until that is done. `steps`: tell each step where there is no terminal, too.
    """

    def __init__(self, client: "Client", settings: Settings, *, cancels: bool = True, steps: bool = False) -> None:
        self._client, self._settings, self._cancels = client, settings, cancels
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._speaks = not settings.quiet and (self._terminal or (steps and settings.output == "table"))
        self._begun = time.monotonic()
        self._labels: dict[str, str] = {}
        self._steps: dict[str, str] = {}
        self._early: dict[str, Progress] = {}
        self._latest = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.line = Line()

    async def __aenter__(self) -> Self:
        if self._speaks:
            self._tasks.append(asyncio.create_task(self._listen(), name="progress"))
            if self._terminal:
                self._tasks.append(asyncio.create_task(self._spin(), name="spinner"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.line.clear()

    def say(self, text: str) -> None:
        """What is being done now, where no operation tells."""
        self._latest = text
        if self._speaks and not self._terminal:
            self.line.print(plain(text))

    def print(self, text: str) -> None:
        """A lasting line."""
        if self._speaks:
            self.line.print(plain(text))

    async def wait(self, operation: "Operation", label: str, *, timeout: float | None = None) -> "Operation":
        """The operation once it has ended well. Raises what it ended with. `label`: "launching web"."""
        self._labels[operation.id] = label
        self._latest = self._latest or label
        if early := self._early.pop(operation.id, None):
            self._note(early)
        try:
            return await self._client.operations.wait(operation, timeout=timeout)
        except asyncio.CancelledError:
            if self._cancels:
                await self._cancel(operation, label)
            raise
        finally:
            self._labels.pop(operation.id, None)
            if self._latest.startswith(label):
                self._latest = next(iter(self._labels.values()), "")

    async def _cancel(self, operation: "Operation", label: str) -> None:
        """Ctrl-C. A second one ends us at once; the daemon goes on taking back."""
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        self._latest = f"{label}: cancelling"
        try:
            asked = await self._client.operations.cancel(operation.id)
            await self._client.operations.wait(asked)
        except Cancelled:
            self.line.print(plain(f"{label}: cancelled; what it had begun was taken back"))
        except AtollError as error:
            self.line.print(plain(f"{label}: not cancelled: {error.message}"))
            if isinstance(error, Refused):
                self.line.print(f"it goes on; to wait for it: atoll operation wait {operation.id}")
        else:
            self.line.print(plain(f"{label}: done before it could be cancelled"))

    async def _listen(self) -> None:
        with contextlib.suppress(AtollError, OSError, TimeoutError):
            from atoll.client import Progress

            async for news in self._client.events.follow(kinds=["operation.progress"]):
                self._note(msgspec.json.decode(news.body, type=Progress))

    def _note(self, progress: "Progress") -> None:
        label = self._labels.get(progress.operation)
        if label is None:  # somebody else's, or quicker than the answer that says it is ours
            self._early[progress.operation] = progress
            return
        text = f"{label}: {progress.text or progress.step}"
        percent = "" if progress.percent is None else f" {progress.percent}%"
        self._latest = text + percent
        if not self._terminal and self._steps.get(progress.operation) != text:
            self._steps[progress.operation] = text
            self.line.print(plain(text))

    async def _spin(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(TICK)
            turn += 1
            if self._latest:
                left = f"  ({len(self._labels)} to go)" if len(self._labels) > 1 else ""
                seconds = time.monotonic() - self._begun
                self.line.show(f"{SPINNER[turn % len(SPINNER)]} {plain(self._latest)}{left}  {seconds:.0f}s")
