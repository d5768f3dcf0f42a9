"""NICs of a guest that runs: plugged in, pulled out, their cable in or out. A NIC's device is the one its command
line would have, so that it is the same after the next start."""

import asyncio
import contextlib
from typing import Any

from msgspec.structs import replace

from atoll.base.clock import monotonic
from atoll.base.errors import Absent, AtollError, Broken, Invalid, Refused
from atoll.host.qmp import Qmp
from atoll.instance.engines.qemu import argv
from atoll.instance.engines.qemu.argv import NicHanded
from atoll.instance.engines.qemu.guest import Guest
from atoll.instance.engines.qemu.machine import SLOTS, family
from atoll.instance.engines.qemu.places import devices, waits
from atoll.instance.engines.qemu.wires import open_nic
from atoll.instance.model import Hardware, NicPlan

LET_GO = 20.0
"""Seconds that a guest has to let a NIC go: its kernel must hear of it, and one that still boots does not."""
_ASK_AGAIN = 5.0


def free_slot(hardware: Hardware) -> int:
    """For one more NIC. Raises Invalid where every place is taken."""
    taken = {disk.slot for disk in hardware.disks} | {nic.slot for nic in hardware.nics}
    count = SLOTS[family(hardware.machine)]
    free = next((slot for slot in range(1, count) if slot not in taken), None)
    if free is None:
        raise Invalid(f"all {count} places for disks and NICs are taken", hint="remove one first", field="nics")
    return free


async def add(guest: Guest, nic: NicPlan) -> None:
    """Raises Refused (it must wait for the next start), Broken, Unreachable."""
    plan, qmp = guest.plan, guest.monitor()
    there = await devices(qmp)
    if f"nic{nic.slot}" in there:
        return
    if why := waits(plan, nic, there):
        raise Refused(f"{plan.name}: {why}", hint=f"atoll restart {plan.name}")
    with contextlib.ExitStack() as opened:
        handed = open_nic(plan, nic, opened)
        backend, device = arguments(argv.nic(plan, nic, handed))
        await _hand_over(qmp, handed, backend, nic.slot)
        try:
            await qmp.execute("netdev_add", backend)
            await qmp.execute("device_add", device)
        except AtollError:
            with contextlib.suppress(AtollError):
                await qmp.execute("netdev_del", {"id": backend["id"]})
            raise
    if not nic.link:
        await set_link(guest, nic.slot, up=False)
    now = guest.plan  # a disk may have come or gone meanwhile
    guest.replan(replace(now, nics=(*(n for n in now.nics if n.slot != nic.slot), nic)))


async def remove(guest: Guest, slot: int) -> None:
    """Returns once the guest has let it go. Absent is success. Raises Refused where it does not."""
    plan, qmp, name = guest.plan, guest.monitor(), f"nic{slot}"
    nic = next((nic for nic in plan.nics if nic.slot == slot), None)
    there = await devices(qmp)
    if nic is not None and name in there and (why := waits(plan, nic, there)):
        raise Refused(f"{plan.name}: {why}", hint=f"atoll stop {plan.name}")
    end, asked = monotonic() + LET_GO, -_ASK_AGAIN
    while name in await devices(qmp):
        if monotonic() > end:
            raise Refused(
                f"{plan.name} does not let its NIC go",
                hint=f"try again once it has booted, or stop it first: atoll stop {plan.name}",
            )
        if monotonic() - asked > _ASK_AGAIN:
            asked = monotonic()
            with contextlib.suppress(Absent, Broken):  # it is just going, or was asked already
                await qmp.execute("device_del", {"id": name})
        await asyncio.sleep(0.05)
    with contextlib.suppress(Absent, Broken):
        await qmp.execute("netdev_del", {"id": f"net{slot}"})
    now = guest.plan
    guest.replan(replace(now, nics=tuple(nic for nic in now.nics if nic.slot != slot)))


async def set_link(guest: Guest, slot: int, *, up: bool) -> None:
    """Raises Absent where it has no such NIC."""
    await guest.monitor().execute("set_link", {"name": f"nic{slot}", "up": up})
    plan = guest.plan
    nics = tuple(replace(nic, link=up) if nic.slot == slot else nic for nic in plan.nics)
    guest.replan(replace(plan, nics=nics))


def arguments(line: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A NIC's part of the command line as what netdev_add and device_add take. Pure."""
    _, backend, _, device = line
    return _parsed(backend, "type"), _parsed(device, "driver")


def _parsed(text: str, first: str) -> dict[str, Any]:
    head, *rest = text.split(",")
    found: dict[str, Any] = {first: head}
    for word in rest:
        key, _, value = word.partition("=")
        if key == "hostfwd":
            found.setdefault(key, []).append({"str": value})
        else:
            found[key] = int(value) if key == "host_mtu" else {"on": True, "off": False}.get(value, value)
    return found


async def _hand_over(qmp: Qmp, handed: NicHanded, backend: dict[str, Any], slot: int) -> None:
    """Descriptors of ours become names that QEMU knows."""
    for key, fd in (("fd", handed.fd), ("vhostfd", handed.vhost)):
        if key in backend:
            name = f"{key}{slot}"
            await qmp.send_fd(name, fd)
            backend[key] = name
