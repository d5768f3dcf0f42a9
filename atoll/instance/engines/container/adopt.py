"""Which containers are still there after a former engine: found by looking.

Three witnesses: run directories with a handle, control groups, and the command lines of this host's processes:
liblxc's monitor names its path and its container.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from atoll.base.ids import Generation, InstanceId
from atoll.host import process
from atoll.instance.engines import kept
from atoll.instance.engines.container import rundir
from atoll.instance.engines.container.groups import Groups
from atoll.instance.engines.container.rundir import Handle, RunDir
from atoll.instance.model import Exit


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of one container, as found. `monitors`: its lxc-start; `pids`: what runs in it."""

    id: InstanceId
    generation: Generation
    handle: Handle | None = None
    exit: Exit | None = None
    monitors: frozenset[int] = frozenset()
    pids: frozenset[int] = frozenset()

    @property
    def whole(self) -> bool:
        """Whether it runs and we know it."""
        return self.handle is not None and self.handle.init > 0 and self.handle.monitor in self.monitors

    @property
    def over(self) -> bool:
        return self.handle is not None and self.handle.init > 0 and not self.monitors


def marked(command_line: Sequence[str], names: Path) -> tuple[InstanceId, Generation] | None:
    """Whose monitor this is, if it is one of ours: also of what becomes it."""
    words = list(command_line)
    if str(names) not in words or "-P" not in words or not any(word.endswith("lxc-start") for word in words):
        return None
    name = words[words.index("-n") + 1] if "-n" in words[:-1] else ""
    return kept.parsed(name)


def monitors(names: Path) -> Mapping[tuple[InstanceId, Generation], frozenset[int]]:
    """Reads all of /proc: some 10 ms a thousand processes."""
    found: dict[tuple[InstanceId, Generation], set[int]] = {}
    for pid in process.pids():
        if who := marked(process.command_line(pid), names):
            found.setdefault(who, set()).add(pid)
    return {who: frozenset(pids) for who, pids in found.items()}


def look(root: Path, names: Path, groups: Groups) -> list[Trace]:
    """Everything of every container on this host. Blocks."""
    runs = {(run.id, run.generation): run for run in rundir.all_in(root, names)}
    alive = monitors(names)
    grouped = {who: name for name in groups.names() if (who := kept.parsed(name))}
    found = []
    for who in sorted({*runs, *alive, *grouped}):
        run = runs.get(who)
        pids = frozenset(groups.pids(grouped[who])) if who in grouped else frozenset()
        found.append(_trace(who, run, alive.get(who, frozenset()), pids))
    return found


def _trace(
    who: tuple[InstanceId, Generation], run: RunDir | None, monitors: frozenset[int], pids: frozenset[int]
) -> Trace:
    handle, exit = (run.handle(), run.exit()) if run else (None, None)
    if handle and handle.monitor in monitors and process.start_time(handle.monitor) != handle.monitor_started:
        monitors = monitors - {handle.monitor}
    return Trace(id=who[0], generation=who[1], handle=handle, exit=exit, monitors=monitors, pids=pids)
