"""The run directory of one generation of one guest: all that this host keeps of it while it runs.

RUN/ID.GENERATION/            ours alone
    handle.json               the plan, and the process once there is one
    exit.json                 how it ended, once it has
    qemu.log  serial.log      what QEMU and the guest's serial console said
    qmp.sock console.sock agent.sock atoll.sock
    own/                      QEMU's working directory; its user's alone
"""

import os
from pathlib import Path

import msgspec

from atoll.base.ids import Generation, InstanceId
from atoll.host.files import translated
from atoll.instance.engines.kept import Kept, listed
from atoll.instance.model import BootPlan

_SHM = Path("/dev/shm")  # noqa: S108 - tmpfs by definition; the names in it are ours


class Handle(msgspec.Struct, frozen=True):
    """`pid` 0: it was being started. `started`: in clock ticks after boot, so that a reused pid is told apart."""

    plan: BootPlan
    boot: str
    pid: int = 0
    started: int = 0


class RunDir(Kept[Handle]):
    def __init__(self, root: Path, id: InstanceId, generation: Generation, tag: str) -> None:
        super().__init__(root, id, generation, Handle, "qemu.log", "serial.log")
        self.own = self.path / "own"
        self.log, self.serial = self.path / "qemu.log", self.path / "serial.log"
        self.qmp, self.console = self.path / "qmp.sock", self.path / "console.sock"
        self.agent, self.atoll = self.path / "agent.sock", self.path / "atoll.sock"
        self.ram = _SHM / f"atoll-{tag}-{self.name}"

    def make(self, uid: int | None) -> None:
        """Empty, whatever was there before. Raises Exhausted, Lacking, Broken."""
        with translated("make the run directory"):
            self.clear(self.own)
            if uid is not None:
                os.chown(self.own, uid, uid)

    def remove(self) -> None:
        super().remove()
        self.ram.unlink(missing_ok=True)


def all_in(root: Path, tag: str) -> list[RunDir]:
    """Every run directory there is, in the order of their generations."""
    return [RunDir(root, *who, tag) for who in listed(root)]
