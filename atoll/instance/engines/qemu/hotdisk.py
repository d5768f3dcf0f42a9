"""Disks added to a guest, taken from it and grown while it runs, over its monitor.

What is there is always asked of QEMU: a former daemon, or a guest that let go late, may have left a part of it.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from atoll.base.errors import AtollError, Broken, Refused
from atoll.base.ids import Bytes
from atoll.host.files import translated
from atoll.host.qmp import Qmp
from atoll.instance.engines.qemu import argv, inside
from atoll.instance.engines.qemu.guest import Guest
from atoll.instance.engines.qemu.places import PERIPHERAL, devices, waits
from atoll.instance.engines.qemu.spawn import open_layer
from atoll.instance.model import BootPlan, DiskPlan, State

_FDSET = re.compile(r"/dev/fdset/(\d+)")
_LATER = "stop it first, or stop it, attach the disk and start it"


async def refuse(qmp: Qmp, plan: BootPlan, disk: DiskPlan) -> None:
    """Raises Refused, with the reason, where this disk must wait for the next start."""
    if why := waits(plan, disk, await devices(qmp)):
        raise Refused(f"{plan.name}: {why}", hint=_LATER, field="bus" if disk.bus == "ahci" else "")


def device(plan: BootPlan, disk: DiskPlan) -> str:
    """The id of what sits in the slot: the disk, or the controller that it is alone on."""
    return str(argv.disk_devices(plan, disk)[0]["id"])


async def add(guest: Guest, disk: DiskPlan) -> None:
    """See engine.Disks."""
    qmp = guest.monitor()
    if await _serial(qmp, disk.slot) != disk.serial:
        await refuse(qmp, guest.plan, disk)
        await _clear(qmp, disk.slot)
        try:
            await _plug(qmp, guest.plan, disk)
        except BaseException:
            await asyncio.shield(_take_back(qmp, guest.plan, disk))
            raise
    disks = (*(other for other in guest.plan.disks if other.slot != disk.slot), disk)
    guest.replan(replace(guest.plan, disks=disks))


async def _plug(qmp: Qmp, plan: BootPlan, disk: DiskPlan) -> None:
    with contextlib.ExitStack() as opened:

        def file(path: Path, flags: int) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            return fd

        with translated(f"open a disk of {plan.name}"):
            layers = [open_layer(layer, file) for layer in disk.attachment.layers]
        handed = []
        for layer in layers:
            number = await qmp.add_fd(layer.fd)
            handed.append(
                argv.LayerHanded(number, layer.format, layer.read_only, layer.block_device, layer.discard)
            )
    try:
        for node in argv.disk_nodes(disk, tuple(handed)):
            await qmp.execute("blockdev-add", node)
    except Broken as error:
        await _drop(qmp, [layer.fd for layer in handed])
        raise _told(plan.name, disk, error) from error
    for wanted in argv.disk_devices(plan, disk):
        await qmp.execute("device_add", wanted)


def _told(name: str, disk: DiskPlan, error: Broken) -> AtollError:
    if "lock" in error.message:
        return Refused(f"{name}: the volume is open in another process", hint=error.message)
    if disk.cache in ("none", "directsync") and "O_DIRECT" in error.message:
        return Refused(
            f"{name}: the pool's file system cannot do without the host's cache",
            hint="--cache writeback",
            field="cache",
        )
    return error


async def _take_back(qmp: Qmp, plan: BootPlan, disk: DiskPlan) -> None:
    """Of what was half added. A device that is there already goes as the guest lets it."""
    with contextlib.suppress(AtollError):
        for wanted in reversed(argv.disk_devices(plan, disk)):
            with contextlib.suppress(AtollError):
                await qmp.execute("device_del", {"id": wanted["id"]})
        await _clear(qmp, disk.slot)


async def remove(guest: Guest, slot: int, *, timeout: float) -> None:
    """See engine.Disks."""
    qmp = guest.monitor()
    disk = next((disk for disk in guest.plan.disks if disk.slot == slot), None)
    if disk is not None and await _there(qmp, device(guest.plan, disk)):
        await refuse(qmp, guest.plan, disk)
        if guest.seen.state is State.PAUSED:
            name = guest.plan.name
            raise Refused(f"{name} is paused and cannot let go of it", hint=f"atoll resume {name}")
        await _ask(guest, qmp, device(guest.plan, disk), timeout)
    await _clear(qmp, slot)
    disks = tuple(disk for disk in guest.plan.disks if disk.slot != slot)
    guest.replan(replace(guest.plan, disks=disks))


async def _ask(guest: Guest, qmp: Qmp, id: str, timeout: float) -> None:
    """Returns once it let go. What QEMU says of a request that is under way already is no news."""
    guest.let_go.add(id)
    guest.released.clear()
    refusal = ""
    try:
        await qmp.execute("device_del", {"id": id})
    except Broken as error:
        refusal = error.message
    try:
        async with asyncio.timeout(timeout):
            while id in guest.let_go and guest.alive:
                await guest.released.wait()
                guest.released.clear()
    except TimeoutError as error:
        if not await _there(qmp, id):
            return
        raise Refused(
            f"{guest.plan.name} did not let go of the disk within {timeout:g} s: it is busy, or still booting",
            hint=refusal
            or "unmount it in the guest, then try again; a guest that is stopped lets go of everything",
        ) from error
    finally:
        guest.let_go.discard(id)


async def grow(guest: Guest, slot: int, size: Bytes) -> None:
    """See engine.Disks."""
    await guest.monitor().execute("block_resize", {"node-name": f"disk{slot}-0", "size": size})


async def mounts(guest: Guest, slot: int) -> tuple[str, ...]:
    """See engine.Disks."""
    disk = next((disk for disk in guest.plan.disks if disk.slot == slot), None)
    if disk is None or not guest.seen.agent:
        return ()
    try:
        place = pci_place(await guest.monitor().execute("query-pci"), device(guest.plan, disk))
        found = await inside.file_systems(guest.agent)
    except AtollError:  # it says nothing
        return ()
    return mounted(found, place, disk.serial)


def mounted(found: Iterable[inside.FileSystem], place: tuple[int, int, int] | None, serial: str) -> tuple[str, ...]:
    """Where a disk with that PCI address or serial is mounted."""
    points = [fs.mountpoint for fs in found if any(d.place == place or d.serial == serial for d in fs.disks)]
    return tuple(sorted(point[:255] for point in points))


def pci_place(buses: Sequence[Mapping[str, Any]], id: str) -> tuple[int, int, int] | None:
    """Bus, slot and function that the guest's firmware gave a device, from query-pci."""
    for bus in buses:
        for found in bus["devices"]:
            if found.get("qdev_id") == id:
                return found["bus"], found["slot"], found["function"]
            if "pci_bridge" in found and (
                inner := pci_place([{"devices": found["pci_bridge"].get("devices", [])}], id)
            ):
                return inner
    return None


async def _there(qmp: Qmp, id: str) -> bool:
    return id in await devices(qmp)


async def _serial(qmp: Qmp, slot: int) -> str:
    """Of the disk in that slot; "" where there is none."""
    if not await _there(qmp, f"disk{slot}"):
        return ""
    return str(await qmp.execute("qom-get", {"path": f"{PERIPHERAL}/disk{slot}", "property": "serial"}))


async def _clear(qmp: Qmp, slot: int) -> None:
    """Block nodes of a disk that no device uses any more, from the top down, and their files."""
    name = re.compile(rf"disk{slot}-(\d+)(-file)?")
    nodes = await qmp.execute("query-named-block-nodes", {"flat": True})
    ours = [(match, node) for node in nodes if (match := name.fullmatch(node.get("node-name", "")))]
    sets = {int(found[1]) for _, node in ours if (found := _FDSET.fullmatch(node.get("file", "")))}
    for match, _ in sorted(ours, key=lambda each: (int(each[0][1]), each[0][2] or "")):
        await qmp.execute("blockdev-del", {"node-name": match[0]})
    await _drop(qmp, sets)


async def _drop(qmp: Qmp, sets: Iterable[int]) -> None:
    for number in sets:
        with contextlib.suppress(Broken):  # it is gone already
            await qmp.execute("remove-fd", {"fdset-id": number})
