"""What every instance verb works with on this host: records, engines, supplies, and the moves they share."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from atoll.base import clock
from atoll.base.errors import Conflict, Lacking
from atoll.base.ids import Bytes, HostId
from atoll.instance.admission import HostMemory, admit
from atoll.instance.book import InstanceBook, InstanceView
from atoll.instance.engine import Engine, Observed
from atoll.instance.model import MAY_FOLLOW, BootPlan, InstanceStatus, Kind, State
from atoll.instance.supplies import Supplies
from atoll.instance.uids import Uids
from atoll.operation.events import Events
from atoll.operation.model import Subject
from atoll.operation.runner import RunningWork
from atoll.operation.verb import UndoStep

ALIVE = frozenset({State.RUNNING, State.PAUSED})
RETRIES = 20


@dataclass(frozen=True, slots=True)
class Here:
    host: HostId
    book: InstanceBook
    engines: Mapping[Kind, Engine]
    supplies: Supplies
    uids: Uids | None
    memory: Callable[[], HostMemory]
    events: Events
    admission: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from reading what is promised to recording the new promise: only the owning host admits."""

    def engine(self, view: InstanceView) -> Engine:
        try:
            return self.engines[view.instance.spec.kind]
        except KeyError as error:
            raise Lacking(f"this host runs no {view.instance.spec.kind}") from error

    async def owner(self, view: InstanceView) -> int | None:
        """The unprivileged uid its guest runs as; None where the daemon has no right to change it."""
        return await self.uids.of(view.id) if self.uids else None

    async def admit(self, view: InstanceView, *, memory: Bytes | None = None) -> None:
        """Raises Exhausted where this instance's memory does not fit beside the others'."""
        others = [other for other in await self.book.all() if other.id != view.id]
        wants = view.instance.spec.memory if memory is None else memory
        admit(view.name, wants, others, self.memory())

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
        boot, agent = await self.supplies.boot(view)
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
            boot=boot,
            agent=agent,
            forkable=view.instance.spec.forkable,
            uid=uid,
        )
        await work.step("start", UndoStep("guest.end", {"id": view.id}), percent=70)
        await self.engine(view).start(plan)

    async def record_running(self, work: RunningWork, view: InstanceView) -> InstanceView:
        """After a start. A guest that died since is found so by the keeper, or by the next `reconcile`."""
        before = view.status_revision
        view = await self.seen(view.id, State.RUNNING, restart_for=(), exit=None) or view
        work.changed(f"status/{view.id}", before, view.status_revision)
        return view

    async def record_stopped(self, id: str) -> InstanceView:
        """After a stop: ports and disks let go, the exit recorded."""
        view = await self.present(id)
        seen = (await self.engine(view).observe()).get(view.id)
        await self.supplies.unplug(view)
        done = await self.seen(id, State.STOPPED, exit=seen.exit if seen else None, reason="")
        return done or view

    async def alive(self, view: InstanceView) -> bool:
        """Whether the host has its recorded generation, running or paused."""
        seen = (await self.engine(view).observe()).get(view.id)
        return seen is not None and seen.generation == view.status.generation and seen.state in ALIVE

    async def clear(self, view: InstanceView) -> InstanceView:
        """Take whatever a half-done start left of it; afterwards it is stopped."""
        await self.engine(view).stop(view.id, grace=0)
        return await self.record_stopped(view.id)

    async def remove(self, view: InstanceView) -> None:
        """Everything of it on this host, then its records. Whatever is gone already is fine."""
        engine = self.engine(view)
        await engine.stop(view.id, grace=0)
        await engine.forget(view.id)
        await self.supplies.unplug(view)
        await self.supplies.delete_disks(view)
        await self.supplies.release(view, self.book.releasing(view))
        if self.uids:
            await self.uids.release(view.id)
        self.tell_of(view, "instance.deleted")

    async def rename_ports(self, view: InstanceView) -> None:
        """The names under which its networks know it follow its own."""
        await self.supplies.rename(view, owner=await self.owner(view), running=view.status.state in ALIVE)
        self.tell_of(view, "instance.renamed")

    async def present(self, id: str) -> InstanceView:
        view = await self.book.by_id(id)
        if view is None:
            raise Conflict(f"instance {id} was deleted meanwhile")
        return view

    async def seen(self, id: str, state: State | None, **changes: object) -> InstanceView | None:
        """Record a fact about it, whoever else writes its status at the same time. None: it has no record.

        `state` None keeps the state. A state that may not follow the present one is not recorded.
        """
        for _ in range(RETRIES):
            view = await self.book.by_id(id)
            if view is None:
                return None
            target = view.status.state if state is None else state
            if target is not view.status.state:
                if target not in MAY_FOLLOW[view.status.state]:
                    return view
                changes = {"since": clock.now(), "operation": None, **changes}
            try:
                view = await self.book.move(view, target, **changes)
            except Conflict:
                continue
            if state is not None:
                self.tell_of(view, f"instance.{view.status.state}", {"reason": view.status.reason})
            return view
        raise Conflict(f"the status of {id} changes too often to be written")

    async def settle(self, id: str) -> None:
        """Undo of a state that was only on its way: record what the host really has."""
        view = await self.book.by_id(id)
        if view is None or view.status.state is State.CREATING:
            return
        seen = (await self.engine(view).observe()).get(view.id) or Observed(State.STOPPED, view.status.generation)
        if view.status.state is State.GONE:
            await self._revive(view, seen.state)
        elif seen.state is State.STOPPED:
            await self.supplies.unplug(view)
            await self.seen(id, State.STOPPED, exit=seen.exit or view.status.exit)
        else:
            await self.seen(id, seen.state, reason=seen.reason)

    async def _revive(self, view: InstanceView, state: State) -> None:
        """A deletion that had removed nothing yet is taken back: the one way out of `gone`."""
        status = InstanceStatus(
            host=view.status.host, state=state, generation=view.status.generation, since=clock.now()
        )
        await self.book.write_status(view, status)

    def tell_of(self, view: InstanceView, kind: str, body: object = None) -> None:
        self.events.publish(kind, Subject("instance", view.project, view.name, view.id), body)
