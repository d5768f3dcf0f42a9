"""Whether a disk or a NIC can come and go while its guest runs.

What is there is always asked of QEMU: how many root ports a guest was started with its plan does not tell any more
once something was added.
"""

from collections.abc import Collection

from atoll.host.qmp import Qmp
from atoll.instance.engines.qemu.machine import family
from atoll.instance.model import BootPlan, DiskPlan, NicPlan

PERIPHERAL = "/machine/peripheral"


async def devices(qmp: Qmp) -> set[str]:
    """Ids of everything plugged into it."""
    return {entry["name"] for entry in await qmp.execute("qom-list", {"path": PERIPHERAL})}


def waits(plan: BootPlan, wanted: DiskPlan | NicPlan, there: Collection[str]) -> str:
    """Why it must wait for the next start, "" where it need not. `there`: as `devices` has them. Pure."""
    kind = family(plan.hardware.machine)
    if kind == "microvm":
        return f"a microvm takes no {'disk' if isinstance(wanted, DiskPlan) else 'NIC'} while it runs"
    if isinstance(wanted, DiskPlan) and wanted.bus == "ahci":
        return "a disk on ahci neither comes nor goes while it runs"
    if kind == "q35" and isinstance(wanted, NicPlan) and plan.hardware.style == "compatible":
        return "an e1000 of a q35 machine neither comes nor goes while it runs"
    if kind == "q35" and f"slot{wanted.slot}" not in there:
        return f"it was started without port {wanted.slot}, the first that is free"
    return ""
