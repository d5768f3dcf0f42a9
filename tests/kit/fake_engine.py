"""An engine that works in memory and passes the contract suite. Its guests live in `host`, which several engine
objects may share, as several daemons one after the other share a host."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from itertools import count

import msgspec

from atoll.base import clock
from atoll.base.errors import Absent, Exists, Refused
from atoll.base.ids import Bytes, Generation, InstanceId
from atoll.base.units import GiB
from atoll.instance.engine import EngineTraits, Furnish, GuestEvent, Observed
from atoll.instance.model import BootPlan, Exit, Hardware, Kind, Limits, State
from tests.kit.faults import Faults

PIDS = count(1000)


@dataclass
class FakeHost:
    """Guests by instance and generation: alive ones have a pid, ended ones their exit."""

    guests: dict[tuple[InstanceId, Generation], Observed] = field(default_factory=dict)
    limits: dict[InstanceId, Limits] = field(default_factory=dict)


class FakeEngine(Faults):
    kind = Kind.VM
    traits = EngineTraits(hot_cpus=True, hot_memory=True, pauses=True)

    def __init__(self, host: FakeHost | None = None) -> None:
        super().__init__()
        self.host = host or FakeHost()
        self._listeners: set[asyncio.Queue[GuestEvent]] = set()

    async def adopt(self) -> Mapping[InstanceId, Observed]:
        newest: dict[InstanceId, Generation] = {}
        for guest, generation in self.host.guests:
            newest[guest] = max(newest.get(guest, generation), generation)
        for guest, generation in list(self.host.guests):
            if generation < newest[guest]:
                del self.host.guests[guest, generation]  # fenced
        return await self.observe()

    async def furnish(self, want: Furnish) -> Hardware:
        self.maybe("furnish")
        return Hardware(
            arch=want.arch,
            machine="pc-q35-7.2",
            accel="tcg",
            cpu="qemu64",
            max_cpus=8,
            max_memory=Bytes(16 * GiB),
            disks=tuple(msgspec.structs.replace(disk, slot=1 + n) for n, disk in enumerate(want.disks)),
            nics=tuple(msgspec.structs.replace(nic, slot=8 + n) for n, nic in enumerate(want.nics)),
        )

    async def start(self, plan: BootPlan) -> None:
        seen = self._newest(plan.id)
        if seen is not None and seen.pid:
            raise Exists(f"{plan.name} runs already")
        # Even a start that fails may have happened.
        self._set(plan.id, Observed(State.RUNNING, plan.generation, pid=next(PIDS), agent=plan.agent))
        self.maybe("start")

    async def stop(self, guest: InstanceId, *, grace: float) -> None:
        self.maybe("stop")
        seen = self._newest(guest)
        if seen is not None and seen.pid:
            reason = "shut down by its user" if grace else "ended by force"
            self.die(guest, Exit(reason, True, clock.now()))

    async def pause(self, guest: InstanceId) -> None:
        self.maybe("pause")
        self._set(guest, msgspec.structs.replace(self._alive(guest), state=State.PAUSED))

    async def resume(self, guest: InstanceId) -> None:
        self.maybe("resume")
        self._set(guest, msgspec.structs.replace(self._alive(guest), state=State.RUNNING))

    async def resize(self, guest: InstanceId, *, cpus: int, memory: Bytes) -> None:
        self.maybe("resize")
        self._alive(guest)

    async def limit(self, guest: InstanceId, limits: Limits) -> None:
        self.maybe("limit")
        self._alive(guest)
        self.host.limits[guest] = limits

    async def forget(self, guest: InstanceId) -> None:
        self.maybe("forget")
        if (seen := self._newest(guest)) is not None and seen.pid:
            raise Refused(f"{guest} runs")
        for key in [key for key in self.host.guests if key[0] == guest]:
            del self.host.guests[key]

    async def observe(self) -> Mapping[InstanceId, Observed]:
        return {guest: seen for guest, _ in self.host.guests if (seen := self._newest(guest))}

    async def events(self) -> AsyncIterator[GuestEvent]:
        queue: asyncio.Queue[GuestEvent] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def close(self) -> None:
        return None

    def die(self, guest: InstanceId, exit: Exit) -> None:
        """A guest ends, by itself or by somebody's hand."""
        alive = self._alive(guest)
        self._set(guest, Observed(State.STOPPED, alive.generation, exit=exit))

    def _set(self, guest: InstanceId, seen: Observed) -> None:
        self.host.guests[guest, seen.generation] = seen
        for queue in self._listeners:
            queue.put_nowait(GuestEvent(guest, seen))

    def _newest(self, guest: InstanceId) -> Observed | None:
        found = [seen for (id, _), seen in self.host.guests.items() if id == guest]
        return max(found, key=lambda seen: seen.generation) if found else None

    def _alive(self, guest: InstanceId) -> Observed:
        seen = self._newest(guest)
        if seen is None or not seen.pid:
            raise Absent(f"{guest} does not run")
        return seen
