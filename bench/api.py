"""How fast a real daemon answers with 10,000 stopped instances on record, over its unix socket.

    python -m bench.api [INSTANCES]

The records are written into the daemon's store before it starts. Client and daemon share the machine's cores.
"""

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from atoll.base.clock import now
from atoll.base.ids import Bytes, Digest, Generation, HostId, InstanceId, PortId, VolumeId, new_uuid
from atoll.base.units import GiB
from atoll.instance.book import InstanceBook
from atoll.instance.model import (
    Disk,
    Hardware,
    Instance,
    InstanceSpec,
    InstanceStatus,
    Nic,
    Power,
    State,
)
from atoll.store.sqlite import SqliteStore
from bench.daemon import resident, started
from bench.report import Goal, Row, Spread, row, text
from tests.kit.daemon import Daemon, daemon

INSTANCES = 10_000
SECONDS = 5.0
CONNECTIONS = 8
TIMES = 9
BASE = "/v1/projects/default/instances"


def records(number: int, host: HostId) -> tuple[Instance, InstanceStatus]:
    """A stopped instance as a launch would have recorded it."""
    mac = ":".join(f"{byte:02x}" for byte in (2, 0, *number.to_bytes(4)))
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    instance = Instance(
        id=InstanceId(new_uuid()),
        project="default",
        name=f"web{number:05d}",
        spec=InstanceSpec(image="tiny", power=Power.OFF, labels={"role": "web"}),
        hardware=Hardware(
            arch="x86_64",
            machine="pc-q35-7.2",
            accel="tcg",
            cpu="qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand",
            max_cpus=2,
            max_memory=Bytes(2 * GiB),
            disks=(Disk(VolumeId(new_uuid()), new_uuid()[:20], 0),),
            nics=(Nic(PortId(new_uuid()), new_uuid(), mac, 1, (address, f"fd00::{number:x}")),),
        ),
        image=Digest("sha256:" + "ab" * 32),
        created=now(),
    )
    return instance, InstanceStatus(host=host, state=State.STOPPED, generation=Generation(1), since=now())


async def fill(made: Daemon, count: int) -> None:
    host = HostId(msgspec.json.decode((made.state / "host.json").read_bytes())["id"])
    store = await SqliteStore.open(made.state / "shared.db")
    book = InstanceBook(store)
    for first in range(0, count, 500):
        made_now = [records(number, host) for number in range(first, min(first + 500, count))]
        await asyncio.gather(*(store.commit(book.claiming(*pair)) for pair in made_now))
    await store.close()


async def get(path: Path, target: str, until: float) -> int:
    """One connection that asks again as soon as it has its answer. Returns how many it got."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    request = f"GET {target} HTTP/1.1\r\nHost: atoll\r\n\r\n".encode()
    count = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        count += 1
    writer.close()
    return count


async def rates(path: Path, target: str) -> list[float]:
    """GETs a second in each of as many seconds, by several connections together."""
    found = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        counts = await asyncio.gather(*(get(path, target, begun + 1.0) for _ in range(CONNECTIONS)))
        found.append(sum(counts) / (time.perf_counter() - begun))
    return found


class Reader:
    """One blocking connection whose bodies land in a buffer of its own: little time of ours in what is measured."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.buffer = memoryview(bytearray(64 << 20))

    def ask(self, method: str, target: str, body: bytes = b"") -> float:
        """Milliseconds from the request's first byte to the answer's last."""
        head = f"{method} {target} HTTP/1.1\r\nHost: atoll\r\nContent-Type: application/json\r\n"
        began = time.perf_counter()
        self.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        have, end = 0, -1
        while end < 0 or have < end:
            got = self.socket.recv_into(self.buffer[have:])
            assert got, "the server hung up"
            have += got
            if end < 0 and (at := bytes(self.buffer[:4096]).find(b"\r\n\r\n")) >= 0:
                head_ = bytes(self.buffer[:at]).lower()
                assert head_.startswith(b"http/1.1 20"), head_
                end = at + 4 + int(head_.split(b"content-length:")[1].split(b"\r\n")[0])
        return (time.perf_counter() - began) * 1000


def listing(path: Path, *, change: bool) -> list[float]:
    """Lists one after the other; with `change` an instance is changed before each."""
    reader, times, number = Reader(path), [], 0
    reader.ask("GET", BASE)
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        number += 1
        if change:
            reader.ask("PATCH", f"{BASE}/web{number % 1000:05d}", msgspec.json.encode({"cpus": number % 2 + 1}))
            time.sleep(0.05)  # the change is carried out
        times.append(reader.ask("GET", BASE))
    return times


def tail(what: str, times: list[float], goal: Goal | None = None) -> Row:
    """The 99th percentile in the place of the median."""
    ordered = sorted(times)
    p99 = ordered[max(0, int(len(ordered) * 0.99) - 1)]
    return Row(what, "ms", Spread(p99, p99, p99, 1), goal=goal)


def command(made: Daemon, *args: str) -> float:
    """Milliseconds of a command of the command line, its output read and thrown away."""
    begun = time.perf_counter()
    done: Any = subprocess.run(made.cli(*args), env=made.env, stdout=subprocess.PIPE, check=True)
    assert done.stdout
    return (time.perf_counter() - begun) * 1000


def rows(count: int = INSTANCES) -> list[Row]:
    with daemon() as made:
        with started(made):
            pass  # it makes its state directory
        asyncio.run(fill(made, count))
        path, many = made.state / "atoll.sock", f"{count:,} instances"
        with started(made) as (pid, took):
            still = listing(path, change=False)
            changing = listing(path, change=True)
            one = uvloop.run(rates(path, f"{BASE}/web00007"))
            printed = [command(made, "list") for _ in range(TIMES)]
            return [
                row(f"list of {many}", "ms", still),
                tail(f"list of {many}, 99th percentile", still, Goal(25)),
                tail("the same, one changed before each, 99th percentile", changing),
                row(f"GET of one of {many}, {CONNECTIONS} connections", "1/s", one, Goal(2000, least=True)),
                row(f"atoll list, {many}", "ms", printed, Goal(1000)),
                row(f"start to first answer, {many} on record", "ms", [took * 1000]),
                row(f"resident with {many}, after all this", "MB", [resident(pid)]),
            ]


if __name__ == "__main__":
    print(text(rows(int(sys.argv[1]) if sys.argv[1:] else INSTANCES)))
