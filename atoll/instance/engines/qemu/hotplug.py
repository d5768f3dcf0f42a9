"""CPUs and memory added while a guest runs. What is to be added is a pure function of what QEMU reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from atoll.base.errors import AtollError, Refused
from atoll.base.units import MiB, show_size
from atoll.host.qmp import Qmp
from atoll.instance.engines.qemu.argv import MEMORY_SLOTS
from atoll.instance.engines.qemu.machine import family
from atoll.instance.model import BootPlan

BLOCK = 128 * MiB
"""Linux takes memory in blocks of this size on x86-64 (below 64 GiB)."""


def refuse(plan: BootPlan, *, cpus: int, memory: int, has_cpus: int, has_memory: int) -> None:
    """Raises Refused, with the reason, where this change must wait for the next start."""
    why = ""
    if family(plan.hardware.machine) == "microvm" and (cpus, memory) != (has_cpus, has_memory):
        why = "a microvm cannot grow while it runs"
    elif cpus < has_cpus or memory < has_memory:
        why = "taking CPUs or memory away needs a restart"
    elif cpus > plan.hardware.max_cpus:
        why = f"it was born to grow to {plan.hardware.max_cpus} CPUs while it runs"
    elif memory > plan.hardware.max_memory:
        why = f"it was born to grow to {show_size(plan.hardware.max_memory)} while it runs"
    elif memory > has_memory and plan.forkable:
        why = "the memory of a forkable guest is one file of fixed size"
    elif (memory - has_memory) % BLOCK:
        why = f"memory is added in steps of {show_size(BLOCK)} while it runs"
    if why:
        raise Refused(f"{plan.name} cannot change so while it runs: {why}", hint="it can be set for the next start")


async def present(qmp: Qmp) -> tuple[int, int]:
    """CPUs and bytes of memory that the guest has now."""
    cpus = await qmp.execute("query-cpus-fast")
    memory = await qmp.execute("query-memory-size-summary")
    return len(cpus), memory["base-memory"] + memory.get("plugged-memory", 0)


def cpus_to_add(slots: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, object]]:
    """From query-hotpluggable-cpus (which lists the highest first): arguments of device_add."""
    free = [slot for slot in reversed(slots) if "qom-path" not in slot]
    return [
        {
            "driver": slot["type"],
            "id": "cpu" + "-".join(str(part) for part in slot["props"].values()),
            **slot["props"],
        }
        for slot in free[:count]
    ]


async def add_cpus(qmp: Qmp, count: int) -> None:
    for device in cpus_to_add(await qmp.execute("query-hotpluggable-cpus"), count):
        await qmp.execute("device_add", device)


async def add_memory(qmp: Qmp, size: int) -> None:
    """One DIMM. Raises Refused where all slots are taken, Broken."""
    taken = {device["data"].get("id") for device in await qmp.execute("query-memory-devices")}
    number = next((n for n in range(MEMORY_SLOTS) if f"dimm{n}" not in taken), None)
    if number is None:
        raise Refused(f"all {MEMORY_SLOTS} memory slots are taken", hint="it can be set for the next start")
    backend = {"qom-type": "memory-backend-ram", "id": f"more{number}", "size": size}
    await qmp.execute("object-add", backend)
    try:
        await qmp.execute("device_add", {"driver": "pc-dimm", "id": f"dimm{number}", "memdev": f"more{number}"})
    except AtollError:
        await qmp.execute("object-del", {"id": f"more{number}"})
        raise
