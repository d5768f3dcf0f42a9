"""A container's control groups: what it may take of the host, what it took, who is in it, standing still.

    v1, hybrid   MOUNT/atoll-TAG/ct-NAME in every hierarchy      v2   MOUNT/atoll-TAG/ct-NAME
    systemd      MOUNT/system.slice/atoll-TAG-ct-NAME.scope/ct

liblxc makes them, beside them ct-NAME.m for its monitor, and leaves some behind: `remove` does not.
Formats: kernel documentation, admin-guide/cgroup-v1 and admin-guide/cgroup-v2.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from atoll.base import clock
from atoll.base.errors import Broken, Lacking
from atoll.base.ids import Bytes
from atoll.host.cgroups import number, removed
from atoll.instance.model import Limits

PROCESSES = 8192
"""How many a container may have where nothing else is said: a fork bomb ends there."""
_PERIOD, _LEAST_QUOTA = 100_000, 1000  # microseconds
_SETTLE = 5.0
V1, V2 = "v1", "v2"
_SOME_KERNELS = ("memory.memsw.limit_in_bytes", "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device")
"""Files of v1 that a kernel may have been built or booted without."""
Setting = tuple[str, str, str]
"""(controller, file, text)."""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """What one container may take. `cpus`: the host's CPUs it may run on. `device`: "major:minor" of the disk below
    its root, "" for none."""

    cpus: str
    count: int
    memory: Bytes
    limits: Limits
    device: str = ""


def pick(count: int, host: Sequence[int], load: Mapping[int, int]) -> tuple[int, ...]:
    """The host's CPUs for a container that has `count`: those that the fewest containers have. Pure."""
    return tuple(sorted(sorted(host, key=lambda cpu: (load.get(cpu, 0), cpu))[: max(1, count)]))


def v1_settings(limit: Limit) -> list[Setting]:
    """In an order in which the kernel takes them. Weight 100 is 1024 shares, as systemd converts."""
    asked = limit.limits
    cpu = min(asked.cpu or limit.count, limit.count)
    shares = max(2, min(262144, (asked.cpu_weight or 100) * 1024 // 100))
    both = limit.memory + (asked.swap or 0)
    found = [
        ("cpuset", "cpuset.cpus", limit.cpus),
        ("cpu", "cpu.cfs_quota_us", str(max(_LEAST_QUOTA, round(cpu * _PERIOD)))),
        ("cpu", "cpu.shares", str(shares)),
        ("memory", "memory.limit_in_bytes", str(limit.memory)),
        ("memory", "memory.memsw.limit_in_bytes", str(both)),
        ("memory", "memory.soft_limit_in_bytes", str(asked.memory_soft or -1)),
        ("pids", "pids.max", str(asked.processes or PROCESSES)),
    ]
    if limit.device:
        for name, rate in (("read", asked.disk_read), ("write", asked.disk_write)):
            found.append(("blkio", f"blkio.throttle.{name}_bps_device", f"{limit.device} {rate or 0}"))
    return found


def v2_settings(limit: Limit) -> list[Setting]:
    asked = limit.limits
    cpu = min(asked.cpu or limit.count, limit.count)
    found = [
        ("cpuset", "cpuset.cpus", limit.cpus),
        ("cpu", "cpu.max", f"{max(_LEAST_QUOTA, round(cpu * _PERIOD))} {_PERIOD}"),
        ("cpu", "cpu.weight", str(asked.cpu_weight or 100)),
        ("memory", "memory.max", str(limit.memory)),
        ("memory", "memory.swap.max", str(asked.swap or 0)),
        ("memory", "memory.high", str(asked.memory_soft or "max")),
        ("pids", "pids.max", str(asked.processes or PROCESSES)),
    ]
    if limit.device:
        rates = f"rbps={asked.disk_read or 'max'} wbps={asked.disk_write or 'max'}"
        found.append(("io", "io.max", f"{limit.device} {rates}"))
    return found


class Trees(msgspec.Struct, frozen=True):
    """The hierarchies of this host: mount points, and which has a controller."""

    roots: tuple[str, ...]
    controllers: dict[str, str]
    version: str


def parse(mountinfo: str, v2_controllers: str) -> Trees:
    """From /proc/self/mountinfo (proc(5)) and cgroup.controllers of the v2 root. Controllers on v1 win."""
    roots: list[str] = []
    v1: dict[str, str] = {}
    v2 = ""
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        fields, kinds = mount.split(), source.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2") or fields[4] in roots:
            continue
        roots.append(fields[4])
        if kinds[0] == "cgroup2":
            v2 = v2 or fields[4]
        else:
            v1.update(dict.fromkeys(kinds[2].split(","), fields[4]))
    known = {name: root for name, root in v1.items() if name.isidentifier() and name not in ("rw", "ro")}
    if known:
        return Trees(tuple(roots), known, V1)
    return Trees(tuple(roots), dict.fromkeys(v2_controllers.split(), v2), V2)


def trees() -> Trees:
    text = Path("/proc/self/mountinfo").read_text()
    given = ""
    for line in text.splitlines():
        if " - cgroup2 " in line:
            with contextlib.suppress(OSError):
                given = (Path(line.split()[4]) / "cgroup.controllers").read_text()
    return parse(text, given)


class Groups:
    """Of all containers of one Atoll. `scoped`: systemd is init, and each is in a scope of its own."""

    def __init__(self, tag: str, host: Trees, *, scoped: bool = False) -> None:
        self.tag, self._host, self.scoped = tag, host, scoped
        self.version = host.version

    # names

    def unit(self, name: str) -> str:
        return f"atoll-{self.tag}-ct-{name}.scope"

    def folder(self, name: str) -> str:
        """Below each mount point."""
        return f"system.slice/{self.unit(name)}/ct" if self.scoped else f"atoll-{self.tag}/ct-{name}"

    def lines(self, name: str) -> list[tuple[str, str]]:
        """liblxc's configuration of where they are."""
        if self.scoped:
            return [
                ("lxc.cgroup.relative", "1"),
                ("lxc.cgroup.dir.container", "ct"),
                ("lxc.cgroup.dir.monitor", "monitor"),
                ("lxc.cgroup.dir.monitor.pivot", "pivot"),
            ]
        top = f"atoll-{self.tag}"
        return [
            ("lxc.cgroup.dir.container", f"{top}/ct-{name}"),
            ("lxc.cgroup.dir.monitor", f"{top}/ct-{name}.m"),
            ("lxc.cgroup.dir.monitor.pivot", f"{top}/pivot"),
        ]

    def names(self) -> set[str]:
        """Of containers that have groups, by looking."""
        found: set[str] = set()
        for root in self._host.roots:
            top = Path(root) / ("system.slice" if self.scoped else f"atoll-{self.tag}")
            with contextlib.suppress(OSError), os.scandir(top) as entries:
                for entry in entries:
                    name = entry.name
                    if self.scoped:
                        start = self.unit("\0").split("\0")[0]
                        if name.startswith(start) and name.endswith(".scope"):
                            found.add(name[len(start) : -len(".scope")])
                    elif name.startswith("ct-"):
                        found.add(name.removeprefix("ct-").removesuffix(".m"))
        return found

    # limits

    def settings(self, limit: Limit) -> tuple[list[Setting], tuple[str, ...]]:
        """What can be set here, and the files that cannot, so that what they limit is not limited."""
        wanted = v1_settings(limit) if self.version == V1 else v2_settings(limit)
        given = [each for each in wanted if self._can(each)]
        return given, tuple(each[1] for each in wanted if each not in given and _asked(each, limit))

    def _can(self, setting: Setting) -> bool:
        controller, file, _ = setting
        root = self._host.controllers.get(controller)
        if root is None:
            return False
        return self.version == V2 or file not in _SOME_KERNELS or (Path(root) / file).exists()

    def config(self, limit: Limit) -> list[tuple[str, str]]:
        """The same as lines of liblxc's configuration."""
        key = "lxc.cgroup" if self.version == V1 else "lxc.cgroup2"
        usual = ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device")
        return [
            (f"{key}.{file}", text)
            for _, file, text in self.settings(limit)[0]
            if not (file in usual and text.endswith(" 0")) and text != "-1"
        ]

    def change(self, name: str, limit: Limit) -> None:
        """Set all of a container's that runs. Memory that is to shrink below what is used: the kernel frees what it
        can first. Raises Broken, Lacking."""
        given = self.settings(limit)[0]
        memory = [each for each in given if each[1] in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")]
        folder = self.folder(name)
        if len(memory) == 2:
            was = number(Path(self._host.controllers["memory"]) / folder / "memory.limit_in_bytes")
            if limit.memory > was:  # the sum is never less than its part
                first, second = given.index(memory[0]), given.index(memory[1])
                given[first], given[second] = given[second], given[first]
        for controller, file, text in given:
            path = Path(self._host.controllers[controller]) / folder / file
            try:
                path.write_text(text)
            except OSError as error:
                said = f"cannot set {file} to {text}: {error.strerror}"
                raise (Lacking(said) if isinstance(error, PermissionError) else Broken(said)) from error

    # standing still

    def freeze(self, name: str, *, on: bool) -> None:
        """Ask for it; `frozen` tells when it is so. Raises Lacking, Broken."""
        if self.version == V1:
            root, file, text = self._host.controllers.get("freezer"), "freezer.state", "FROZEN" if on else "THAWED"
        else:
            root, file, text = self._host.roots[0], "cgroup.freeze", "1" if on else "0"
        if root is None:
            raise Lacking("this host has no freezer: containers cannot be paused", hint="mount its control group")
        try:
            (Path(root) / self.folder(name) / file).write_text(text)
        except OSError as error:
            raise Broken(f"a container's freezer cannot be set: {error.strerror}") from error

    def frozen(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            if self.version == V1:
                root = self._host.controllers.get("freezer", "")
                return (Path(root) / self.folder(name) / "freezer.state").read_text().strip() == "FROZEN"
            text = (Path(self._host.roots[0]) / self.folder(name) / "cgroup.events").read_text()
            return "frozen 1" in text.splitlines()
        return False

    # what it has

    def _folders(self, name: str) -> Iterator[Path]:
        for root in dict.fromkeys(self._host.roots):
            yield Path(root) / self.folder(name)

    def pids(self, name: str) -> set[int]:
        """Every process in it, also in groups that it made itself."""
        found: set[int] = set()
        for folder in self._folders(name):
            for where, _, files in os.walk(folder):
                if "cgroup.procs" in files:
                    with contextlib.suppress(OSError):
                        found.update(int(line) for line in (Path(where) / "cgroup.procs").read_text().split())
        return found

    def cpu_seconds(self, name: str) -> float:
        if self.version == V1:
            return self._read(name, "cpuacct", "cpuacct.usage") / 1e9
        return self._line(name, "cpu", "cpu.stat", "usage_usec") / 1e6

    def memory(self, name: str) -> int:
        """Bytes that it holds now, without file contents that the kernel can drop at once."""
        if self.version == V1:
            used = self._read(name, "memory", "memory.usage_in_bytes")
            return max(0, used - self._line(name, "memory", "memory.stat", "total_inactive_file"))
        return max(
            0,
            self._read(name, "memory", "memory.current")
            - self._line(name, "memory", "memory.stat", "inactive_file"),
        )

    def oom_kills(self, name: str) -> int:
        file = "memory.oom_control" if self.version == V1 else "memory.events"
        return self._line(name, "memory", file, "oom_kill")

    def io(self, name: str) -> tuple[int, int, int, int]:
        """Bytes read, bytes written, reads, writes."""
        if self.version == V1:
            size, count = (
                _sums(self._text(name, "blkio", f"blkio.throttle.io_{what}_recursive"))
                or _sums(self._text(name, "blkio", f"blkio.throttle.io_{what}"))
                for what in ("service_bytes", "serviced")
            )
            return size.get("Read", 0), size.get("Write", 0), count.get("Read", 0), count.get("Write", 0)
        words = [word.partition("=") for word in self._text(name, "io", "io.stat").split() if "=" in word]

        def total(key: str) -> int:
            return sum(int(value) for word, _, value in words if word == key and value.isdigit())

        return total("rbytes"), total("wbytes"), total("rios"), total("wios")

    def _text(self, name: str, controller: str, file: str) -> str:
        with contextlib.suppress(OSError, KeyError):
            return (Path(self._host.controllers[controller]) / self.folder(name) / file).read_text()
        return ""

    def _read(self, name: str, controller: str, file: str) -> int:
        text = self._text(name, controller, file).strip()
        return int(text) if text.isdigit() else 0

    def _line(self, name: str, controller: str, file: str, key: str) -> int:
        lines = (line.split() for line in self._text(name, controller, file).splitlines())
        return next((int(pair[1]) for pair in lines if len(pair) == 2 and pair[0] == key), 0)

    # its end

    async def remove(self, name: str) -> bool:
        """Every group of it, its monitor's and those that it made itself. Whether they are gone: one with a process
        in it stays."""
        delay, until = 0.002, clock.monotonic() + _SETTLE
        while not self._removed(name):
            if clock.monotonic() > until:
                return False
            await asyncio.sleep(delay)
            delay = min(delay * 2, 0.1)
        self.remove_top()
        return True

    def remove_top(self) -> None:
        """What the last container leaves. What is in use stays."""
        if self.scoped:
            return
        for root in self._host.roots:
            top = Path(root) / f"atoll-{self.tag}"
            _prune(top / "pivot")
            removed(top)

    def _removed(self, name: str) -> bool:
        done = True
        for folder in self._folders(name):
            beside = (folder.parent,) if self.scoped else (folder, folder.with_name(f"{folder.name}.m"))
            for each in beside:
                done = _prune(each) and done
        return done


def _asked(setting: Setting, limit: Limit) -> bool:
    """Whether somebody would miss it: memory, CPUs and processes always, the others where they are asked for."""
    asked = limit.limits
    wishes: dict[str, object] = {
        "memory.memsw.limit_in_bytes": asked.swap,
        "memory.swap.max": asked.swap,
        "memory.soft_limit_in_bytes": asked.memory_soft,
        "memory.high": asked.memory_soft,
        "blkio.throttle.read_bps_device": asked.disk_read,
        "blkio.throttle.write_bps_device": asked.disk_write,
        "io.max": asked.disk_read or asked.disk_write,
        "cpu.shares": asked.cpu_weight,
        "cpu.weight": asked.cpu_weight,
    }
    return wishes.get(setting[1], True) is not None


def _sums(text: str) -> dict[str, int]:
    """blkio's lines `major:minor What count`, added up by what."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2].isdigit():
            found[words[1]] = found.get(words[1], 0) + int(words[2])
    return found


def _prune(folder: Path) -> bool:
    """A group and those below it. Whether it is gone."""
    for where, folders, _ in os.walk(folder, topdown=False):
        for inner in folders:
            removed(Path(where) / inner)
    return removed(folder)
