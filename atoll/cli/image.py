"""`atoll image`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from atoll.base.names import check_label
from atoll.base.units import show_size
from atoll.cli import output, several
from atoll.cli.commands import group
from atoll.cli.completing import images, recipes
from atoll.cli.context import run
from atoll.cli.output import Column, Section
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Image, Operation

image = group(
    "image", "Build, import, list and remove images. An image is its content: several names may share one."
)


def stored(found: "Image") -> int:
    """Bytes on the disk: of its files, and of the tree that a root file system is unpacked to."""
    rootfs = found.manifest.files.get("rootfs")
    return sum(file.size for file in found.manifest.files.values()) + (rootfs.virtual_size if rootfs else 0)


def virtual(found: "Image") -> str:
    disk = found.manifest.files.get("disk")
    return show_size(disk.virtual_size) if disk and disk.virtual_size else found.manifest.kind


def kinds(found: "Image") -> str:
    """What can be made of it."""
    from atoll.client import serves

    return ", ".join(serves(found.manifest)) or "no instance: it is a disc"


COLUMNS = [
    Column("NAME", lambda found: found.name),
    Column("STATE", lambda found: str(found.state), coloured=True),
    Column("ARCH", lambda found: found.manifest.arch),
    Column("SIZE", lambda found: show_size(stored(found)), right=True),
    Column("DISK", virtual, right=True),
    Column("FOR", lambda found: kinds(found).partition(":")[0]),
    Column("AGENT", lambda found: "yes" if found.manifest.agent else "no"),
    Column("DIGEST", lambda found: found.digest[7:19]),
    Column("AGE", lambda found: output.age(found.created)),
]
RECIPES = [Column("RECIPE", lambda recipe: recipe.name), Column("DESCRIPTION", lambda recipe: recipe.description)]


@image.command("list", examples=["atoll image list"])
@click.pass_context
def list_(ctx: click.Context) -> None:
    """List the project's images by name."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.images.list())
    output.emit_rows(
        settings, found, COLUMNS, name=lambda each: each.name, none="no images yet: atoll image build tiny"
    )


@image.command("show", examples=["atoll image show tiny"])
@click.argument("name", shell_complete=images)
@click.pass_context
def show(ctx: click.Context, name: str) -> None:
    """Tell what an image is made of."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.images.get(name))
    output.emit(settings, found, lambda: output.write_sections(sections(found)))


def sections(found: "Image") -> list[Section]:
    manifest = found.manifest
    head = [
        ("name", found.name),
        ("project", found.project),
        ("digest", found.digest),
        ("state", str(found.state)),
        ("arch", manifest.arch),
        ("kind", manifest.kind),
        ("for", kinds(found)),
        ("system", manifest.system),
        ("machine", manifest.machine),
        ("firmware", manifest.firmware or "direct boot" if manifest.kind == "disk" else ""),
        ("agent", "yes" if manifest.agent else "no"),
        ("least memory", show_size(manifest.min_memory) if manifest.min_memory else ""),
        ("kernel line", manifest.cmdline),
        ("source", manifest.source),
        ("created", f"{output.local_time(found.created)} ({output.age(found.created)} ago)"),
    ]
    files = [
        (role, f"{show_size(file.size)} {file.format}, {file.digest}")
        for role, file in sorted(manifest.files.items())
    ]
    return [Section("", head), Section("files", files)]


@image.command("build", examples=["atoll image build tiny", "atoll image build tiny --name tiny-new"])
@click.argument("recipe", shell_complete=recipes)
@click.option("--name", default="", help="Name of the image (the recipe's).")
@click.option("--no-wait", is_flag=True, help="Return once the daemon has accepted.")
@click.pass_context
def build(ctx: click.Context, recipe: str, name: str, no_wait: bool) -> None:
    """Build an image from a recipe; `atoll image recipes` lists them. `atoll launch` does so by itself."""
    settings = ctx.ensure_object(Settings)
    name = name and check_label(name, what="image's name", field="--name")

    async def act(client: "Client", _: str) -> "Operation":
        return await client.images.build(recipe, name=name)

    _several(settings, [name or recipe], act, doing="building", done="built", wait=not no_wait, steps=True)


@image.command("delete", examples=["atoll image delete tiny-old"])
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=images)
@click.pass_context
def delete(ctx: click.Context, names: Sequence[str]) -> None:
    """Take names away from images; content that nothing uses any more goes too."""
    settings = ctx.ensure_object(Settings)

    async def act(client: "Client", name: str) -> "Operation":
        return await client.images.delete(name)

    _several(settings, names, act, doing="deleting image", done="deleted", wait=True)


def _several(settings: Settings, names: Sequence[str], act: Any, **words: Any) -> None:
    run(settings, lambda client: several.each(client, settings, names, lambda name: act(client, name), **words))


@image.command("rename", examples=["atoll image rename tiny tiny-old"])
@click.argument("name", shell_complete=images)
@click.argument("new")
@click.pass_context
def rename(ctx: click.Context, name: str, new: str) -> None:
    """Give an image another name."""
    settings = ctx.ensure_object(Settings)
    check_label(new, what="new name", field="new")
    ended = _one(settings, lambda client: client.images.rename(name, new), f"renaming {name}")
    output.emit(settings, ended, lambda: None if settings.quiet else click.echo(f"image {name} is now {new}"))


@image.command("prune", examples=["atoll image prune"])
@click.pass_context
def prune(ctx: click.Context) -> None:
    """Remove image content that no name and no instance uses."""
    settings = ctx.ensure_object(Settings)
    ended = _one(settings, lambda client: client.images.prune(), "pruning images")
    output.emit(settings, ended, lambda: None if settings.quiet else click.echo("unused image content is gone"))


def _one(settings: Settings, ask: Any, label: str) -> "Operation":
    async def work(client: "Client") -> "Operation":
        async with Waiting(client, settings) as waiting:
            return await waiting.wait(await ask(client), label)

    return run(settings, work)


@image.command("recipes", examples=["atoll image recipes"])
@click.pass_context
def recipes_(ctx: click.Context) -> None:
    """List the images that Atoll can build itself."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.images.recipes())
    output.emit_rows(settings, found, RECIPES, name=lambda each: each.name, none="no recipes")
