"""Control groups of our own, one for each guest: limits, shares, accounts. v1, hybrid and v2.

    v2   /sys/fs/cgroup/atoll-TAG/NAME/                v1   /sys/fs/cgroup/CONTROLLER/atoll-TAG/NAME/

A process joins before it executes its program, since v1 never moves memory charges. Nothing here kills.
Formats: kernel documentation, admin-guide/cgroup-v1 and admin-guide/cgroup-v2.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from atoll.base import clock
from atoll.base.errors import Broken, Lacking
from atoll.host.probe.cgroups import parse_mountinfo

JOIN = 'for group do shift; [ "$group" = -- ] && break; echo $$ >"$group" || exit 71; done; exec "$@"'
"""The one shell text, a constant: a group must be joined after the fork and before the program, where no Python may
run, and writing one's pid to a file takes a shell."""

CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")
_V2_CONTROLLERS = frozenset({"cpu", "memory", "pids"})
_PERIOD = 100_000  # microseconds; the kernel's default
_LEAST_QUOTA = 1000  # microseconds; the kernel takes no less
_REMOVE_IN = 2.0  # seconds for the kernel to let go of a group whose last process has just ended


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """`cpu`: cores' worth of time, None: no bound. `cpu_weight`: 1 to 10000, 100 is usual. `memory`: bytes."""

    cpu: float | None = None
    cpu_weight: int | None = None
    memory: int | None = None
    pids: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """Since the group was made: seconds of CPU time; now: bytes of memory. `oom_kills`: processes so killed."""

    cpu_seconds: float = 0.0
    memory: int = 0
    oom_kills: int = 0


def v1_settings(bounds: Bounds) -> list[tuple[str, str, str]]:
    """(controller, file, text). Weight 100 is 1024 shares, as systemd converts."""
    quota = -1 if bounds.cpu is None else max(_LEAST_QUOTA, round(bounds.cpu * _PERIOD))
    shares = max(2, min(262144, (bounds.cpu_weight or 100) * 1024 // 100))
    return [
        ("cpu", "cpu.cfs_quota_us", str(quota)),
        ("cpu", "cpu.shares", str(shares)),
        ("memory", "memory.limit_in_bytes", str(bounds.memory or -1)),
        ("pids", "pids.max", str(bounds.pids or "max")),
    ]


def v2_settings(bounds: Bounds) -> list[tuple[str, str, str]]:
    quota = "max" if bounds.cpu is None else str(max(_LEAST_QUOTA, round(bounds.cpu * _PERIOD)))
    return [
        ("cpu", "cpu.max", f"{quota} {_PERIOD}"),
        ("cpu", "cpu.weight", str(bounds.cpu_weight or 100)),
        ("memory", "memory.max", str(bounds.memory or "max")),
        ("pids", "pids.max", str(bounds.pids or "max")),
    ]


class Cgroups:
    """All groups of one Atoll on this host. `roots`: controller -> our folder in its tree ("" is v2's one tree).

    `lacking`: controllers that this host cannot give, so that what they limit is not limited.
    """

    def __init__(self, roots: dict[str, Path], lacking: tuple[str, ...] = ()) -> None:
        self._roots, self.lacking = roots, lacking
        self._v2 = "" in roots

    def enter(self, name: str, bounds: Bounds) -> list[str]:
        """Make the group with its bounds: what stands before a command line to execute it within. May be repeated.

        Raises Broken, Lacking."""
        folders = [root / self.folder(name) for root in dict.fromkeys(self._roots.values())]
        try:
            if self._v2 and not (root := self._roots[""]).exists():
                root.mkdir()
                _delegate(root)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _translated(error) from error
        self._set(name, bounds)
        return ["/bin/sh", "-c", JOIN, "atoll-join", *(f"{folder}/cgroup.procs" for folder in folders), "--"]

    async def change(self, name: str, bounds: Bounds) -> None:
        """Set the bounds of a group that is there. Raises Broken, Lacking."""
        self._set(name, bounds)

    def folder(self, name: str) -> str:
        return name

    def _set(self, name: str, bounds: Bounds) -> None:
        for controller, file, text in v2_settings(bounds) if self._v2 else v1_settings(bounds):
            root = self._root(controller)
            if root is None:
                continue
            try:
                (root / self.folder(name) / file).write_text(text)
            except OSError as error:
                raise _translated(error) from error

    def names(self) -> set[str]:
        """The groups that are there, by looking."""
        found: set[str] = set()
        for root in self._roots.values():
            with contextlib.suppress(OSError), os.scandir(root) as entries:
                found.update(entry.name for entry in entries if entry.is_dir())
        return found

    def pids(self, name: str) -> set[int]:
        """The processes in it, in any of its trees."""
        found: set[int] = set()
        for root in self._roots.values():
            with contextlib.suppress(OSError):
                found.update(int(line) for line in (root / self.folder(name) / "cgroup.procs").read_text().split())
        return found

    async def remove(self, name: str) -> bool:
        """Whether it is gone; a group that still has a process stays. Absent is success."""
        left = {root / self.folder(name) for root in self._roots.values()}
        delay, until = 0.002, clock.monotonic() + _REMOVE_IN
        while left := {folder for folder in left if not removed(folder)}:
            if clock.monotonic() > until:
                return False
            await asyncio.sleep(delay)
            delay = min(delay * 2, 0.1)
        self.remove_all()
        return True

    async def oom_kills(self, name: str) -> int:
        """How often the kernel killed in it for want of memory, also where its last process just ended."""
        return self.usage(name).oom_kills

    def usage(self, name: str) -> Usage:
        """What it has used; zeros where it is absent."""
        if self._v2:
            folder = self._roots[""] / self.folder(name)
            return Usage(
                _counter(folder / "cpu.stat", "usage_usec") / 1e6,
                number(folder / "memory.current"),
                _counter(folder / "memory.events", "oom_kill"),
            )
        account, memory, name = self._root("cpuacct"), self._root("memory"), self.folder(name)
        return Usage(
            number(account / name / "cpuacct.usage") / 1e9 if account else 0.0,
            number(memory / name / "memory.usage_in_bytes") if memory else 0,
            _counter(memory / name / "memory.oom_control", "oom_kill") if memory else 0,
        )

    def remove_all(self) -> None:
        """Our own folders, where they are empty: with the last guest the last trace goes. Those in use stay."""
        for root in set(self._roots.values()):
            removed(root)

    def _root(self, controller: str) -> Path | None:
        if self._v2:
            return None if controller in self.lacking else self._roots[""]
        return self._roots.get(controller)


def detect(tag: str, mountinfo: str | None = None) -> Cgroups | None:
    """Groups named after `tag` where this user may make them; None where they may not, or there are none.

    Controllers on v1 trees win over a v2 tree beside them (hybrid), which then has none to offer.
    """
    v1, v2 = parse_mountinfo(Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo)
    folder = f"atoll-{tag}"
    roots = {c: Path(v1[c]) / folder for c in CONTROLLERS if c in v1 and os.access(v1[c], os.W_OK)}
    if roots:
        return Cgroups(roots, tuple(c for c in CONTROLLERS if c not in roots))
    if not v2 or not os.access(v2, os.W_OK):
        return None
    root = Path(v2) / folder
    try:
        root.mkdir(exist_ok=True)
        given = _delegate(Path(v2)) & _delegate(root)
    except OSError:
        return None
    return Cgroups({"": root}, tuple(sorted(_V2_CONTROLLERS - given)))


def _delegate(folder: Path) -> frozenset[str]:
    """Hand each controller on to the groups below (v2): those that it worked for."""
    for controller in _V2_CONTROLLERS:
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")
    return frozenset((folder / "cgroup.subtree_control").read_text().split()) & _V2_CONTROLLERS


def removed(folder: Path) -> bool:
    """Whether it is gone now. Absent is success."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # EBUSY: its last process is not wholly gone yet
        return False
    return True


def number(path: Path) -> int:
    """What the file says; 0 where there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _counter(path: Path, name: str) -> int:
    """The value of one line `name value`."""
    try:
        pairs: Iterable[list[str]] = (line.split() for line in path.read_text().splitlines())
    except OSError:
        return 0
    return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == name), 0)


def _translated(error: OSError) -> Lacking | Broken:
    said = f"cannot set up the control group {error.filename}: {error.strerror}"
    return Lacking(said) if isinstance(error, PermissionError) else Broken(said)
