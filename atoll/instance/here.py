"""What every instance verb works with on this host: records, engines, supplies, and the moves they share."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from atoll.base import clock
from atoll.base.errors import Absent, AtollError, Broken, Conflict, Lacking, Refused
from atoll.base.ids import Bytes, HostId
from atoll.instance.admission import HOLDING, HostMemory, admit, overhead
from atoll.instance.book import InstanceBook, InstanceView, definition, status
from atoll.instance.engine import Engine
from atoll.instance.kinds import check_limits
from atoll.instance.model import (
    MAY_FOLLOW,
    BootPlan,
    ContainerPlan,
    Instance,
    InstanceStatus,
    Kind,
    Limits,
    Power,
    State,
)
from atoll.instance.ranges import Ranges
from atoll.instance.supplies import Supplies
from atoll.instance.uids import Uids
from atoll.operation.events import Events
from atoll.operation.model import Subject
from atoll.operation.runner import RunningWork
from atoll.operation.verb import UndoStep
from atoll.store.api import Txn

log = logging.getLogger(__name__)

ALIVE = frozenset({State.RUNNING, State.PAUSED})
RETRIES = 20
LATE = ("cpus", "limits", "memory")
"""Settings that a guest is started with."""

Terms = Callable[[InstanceView], Awaitable[Mapping[str, object]]]
"""Judges an instance about to be claimed: raises Refused, or tells which other fields of its status change."""


@dataclass(frozen=True, slots=True)
class Here:
    host: HostId
    book: InstanceBook
    engines: Mapping[Kind, Engine]
    supplies: Supplies
    uids: Uids | None
    memory: Callable[[], HostMemory]
    events: Events
    ranges: Ranges | None = None
    admission: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from reading what is promised to recording the new promise: only the owning host admits."""
    copied: dict[str, str] = field(default_factory=dict)
    """Instances whose disks are being copied, by id, with the operation that does it: nothing may start them."""
    turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    def engine(self, view: InstanceView) -> Engine:
        return self.engine_of(view.instance.spec.kind)

    def engine_of(self, kind: Kind) -> Engine:
        """Raises Lacking."""
        try:
            return self.engines[kind]
        except KeyError as error:
            raise Lacking(f"this daemon runs no {kind}", hint="run the daemon as root", field="kind") from error

    def check_limits(self, kind: Kind, limits: Limits) -> None:
        """Raises Lacking where limits are asked for that nothing here would keep."""
        check_limits(kind, limits)
        if limits != Limits() and not self.engine_of(kind).traits.limits:
            raise Lacking(
                "limits need control groups, and this user may make no control group",
                hint="run the daemon as root",
                field="limits",
            )

    async def owner(self, view: InstanceView) -> int | None:
        """The unprivileged uid its guest runs as; None where the daemon has no right to change it."""
        return await self.uids.of(view.id) if self.uids and view.instance.spec.kind is Kind.VM else None

    async def container(self, view: InstanceView) -> ContainerPlan | None:
        """What a BootPlan has of a container alone. Raises Exhausted, Lacking (ids)."""
        spec = view.instance.spec
        if spec.kind is not Kind.CONTAINER:
            return None
        ids = 0 if spec.container.privileged or self.ranges is None else await self.ranges.of(view.id)
        return ContainerPlan(ids=ids, spec=spec.container)

    def refuse_copied(self, view: InstanceView) -> None:
        """Raises Refused while an export reads its disks."""
        if operation := self.copied.get(view.id):
            raise Refused(
                f"{view.name} is being exported, and its disks must stand still for that",
                hint=f"wait for it: atoll operation wait {operation}, or atoll operation cancel {operation}",
            )

    async def admit(self, view: InstanceView, *, memory: Bytes | None = None) -> None:
        """Raises Exhausted where this instance's memory does not fit beside the others'."""
        others = [other for other in await self.book.all() if other.id != view.id]
        wants = view.instance.spec.memory if memory is None else memory
        admit(view.name, wants, others, self.memory(), over=overhead(view))

    async def bring_up(self, work: RunningWork, view: InstanceView) -> None:
        """Plug, attach and start the generation that the status names: steps "network" and "start"."""
        ports = tuple(
            UndoStep("port.unplug", {"network": nic.network, "port": nic.port})
            for nic in view.instance.hardware.nics
        )
        await work.step("network", *ports, percent=50)
        uid = await self.owner(view)
        nics = await self.supplies.plug(view, owner=uid)
        disks = await self.supplies.attach(view)
        booting = await self.supplies.boot(view)
        plan = BootPlan(
            id=view.id,
            project=view.project,
            name=view.name,
            generation=view.status.generation,
            hardware=view.instance.hardware,
            cpus=view.instance.spec.cpus,
            memory=view.instance.spec.memory,
            limits=view.instance.spec.limits,
            disks=disks,
            nics=nics,
            boot=booting.boot,
            agent=booting.agent,
            forkable=view.instance.spec.forkable,
            uid=uid,
            uefi=booting.uefi,
            cdrom=booting.cdrom,
            seed=booting.seed,
            container=await self.container(view),
        )
        end = UndoStep("guest.end", {"id": view.id, "generation": str(view.status.generation)})
        await work.step("start", end, percent=70)
        await self.engine(view).start(plan)

    async def record_running(self, work: RunningWork, view: InstanceView) -> InstanceView:
        """After a start. A guest that died since is found so by the keeper, or by the next `reconcile`."""

        def same(status: InstanceStatus) -> bool:
            return status.generation == view.status.generation

        await self.seen(view.id, State.RUNNING, only=same, restart_for=(), exit=None)
        now = await self.present(view.id)
        began, wanted = view.instance.spec, now.instance.spec  # what was set since it began came too late for it
        waits = tuple(name for name in LATE if getattr(began, name) != getattr(wanted, name))
        if waits:
            now = await self.seen(view.id, None, only=same, restart_for=waits) or now
        if now.name != view.name:
            await self.rename_ports(now)
        work.changed(status(view.id), view.status_revision, now.status_revision)
        return now

    async def record_stopped(self, work: RunningWork, view: InstanceView) -> InstanceView:
        """After a stop: ports let go, the exit recorded."""
        seen = (await self.engine(view).observe()).get(view.id)
        done = await self.ended(view, exit=seen.exit if seen else None, reason="", held=True) or view
        work.changed(status(view.id), view.status_revision, done.status_revision)
        return done

    async def ended(
        self, view: InstanceView, *, among: Collection[State] = HOLDING | {State.BROKEN}, **changes: Any
    ) -> InstanceView | None:
        """Nothing runs of the generation in `view` any more: its ports are let go, then that is recorded.

        Whoever comes second, finds a state not `among` these, or a newer generation, changes nothing.
        """
        async with self.turn(view.id):
            now = await self.book.by_id(view.id)
            if now is None or now.status.generation != view.status.generation or now.status.state not in among:
                return now
            try:
                await self.supplies.unplug(now)
            except AtollError as error:  # the truth matters more; the next plug or sweep mends the rest
                log.warning("could not unplug %s/%s: %s", now.project, now.name, error)
            return await self.seen(view.id, State.STOPPED, **changes)

    async def alive(self, view: InstanceView) -> bool:
        """Whether the host has its recorded generation, running or paused."""
        seen = (await self.engine(view).observe()).get(view.id)
        return seen is not None and seen.generation == view.status.generation and seen.state in ALIVE

    async def clear(self, work: RunningWork, view: InstanceView) -> InstanceView:
        """Take whatever a half-done start left of it; afterwards it is stopped."""
        await self.engine(view).stop(view.id, grace=0)
        return await self.record_stopped(work, view)

    async def remove(self, view: InstanceView) -> None:
        """Everything of it on this host, then its records. Whatever is gone already is fine."""
        engine = self.engine(view)
        await engine.stop(view.id, grace=0)
        await engine.forget(view.id)
        await self.supplies.unplug(view)
        await self.supplies.delete_disks(view)
        await self.forget(view)

    async def forget(self, view: InstanceView) -> None:
        """Its records and what they hold: uid, name, volumes, addresses, image reference. Raises Broken to a
        guest that lives on: without records nothing would ever end it."""
        seen = (await self.engine(view).observe()).get(view.id)
        if seen is not None and seen.state in ALIVE:
            await self.seen(view.id, State.BROKEN, reason="its guest could not be ended")
            raise Broken(f"{view.name} could not be ended", hint=f"atoll delete --force {view.name}")

        async def records() -> Txn:
            now = await self.book.by_id(view.id)
            return self.book.releasing(now) if now else Txn()

        await self.supplies.boots.remove(view.id)
        if self.uids:
            await self.uids.release(view.id)
        if self.ranges:
            await self.ranges.release(view.id)
        await self.supplies.release(view, records)
        self.tell_of(view, "instance.deleted")

    async def rename_ports(self, view: InstanceView) -> None:
        """The names under which its networks know it follow its own."""
        async with self.turn(view.id):
            now = await self.present(view.id)
            await self.supplies.rename(now, owner=await self.owner(now), running=now.status.state in ALIVE)

    async def named(self, work: RunningWork, project: str, name: str) -> InstanceView:
        """What an operation is about: by id where that is known (after a crash), for names move. Raises Absent."""
        id = work.operation.subject.id
        view = await self.present(id) if id else await self.book.get(project, name)
        work.about(id=view.id)
        return view

    async def present(self, id: str) -> InstanceView:
        view = await self.book.by_id(id)
        if view is None:
            raise Absent(f"instance {id} was deleted meanwhile")
        return view

    async def claim(
        self, work: RunningWork, view: InstanceView, state: State, terms: Terms, *, power: Power | None = None
    ) -> InstanceView:
        """Move it to a state in which this operation alone is at work on it; one that was at it is superseded.

        Should anybody change it meanwhile, `terms` judge it anew: they raise Refused, or tell what else changes.
        """
        for _ in range(RETRIES):
            now = msgspec.structs.replace(view.status, state=state, since=clock.now(), operation=work.id)
            now = msgspec.structs.replace(now, **await terms(view))
            try:
                claimed = await self.book.claim(view, now, power)
            except Conflict:
                view = await self.present(view.id)
                continue
            work.changed(status(view.id), view.status_revision, claimed.status_revision)
            if claimed.revision != view.revision:
                work.changed(definition(view.id), view.revision, claimed.revision)
            return claimed
        raise busy(view)

    async def define(
        self, work: RunningWork, view: InstanceView, change: Callable[[InstanceView], Awaitable[Instance]]
    ) -> InstanceView:
        """Write its definition as `change` makes it of the present one, judged anew if anybody was faster."""
        for _ in range(RETRIES):
            wanted = await change(view)
            if wanted == view.instance:
                return view
            try:
                written = await self.book.write_definition(view, wanted)
            except Conflict:
                view = await self.present(view.id)
                continue
            work.changed(definition(view.id), view.revision, written.revision)
            return written
        raise busy(view)

    async def seen(
        self,
        id: str,
        state: State | None,
        *,
        only: Callable[[InstanceStatus], bool] | None = None,
        **changes: object,
    ) -> InstanceView | None:
        """Record a fact about it, whoever else writes its status at the same time. None: it has no record.

        `state` None keeps the state. A state that may not follow the present one is not recorded, nor is
        anything where the present status is not as `only` wants it.
        """
        for _ in range(RETRIES):
            view = await self.book.by_id(id)
            if view is None or (only is not None and not only(view.status)):
                return view
            target = view.status.state if state is None else state
            if target is not view.status.state and target not in MAY_FOLLOW[view.status.state]:
                return view
            moved = {} if target is view.status.state else {"since": clock.now(), "operation": None}
            now = msgspec.structs.replace(view.status, state=target, **{**moved, **changes})
            if now == view.status:
                return view
            try:
                view = await self.book.write_status(view, now)
            except Conflict:
                continue
            if state is not None:
                self.tell_of(view, f"instance.{view.status.state}", {"reason": view.status.reason})
            return view
        raise Conflict(f"the status of {id} changes too often to be written")

    async def settle(self, id: str, operation: str) -> None:
        """Undo of a state that this operation put it in on its way: record what the host really has.

        A deletion that has begun stays one: its user deletes again.
        """
        view = await self.book.by_id(id)
        if view is None or view.status.operation != operation or view.status.state is State.GONE:
            return
        seen = (await self.engine(view).observe()).get(view.id)
        if seen is None or seen.state not in ALIVE:
            await self.ended(view, exit=(seen.exit if seen else None) or view.status.exit)
        else:
            await self.seen(id, seen.state, only=lambda now: now.operation == operation, reason=seen.reason)

    def turn(self, id: str) -> asyncio.Lock:
        """Held while an instance's ports are plugged or let go together with the record that says so."""
        return self.turns.setdefault(id, asyncio.Lock())

    def tell_of(self, view: InstanceView, kind: str, body: object = None) -> None:
        self.events.publish(kind, Subject("instance", view.project, view.name, view.id), body)


def busy(view: InstanceView) -> Conflict:
    return Conflict(f"{view.name} changes too often", hint=f"atoll history {view.name} tells who is at it")
