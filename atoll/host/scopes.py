"""Control groups where systemd is init: a scope for each guest, which systemd makes, bounds and removes.

A scope is a unit of its own, so that neither a restart of the daemon's unit nor its limits reach the guest. Its
accounts are read where the kernel keeps them, as those of our own groups are.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from atoll.base.clock import monotonic
from atoll.base.errors import AtollError
from atoll.host.cgroups import CONTROLLERS, Bounds, Cgroups
from atoll.host.probe.cgroups import parse_mountinfo
from atoll.host.run import run

GUESTS_UNIT = "atoll-guests.service"
_SLICE = "system.slice"
_GONE_IN = 5.0  # seconds for systemd to remove a scope whose last process ended


def properties(bounds: Bounds) -> list[str]:
    """As systemd.resource-control(5) names them; without a value the bound is lifted."""
    return [
        f"CPUQuota={'' if bounds.cpu is None else f'{max(1, round(bounds.cpu * 100))}%'}",
        f"CPUWeight={bounds.cpu_weight or 100}",
        f"MemoryMax={bounds.memory or 'infinity'}",
        f"TasksMax={bounds.pids or 'infinity'}",
    ]


def unit(tag: str, name: str) -> str:
    return f"atoll-{tag}-{name}.scope"


class Scopes(Cgroups):
    def __init__(self, roots: dict[str, Path], tag: str) -> None:
        super().__init__(roots)
        self._tag = tag

    def folder(self, name: str) -> str:
        return unit(self._tag, name)

    def enter(self, name: str, bounds: Bounds) -> list[str]:
        settings = [word for setting in properties(bounds) for word in ("-p", setting)]
        last = ["-p", f"Before={GUESTS_UNIT}"]  # what starts before it ends after it: it stops guests cleanly
        return ["systemd-run", "--scope", "--quiet", f"--unit={self.folder(name)}", *last, *settings, "--"]

    async def oom_kills(self, name: str) -> int:
        """The group goes with its last process: then systemd knows how that ended."""
        if kills := await super().oom_kills(name):
            return kills
        with contextlib.suppress(AtollError):
            said = await run(["systemctl", "show", "--property=Result", "--value", self.folder(name)], timeout=5)
            return int(said.text.strip() == "oom-kill")
        return 0

    async def change(self, name: str, bounds: Bounds) -> None:
        await run(["systemctl", "set-property", "--runtime", self.folder(name), *properties(bounds)])

    def names(self) -> set[str]:
        start, end = unit(self._tag, "\0").split("\0")
        return {name[len(start) : -len(end)] for name in super().names() if name.startswith(start)}

    async def remove(self, name: str) -> bool:
        """systemd does it by itself once it is empty, and remembers one that failed until told to forget it."""
        until = monotonic() + _GONE_IN
        while name in self.names():
            if monotonic() > until:
                return False
            await asyncio.sleep(0.02)
        await run(["systemctl", "reset-failed", self.folder(name)], check=False)
        return True

    def remove_all(self) -> None:
        return None


def detect(tag: str) -> Scopes | None:
    """None where systemd is not init, or this user may not make scopes of the system."""
    if not Path("/run/systemd/system").is_dir() or os.geteuid() != 0:
        return None
    with contextlib.suppress(OSError):
        v1, v2 = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
        roots = {name: Path(v1[name]) / _SLICE for name in CONTROLLERS if name in v1}
        return Scopes(roots or {"": Path(v2) / _SLICE}, tag)
    return None
