"""What Tab offers: names that the daemon knows. Quick, and silent where it does not answer."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client

DEADLINE = float(os.environ.get("ATOLL_COMPLETE_TIME", "0.5"))
"""Seconds that a Tab may take. A slow machine may want more."""
Items = list[CompletionItem[str]]
Completer = Callable[[click.Context, click.Parameter, str], Items]


def _completer(ask: Callable[["Client"], Awaitable[list[CompletionItem[str]]]]) -> Completer:
    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> Items:
        from atoll.cli.context import run

        found: Items = []
        given = {word for value in ctx.params.values() if isinstance(value, tuple | list) for word in value}
        with contextlib.suppress(Exception):  # Tab must never print an error into a command line
            settings = ctx.ensure_object(Settings)
            found = run(settings, lambda client: asyncio.wait_for(_of(ask, client), DEADLINE))
        return [item for item in found if item.value.startswith(incomplete) and item.value not in given]

    return complete


async def _of(ask: Callable[["Client"], Awaitable[Items]], client: "Client") -> Items:
    return await ask(client)


async def _instances(client: "Client") -> Items:
    return [CompletionItem(view.name, help=str(view.status.state)) for view in await client.instances.list()]


async def _images(client: "Client") -> Items:
    return [CompletionItem(image.name, help=image.manifest.arch) for image in await client.images.list()]


async def _recipes(client: "Client") -> Items:
    return [CompletionItem(recipe.name, help=recipe.description) for recipe in await client.images.recipes()]


async def _launchable(client: "Client") -> Items:
    known = {item.value: item for item in await _recipes(client)}
    return list((known | {item.value: item for item in await _images(client)}).values())


async def _networks(client: "Client") -> Items:
    return [CompletionItem(view.network.name) for view in await client.networks.list()]


async def _pools(client: "Client") -> Items:
    return [CompletionItem(view.pool.name) for view in await client.pools.list()]


async def _volumes(client: "Client") -> Items:
    return [
        CompletionItem(view.volume.name, help=view.instance)
        for view in await client.volumes.list()
        if view.volume.named
    ]


async def _tokens(client: "Client") -> Items:
    return [CompletionItem(token.name) for token in await client.tokens.list()]


async def _operations(client: "Client") -> Items:
    return [
        CompletionItem(operation.id, help=f"{operation.verb} {operation.subject.name}")
        for operation in await client.operations.list(limit=30)
    ]


async def _files(client: "Client") -> Items:
    return [CompletionItem(f"{view.name}:") for view in await client.instances.list()]


instances = _completer(_instances)
images = _completer(_images)
recipes = _completer(_recipes)
launchable = _completer(_launchable)
networks = _completer(_networks)
pools = _completer(_pools)
volumes = _completer(_volumes)
tokens = _completer(_tokens)
operations = _completer(_operations)
guest_files = _completer(_files)
