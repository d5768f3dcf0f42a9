"""Atoll's own added time at a start: engine.start against the same QEMU command line, raw, to QMP answering.

    python -m bench.engine [PAIRS]

Interleaved pairs in one run; milliseconds. The engine's figure has everything a start does: run directory, control
groups, its own user, handle, `cont`.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from atoll.host.sockets import address
from atoll.instance.engines.qemu import argv, spawn
from atoll.instance.engines.qemu.engine import Qemu
from atoll.instance.engines.qemu.rundir import RunDir
from atoll.instance.model import BootPlan
from bench.report import Goal, Row, pairs, text
from tests.kit.benches import QemuBench
from tests.kit.images import Image, tiny


def raw(plan: BootPlan, place: Path) -> float:
    """Seconds from the fork to the answer to qmp_capabilities."""
    run = RunDir(place, plan.id, plan.generation, "bench0")
    run.make(None)
    with contextlib.ExitStack() as opened:
        handed = spawn._open(plan, run, opened, 2_600_000)
        line = argv.build(plan, handed, tag="bench0")
        began = time.perf_counter()
        child = subprocess.Popen(line, cwd=run.own, pass_fds=argv.fds(handed), stderr=subprocess.DEVNULL)
    with socket.socket(socket.AF_UNIX) as sock, address(run.qmp) as short:
        sock.connect(short)
        with sock.makefile("rwb") as file:
            file.readline()
            file.write(b'{"execute": "qmp_capabilities"}\n')
            file.flush()
            assert "return" in json.loads(file.readline())
    took = time.perf_counter() - began
    child.kill()
    child.wait()
    run.remove()
    return took


async def ours(engine: Qemu, plan: BootPlan) -> float:
    began = time.perf_counter()
    await engine.start(plan)
    took = time.perf_counter() - began
    await engine.stop(plan.id, grace=0)
    await engine.forget(plan.id)
    return took


async def compare(image: Image, count: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        bench = QemuBench(Path(place), image)
        engine = await bench.engine()
        await engine.adopt()
        plan = await bench.plan()
        times: dict[str, list[float]] = {"raw": [], "engine": []}
        for _ in range(count + 1):
            times["raw"].append(await asyncio.to_thread(raw, plan, Path(place)))
            times["engine"].append(await ours(engine, plan))
        await bench.close()
    ms = {name: [took * 1000 for took in found[1:]] for name, found in times.items()}  # the first warms the caches
    return [pairs("start of a guest to QMP answering", "ms", ms["engine"], ms["raw"], Goal(40, added=True))]


def rows(count: int = 11) -> list[Row]:
    return uvloop.run(compare(tiny(), count))


if __name__ == "__main__":
    print(text(rows(int(sys.argv[1]) if len(sys.argv) > 1 else 11)))
