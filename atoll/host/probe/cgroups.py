"""Which control groups this host has, from /proc/self/mountinfo."""

import os
from pathlib import Path
from typing import Literal

import msgspec

_V1 = frozenset(
    "blkio cpu cpuacct cpuset devices freezer hugetlb memory misc net_cls net_prio perf_event pids rdma".split()
)


class Cgroups(msgspec.Struct, frozen=True, kw_only=True):
    """`hybrid`: controllers on v1 hierarchies with a v2 tree beside them. `writable`: this user may make groups.

    `controllers` are as the kernel names them, v1's `blkio` being v2's `io`.
    """

    version: Literal["v1", "v2", "hybrid", "none"]
    controllers: tuple[str, ...] = ()
    writable: bool = False


def parse_mountinfo(text: str) -> tuple[dict[str, str], str]:
    """Mount point of each v1 controller, and of the v2 tree ("" where there is none). Format: proc(5)."""
    v1: dict[str, str] = {}
    v2 = ""
    for line in text.splitlines():
        mount, _, source = line.partition(" - ")
        fields, kinds = mount.split(), source.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2" and not v2:
            v2 = fields[4]
        elif kinds[0] == "cgroup":
            v1.update(dict.fromkeys(_V1.intersection(kinds[2].split(",")), fields[4]))
    return v1, v2


def describe(v1: dict[str, str], v2: str, v2_controllers: str, *, writable: bool) -> Cgroups:
    """`v2_controllers` is the text of cgroup.controllers at the root of the v2 tree."""
    return Cgroups(
        version="hybrid" if v1 and v2 else "v2" if v2 else "v1" if v1 else "none",
        controllers=tuple(sorted({*v1, *v2_controllers.split()})),
        writable=writable,
    )


def cgroups() -> Cgroups:
    """This host's. Reads three small files."""
    v1, v2 = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    try:
        controllers = (Path(v2) / "cgroup.controllers").read_text() if v2 else ""
    except OSError:
        controllers = ""
    return describe(v1, v2, controllers, writable=_writable(v1, v2))


def _writable(v1: dict[str, str], v2: str) -> bool:
    """Whether we may make a group below our own; proc(5), /proc/pid/cgroup: `id:controllers:path`."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root = v2 if not controllers else v1.get("memory", "") if "memory" in controllers.split(",") else ""
        # With controllers on v1, that they are writable is what counts.
        if root and not (v1 and not controllers) and os.access(root + path, os.W_OK):
            return True
    return False
