"""`atoll pool`, `atoll volume`."""

import click

from atoll.base.units import show_size
from atoll.cli import output
from atoll.cli.commands import group
from atoll.cli.completing import pools
from atoll.cli.context import run
from atoll.cli.output import Column, Section
from atoll.cli.settings import Settings

pool = group("pool", "List storage pools.")
volume = group("volume", "List volumes: virtual disks in pools.")

POOLS = [
    Column("NAME", lambda view: view.pool.name),
    Column("DRIVER", lambda view: view.pool.driver),
    Column("SIZE", lambda view: show_size(view.capacity.total) if view.capacity else "unreachable", right=True),
    Column("USED", lambda view: show_size(view.capacity.used) if view.capacity else "-", right=True),
    Column("AVAILABLE", lambda view: show_size(view.capacity.available) if view.capacity else "-", right=True),
    Column("AGE", lambda view: output.age(view.pool.created)),
]
VOLUMES = [
    Column("NAME", lambda each: each.name),
    Column("SIZE", lambda each: show_size(each.size), right=True),
    Column("POOL", lambda each: each.pool),
    Column("BASE", lambda each: each.base[7:19] if each.base else "-"),
    Column("ID", lambda each: each.id),
    Column("AGE", lambda each: output.age(each.created)),
]


@pool.command("list", examples=["atoll pool list"])
@click.pass_context
def list_pools(ctx: click.Context) -> None:
    """List the project's pools with what is left in them."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.pools.list())
    output.emit_rows(settings, found, POOLS, name=lambda view: view.pool.name, none="no pools")


@pool.command("show", examples=["atoll pool show default"])
@click.argument("name", shell_complete=pools)
@click.pass_context
def show_pool(ctx: click.Context, name: str) -> None:
    """Tell a pool's driver and capacity."""
    settings = ctx.ensure_object(Settings)
    view = run(settings, lambda client: client.pools.get(name))
    found, room = view.pool, view.capacity
    head = [
        ("name", found.name),
        ("project", found.project),
        ("description", found.description),
        ("driver", found.driver),
        ("size", show_size(room.total) if room else "this host cannot reach it now"),
        ("used", show_size(room.used) if room else ""),
        ("available", show_size(room.available) if room else ""),
        ("id", found.id),
        ("created", f"{output.local_time(found.created)} ({output.age(found.created)} ago)"),
    ]
    output.emit(settings, view, lambda: output.write_sections([Section("", head)]))


@volume.command("list", examples=["atoll volume list"])
@click.pass_context
def list_volumes(ctx: click.Context) -> None:
    """List the project's volumes, in whichever pool."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.pools.volumes())
    output.emit_rows(settings, found, VOLUMES, name=lambda each: each.name, none="no volumes")
