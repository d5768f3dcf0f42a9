"""What is in a guest's CD-ROM drive, changed while it runs, over its monitor."""

import contextlib
import os
import re
from pathlib import Path

from msgspec.structs import replace

from atoll.base.errors import Broken, Refused
from atoll.host.files import translated
from atoll.host.qmp import Qmp
from atoll.instance.engines.qemu import firmware
from atoll.instance.engines.qemu.guest import Guest
from atoll.instance.model import CdromPlan

_FDSET = re.compile(r"/dev/fdset/(\d+)")


async def eject(guest: Guest) -> None:
    """See engine.Ejects."""
    if guest.plan.cdrom is None:
        return
    await guest.monitor().execute("eject", {"id": firmware.CDROM, "force": True})
    await _clear(guest.monitor())
    guest.replan(replace(guest.plan, cdrom=CdromPlan()))


async def insert(guest: Guest, iso: str) -> None:
    """See engine.Ejects. The tray is closed again in any case."""
    if guest.plan.cdrom is None:
        raise Refused(f"{guest.plan.name} has no CD-ROM drive")
    qmp = guest.monitor()
    drive = {"id": firmware.CDROM}
    await qmp.execute("eject", {**drive, "force": True})
    await _clear(qmp)
    try:
        with translated("open the CD"):
            fd = os.open(Path(iso), os.O_RDONLY | os.O_CLOEXEC)
        try:
            number = await qmp.add_fd(fd)
        finally:
            os.close(fd)
        for node in firmware.raw_nodes(firmware.ISO, number, read_only=True):
            await qmp.execute("blockdev-add", node)
        await qmp.execute("blockdev-insert-medium", {**drive, "node-name": firmware.ISO})
        guest.replan(replace(guest.plan, cdrom=CdromPlan(iso)))
    finally:
        await qmp.execute("blockdev-close-tray", drive)


async def _clear(qmp: Qmp) -> None:
    """The nodes of a disc that was taken out, and its descriptor: its image may go."""
    nodes = await qmp.execute("query-named-block-nodes", {"flat": True})
    ours = {
        node["node-name"]: node for node in nodes if node.get("node-name") in (firmware.ISO, f"{firmware.ISO}-file")
    }
    for name in sorted(ours):
        await qmp.execute("blockdev-del", {"node-name": name})
    for node in ours.values():
        if found := _FDSET.fullmatch(node.get("file", "")):
            with contextlib.suppress(Broken):  # it is gone already
                await qmp.execute("remove-fd", {"fdset-id": int(found[1])})
