"""A launch of `tiny` to its init, against the same QEMU command line typed by hand.

    python -m bench.launch [PAIRS]

Atoll: from the request's first byte on the unix socket (POST .../instances) to the guest's first byte on its
serial console, which its init writes. Raw: from the fork of QEMU, with the arguments of the guest that Atoll just
ran (paths in the place of descriptors), to the same byte. Its thin clone and tap are made before, outside the time;
so all that Atoll does beside running QEMU counts as added: record and journal, planning addresses, cloning the
disk, DHCP and names, tap, cgroups, dropping rights. In turns, on one bridge, which a paused guest keeps up.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import msgspec

from atoll.base.ids import Bytes
from atoll.base.units import MiB
from atoll.client import Client, Endpoint, InstanceSpec
from atoll.instance.engines.qemu.rundir import Handle
from atoll.instance.model import BootPlan
from bench.daemon import started
from bench.report import Goal, Row, pairs, row, text
from tests.kit.daemon import Daemon, daemon
from tests.kit.images import tiny
from tests.kit.netns import Namespace

ROUNDS = 9
MEMORY = Bytes(192 * MiB)
NAME = "bench"
TAP = "rawtap0"
DEADLINE = 120.0


def until(true: Callable[[], object], what: str) -> float:
    """When it came true, on the clock of time.perf_counter; looked for every 2 ms."""
    end = time.perf_counter() + DEADLINE
    while not true():
        assert time.perf_counter() < end, what
        time.sleep(0.002)
    return time.perf_counter()


def spoke(place: Path, before: Collection[Path] = ()) -> bool:
    """Whether a guest's serial console has been written to, other than those `before`."""
    return any(log.stat().st_size for log in place.glob("*/serial.log") if log not in before)


class Line(NamedTuple):
    """A guest's command line, and the plan behind it."""

    words: list[str]
    plan: BootPlan

    @property
    def base(self) -> str:
        """The file of its disk's lowest layer: its image."""
        return self.plan.disks[0].attachment.layers[-1].uri.removeprefix("file://")


def line_of(pid: int) -> Line:
    words = [part.decode() for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if part]
    handle = Path(os.readlink(f"/proc/{pid}/cwd")).parent / "handle.json"
    return Line(words, msgspec.json.decode(handle.read_bytes(), type=Handle).plan)


def plain(line: Line, clone: Path, serial: Path) -> list[str]:
    """The same with paths where Atoll hands over descriptors, and running at once."""
    made: list[str] = []
    words = iter(line.words)
    kernels = {"-kernel": line.plan.boot.kernel, "-initrd": line.plan.boot.initrd}
    for word in words:
        if word == "-add-fd":
            next(words)
        elif word in kernels:
            next(words)
            made += [word, kernels[word]]
        elif word.startswith("socket,id="):
            socket = f"path={serial.parent}/{word.split(',')[1].removeprefix('id=')}.sock"
            word = re.sub(r"fd=\d+", socket, word, count=1)
            made.append(re.sub(r"logfile=[^,]+", f"logfile={serial}", word))
        elif word.startswith("{"):
            file = str(clone) if '"read-only": false' in word else line.base
            made.append(re.sub(r"/dev/fdset/\d+", file, word))
        elif word != "-S":
            made.append(re.sub(r"^(tap,id=\w+),fd=\d+", rf"\1,ifname={TAP},script=no,downscript=no", word))
    return made


def raw(line: Line, net: Namespace, link: str) -> float:
    """Seconds."""
    with tempfile.TemporaryDirectory() as place:
        own, clone = Path(place) / "guest", Path(place) / "clone.qcow2"
        own.mkdir()
        base = ["-b", line.base, "-F", "qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(clone)], check=True)
        for change in (f"tuntap add {TAP} mode tap vnet_hdr", f"link set {TAP} master {link} up"):
            net.run("ip", *change.split())
        words = plain(line, clone, own / "serial.log")
        with net.entered():
            begun = time.perf_counter()
            child = subprocess.Popen(words, cwd=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            took = until(lambda: spoke(Path(place)) or child.poll() is not None, "init writes") - begun
            assert child.poll() is None, child.communicate()[1]
            return took
        finally:
            child.kill()
            child.communicate()
            net.run("ip", "link", "del", TAP)


async def ours(client: Client, made: Daemon, rest: set[int]) -> tuple[float, float, Line]:
    """Seconds to the operation's end and to the first byte; and the guest's command line. It is deleted then.

    `rest`: guests that were there before.
    """
    spec = InstanceSpec(image="tiny", memory=MEMORY)
    before = set((made.state / "run").glob("*/serial.log"))
    looking = asyncio.create_task(
        asyncio.to_thread(until, lambda: spoke(made.state / "run", before), "init writes")
    )
    begun = time.perf_counter()
    operation = await client.instances.launch(spec, name=NAME)
    await client.operations.wait(operation)
    ended = time.perf_counter()
    took = await looking - begun
    (pid,) = made.qemus().keys() - rest
    line = line_of(pid)
    await client.operations.wait(await client.instances.delete(NAME, force=True))
    return ended - begun, took, line


def bridge(net: Namespace) -> str:
    return net.run("ip", "-o", "link", "show", "type", "bridge").split(":")[1].strip()


async def compare(made: Daemon, rounds: int) -> list[Row]:
    assert made.net is not None
    ends: list[float] = []
    atoll: list[float] = []
    qemu: list[float] = []
    async with Client(Endpoint(socket=made.state / "atoll.sock")) as client:
        spec = InstanceSpec(image="tiny", memory=MEMORY)
        await client.operations.wait(await client.instances.launch(spec, name="rests"))
        await client.operations.wait(await client.instances.pause("rests"))
        rest, link = set(made.qemus()), bridge(made.net)
        for number in range(rounds + 1):
            to_end, to_init, line = await ours(client, made, rest)
            alone = await asyncio.to_thread(raw, line, made.net, link)
            if number:  # the first pair warms the caches
                ends.append(to_end * 1000)
                atoll.append(to_init * 1000)
                qemu.append(alone * 1000)
    return [
        pairs("launch of tiny: call to init", "ms", atoll, qemu, Goal(200, added=True)),
        row("launch of tiny: call to the operation's end", "ms", ends),
    ]


def rows(rounds: int = ROUNDS) -> list[Row]:
    tiny()  # its packages are in the cache now: the daemon in its namespace has no network
    with daemon() as made, started(made):
        made.atoll("image", "build", "tiny")
        return asyncio.run(compare(made, rounds))


if __name__ == "__main__":
    print(text(rows(int(sys.argv[1]) if sys.argv[1:] else ROUNDS)))
