"""`atoll show`."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from atoll.base.errors import AtollError
from atoll.base.units import show_size
from atoll.cli import output, seeds
from atoll.cli.commands import command
from atoll.cli.completing import instances
from atoll.cli.context import run
from atoll.cli.listing import kind_of
from atoll.cli.output import Section
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, Disk, InstanceView

AGENT_TIME = 3.0
"""Seconds that the agent of a guest may take to tell its addresses: a courtesy, not worth a long wait."""
Addresses = Mapping[str, tuple[str, ...]]
Rows = Sequence[tuple[str, str]]


@command("show", examples=["atoll show web", "atoll show web -o json | jq .status.state"])
@click.argument("name", shell_complete=instances)
@click.pass_context
def show(ctx: click.Context, name: str) -> None:
    """Tell everything about an instance: settings, state, hardware, addresses, how it last ended."""
    settings = ctx.ensure_object(Settings)
    view, inside, more = run(settings, lambda client: _read(client, name, ask=settings.output == "table"))
    output.emit(settings, view, lambda: output.write_sections(sections(view, inside, more)))


async def _read(client: "Client", name: str, *, ask: bool) -> tuple["InstanceView", Addresses, Rows]:
    """The record; what the guest tells of its addresses; rows of what only a running one has."""
    view = await client.instances.get(name)
    if not ask or view.status.state != "running":
        return view, {}, []
    more = [("screen", await _screen(client, name))]
    if view.instance.hardware.seed:
        more.append(("cloud-init", await seeds.told(client, name, AGENT_TIME)))
    try:
        return view, await asyncio.wait_for(client.instances.addresses(name), AGENT_TIME), more
    except (AtollError, TimeoutError):
        return view, {}, more


async def _screen(client: "Client", name: str) -> str:
    try:
        return f"VNC on {(await client.instances.display(name)).vnc}"
    except AtollError:
        return ""


def sections(view: "InstanceView", inside: Addresses, more: Rows = ()) -> list[Section]:
    """What `show` prints. `inside`: by MAC, the addresses that the guest itself tells."""
    now = Section("now", more)
    return [_head(view), now, _wanted(view), _hardware(view), _nics(view, inside), _labels(view), _ended(view)]


def _head(view: "InstanceView") -> Section:
    status = view.status
    reason = f" ({status.reason})" if status.reason else ""
    waiting = f"{', '.join(status.restart_for)}: apply at the next start (atoll restart {view.name})"
    return Section(
        "",
        [
            ("name", view.name),
            ("project", view.project),
            ("description", view.instance.spec.description),
            ("state", f"{status.state}{reason}, for {output.age(status.since)}"),
            ("image", f"{name} ({view.instance.image[:19]})" if (name := view.instance.spec.image) else ""),
            ("kind", kind_of(view)),
            ("id", view.id),
            ("created", f"{output.local_time(view.instance.created)} ({output.age(view.instance.created)} ago)"),
            ("host", status.host),
            ("generation", str(status.generation)),
            ("operation", status.operation or ""),
            ("pending", waiting if status.restart_for else ""),
            ("restarts", str(status.restarts) if status.restarts else ""),
        ],
    )


def _wanted(view: "InstanceView") -> Section:
    spec = view.instance.spec
    start = spec.autostart
    auto = f"order {start.order}" + (f", then {start.delay:g} s of delay" if start.delay else "")
    return Section(
        "settings",
        [
            ("cpus", str(spec.cpus)),
            ("memory", show_size(spec.memory)),
            ("cpu limit", f"{spec.limits.cpu:g} cores" if spec.limits.cpu else ""),
            ("cpu weight", str(spec.limits.cpu_weight) if spec.limits.cpu_weight else ""),
            ("restart", str(spec.restart)),
            ("autostart", auto if start.enabled else "no"),
            ("power", f"wanted {spec.power}"),
            ("forkable", "yes" if spec.forkable else ""),
            *_container(view),
        ],
    )


def _container(view: "InstanceView") -> list[tuple[str, str]]:
    spec = view.instance.spec
    if spec.kind != "container":
        return []
    own, limits = spec.container, spec.limits
    sizes = (("soft memory", limits.memory_soft), ("swap", limits.swap))
    rates = (("disk read", limits.disk_read), ("disk write", limits.disk_write))
    return [
        ("PRIVILEGED", "its root is the host's root" if own.privileged else ""),
        ("nesting", "yes" if own.nesting else ""),
        *(("mount", f"{m.source} on {m.path}{' (read only)' if m.read_only else ''}") for m in own.mounts),
        ("command", " ".join(own.command)),
        *((f"{name} limit", show_size(size) if size is not None else "") for name, size in sizes),
        ("processes", str(limits.processes) if limits.processes else ""),
        *((f"{name} limit", f"{show_size(rate)}/s" if rate else "") for name, rate in rates),
    ]


def _hardware(view: "InstanceView") -> Section:
    hardware = view.instance.hardware
    size = view.instance.spec.root.size
    return Section(
        "hardware",
        [
            ("machine", f"{hardware.machine} ({hardware.arch}, {hardware.accel})"),
            ("cpu", hardware.cpu),
            ("boots", _boots(view)),
            ("devices", hardware.style if hardware.style != "virtio" else ""),
            ("cd-rom", (view.instance.spec.cdrom or "empty") if hardware.cdrom else ""),
            ("grows to", f"{hardware.max_cpus} cpus, {show_size(hardware.max_memory)}"),
            *(
                (
                    f"disk {number}",
                    f"volume {disk.volume}, serial {disk.serial}, slot {disk.slot}"
                    + _sized(size, number)
                    + _plugged(disk),
                )
                for number, disk in enumerate(hardware.disks)
            ),
        ],
    )


def _boots(view: "InstanceView") -> str:
    if view.instance.spec.kind == "container":
        return "on its host's kernel"
    way = {"direct": "its kernel directly", "bios": "by BIOS", "uefi": "by UEFI"}[view.instance.hardware.firmware]
    return f"{way} ({view.instance.hardware.uefi})" if view.instance.hardware.uefi else way


def _plugged(disk: "Disk") -> str:
    """What is not as usual about it."""
    parts = [disk.bus if disk.bus != "virtio" else "", f"cache {disk.cache}" if disk.cache != "writeback" else ""]
    parts.append("attached by name" if disk.named else "")
    return "".join(f", {part}" for part in parts if part)


def _sized(size: int, number: int) -> str:
    return f", {show_size(size)}" if size and number == 0 else ""


def _nics(view: "InstanceView", inside: Addresses) -> Section:
    rows = []
    wanted = view.instance.spec.nics
    for number, nic in enumerate(view.instance.hardware.nics):
        name = wanted[number].network if number < len(wanted) else nic.network
        seen = [address for address in inside.get(nic.mac, ()) if address not in nic.addresses]
        lines = [f"{nic.mac} on network {name}, slot {nic.slot}"]
        lines += [
            f"{address} planned{', in use' if address in inside.get(nic.mac, ()) else ''}"
            for address in nic.addresses
        ]
        lines += [f"{address} told by the guest" for address in seen]
        rows.append((f"nic {number}", lines))
    return Section("network", rows)


def _labels(view: "InstanceView") -> Section:
    return Section("labels", sorted(view.instance.spec.labels.items()))


def _ended(view: "InstanceView") -> Section:
    ended = view.status.exit
    if ended is None:
        return Section("last end", [])
    how = ended.reason + ("" if ended.clean else " (not clean)")
    return Section("last end", [("reason", how), ("at", output.local_time(ended.at)), ("last lines", ended.lines)])
