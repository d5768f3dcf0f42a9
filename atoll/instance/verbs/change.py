"""set and rename: change the definition; what runs follows at once where it can, at its next start where not."""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from atoll.base.errors import AtollError, Conflict, Invalid, Refused
from atoll.base.names import check_label
from atoll.base.units import show_size
from atoll.instance.admission import HOLDING
from atoll.instance.book import InstanceView, definition
from atoll.instance.here import ALIVE, RETRIES, Here, busy
from atoll.instance.kinds import LEAST
from atoll.instance.model import Instance, InstanceSpec, State
from atoll.instance.verbs.args import Changes, RenameArgs, SetArgs
from atoll.operation.runner import RunningWork
from atoll.operation.verb import Recovery

FINISH = Recovery.FINISH


def given(changes: Changes) -> set[str]:
    return {name for name in changes.__struct_fields__ if getattr(changes, name) is not msgspec.UNSET}


def changed(spec: InstanceSpec, changes: Changes) -> InstanceSpec:
    """The spec with the changes in it."""
    new = {name: getattr(changes, name) for name in given(changes)}
    if "labels" in new:
        merged = {**spec.labels, **new["labels"]}
        new["labels"] = {name: value for name, value in merged.items() if value}
    return msgspec.structs.replace(spec, **new)


class Set:
    name = "instance.set"
    args = SetArgs
    steps: ClassVar[Mapping[str, Recovery]] = {"write": FINISH, "apply": FINISH}

    def __init__(self, here: Here) -> None:
        self._here = here

    async def run(self, work: RunningWork, args: SetArgs) -> dict[str, list[str]]:
        view = await self._here.named(work, args.project, args.name)
        touched = given(args.changes)

        async def change(view: InstanceView) -> Instance:
            nonlocal touched
            if args.revision and args.revision != view.revision and not work.resumed:
                raise Conflict(
                    f"{view.name} changed since you read it", hint=f"atoll show {view.name}, then set again"
                )
            if view.status.state is State.GONE:
                raise Refused(f"{view.name} is being deleted")
            spec = changed(view.instance.spec, args.changes)
            check(view, spec)
            if spec.limits != view.instance.spec.limits:
                self._here.check_limits(spec.kind, spec.limits)
            if spec.memory > view.instance.spec.memory and view.status.state in HOLDING:
                await self._here.admit(view, memory=spec.memory)
            if not work.resumed:  # the former daemon may have written it and died before it brought it to bear
                touched = {name for name in touched if getattr(spec, name) != getattr(view.instance.spec, name)}
            return msgspec.structs.replace(view.instance, spec=spec)

        async with self._here.admission:
            await change(view)
            await work.step("write", percent=20)
            view = await self._here.define(work, view, change)
        await work.step("apply", percent=50)
        return {"restart_for": list(await self._apply(await self._here.present(view.id), touched))}

    async def _apply(self, view: InstanceView, touched: set[str]) -> tuple[str, ...]:
        """Bring what runs to the new spec; the settings that wait for its next start."""
        spec = view.instance.spec
        if view.status.state not in ALIVE:
            return ()
        waits, memory = set(view.status.restart_for), view.status.memory
        if (touched | waits) & {"cpus", "memory"}:
            try:
                await self._here.engine(view).resize(view.id, cpus=spec.cpus, memory=spec.memory)
                waits -= {"cpus", "memory"}
                memory = spec.memory
            except AtollError as refusal:
                waits |= touched & {"cpus", "memory"}
                self._here.tell_of(view, "instance.restart-needed", {"reason": refusal.message})
        same = view.status.generation
        await self._here.seen(
            view.id,
            None,
            only=lambda now: now.generation == same,
            restart_for=tuple(sorted(waits)),
            memory=memory,
        )
        if "limits" in touched:
            await self._here.engine(view).limit(view.id, spec.limits)
        return tuple(sorted(waits))


def check(view: InstanceView, spec: InstanceSpec) -> None:
    """Raises Invalid for what can never be."""
    hardware = view.instance.hardware
    if spec.memory < (least := LEAST[spec.kind]):
        hint = f"{show_size(least)} or more"
        raise Invalid(f"{show_size(spec.memory)} of memory is too little", hint=hint, field="memory")
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
        view = await self._here.named(work, args.project, args.name)
        if view.status.state is State.GONE:
            raise Refused(f"{view.name} is being deleted")
        if view.name != args.to:
            await work.step("rename", percent=20)
            view = await self._rename(work, view, args.to)
        work.about(name=view.name)  # for the audit: it is found under both names
        await work.step("names", percent=60)
        await self._here.rename_ports(view)
        self._here.tell_of(view, "instance.renamed")

    async def _rename(self, work: RunningWork, view: InstanceView, to: str) -> InstanceView:
        for _ in range(RETRIES):
            try:
                renamed = await self._here.book.rename(view, to)
            except Conflict:
                view = await self._here.present(view.id)
                continue
            work.changed(definition(view.id), view.revision, renamed.revision)
            return renamed
        raise busy(view)
