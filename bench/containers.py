"""Containers of `tiny` against liblxc's own programs, in turns in the same run.

    python -m bench containers

Launch: from the request's first byte on the unix socket (POST .../instances, with a network) to its answer that the
container's init runs. Raw: lxc-start -d on the configuration that Atoll wrote, with its veth pair made and its tree
mounted by hand, to its return. Exec: POST .../exec of `true` against lxc-attach of the same. Many: that many
containers one after the other by the API, against lxc-start.
"""

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.report import Goal, Row, Spread, pairs, row
from tests.kit.containers import make_tree
from tests.kit.daemon import INSTANCES, MIB, Daemon, daemon, make_base, until

ROUNDS = 15
MANY = 100
IDS = 650_000_000
ENV = {"PATH": "/usr/sbin:/sbin"}
CONFIG = """lxc.uts.name = raw
lxc.rootfs.path = dir:{tree}
lxc.idmap = u 0 {ids} 65536
lxc.idmap = g 0 {ids} 65536
lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed
lxc.cgroup.dir.container = atoll-bench/{name}
lxc.cgroup.dir.monitor = atoll-bench/{name}.m
lxc.cgroup.dir.monitor.pivot = atoll-bench/pivot
lxc.cgroup.memory.limit_in_bytes = 67108864
lxc.net.0.type = veth
lxc.net.0.link = {bridge}
lxc.net.0.flags = up
"""


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


class Raw:
    """lxc-start, lxc-attach and lxc-stop, in the daemon's network namespace, on its bridge."""

    def __init__(self, place: Path, host: Daemon, bridge: str) -> None:
        self._place, self._bridge = place, bridge
        # Holds the daemon's network namespace with a /sys of its own, in which liblxc looks for the bridge.
        self._holder = subprocess.Popen(host.command(["sleep", "3600"]))
        until(lambda: comm(self._holder.pid) == "sleep", "it is in the daemon's namespaces", 30)
        place.chmod(0o755)
        self._tree = make_tree(place / "tree")
        for where, folders, files in os.walk(self._tree):
            for name in (".", *folders, *files):
                os.lchown(Path(where) / name, IDS, IDS)

    def run(self, *argv: str) -> None:
        line = ["/usr/bin/nsenter", "-t", str(self._holder.pid), "--net", "--mount", *argv]
        subprocess.run(line, env=ENV, check=True, stdout=subprocess.DEVNULL)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()

    def start(self, name: str) -> float:
        folder = self._place / name
        folder.mkdir(exist_ok=True)
        words = {"tree": self._tree, "ids": IDS, "name": name, "bridge": self._bridge}
        (folder / "config").write_text(CONFIG.format(**words))
        line = ["/usr/bin/lxc-start", "-d", "-n", name, "-P", str(self._place), "-f", str(folder / "config")]
        return timed(lambda: self.run(*line))

    def attach(self, name: str) -> float:
        return timed(lambda: self.run("/usr/bin/lxc-attach", "-n", name, "-P", str(self._place), "--", "/bin/true"))

    def stop(self, name: str) -> None:
        self.run("/usr/bin/lxc-stop", "-k", "-n", name, "-P", str(self._place))


def timed(act: object) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    act()  # type: ignore[operator]
    return (time.perf_counter() - began) * 1000


@contextmanager
def both() -> Iterator[tuple[Daemon, Raw]]:
    with TemporaryDirectory() as base, TemporaryDirectory() as place:
        make_base(Path(base))
        with daemon(Path(base)) as host:
            (host.state / "atoll.toml").write_text("[limits]\nmemory_overcommit = 10.0\n")
            host.start()
            host.contain("keeps")
            listed = json.loads(host.net.run("ip", "-j", "link")) if host.net else []
            bridge = next(each["ifname"] for each in listed if "-b" in each["ifname"])
            raw = Raw(Path(place), host, bridge)
            try:
                yield host, raw
            finally:
                raw.close()
                host.delete(*host.all())
                for root in Path("/sys/fs/cgroup").glob("*/atoll-bench"):
                    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
                        folder.rmdir()
                    root.rmdir()


def rows() -> list[Row]:
    assert shutil.which("lxc-start"), "apt-get install lxc"
    with both() as (host, raw):
        raw.start("warm")
        raw.stop("warm")
        ours, theirs = [], []
        for number in range(ROUNDS):
            ours.append(timed(lambda n=number: host.contain(f"c{n}")))  # type: ignore[misc]
            theirs.append(raw.start(f"r{number}"))
            raw.stop(f"r{number}")
            host.delete(f"c{number}")
        raw.start("exec")
        said, plain = [], []
        body = {"argv": ["true"]}
        for _ in range(ROUNDS * 2):
            said.append(timed(lambda: host.http("POST", f"{INSTANCES}/keeps/exec", body)))
            plain.append(raw.attach("exec"))
        raw.stop("exec")
        return [
            pairs("container: launch with network to init", "ms", ours, theirs, Goal(40, added=True)),
            pairs("container: exec by the API", "ms", said, plain, Goal(15, added=True)),
            *many(host, raw),
        ]


def resident(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def many(host: Daemon, raw: Raw) -> list[Row]:
    before = resident(host.pid)
    ours = timed(lambda: [host.contain(f"m{n}", memory=32 * MIB) for n in range(MANY)]) / 1000
    own = (resident(host.pid) - before) / MANY
    answering = [host.http("POST", f"{INSTANCES}/m{n}/exec", {"argv": ["true"]}).json["code"] for n in range(MANY)]
    assert answering == [0] * MANY
    host.delete(*[f"m{n}" for n in range(MANY)])
    theirs = timed(lambda: [raw.start(f"n{n}") for n in range(MANY)]) / 1000
    for n in range(MANY):
        raw.stop(f"n{n}")
    once = Spread.of([theirs])
    return [
        Row(f"{MANY} containers, one after the other", "s", Spread.of([ours]), once, goal=Goal(theirs * 1.2)),
        row("the daemon's own memory for each", "MiB", [statistics.median([own])], Goal(0.2)),
    ]
