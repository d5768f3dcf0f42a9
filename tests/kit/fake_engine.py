"""An engine whose guests are entries of a table. It passes the same contract suite as the real ones.

The table (`FakeHost`) outlives the engine as a host's processes would: give it to the next `FakeEngine`.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from atoll.base import clock
from atoll.base.errors import Absent, Exhausted, Exists, Invalid, Lacking, Refused, Unreachable
from atoll.base.ids import Bytes, Generation, InstanceId
from atoll.base.units import MiB
from atoll.instance.engine import EngineTraits, Furnish, GuestEvent, Observed, Outcome, Stats
from atoll.instance.engines.feed import Feed
from atoll.instance.model import (
    BootPlan,
    CdromPlan,
    Disk,
    DiskPlan,
    Exit,
    Hardware,
    Kind,
    Limits,
    NicPlan,
    State,
    Style,
)
from tests.kit.faults import Faults

CRASH = "killed by SIGKILL"


@dataclass
class FakeGuest:
    plan: BootPlan
    pid: int
    state: State = State.RUNNING
    reason: str = ""
    exit: Exit | None = None
    cpus: int = 1
    memory: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    console: bytes = b"Welcome\r\n"
    mounts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    grown: dict[int, int] = field(default_factory=dict)
    clings: set[int] = field(default_factory=set)

    @property
    def alive(self) -> bool:
        return self.exit is None

    @property
    def seen(self) -> Observed:
        if self.exit:
            return Observed(State.STOPPED, self.plan.generation, exit=self.exit)
        return Observed(self.state, self.plan.generation, pid=self.pid, reason=self.reason, agent=self.plan.agent)


@dataclass
class FakeHost:
    """Every generation of every guest that left something here."""

    guests: dict[tuple[InstanceId, Generation], FakeGuest] = field(default_factory=dict)
    pids: int = 1000


class FakeEngine(Faults):
    """`heeds`: whether guests shut down when asked. `calls`: the names of the calls made, in order."""

    kind = Kind.VM
    traits = EngineTraits(hot_cpus=True, hot_memory=True, pauses=True, limits=True)

    def __init__(self, host: FakeHost | None = None, *, heeds: bool = True) -> None:
        super().__init__()
        self.host = host or FakeHost()
        self.heeds = heeds
        self.calls: list[str] = []
        self._held: dict[InstanceId, FakeGuest] = {}
        self._feed: Feed[GuestEvent] = Feed()

    def maybe(self, call: str) -> None:
        self.calls.append(call)
        super().maybe(call)

    # what a test does to the host

    def die(self, guest: InstanceId, exit: Exit | None = None) -> None:
        """It ends from outside, whether or not an engine looks."""
        newest = max((g for (id, _), g in self.host.guests.items() if id == guest), key=lambda g: g.plan.generation)
        newest.exit = exit or Exit(CRASH, False, clock.now(), ("the last line",))
        self._tell(newest)

    def stall(self, guest: InstanceId, reason: str) -> None:
        """It pauses by itself: `reason`, or "" to go on."""
        held = self._alive(guest)
        held.state, held.reason = (State.PAUSED if reason else State.RUNNING), reason
        self._tell(held)

    def put(self, plan: BootPlan) -> None:
        """A guest runs that no engine started (one of another daemon's time)."""
        self.host.pids += 1
        guest = FakeGuest(plan, self.host.pids, cpus=plan.cpus, memory=plan.memory)
        self.host.guests[plan.id, plan.generation] = guest

    # the contract

    async def adopt(self) -> Mapping[InstanceId, Observed]:
        self.maybe("adopt")
        for (id, _), guest in sorted(self.host.guests.items(), key=lambda item: item[0][1], reverse=True):
            newer = self._held.get(id)
            if newer is None or (guest.alive and not newer.alive):
                self._held[id] = guest
        for (id, generation), guest in list(self.host.guests.items()):
            if self._held[id] is not guest:
                del self.host.guests[id, generation]
        return await self.observe()

    async def furnish(self, want: Furnish) -> Hardware:
        self.maybe("furnish")
        if want.arch != "x86_64":
            raise Lacking(f"this host runs no {want.arch} guests")
        if want.accel == "kvm":
            raise Lacking("KVM does not work on this host: it is a fake")
        if want.memory < 32 * MiB:
            raise Invalid("too little memory", field="spec.memory")
        disks = tuple(replace(fit(want.style, disk), slot=slot) for slot, disk in enumerate(want.disks))
        nics = tuple(replace(nic, slot=slot) for slot, nic in enumerate(want.nics, len(disks)))
        machine = {"auto": "pc-q35-7.2", "q35": "pc-q35-7.2", "pc": "pc-i440fx-7.2"}.get(want.machine, want.machine)
        return Hardware(
            arch="x86_64",
            machine=machine,
            accel="tcg",
            cpu="qemu64",
            max_cpus=want.cpus * 4,
            max_memory=Bytes(want.memory * 4),
            disks=disks,
            nics=nics,
            firmware=want.firmware,
            uefi=want.uefi,
            style=want.style,
            cdrom=want.cdrom,
            seed=want.seed,
        )

    async def start(self, plan: BootPlan) -> None:
        held = self._held.get(plan.id)
        if held and held.alive:
            raise Exists(f"{plan.name} is running already")
        self.maybe("start")
        await asyncio.sleep(0)
        await self.forget(plan.id)
        self.put(plan)
        self._held[plan.id] = self.host.guests[plan.id, plan.generation]
        self._tell(self._held[plan.id])

    async def stop(self, guest: InstanceId, *, grace: float) -> None:
        self.maybe("stop")
        held = self._held.get(guest)
        if held is None or not held.alive:
            return
        if grace > 0 and not self.heeds:
            await asyncio.sleep(grace)
        clean = grace > 0 and self.heeds
        held.exit = Exit("the guest shut down" if clean else "ended by force", True, clock.now())
        self._tell(held)

    async def pause(self, guest: InstanceId) -> None:
        self.maybe("pause")
        held = self._alive(guest)
        held.state = State.PAUSED
        self._tell(held)

    async def resume(self, guest: InstanceId) -> None:
        self.maybe("resume")
        held = self._alive(guest)
        held.state, held.reason = State.RUNNING, ""
        self._tell(held)

    async def resize(self, guest: InstanceId, *, cpus: int, memory: Bytes) -> None:
        self.maybe("resize")
        held = self._alive(guest)
        fixed = held.plan.hardware
        if cpus < held.cpus or memory < held.memory or cpus > fixed.max_cpus or memory > fixed.max_memory:
            raise Refused(
                f"{held.plan.name} cannot change so while it runs", hint="it can be set for the next start"
            )
        held.cpus, held.memory = cpus, memory

    async def limit(self, guest: InstanceId, limits: Limits) -> None:
        self.maybe("limit")
        held = self._alive(guest)
        held.plan = replace(held.plan, limits=limits)

    def seat(self, hardware: Hardware, disk: Disk) -> Hardware:
        taken = {d.slot for d in hardware.disks} | {n.slot for n in hardware.nics}
        free = next((slot for slot in range(16) if slot not in taken), None)
        if free is None:
            raise Exhausted("all 16 places for disks and NICs are taken")
        return replace(hardware, disks=(*hardware.disks, replace(fit(hardware.style, disk), slot=free)))

    async def add_disk(self, guest: InstanceId, disk: DiskPlan) -> None:
        self.maybe("add_disk")
        held = self._alive(guest)
        if disk.bus == "ahci":
            raise Refused("a disk on ahci neither comes nor goes while it runs", field="bus")
        others = tuple(other for other in held.plan.disks if other.slot != disk.slot)
        held.plan = replace(held.plan, disks=(*others, disk))

    async def remove_disk(self, guest: InstanceId, slot: int, *, timeout: float) -> None:
        self.maybe("remove_disk")
        held = self._alive(guest)
        if slot not in {disk.slot for disk in held.plan.disks}:
            return
        if held.state is State.PAUSED:
            raise Refused(f"{held.plan.name} is paused and cannot let go of it", hint="resume it")
        if slot in held.clings:
            raise Refused(f"{held.plan.name} did not let go of the disk within {timeout:g} s")
        held.plan = replace(held.plan, disks=tuple(disk for disk in held.plan.disks if disk.slot != slot))
        held.mounts.pop(slot, None)

    async def grow_disk(self, guest: InstanceId, slot: int, size: Bytes) -> None:
        self.maybe("grow_disk")
        self._alive(guest).grown[slot] = size

    async def mounts(self, guest: InstanceId, slot: int) -> tuple[str, ...]:
        self.maybe("mounts")
        return self._alive(guest).mounts.get(slot, ())

    def place(self, hardware: Hardware) -> int:
        taken = {disk.slot for disk in hardware.disks} | {nic.slot for nic in hardware.nics}
        return next(slot for slot in range(1, 99) if slot not in taken)

    async def add_nic(self, guest: InstanceId, nic: NicPlan) -> None:
        self.maybe("add_nic")
        held = self._alive(guest)
        others = tuple(one for one in held.plan.nics if one.slot != nic.slot)
        held.plan = replace(held.plan, nics=(*others, nic))

    async def remove_nic(self, guest: InstanceId, slot: int) -> None:
        self.maybe("remove_nic")
        held = self._alive(guest)
        held.plan = replace(held.plan, nics=tuple(nic for nic in held.plan.nics if nic.slot != slot))

    async def set_link(self, guest: InstanceId, slot: int, *, up: bool) -> None:
        self.maybe("set_link")
        held = self._alive(guest)
        nics = tuple(replace(nic, link=up) if nic.slot == slot else nic for nic in held.plan.nics)
        held.plan = replace(held.plan, nics=nics)

    async def forget(self, guest: InstanceId) -> None:
        held = self._held.get(guest)
        if held is not None and held.alive:
            raise Refused("it is running", hint="stop it first")
        self._held.pop(guest, None)
        for key in [key for key in self.host.guests if key[0] == guest]:
            del self.host.guests[key]

    async def observe(self) -> Mapping[InstanceId, Observed]:
        return {id: guest.seen for id, guest in self._held.items()}

    def events(self) -> AsyncIterator[GuestEvent]:
        return self._feed.listen()

    async def close(self) -> None:
        self._held = {}

    # beside it

    async def console(self, guest: InstanceId) -> "FakeStream":
        return FakeStream(self._alive(guest))

    async def log(self, guest: InstanceId, *, limit: int = 64 << 10) -> bytes:
        if guest not in self._held:
            raise Absent("there is no log of it on this host")
        return self._held[guest].console[-limit:]

    async def display(self, guest: InstanceId) -> str:
        return f"/nowhere/{self._alive(guest).plan.id}.vnc"

    async def screenshot(self, guest: InstanceId) -> bytes:
        self._alive(guest)
        return b"\x89PNG\r\n\x1a\n"

    async def eject(self, guest: InstanceId) -> None:
        self.maybe("eject")
        held = self._alive(guest)
        if held.plan.cdrom is not None:
            held.plan = replace(held.plan, cdrom=CdromPlan())

    async def insert(self, guest: InstanceId, iso: str) -> None:
        held = self._alive(guest)
        if held.plan.cdrom is None:
            raise Refused(f"{held.plan.name} has no CD-ROM drive")
        held.plan = replace(held.plan, cdrom=CdromPlan())
        self.maybe("insert")
        held.plan = replace(held.plan, cdrom=CdromPlan(iso))

    async def stats(self, guest: InstanceId) -> Stats:
        return Stats(cpu_seconds=1.5, memory=Bytes(self._alive(guest).memory))

    async def ready(self, guest: InstanceId, *, timeout: float) -> None:
        self.maybe("ready")
        held = self._alive(guest)
        if not held.plan.agent:
            await asyncio.sleep(timeout)
            raise Unreachable(f"the agent of {held.plan.name} did not answer within {timeout:g} s")

    async def execute(
        self,
        guest: InstanceId,
        argv: tuple[str, ...],
        *,
        input: bytes = b"",
        env: Mapping[str, str] = {},
        timeout: float | None = None,
    ) -> Outcome:
        """Knows echo, cat, true, false, env and sleep."""
        self.maybe("execute")
        self._answering(guest)
        match argv:
            case ("echo", *words):
                return Outcome(0, " ".join(words).encode() + b"\n", b"")
            case ("cat",):
                return Outcome(0, input, b"")
            case ("true" | "false" as word,):
                return Outcome(int(word == "false"), b"", b"")
            case ("env",):
                return Outcome(0, "".join(f"{k}={v}\n" for k, v in env.items()).encode(), b"")
            case ("sleep", seconds):
                await self._sleep(float(seconds), timeout)
                return Outcome(0, b"", b"")
        raise Absent(f"the guest has no program {argv[0]}")

    async def _sleep(self, seconds: float, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(seconds)
        except TimeoutError as error:
            raise Unreachable(f"sleep did not end within {timeout:g} s") from error

    async def pull(self, guest: InstanceId, path: str) -> AsyncIterator[bytes]:
        held = self._answering(guest)
        if path not in held.files:
            raise Absent(f"the guest has no {path}")
        yield held.files[path]

    async def push(self, guest: InstanceId, path: str, chunks: AsyncIterator[bytes], *, mode: int) -> int:
        held = self._answering(guest)
        held.files[path] = b"".join([chunk async for chunk in chunks])
        return len(held.files[path])

    async def addresses(self, guest: InstanceId) -> Mapping[str, tuple[str, ...]]:
        return {nic.mac: nic.addresses for nic in self._answering(guest).plan.hardware.nics}

    def _alive(self, guest: InstanceId) -> FakeGuest:
        held = self._held.get(guest)
        if held is None or not held.alive:
            raise Absent("it is not running on this host")
        return held

    def _answering(self, guest: InstanceId) -> FakeGuest:
        held = self._alive(guest)
        if held.state is not State.RUNNING or not held.plan.agent:
            raise Refused(f"{held.plan.name} is {held.state}, or has no agent", hint="atoll resume")
        return held

    def _tell(self, guest: FakeGuest) -> None:
        if self._held.get(guest.plan.id) is guest:
            self._feed.tell(GuestEvent(guest.plan.id, guest.seen))


def fit(style: Style, disk: Disk) -> Disk:
    return replace(disk, bus="ahci") if style == "compatible" and disk.bus == "virtio" else disk


class FakeStream:
    """Echoes what is typed."""

    def __init__(self, guest: FakeGuest) -> None:
        self._guest, self._at = guest, 0
        self._more = asyncio.Event()
        self._closed = False

    async def read(self) -> bytes:
        while self._at == len(self._guest.console) and not self._closed and self._guest.alive:
            self._more.clear()
            await self._more.wait()
        data, self._at = self._guest.console[self._at :], len(self._guest.console)
        return data

    async def write(self, data: bytes) -> None:
        self._guest.console += data
        self._more.set()

    async def close(self) -> None:
        self._closed = True
        self._more.set()
