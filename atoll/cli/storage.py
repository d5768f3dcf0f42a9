"""`atoll pool` and `atoll volume`."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from atoll.base.names import check_label
from atoll.base.units import parse_size, show_size
from atoll.cli import output, several
from atoll.cli.commands import group
from atoll.cli.completing import instances, pools, volumes
from atoll.cli.context import run
from atoll.cli.output import Column, Section
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Operation, PoolView, VolumeView

pool = group("pool", "Storage pools: places on the host that volumes are in.")
volume = group("volume", "Volumes: virtual disks in pools.")
FORMATS = click.Choice(["thin", "full", "raw"])
BUSES = click.Choice(["virtio", "scsi", "ahci"])
CACHES = click.Choice(["writeback", "none", "writethrough", "directsync", "unsafe"])
NO_WAIT = click.option("--no-wait", is_flag=True, help="Return once the daemon has accepted.")


def fill(view: "PoolView") -> str:
    return f"over {view.filled}% full" if view.filled and view.state == "ready" else view.state


def size(number: int | None) -> str:
    return "-" if number is None else show_size(number)


POOLS = [
    Column("NAME", lambda view: view.pool.name),
    Column("DRIVER", lambda view: view.pool.driver),
    Column("STATE", fill, coloured=True),
    Column("SIZE", lambda view: size(view.capacity and view.capacity.total), right=True),
    Column("USED", lambda view: size(view.capacity and view.capacity.used), right=True),
    Column("AVAILABLE", lambda view: size(view.capacity and view.capacity.available), right=True),
    Column("VOLUMES", lambda view: str(view.volumes), right=True),
    Column("PROMISED", lambda view: show_size(view.provisioned), right=True),
    Column("AGE", lambda view: output.age(view.pool.created)),
]
VOLUMES = [
    Column("NAME", lambda view: view.volume.name),
    Column("SIZE", lambda view: show_size(view.volume.size), right=True),
    Column("USED", lambda view: size(view.usage and view.usage.used), right=True),
    Column("ALLOCATED", lambda view: size(view.usage and view.usage.allocated), right=True),
    Column("FORMAT", lambda view: view.volume.format),
    Column("POOL", lambda view: view.pool),
    Column("INSTANCE", lambda view: view.instance or "-"),
    Column("STATE", lambda view: str(view.volume.state), coloured=True),
    Column("AGE", lambda view: output.age(view.volume.created)),
]


@pool.command("list", examples=["atoll pool list"])
@click.pass_context
def list_pools(ctx: click.Context) -> None:
    """List the pools that the project may use, with what is left in them."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.pools.list())
    output.emit_rows(settings, found, POOLS, name=lambda view: view.pool.name, none="no pools")


@pool.command("show", examples=["atoll pool show default"])
@click.argument("name", shell_complete=pools)
@click.pass_context
def show_pool(ctx: click.Context, name: str) -> None:
    """Tell a pool's driver, place and capacity."""
    settings = ctx.ensure_object(Settings)
    view = run(settings, lambda client: client.pools.get(name))
    found, room = view.pool, view.capacity
    head = [
        ("name", found.name),
        ("project", found.project),
        ("description", found.description),
        ("driver", found.driver),
        ("state", fill(view) + (f" ({view.reason})" if view.reason else "")),
        ("path", view.path),
        ("size", show_size(room.total) if room else ""),
        ("used", show_size(room.used) if room else ""),
        ("available", show_size(room.available) if room else ""),
        ("volumes", f"{view.volumes}, with {show_size(view.provisioned)} promised to guests"),
        ("id", found.id),
        ("created", f"{output.local_time(found.created)} ({output.age(found.created)} ago)"),
    ]
    output.emit(settings, view, lambda: output.write_sections([Section("", head)]))


@pool.command(
    "create",
    examples=["atoll pool create fast --path /srv/fast", "atoll pool create snap --driver btrfs --path /mnt/snap"],
)
@click.argument("name")
@click.option("--path", required=True, metavar="DIR", help="An empty directory of the daemon's host, or a new one.")
@click.option(
    "--driver", default="dir", show_default=True, metavar="KIND", help="dir, or btrfs on a btrfs file system."
)
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@click.pass_context
def create_pool(ctx: click.Context, name: str, path: str, driver: str, description: str) -> None:
    """Make a directory of the host a pool.

    Atoll puts a marker in it: where that is not, the pool's disk is not mounted, and nothing is written there.
    """
    settings = ctx.ensure_object(Settings)
    check_label(name, what="name of a pool", field="name")
    at = os.path.abspath(os.path.expanduser(path))

    async def act(client: "Client", _: str) -> "Operation":
        return await client.pools.create(name, driver=driver, path=at, description=description)

    _several(settings, [name], act, doing="making pool", done="created")


@pool.command("delete", examples=["atoll pool delete fast"])
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=pools)
@click.option("--force", is_flag=True, help="Also where the host cannot reach it: what is in its directory stays.")
@click.pass_context
def delete_pool(ctx: click.Context, names: Sequence[str], force: bool) -> None:
    """Remove pools that have no volumes. Their directories stay."""
    settings = ctx.ensure_object(Settings)

    async def act(client: "Client", name: str) -> "Operation":
        return await client.pools.delete(name, force=force)

    _several(settings, names, act, doing="deleting pool", done="deleted")


@volume.command("list", examples=["atoll volume list"])
@click.pass_context
def list_volumes(ctx: click.Context) -> None:
    """List the project's volumes, in whichever pool.

    SIZE is what a guest sees, USED what holds data, ALLOCATED what the pool would have back without the volume.
    """
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.volumes.list())
    output.emit_rows(settings, found, VOLUMES, name=lambda view: view.volume.name, none="no volumes")


@volume.command("show", examples=["atoll volume show data"])
@click.argument("name", shell_complete=volumes)
@click.pass_context
def show_volume(ctx: click.Context, name: str) -> None:
    """Tell everything about a volume. An instance's own disk is found by its name or id too."""
    settings = ctx.ensure_object(Settings)
    view = run(settings, lambda client: client.volumes.get(name))
    output.emit(settings, view, lambda: output.write_sections(volume_sections(view)))


def volume_sections(view: "VolumeView") -> list[Section]:
    found, usage, disk = view.volume, view.usage, view.disk
    head = [
        ("name", found.name),
        ("project", found.project),
        ("state", str(found.state)),
        ("format", found.format),
        ("pool", view.pool),
        ("image", found.base or ""),
        ("id", found.id),
        ("created", f"{output.local_time(found.created)} ({output.age(found.created)} ago)"),
    ]
    room = [
        ("provisioned", show_size(found.size)),
        ("used", show_size(usage.used) if usage else "not known now"),
        ("allocated", show_size(usage.allocated) if usage else "not known now"),
    ]
    place = [
        ("instance", view.instance + ("" if found.named else " (its own disk: it goes with it)")),
        ("bus", disk.bus if disk else ""),
        ("cache", disk.cache if disk else ""),
        ("slot", str(disk.slot) if disk else ""),
        ("serial", disk.serial if disk else ""),
    ]
    return [Section("", head), Section("room", room), Section("attached to", place if view.instance else [])]


@volume.command(
    "create",
    examples=[
        "atoll volume create data --size 10GiB",
        "atoll volume create db --size 50GiB --pool fast --format full",
    ],
)
@click.argument("name")
@click.option("--size", "wanted", required=True, metavar="SIZE", help="What a guest sees.")
@click.option(
    "--pool", "home", default="default", show_default=True, metavar="P", shell_complete=pools, help="Where it is."
)
@click.option(
    "--format",
    "kind",
    default="thin",
    show_default=True,
    type=FORMATS,
    help="thin takes room as it is written; full takes all of it at once; raw is thin without a format.",
)
@NO_WAIT
@click.pass_context
def create_volume(ctx: click.Context, name: str, wanted: str, home: str, kind: Any, no_wait: bool) -> None:
    """Make an empty volume."""
    settings = ctx.ensure_object(Settings)
    check_label(name, what="name of a volume", field="name")
    bytes_ = parse_size(wanted, field="--size")

    async def act(client: "Client", _: str) -> "Operation":
        return await client.volumes.create(name, bytes_, pool=home, format=kind)

    _several(settings, [name], act, doing="making volume", done="created", wait=not no_wait)


@volume.command("delete", examples=["atoll volume delete data"])
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=volumes)
@click.pass_context
def delete_volume(ctx: click.Context, names: Sequence[str]) -> None:
    """Remove volumes that no instance has, with all that is on them."""
    settings = ctx.ensure_object(Settings)

    async def act(client: "Client", name: str) -> "Operation":
        return await client.volumes.delete(name)

    _several(settings, names, act, doing="deleting volume", done="deleted")


@volume.command(
    "attach", examples=["atoll volume attach data web", "atoll volume attach data web --bus scsi --cache none"]
)
@click.argument("name", shell_complete=volumes)
@click.argument("instance", shell_complete=instances)
@click.option("--bus", default="virtio", show_default=True, type=BUSES, help="What the guest sees it on.")
@click.option("--cache", default="writeback", show_default=True, type=CACHES, help="How the host caches it.")
@NO_WAIT
@click.pass_context
def attach(ctx: click.Context, name: str, instance: str, bus: Any, cache: Any, no_wait: bool) -> None:
    """Give a volume to an instance, at once where it runs. The guest finds it by its serial number.

    The volume stays when the instance is deleted.
    """
    settings = ctx.ensure_object(Settings)

    async def act(client: "Client", _: str) -> "Operation":
        return await client.volumes.attach(name, instance, bus=bus, cache=cache)

    _several(settings, [name], act, doing="attaching volume", done=f"attached to {instance}", wait=not no_wait)


@volume.command("detach", examples=["atoll volume detach data"])
@click.argument("name", shell_complete=volumes)
@click.option("--force", is_flag=True, help="Also while the guest has it mounted, as pulling the plug.")
@click.pass_context
def detach(ctx: click.Context, name: str, force: bool) -> None:
    """Take a volume from its instance. A guest that runs is asked to let go of it first."""
    settings = ctx.ensure_object(Settings)

    async def act(client: "Client", _: str) -> "Operation":
        return await client.volumes.detach(name, force=force)

    _several(settings, [name], act, doing="detaching volume", done="detached")


@volume.command("grow", examples=["atoll volume grow data --size 20GiB", "atoll volume grow data --size +5GiB"])
@click.argument("name", shell_complete=volumes)
@click.option("--size", "wanted", required=True, metavar="[+]SIZE", help="What it shall have, or how much more.")
@click.pass_context
def grow(ctx: click.Context, name: str, wanted: str) -> None:
    """Make a volume larger, also while a guest uses it. Its file system is the guest's own to grow."""
    settings = ctx.ensure_object(Settings)
    bytes_ = parse_size(wanted.removeprefix("+"), field="--size")

    async def act(client: "Client", _: str) -> "Operation":
        more = (await client.volumes.get(name)).volume.size if wanted.startswith("+") else 0
        return await client.volumes.grow(name, type(bytes_)(bytes_ + more))

    _several(settings, [name], act, doing="growing volume", done="grown")


@volume.command("rename", examples=["atoll volume rename data old-data"])
@click.argument("name", shell_complete=volumes)
@click.argument("new")
@click.pass_context
def rename(ctx: click.Context, name: str, new: str) -> None:
    """Give a volume another name. Its serial number stays."""
    settings = ctx.ensure_object(Settings)
    check_label(new, what="new name", field="new")

    async def work(client: "Client") -> "Operation":
        async with Waiting(client, settings) as waiting:
            return await waiting.wait(await client.volumes.rename(name, new), f"renaming {name}")

    ended = run(settings, work)
    output.emit(settings, ended, lambda: None if settings.quiet else click.echo(f"volume {name} is now {new}"))


def _several(settings: Settings, names: Sequence[str], act: Any, **words: Any) -> None:
    run(settings, lambda client: several.each(client, settings, names, lambda name: act(client, name), **words))
