"""Measure the dir pool and the image store: `python -m bench.pool [DIRECTORY]`, one on the disk in question.

Clones are made in turns by the pool and by bare `qemu-img create` with its defaults; writes go through
`qemu-img bench` to overlays over a raw base, in QEMU's default layout and in the pool's.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from atoll.base.ids import Bytes, PoolId, VolumeId
from atoll.base.units import GiB, MiB, show_size
from atoll.host.disks import METADATA_UP_TO, Tuning
from atoll.image.blobs import Blobs
from atoll.storage.drivers.dir import DirPool
from atoll.storage.model import Layer, VolumeSpec
from bench.report import Goal, Row, pairs, row, text

ROUNDS = 11
SIZES = (512 * MiB, 2 * GiB, 10 * GiB, METADATA_UP_TO, 200 * GiB)
MANY = 1000
WRITES = {
    "4 KiB, one after the other": ("-c", "20000", "-s", "4096", "-d", "32"),
    "4 KiB, each to a new place": ("-c", "10000", "-s", "4096", "-S", str(132 * 1024), "-d", "32"),
    "4 KiB with a flush each 32": ("-c", "2000", "-s", "4096", "-d", "8", "--flush-interval=32"),
    "64 KiB, one after the other": ("-c", "4000", "-s", "65536", "-d", "16"),
}


async def timed(work: Callable[..., Awaitable[object]], *args: object, **named: object) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    await work(*args, **named)
    return (time.perf_counter() - begun) * 1000


def qemu_img(*args: str) -> None:
    subprocess.run(("qemu-img", *args), check=True, stdout=subprocess.DEVNULL)


def bare(path: Path, base: Layer, size: int, layout: str) -> float:
    path.unlink(missing_ok=True)
    begun = time.perf_counter()
    qemu_img("create", "-q", "-f", "qcow2", "-b", base.uri, "-F", "raw", "-o", layout, str(path), str(size))
    return (time.perf_counter() - begun) * 1000


async def clones(pool: DirPool, base: Layer, at: Path) -> list[Row]:
    found: list[Row] = []
    for size in SIZES:
        ours: list[float] = []
        raw: list[float] = []
        for round in range(ROUNDS):
            spec = VolumeSpec(VolumeId(f"v{round}"), Bytes(size), (base,))
            ours.append(await timed(pool.create, spec))
            raw.append(bare(at / "bare.qcow2", base, size, "compat=1.1"))
            await pool.delete(spec.id)
        found.append(pairs(f"pool: a thin clone of {show_size(size)}, beside qemu-img", "ms", ours, raw))
    return found


async def attached(pool: DirPool, base: Layer, at: Path) -> list[Row]:
    """What a launch asks of a pool: a clone, and what an engine opens of it."""
    ours: list[float] = []
    raw: list[float] = []
    for round in range(ROUNDS):
        spec = VolumeSpec(VolumeId(f"a{round}"), Bytes(10 * GiB), (base,))

        async def both(spec: VolumeSpec = spec) -> None:
            await pool.create(spec)
            await pool.attach(spec.id)

        ours.append(await timed(both))
        raw.append(bare(at / "bare.qcow2", base, 10 * GiB, "compat=1.1"))
        await pool.delete(spec.id)
    what = f"pool: a thin clone of {show_size(10 * GiB)} made and attached, beside qemu-img create"
    return [pairs(what, "ms", ours, raw, Goal(50, added=True))]


async def many(pool: DirPool, base: Layer) -> list[Row]:
    found: list[Row] = []
    ids = [VolumeId(f"m{number}") for number in range(MANY)]
    for first in range(0, MANY, 8):
        specs = [VolumeSpec(id, Bytes(512 * MiB), (base,)) for id in ids[first : first + 8]]
        await asyncio.gather(*map(pool.create, specs))
    found.append(row(f"pool: list {MANY} volumes", "ms", [await timed(pool.volumes) for _ in range(ROUNDS)]))
    found.append(
        row("pool: attach, made by this daemon", "ms", [await timed(pool.attach, id) for id in ids[:ROUNDS]])
    )
    later = DirPool(PoolId("bench"), "bench", pool._root)
    found.append(
        row("pool: attach, first after a restart", "ms", [await timed(later.attach, id) for id in ids[:ROUNDS]])
    )
    found.append(row("pool: delete", "ms", [await timed(pool.delete, id) for id in ids]))
    return found


async def writes(base: Layer, at: Path) -> list[Row]:
    found: list[Row] = []
    path = at / "written.qcow2"
    for what, args in WRITES.items():
        times: dict[Tuning, list[float]] = {tuning: [] for tuning in Tuning}
        for _ in range(ROUNDS):
            for tuning, took in times.items():
                bare(path, base, 10 * GiB, tuning)
                begun = time.perf_counter()
                qemu_img("bench", "-f", "qcow2", "-w", "-t", "none", "-n", *args, str(path))
                took.append((time.perf_counter() - begun) * 1000)
        tuned, plain = times[Tuning.QUICK_WRITES], times[Tuning.QUICK_CREATE]
        found.append(pairs(f"pool: write {what}, beside qcow2's defaults", "ms", tuned, plain))
    path.unlink()
    return found


async def blobs(at: Path) -> list[Row]:
    found: list[Row] = []
    source, size = at / "source", 512
    source.write_bytes(os.urandom(MiB) * size)
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for ours, seen in speeds.items():
            store = Blobs(at / "blobs")
            await store.open()
            took = await timed(store.add, source, ours=ours)
            seen.append(size / took * 1000)
            for digest in await store.usage():
                store.remove(digest)
    found.append(row("images: add a blob of 512 MiB: linked", "MiB/s", speeds[True]))
    found.append(row("images: add a blob of 512 MiB: copied", "MiB/s", speeds[False]))
    return found


async def measure(directory: Path | None = None) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", dir=directory) as name:
        at = Path(name)
        base = at / "base.raw"
        base.write_bytes(os.urandom(MiB) * 512)
        layer = Layer(str(base), "raw", read_only=True)
        pool = DirPool(PoolId("bench"), "bench", at / "pool", home=at, fresh=True)
        await pool.open()
        return [
            *await clones(pool, layer, at),
            *await attached(pool, layer, at),
            *await many(pool, layer),
            *await writes(layer, at),
            *await blobs(at),
        ]


def rows(directory: Path | None = None) -> list[Row]:
    return asyncio.run(measure(directory))


if __name__ == "__main__":
    print(text(rows(Path(sys.argv[1]) if sys.argv[1:] else None)))
