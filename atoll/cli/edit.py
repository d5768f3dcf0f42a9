"""`atoll set` and `atoll rename`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from atoll.base.errors import Conflict, Invalid
from atoll.base.names import check_label
from atoll.cli import keys, output
from atoll.cli.commands import command
from atoll.cli.completing import instances
from atoll.cli.context import run
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, InstanceView

ATTEMPTS = 5
"""How often a change is tried anew where somebody else changed the instance first."""
FIXED = "it is fixed at birth: launch another instance"
ELSEWHERE = {
    "name": "use atoll rename NAME NEW",
    "power": "use atoll start or atoll stop",
    **dict.fromkeys(
        ("image", "machine", "accel", "forkable", "kind", "container", "root.pool", "root.size", "nics", "host"),
        FIXED,
    ),
}
WHOLE = ("limits", "autostart")
"""Parts that the API replaces as a whole: what is not given is taken from what is there."""


@command(
    "set",
    examples=[
        "atoll set web cpus=4 memory=2GiB",
        "atoll set web restart=always limits.cpu=1.5 labels.role=web",
        "atoll set web limits.cpu= labels.role=    # an empty value takes it away",
    ],
)
@click.argument("name", shell_complete=instances)
@click.argument("pairs", nargs=-1, required=True, metavar="K=V...")
@click.pass_context
def set_(ctx: click.Context, name: str, pairs: Sequence[str]) -> None:
    """Change an instance's settings. What cannot change while it runs waits for its next start; it says so.

    Keys: cpus, memory, restart, description, limits.cpu, limits.cpu_weight, autostart.enabled, autostart.order,
    autostart.delay, labels.NAME.
    """
    from atoll.client import Changes

    settings = ctx.ensure_object(Settings)
    wanted = keys.parse(pairs, Changes, elsewhere=ELSEWHERE)
    view = run(settings, lambda client: _change(client, settings, name, wanted))
    output.emit(settings, view, lambda: _tell(settings, view))


def _tell(settings: Settings, view: "InstanceView") -> None:
    if settings.quiet:
        return
    waiting = ", ".join(view.status.restart_for)
    click.echo(
        f"{view.name} changed" + (f"; {waiting}: at the next start (atoll restart {view.name})" if waiting else "")
    )


async def _change(client: "Client", settings: Settings, name: str, wanted: dict[str, Any]) -> "InstanceView":
    """Raises Conflict where others keep changing it at the same time."""
    from atoll.client import Changes

    merged = any(part in wanted for part in WHOLE)
    async with Waiting(client, settings) as waiting:
        for attempt in range(ATTEMPTS):
            now = await client.instances.get(name) if merged else None
            changes = msgspec.convert(merge(now, wanted) if now else wanted, Changes)
            try:
                operation = await client.instances.change(name, changes, revision=now.revision if now else 0)
                await waiting.wait(operation, f"changing {name}")
                break
            except Conflict:
                if attempt == ATTEMPTS - 1:
                    raise
        return await client.instances.get(name)


def merge(now: "InstanceView", wanted: dict[str, Any]) -> dict[str, Any]:
    """`wanted` with the rest of each WHOLE part as it is now."""
    present = msgspec.to_builtins(now.instance.spec)
    return {key: {**present[key], **value} if key in WHOLE else value for key, value in wanted.items()}


@command("rename", examples=["atoll rename web web-old"])
@click.argument("name", shell_complete=instances)
@click.argument("new")
@click.pass_context
def rename(ctx: click.Context, name: str, new: str) -> None:
    """Give an instance another name."""
    settings = ctx.ensure_object(Settings)
    check_label(new, what="new name", field="new")
    if name == new:
        raise Invalid(f"{name} is already its name", field="new")

    async def work(client: "Client") -> "InstanceView":
        async with Waiting(client, settings) as waiting:
            await waiting.wait(await client.instances.rename(name, new), f"renaming {name}")
        return await client.instances.get(new)

    view = run(settings, work)
    output.emit(settings, view, lambda: None if settings.quiet else click.echo(f"{name} is now {new}"))
