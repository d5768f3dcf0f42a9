"""set and rename: change the definition; what runs follows at once where it can, at its next start where not."""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from atoll.base.errors import Absent, AtollError, Conflict, Invalid, Refused
from atoll.base.names import check_label
from atoll.base.units import show_size
from atoll.instance.book import InstanceView
from atoll.instance.here import Here
from atoll.instance.model import InstanceSpec, State
from atoll.instance.verbs.args import Changes, RenameArgs, SetArgs
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery

FINISH = Recovery.FINISH
ALIVE = (State.RUNNING, State.PAUSED)


def changed(spec: InstanceSpec, changes: Changes) -> InstanceSpec:
    """The spec with the changes in it."""
    given = {
        name: value for name in changes.__struct_fields__ if (value := getattr(changes, name)) is not msgspec.UNSET
    }
    if "labels" in given:
        merged = {**spec.labels, **given["labels"]}
        given["labels"] = {name: value for name, value in merged.items() if value}
    return msgspec.structs.replace(spec, **given)


class Set:
    name = "instance.set"
    args = SetArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"write": FINISH, "apply": FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: SetArgs) -> dict[str, list[str]]:
        view = await self._here.book.get(args.project, args.name)
        work.about(id=view.id)
        if args.revision and args.revision != view.revision and not work.resumed:
            raise Conflict(f"{view.name} changed since you read it", hint=f"atoll show {view.name}, then set again")
        if view.status.state is State.GONE:
            raise Refused(f"{view.name} is being deleted")
        spec = changed(view.instance.spec, args.changes)
        check(view, spec)
        async with self._here.admission:
            if spec.memory > view.instance.spec.memory and view.status.state in ALIVE:
                await self._here.admit(view, memory=spec.memory)
            await work.step("write", percent=20)
            before = view.revision
            old = view.instance.spec
            view = await self._here.book.write_definition(view, msgspec.structs.replace(view.instance, spec=spec))
            work.changed(f"definition/{view.id}", before, view.revision)
        await work.step("apply", percent=50)
        waits = await self._apply(view, old)
        return {"restart_for": list(waits)}

    async def _apply(self, view: InstanceView, old: InstanceSpec) -> tuple[str, ...]:
        """Bring what runs to the new spec; the settings that wait for its next start."""
        spec = view.instance.spec
        if view.status.state not in ALIVE:
            return ()
        waits = set(view.status.restart_for)
        if (spec.cpus, spec.memory) != (old.cpus, old.memory) or waits & {"cpus", "memory"}:
            try:
                await self._here.engine(view).resize(view.id, cpus=spec.cpus, memory=spec.memory)
                waits -= {"cpus", "memory"}
            except AtollError as refusal:
                waits |= {name for name in ("cpus", "memory") if getattr(spec, name) != getattr(old, name)}
                self._here.tell_of(view, "instance.restart-needed", {"reason": refusal.message})
        if spec.limits != old.limits:
            await self._here.engine(view).limit(view.id, spec.limits)
        await self._here.seen(view.id, None, restart_for=tuple(sorted(waits)))
        return tuple(sorted(waits))


def check(view: InstanceView, spec: InstanceSpec) -> None:
    """Raises Invalid for what can never be."""
    hardware = view.instance.hardware
    if spec.memory < 32 << 20:
        raise Invalid(f"{show_size(spec.memory)} of memory is too little", hint="32MiB or more", field="memory")
    if spec.cpus > hardware.max_cpus or spec.memory > hardware.max_memory:
        raise Invalid(
            f"{view.name} was made to grow to {hardware.max_cpus} CPUs and {show_size(hardware.max_memory)}",
            hint="its hardware was fixed when it was created: launch a larger one",
            field="cpus" if spec.cpus > hardware.max_cpus else "memory",
        )


class Rename:
    name = "instance.rename"
    args = RenameArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"rename": FINISH, "names": FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: RenameArgs) -> None:
        check_label(args.to, field="to")
        if args.to == args.name:
            return
        view = await self._find(work, args)
        if view.status.state is State.GONE:
            raise Refused(f"{view.name} is being deleted")
        work.about(id=view.id)
        if view.name != args.to:
            await work.step("rename", percent=20)
            before = view.revision
            view = await self._here.book.rename(view, args.to)
            work.changed(f"definition/{view.id}", before, view.revision)
        await work.step("names", percent=60)
        await self._here.rename_ports(view)

    async def _find(self, work: RunningWork, args: RenameArgs) -> InstanceView:
        try:
            return await self._here.book.get(args.project, args.name)
        except Absent:
            if not work.resumed:
                raise
            return await self._here.book.get(args.project, args.to)
