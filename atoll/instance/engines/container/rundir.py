"""The run directory of one generation of one container: all that this host keeps of it while it runs.

RUN/ID.GENERATION/            ours alone; liblxc's name for the container is ID.GENERATION
    handle.json               the plan, its monitor and its first process
    exit.json                 how it ended, once it has
    config  seccomp           what liblxc reads
    lxc.log  console.log      what liblxc and the container's console said
    up  go                    pipes: that it is set up; that it may begin, where something is to be mounted before
    mounts/                   where its file systems are mounted, in its monitor's own mount namespace
"""

import os
from pathlib import Path

import msgspec

from atoll.base.ids import Generation, InstanceId
from atoll.host.files import translated
from atoll.instance.engines.kept import Kept, listed
from atoll.instance.model import BootPlan


class Handle(msgspec.Struct, frozen=True):
    """`monitor`, `init` 0: it was being started. With their start times, so that reused pids are told apart."""

    plan: BootPlan
    boot: str
    monitor: int = 0
    monitor_started: int = 0
    init: int = 0
    init_started: int = 0
    cpus: tuple[int, ...] = ()


def names_of(tag: str) -> Path:
    """What liblxc takes for its own path: an empty directory that every container's root can pass (it insists), and
    by whose name the containers of this Atoll are told from all others."""
    return Path("/run/atoll") / tag / "ct"


class RunDir(Kept[Handle]):
    """`names`: as names_of."""

    def __init__(self, root: Path, id: InstanceId, generation: Generation, names: Path) -> None:
        super().__init__(root, id, generation, Handle, "lxc.log", "console.log")
        self.names = names
        self.config, self.seccomp = self.path / "config", self.path / "seccomp"
        self.log, self.console = self.path / "lxc.log", self.path / "console.log"
        self.up, self.go, self.mounts = self.path / "up", self.path / "go", self.path / "mounts"

    def make(self) -> None:
        """Empty, whatever was there before. Raises Exhausted, Lacking, Broken."""
        with translated("make the run directory"):
            self.clear(self.mounts)
            os.mkfifo(self.up, 0o600)


def all_in(root: Path, names: Path) -> list[RunDir]:
    """Every run directory there is, in the order of their generations."""
    return [RunDir(root, *who, names) for who in listed(root)]
