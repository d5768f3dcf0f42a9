"""Who is still there after a former engine: found by looking.

Three witnesses: run directories with a handle, control groups, and the command lines of this host's processes,
each of which names the guest, its generation and this Atoll from the moment of its fork.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from atoll.base.ids import Generation, InstanceId
from atoll.host import process
from atoll.host.cgroups import Cgroups
from atoll.instance.engines import kept
from atoll.instance.engines.qemu import rundir
from atoll.instance.engines.qemu.argv import process as mark
from atoll.instance.engines.qemu.rundir import Handle, RunDir
from atoll.instance.model import Exit

_GENERATION = re.compile(r"guest=[^,]*\.g(\d{1,9}),")


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of one guest, as found. `pids`: every process of it."""

    id: InstanceId
    generation: Generation
    handle: Handle | None = None
    exit: Exit | None = None
    pids: frozenset[int] = frozenset()

    @property
    def whole(self) -> bool:
        """Whether it runs and we know it: the process of its handle is among those found."""
        return self.handle is not None and self.handle.pid in self.pids

    @property
    def over(self) -> bool:
        return self.handle is not None and self.handle.pid > 0 and not self.pids


def marked(command_line: Sequence[str], tag: str) -> tuple[InstanceId, Generation] | None:
    """Whose process this is, if it is one of this Atoll: also of the shell and setpriv that become QEMU."""
    name = next((word for word in command_line if word.endswith(mark(tag))), "")
    match = _GENERATION.match(name)
    if match is None or "-uuid" not in command_line:
        return None
    at = list(command_line).index("-uuid") + 1
    return (InstanceId(command_line[at]), Generation(int(match[1]))) if at < len(command_line) else None


def living(tag: str, cgroups: Cgroups | None) -> Mapping[tuple[InstanceId, Generation], frozenset[int]]:
    """Every process of every guest. Reads all of /proc: some 10 ms a thousand processes."""
    found: dict[tuple[InstanceId, Generation], set[int]] = {}
    for pid in process.pids():
        if who := marked(process.command_line(pid), tag):
            found.setdefault(who, set()).add(pid)
    for name in cgroups.names() if cgroups else ():
        if who := kept.parsed(name):
            alive = {pid for pid in cgroups.pids(name) if process.start_time(pid) is not None} if cgroups else set()
            found.setdefault(who, set()).update(alive)
    return {who: frozenset(pids) for who, pids in found.items()}


def look(root: Path, tag: str, cgroups: Cgroups | None) -> list[Trace]:
    """Everything of every guest on this host. Blocks."""
    runs = {(run.id, run.generation): run for run in rundir.all_in(root, tag)}
    alive = living(tag, cgroups)
    return [_trace(who, runs.get(who), alive.get(who, frozenset())) for who in sorted({*runs, *alive})]


def _trace(who: tuple[InstanceId, Generation], run: RunDir | None, pids: frozenset[int]) -> Trace:
    handle = run.handle() if run else None
    exit = run.exit() if run else None
    if handle is not None and handle.pid in pids and process.start_time(handle.pid) != handle.started:
        pids = pids - {handle.pid}  # the pid is another's by now
    return Trace(id=who[0], generation=who[1], handle=handle, exit=exit, pids=pids)
