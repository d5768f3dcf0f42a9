"""Bringing an image: `python -m bench.images`.

A qcow2 file of 1 GiB of data that cannot be compressed is imported by `atoll image import`, from the start of the
command to its end (sent, hashed, inspected, kept and on the disk), in turns with `cp` and `sha256sum` of the same
file, one after the other, on the same disk. Everything written is on the disk before each turn begins.
"""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from atoll.base.units import MiB
from bench.report import Goal, Row, pairs, row, text
from tests.kit.daemon import Daemon, daemon

ROUNDS = 9
DATA = 1024


def source(at: Path) -> Path:
    raw, path = at / "source.raw", at / "source.qcow2"
    with raw.open("wb") as file:
        for _ in range(DATA):
            file.write(os.urandom(MiB))
        file.truncate(2 * DATA * MiB)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True)
    raw.unlink()
    return path


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    os.sync()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def raw_tools(path: Path) -> None:
    copy = path.with_name("copy.qcow2")
    subprocess.run(["cp", "--reflink=never", str(path), str(copy)], check=True)
    subprocess.run(["sha256sum", str(path)], check=True, stdout=subprocess.DEVNULL)


def measure(made: Daemon, rounds: int = ROUNDS) -> list[Row]:
    path = source(made.state)
    ours: list[float] = []
    raw: list[float] = []
    for _ in range(rounds):
        ours.append(timed(lambda: made.atoll("image", "import", str(path), "--name", "brought", timeout=600)))
        made.atoll("image", "delete", "brought")
        raw.append(timed(lambda: raw_tools(path)))
        path.with_name("copy.qcow2").unlink()
    ratios = [other / one for one, other in zip(ours, raw, strict=True)]
    return [
        pairs("images: import of a local qcow2 of 1 GiB, beside cp and sha256sum", "s", ours, raw),
        row("images: the same, as a part of their speed", "x", ratios, Goal(0.7, least=True)),
    ]


def rows() -> list[Row]:
    with daemon() as made:
        made.start()
        return measure(made)


if __name__ == "__main__":
    print(text(rows()))
