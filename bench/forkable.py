"""What forkable memory (a shared file in /dev/shm, from birth) costs against anonymous memory.

    python -m bench.forkable [PAIRS]

Interleaved: engine.start, start to agent, and the memory that QEMU holds then, PSS, in MiB.
"""

import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from atoll.base.ids import Bytes
from atoll.base.units import MiB
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


async def main(image: Image, pairs: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        bench = QemuBench(Path(place), image)
        found: dict[bool, list[tuple[float, float, float, float]]] = {False: [], True: []}
        for _ in range(pairs):
            for forkable in (False, True):
                found[forkable].append(await once(bench, forkable))
        await bench.close()
    for forkable, rows in found.items():
        print("forkable" if forkable else "anonymous")
        for name, column in zip(
            ("start ms", "to agent ms", "PSS MiB", "fill 64M ms"), zip(*rows, strict=True), strict=True
        ):
            print(f"    {name:12} {statistics.median(column):8.1f}   {min(column):.1f} to {max(column):.1f}")


if __name__ == "__main__":
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}, {SIZE // MiB} MiB guests")
    uvloop.run(main(tiny(), int(sys.argv[1]) if len(sys.argv) > 1 else 9))
