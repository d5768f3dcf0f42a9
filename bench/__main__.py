"""Measure all of it, print one table and write docs/bench.md.

    python -m bench [NAME...]        only the measurements named; docs/bench.md is left alone then

As root, on a machine that does little else. Everything runs in network namespaces and directories of its own.
"""

import asyncio
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from atoll.base.clock import now
from atoll.base.units import show_size
from atoll.host.probe.facts import facts
from bench.report import Row, markdown, text

NAMES = {
    "engine": "Starting a guest",
    "launch": "Launching an instance",
    "containers": "Containers",
    "daemon": "The daemon",
    "api": "10,000 instances",
    "store": "The store",
    "pool": "Pools and images",
    "images": "Bringing an image",
    "networks": "Networks",
    "forkable": "Forkable memory",
}
PAGE = Path(__file__).parents[1] / "docs" / "bench.md"
HEAD = """# Measured

<!-- made by `make bench`: change bench/, not this page -->

{when}, on {cores} cores of {cpu}, {memory} of memory, Linux {kernel}, QEMU {qemu}, acceleration {accel};
load {before:.1f} before, {after:.1f} after. Median (10th to 90th percentile) of at least 9 rounds where there are
several. "Raw tool" is the same work done by the tool itself, in turns with Atoll's in the same run; "added" is the
difference of the pairs, not of the medians. Each part says in its file what is timed from where to where.

"""


def measure(names: Sequence[str]) -> dict[str, list[Row]]:
    found = {}
    for name in names:
        begun = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        found[name] = importlib.import_module(f"bench.{name}").rows()
        print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    return found


def head(before: float) -> str:
    known = asyncio.run(facts())
    return HEAD.format(
        when=now()[:10],
        cores=os.cpu_count(),
        cpu=known.cpu.model,
        memory=show_size(known.memory.total),
        kernel=known.kernel,
        qemu=known.qemu.version if known.qemu else "?",
        accel="tcg",
        before=before,
        after=os.getloadavg()[0],
    )


def main(names: Sequence[str]) -> None:
    if os.geteuid() != 0:
        sys.exit("bench: networks and control groups need root")
    if unknown := set(names) - NAMES.keys():
        sys.exit(f"bench: there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    before = os.getloadavg()[0]
    found = measure(names or tuple(NAMES))
    print(text([row for rows in found.values() for row in rows]))
    if not names:
        parts = [
            f"## {NAMES[name]}\n\n`python -m bench {name}`\n\n{markdown(rows)}\n" for name, rows in found.items()
        ]
        PAGE.write_text(head(before) + "\n".join(parts))


if __name__ == "__main__":
    main(sys.argv[1:])
