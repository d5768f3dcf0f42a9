"""What forkable memory (a shared file in /dev/shm, from birth) costs against anonymous memory.

    python -m bench.forkable [PAIRS]

Interleaved: engine.start, start to agent, and the memory that QEMU holds then, PSS, in MiB.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from atoll.base.ids import Bytes
from atoll.base.units import MiB
from bench.report import Row, pairs, text
from tests.kit.benches import QemuBench
from tests.kit.images import Image, tiny

SIZE = Bytes(512 * MiB)
WORK = ("sh", "-c", "time dd if=/dev/zero of=/run/fill bs=1M count=64")


async def once(bench: QemuBench, forkable: bool) -> tuple[float, float, float, float]:
    engine = await bench.engine()
    await engine.adopt()
    plan = await bench.plan(forkable=forkable, memory=SIZE)
    began = time.perf_counter()
    await engine.start(plan)
    started = time.perf_counter()
    await engine.ready(plan.id, timeout=120)
    ready = time.perf_counter()
    held = pss((await engine.observe())[plan.id].pid)
    writing = time.perf_counter()
    await engine.execute(plan.id, WORK)
    written = time.perf_counter()
    await engine.stop(plan.id, grace=0)
    await engine.forget(plan.id)
    await engine.close()
    return (started - began) * 1000, (ready - began) * 1000, held, (written - writing) * 1000


def pss(pid: int) -> float:
    match = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


WHAT = (
    ("engine.start", "ms"),
    ("start to its agent", "ms"),
    ("memory held then (PSS)", "MiB"),
    ("filling 64 MiB of it in the guest", "ms"),
)


async def compare(image: Image, count: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        bench = QemuBench(Path(place), image)
        found: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
        for number in range(count + 1):
            for forkable in (False, True):
                one = await once(bench, forkable)
                if number:  # the first pair warms the caches
                    found[forkable].append(one)
        await bench.close()
    columns = zip(WHAT, zip(*found[True], strict=True), zip(*found[False], strict=True), strict=True)
    return [pairs(f"forkable beside anonymous: {what}", unit, ours, raw) for (what, unit), ours, raw in columns]


def rows(count: int = 9) -> list[Row]:
    return uvloop.run(compare(tiny(), count))


if __name__ == "__main__":
    print(text(rows(int(sys.argv[1]) if sys.argv[1:] else 9)))
