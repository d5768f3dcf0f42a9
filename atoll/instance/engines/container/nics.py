"""NICs of a container that runs: our end of the veth pair moved in and out, its cable by the other end."""

from collections.abc import Sequence

from msgspec.structs import replace

from atoll.base.errors import Absent, AtollError, Broken, Invalid
from atoll.host.run import run
from atoll.instance.engines.container.config import nic_name
from atoll.instance.engines.container.guest import Guest
from atoll.instance.model import MAX_NICS, Hardware, NicPlan


def free_slot(hardware: Hardware) -> int:
    """For one more NIC. Raises Invalid where every place is taken."""
    taken = {nic.slot for nic in hardware.nics}
    free = next((slot for slot in range(1, MAX_NICS + 1) if slot not in taken), None)
    if free is None:
        raise Invalid(f"all {MAX_NICS} places for NICs are taken", hint="remove one first", field="nics")
    return free


async def inside(guest: Guest, argv: Sequence[str], *, check: bool = True) -> int:
    line = ["nsenter", f"--net=/proc/{guest.running()}/ns/net", *argv]
    return (await run(line, timeout=10, check=check)).code


async def present(guest: Guest, slot: int) -> bool:
    return await inside(guest, ["ip", "link", "show", "dev", nic_name(slot)], check=False) == 0


async def add(guest: Guest, nic: NicPlan) -> None:
    """With its planned IPv4 address; IPv6 it has by router advertisements. Raises Refused, Broken."""
    name = nic_name(nic.slot)
    if nic.plugged.backend != "veth":
        raise Invalid(f"a container has no network backend {nic.plugged.backend}")
    if not await present(guest, nic.slot):
        await run(["ip", "link", "set", nic.plugged.peer, "netns", str(guest.running()), "name", name], timeout=10)
        await inside(guest, ["ip", "link", "set", name, "up"])
        for address in nic.plugged.addresses:
            if ":" not in address:
                await inside(guest, ["ip", "address", "replace", address, "dev", name])
    if not nic.link:
        await set_link(guest, nic, up=False)
    plan = guest.plan
    guest.replan(replace(plan, nics=(*(n for n in plan.nics if n.slot != nic.slot), nic)))


async def remove(guest: Guest, slot: int) -> None:
    """Absent is success."""
    if await present(guest, slot):
        await inside(guest, ["ip", "link", "del", nic_name(slot)])
    plan = guest.plan
    guest.replan(replace(plan, nics=tuple(nic for nic in plan.nics if nic.slot != slot)))


async def set_link(guest: Guest, nic: NicPlan, *, up: bool) -> None:
    try:
        await run(["ip", "link", "set", nic.plugged.link, "up" if up else "down"], timeout=10)
    except AtollError as error:
        raise Broken(f"the cable of {guest.plan.name} cannot be set: {error.message}") from error


def find(guest: Guest, slot: int) -> NicPlan:
    for nic in guest.plan.nics:
        if nic.slot == slot:
            return nic
    raise Absent(f"{guest.plan.name} has no NIC in slot {slot}")
