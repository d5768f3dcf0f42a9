"""`atoll nic`."""

from typing import TYPE_CHECKING, Any

import click
import msgspec

from atoll.base.errors import Invalid
from atoll.cli import output
from atoll.cli.commands import group
from atoll.cli.completing import instances
from atoll.cli.context import run
from atoll.cli.nicspec import HELP, parse_nic, show_bandwidth, word
from atoll.cli.output import Column
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, InstanceView, Operation

nic = group("nic", "NICs of instances: add, remove, change, while they run.")
COLUMNS = [
    Column("NIC", lambda row: str(row["number"]), right=True),
    Column("MAC", lambda row: row["mac"]),
    Column("NETWORK", lambda row: row["network"]),
    Column("ADDRESSES", lambda row: ", ".join(row["addresses"]) or "-"),
    Column("LINK", lambda row: "up" if row["link"] else "down"),
    Column("GROUPS", lambda row: ", ".join(row["groups"]) or "-"),
    Column("FORWARDS", lambda row: ", ".join(row["forwards"]) or "-"),
    Column("DOWN", lambda row: row["down"] or "-"),
    Column("UP", lambda row: row["up"] or "-"),
]
_SETTABLE = ("link", "guard", "group", "down", "up", "down-min", "up-min", "burst")


def rows(view: "InstanceView") -> list[dict[str, Any]]:
    found = []
    for number, (wanted, fixed) in enumerate(
        zip(view.instance.spec.nics, view.instance.hardware.nics, strict=False)
    ):
        found.append(
            {
                "number": number,
                "mac": fixed.mac,
                "network": wanted.network,
                "addresses": fixed.addresses,
                "link": wanted.link,
                "guard": wanted.guard,
                "groups": wanted.groups,
                "forwards": [str(each) for each in wanted.forwards],
                "down": show_bandwidth(wanted.down),
                "up": show_bandwidth(wanted.up),
            }
        )
    return found


def mac_of(view: "InstanceView", which: str) -> str:
    """Raises Invalid where that names none, or several."""
    known = rows(view)
    if which.isdigit() and int(which) < len(known):
        return str(known[int(which)]["mac"])
    found = [row["mac"] for row in known if which.lower() in (row["mac"], row["network"])]
    if len(found) == 1:
        return str(found[0])
    names = ", ".join(f"{row['number']} ({row['mac']} on {row['network']})" for row in known) or "none"
    what = f"several NICs of {view.name} are on {which}" if found else f"{view.name} has no NIC {which[:40]!r}"
    raise Invalid(what, hint=f"its NICs: {names}", field="NIC")


@nic.command("list", examples=["atoll nic list web"])
@click.argument("instance", shell_complete=instances)
@click.pass_context
def list_(ctx: click.Context, instance: str) -> None:
    """List an instance's NICs."""
    settings = ctx.ensure_object(Settings)
    view = run(settings, lambda client: client.instances.get(instance))
    output.emit_rows(settings, rows(view), COLUMNS, name=lambda row: row["mac"], none="no NICs")


@nic.command("add", examples=["atoll nic add web network=lan", "atoll nic add web network=lan,address=10.1.2.30"])
@click.argument("instance", shell_complete=instances)
@click.argument("nic_settings", metavar="[K=V,...]", default="")
@click.pass_context
def add(ctx: click.Context, instance: str, nic_settings: str) -> None:
    """Give an instance one more NIC; one that runs has it at once.

    Settings: network=NAME, address=IPV4, mac=MAC, link=up|down, guard=on|off, group=NAME (several: a+b), down=RATE
    and up=RATE (at most, to and from the guest), down-min=RATE and up-min=RATE (at least), burst=SIZE.
    """
    from atoll.client import NicSpec

    settings = ctx.ensure_object(Settings)
    wanted = converted(parse_nic(nic_settings), NicSpec)
    ended = _one(settings, lambda client: client.nics.add(instance, wanted), f"adding a NIC to {instance}")
    made = msgspec.json.decode(ended.result)
    where = f" with {made['addresses']}" if made["addresses"] else ""
    text = made["mac"] if settings.quiet else f"{instance} has NIC {made['mac']}{where}"
    output.emit(settings, ended, lambda: click.echo(text))


@nic.command("remove", examples=["atoll nic remove web 1"])
@click.argument("instance", shell_complete=instances)
@click.argument("which", metavar="NIC")
@click.pass_context
def remove(ctx: click.Context, instance: str, which: str) -> None:
    """Take a NIC away, also while the instance runs. NIC: its number, MAC or network."""
    settings = ctx.ensure_object(Settings)

    async def ask(client: "Client") -> "Operation":
        return await client.nics.remove(instance, mac_of(await client.instances.get(instance), which))

    ended = _one(settings, ask, f"removing a NIC of {instance}")
    output.emit(settings, ended, lambda: None if settings.quiet else click.echo("the NIC is gone"))


@nic.command("link", examples=["atoll nic link web 0 down"])
@click.argument("instance", shell_complete=instances)
@click.argument("which", metavar="NIC")
@click.argument("cable", metavar="up|down", type=click.Choice(["up", "down"]))
@click.pass_context
def link(ctx: click.Context, instance: str, which: str, cable: str) -> None:
    """Plug a NIC's cable in or out. NIC: its number, MAC or network."""
    _change(ctx, instance, which, {"link": word(cable, "link")}, f"its link is {cable}")


@nic.command("set", examples=["atoll nic set web 0 group=web+db,up=50Mbit", "atoll nic set web 0 group=,up=0"])
@click.argument("instance", shell_complete=instances)
@click.argument("which", metavar="NIC")
@click.argument("nic_settings", metavar="K=V,...")
@click.pass_context
def set_(ctx: click.Context, instance: str, which: str, nic_settings: str) -> None:
    """Change a NIC, at once: link, guard, group, down, up, down-min, up-min, burst.

    NIC: its number, MAC or network.
    A rate of 0 takes the limit away; group= takes it out of every group.
    """
    _change(ctx, instance, which, parse_nic(nic_settings, keys=_SETTABLE), "changed")


def _change(ctx: click.Context, instance: str, which: str, changes: dict[str, Any], said: str) -> None:
    from atoll.client import NicChanges

    settings = ctx.ensure_object(Settings)
    wanted = converted(changes, NicChanges)

    async def ask(client: "Client") -> "Operation":
        return await client.nics.change(instance, mac_of(await client.instances.get(instance), which), wanted)

    ended = _one(settings, ask, f"changing a NIC of {instance}")
    output.emit(settings, ended, lambda: None if settings.quiet else click.echo(said))


def converted(values: dict[str, Any], kind: Any) -> Any:
    """Raises Invalid that names the setting."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$.")
        raise Invalid(text.replace("`", ""), field=where.rstrip("`"), hint=HELP) from error


def _one(settings: Settings, ask: Any, label: str) -> "Operation":
    async def work(client: "Client") -> "Operation":
        async with Waiting(client, settings) as waiting:
            return await waiting.wait(await ask(client), label)

    return run(settings, work)
