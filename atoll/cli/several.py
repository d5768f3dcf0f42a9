"""One verb on several instances at once: what fails is told, the rest goes on."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import click

from atoll.base.errors import AtollError
from atoll.cli import errors, output
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Operation

AT_ONCE = 16
Act = Callable[[str], Awaitable["Operation"]]


async def each(
    client: "Client",
    settings: Settings,
    names: Sequence[str],
    act: Act,
    *,
    doing: str,
    done: str,
    wait: bool = True,
    steps: bool = False,
) -> None:
    """`act` on every name, AT_ONCE at a time, and wait for the outcomes. `doing`: "stopping"; `done`: "stopped".

    One name: its error is raised. Several: each error is shown, then SomeFailed with the first one's exit code.
    """
    names = list(dict.fromkeys(names))
    gate = asyncio.Semaphore(AT_ONCE)
    ended: list[Operation] = []
    failed: list[errors.Failure] = []

    async with Waiting(client, settings, steps=steps) as waiting:

        async def one(name: str) -> None:
            async with gate:
                try:
                    operation = await act(name)
                    if wait:
                        operation = await waiting.wait(operation, f"{doing} {name}")
                except AtollError as error:
                    if len(names) == 1:
                        raise
                    waiting.line.clear()
                    failed.append(errors.describe(error))
                    errors.write_failure(failed[-1], as_json=settings.as_json, about=name)
                    return
                ended.append(operation)
                waiting.line.clear()
                _tell(settings, operation, name, doing, done if wait else "")

        await asyncio.gather(*(one(name) for name in names))
    if settings.output != "table":
        output.emit(settings, sorted(ended, key=lambda operation: operation.id), lambda: None)
    if failed:
        raise errors.SomeFailed(failed[0].exit)


def _tell(settings: Settings, operation: "Operation", name: str, doing: str, done: str) -> None:
    if settings.output != "table":
        return
    if settings.quiet:
        click.echo(name if done else operation.id)
    else:
        click.echo(
            f"{name} {done}" if done else f"{doing} {name}; to wait for it: atoll operation wait {operation.id}"
        )
