"""The contract of an engine: the thing that runs guests on this host. tests/contract/test_engine.py checks it.

An engine gets finished plans; it never reads the store, a pool or a network. Guests outlive it: a new engine
object over the same directory finds them with `adopt`.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Meta

from atoll.base.ids import Bytes, Generation, InstanceId
from atoll.instance.model import (
    BootPlan,
    Disk,
    DiskPlan,
    Exit,
    Hardware,
    Kind,
    Limits,
    MountSpec,
    Nic,
    NicPlan,
    State,
    Style,
)

Side = Annotated[int, Meta(ge=1, le=1000)]


class EngineTraits(msgspec.Struct, frozen=True):
    """What callers may rely on. `exec_terminal`: whether exec can give the program a terminal.
    `limits`: whether this user may bound what a guest takes of the host."""

    hot_cpus: bool = False
    hot_memory: bool = False
    pauses: bool = False
    limits: bool = False
    exec_terminal: bool = False


class Furnish(msgspec.Struct, frozen=True, kw_only=True):
    """What hardware an instance shall be born with. `arch`, `machine`: the image's wish where the user has none.

    `disks` (the first is the root) and `nics` come with slot 0: the engine gives each its place. The others are as
    in Hardware.
    """

    arch: str
    machine: str
    accel: str
    cpus: int
    memory: Bytes
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    firmware: Literal["bios", "uefi", "direct"] = "direct"
    uefi: str = ""
    style: Style = "virtio"
    cdrom: bool = False
    seed: bool = False
    versioned: str = ""


class Observed(msgspec.Struct, frozen=True):
    """A guest as the host has it now: running or paused with its `pid`; stopped with its `exit`.

    `reason` says why it is paused when nobody asked for it ("no space left on the host").
    """

    state: State
    generation: Generation
    pid: int = 0
    reason: str = ""
    exit: Exit | None = None
    agent: bool = False


class GuestEvent(msgspec.Struct, frozen=True):
    """News of a guest: what it is now. Sent within a second of the fact, without polling."""

    guest: InstanceId
    seen: Observed


class Engine(Protocol):
    kind: Kind
    traits: EngineTraits

    async def adopt(self) -> Mapping[InstanceId, Observed]:
        """Find every guest of a former engine object: those alive are held again, those that ended while
        nobody looked are reported with their `exit`. Where several generations of one guest are alive the
        newest counts and older ones are ended (fenced). Called once, before anything else."""

    async def furnish(self, want: Furnish) -> Hardware:
        """Resolve hardware at an instance's birth: versioned machine type, CPU model, slots, room to grow.

        Raises Invalid (what this machine type cannot have), Lacking (no such accelerator, architecture or
        machine type on this host)."""

    async def start(self, plan: BootPlan) -> None:
        """Returns when the guest runs. Raises Exists (it runs), Lacking, Exhausted, Broken, Unreachable."""

    async def stop(self, guest: InstanceId, *, grace: float) -> None:
        """Ask it to shut down, end it by force after `grace` seconds (0: at once). Absent is success.

        Returns when nothing of it runs. Its exit is reported as an event too.
        """

    async def pause(self, guest: InstanceId) -> None: ...
    async def resume(self, guest: InstanceId) -> None: ...

    async def resize(self, guest: InstanceId, *, cpus: int, memory: Bytes) -> None:
        """To that many CPUs and bytes while it runs. Raises Refused where this cannot be done live (the
        message says why: the change then waits for the next start), Absent, Broken."""

    async def limit(self, guest: InstanceId, limits: Limits) -> None:
        """Set its limits and shares while it runs. Without the right to (an ordinary user): Lacking."""

    async def forget(self, guest: InstanceId) -> None:
        """Remove what a guest that ended left on this host (run directory, cgroup, logs). Absent is success."""

    async def observe(self) -> Mapping[InstanceId, Observed]: ...

    def events(self) -> AsyncIterator[GuestEvent]:
        """Every change from the moment of the call, without end."""

    async def close(self) -> None:
        """Let go of the guests, which go on."""


@runtime_checkable
class Disks(Protocol):
    """Disks that come and go after birth."""

    def seat(self, hardware: Hardware, disk: Disk) -> Hardware:
        """With one more disk, in the lowest free slot; on AHCI where it asks for virtio and the hardware is
        `compatible`. Raises Exhausted (no place is left), Invalid (a bus that this machine has not)."""

    async def add_disk(self, guest: InstanceId, disk: DiskPlan) -> None:
        """To a guest that runs. One that is there already is success. Raises Absent, Refused (this machine, bus or
        slot takes none while it runs: at its next start it does), Broken, Unreachable."""

    async def remove_disk(self, guest: InstanceId, slot: int, *, timeout: float) -> None:
        """Ask the guest to let go of it; when it has, it is taken away. Absent is success.

        Raises Absent (no such guest), Refused (it did not let go within `timeout` seconds, or this bus cannot
        while it runs). A guest that lets go later finds it gone; calling again then takes away the rest.
        """

    async def grow_disk(self, guest: InstanceId, slot: int, size: Bytes) -> None:
        """Tell the guest that it is larger now. Raises Absent, Broken, Unreachable."""

    async def mounts(self, guest: InstanceId, slot: int) -> tuple[str, ...]:
        """Where the guest has it mounted, as the guest tells it. None where it tells nothing."""


class Stream(Protocol):
    """Both directions of a console. `read` returns b"" at its end."""

    async def read(self) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...


@runtime_checkable
class Consoles(Protocol):
    async def console(self, guest: InstanceId) -> Stream:
        """The serial console, starting with its last lines; any number may be open. Raises Absent, Refused."""

    async def log(self, guest: InstanceId, *, limit: int = 64 << 10) -> bytes:
        """The last `limit` bytes of what the guest wrote to its serial console and its engine to its log."""


class Outcome(msgspec.Struct, frozen=True):
    """What a program in a guest did. `signal`: 0 unless one ended it. `truncated`: output was over the bound."""

    code: int
    stdout: bytes
    stderr: bytes
    signal: int = 0
    truncated: bool = False


@runtime_checkable
class Executes(Protocol):
    async def ready(self, guest: InstanceId, *, timeout: float) -> None:
        """Returns once its agent answers. Raises Unreachable at the deadline, Broken where the guest ends."""

    async def execute(
        self,
        guest: InstanceId,
        argv: tuple[str, ...],
        *,
        input: bytes = b"",
        env: Mapping[str, str] = {},
        timeout: float | None = None,
    ) -> Outcome:
        """Run a program to its end. Raises Absent (no such program: 127), Unreachable, Refused (not running)."""

    def pull(self, guest: InstanceId, path: str) -> AsyncIterator[bytes]: ...
    async def push(self, guest: InstanceId, path: str, chunks: AsyncIterator[bytes], *, mode: int) -> int: ...
    async def addresses(self, guest: InstanceId) -> Mapping[str, tuple[str, ...]]:
        """By MAC: the addresses that the guest itself has."""


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program to talk to while it runs. `user`: name or number in the guest, "": root. `terminal`: columns and
    rows of one of its own, None: pipes. `term`: what kind of terminal."""

    argv: Annotated[tuple[Annotated[str, Meta(max_length=128 << 10)], ...], Meta(min_length=1, max_length=4096)]
    env: dict[
        Annotated[str, Meta(pattern="^[^=\\x00]+$", max_length=255)], Annotated[str, Meta(max_length=65536)]
    ] = {}
    user: Annotated[str, Meta(max_length=64)] = ""
    directory: Annotated[str, Meta(max_length=4096)] = ""
    terminal: tuple[Side, Side] | None = None
    term: Annotated[str, Meta(pattern="^[a-zA-Z0-9._+-]{0,64}$")] = ""


class Ended(msgspec.Struct, frozen=True):
    """How a program ended: exit code, and the signal where one ended it (the code is then 128 and more)."""

    code: int
    signal: int = 0


class Session(Protocol):
    """A running program. `read` gives (1 for output, 2 for errors; bytes), none at its end."""

    async def read(self) -> tuple[int, bytes]: ...
    async def write(self, data: bytes) -> None: ...
    async def eof(self) -> None:
        """It is told no more."""

    def resize(self, columns: int, rows: int) -> None: ...
    def signal(self, number: int) -> None: ...
    async def ended(self) -> Ended: ...
    async def close(self) -> None:
        """End it, where it still runs."""


@runtime_checkable
class Opens(Protocol):
    async def open(self, guest: InstanceId, command: Command) -> Session:
        """Start a program. Raises Absent (no such guest or user), Refused (it does not run)."""

    async def login(self, guest: InstanceId, *, user: str, columns: int, rows: int) -> Session:
        """A login shell on a terminal. Raises as `open`."""


class Stats(msgspec.Struct, frozen=True):
    """Counters since the guest's start: seconds, bytes, operations; `memory`: bytes of the host it holds now."""

    cpu_seconds: float
    memory: Bytes
    disk_read: int = 0
    disk_written: int = 0
    disk_reads: int = 0
    disk_writes: int = 0
    net_received: int = 0
    net_sent: int = 0


@runtime_checkable
class Measures(Protocol):
    async def stats(self, guest: InstanceId) -> Stats: ...


@runtime_checkable
class HotNics(Protocol):
    """NICs of a guest that runs. `slot` names one. All raise Absent where the guest does not run."""

    def place(self, hardware: Hardware) -> int:
        """The slot for one more NIC. Raises Invalid where there is none."""

    async def add_nic(self, guest: InstanceId, nic: NicPlan) -> None:
        """Plug it in; one that is in stays. Raises Refused where it must wait for the next start."""

    async def remove_nic(self, guest: InstanceId, slot: int) -> None:
        """Returns once the guest has let it go. Absent is success. Raises Refused where the guest does not."""

    async def set_link(self, guest: InstanceId, slot: int, *, up: bool) -> None:
        """Its cable in or out."""


@runtime_checkable
class Mounts(Protocol):
    """Directories of the host in a guest that runs."""

    async def add_mount(self, guest: InstanceId, mount: MountSpec) -> None:
        """One that is there stays. Raises Absent (no such guest or directory), Lacking, Broken."""

    async def remove_mount(self, guest: InstanceId, path: str) -> None:
        """Absent is success. Raises Absent (no such guest), Refused (it is in use)."""


@runtime_checkable
class Displays(Protocol):
    async def display(self, guest: InstanceId) -> str:
        """The path of the unix socket on which its screen is served as VNC. Raises Absent, Refused."""

    async def screenshot(self, guest: InstanceId) -> bytes:
        """What is on its screen now, as PNG. Raises Absent, Refused (it has none), Broken, Unreachable."""


@runtime_checkable
class Ejects(Protocol):
    async def eject(self, guest: InstanceId) -> None:
        """Take out what is in its CD-ROM drive, locked or not. An empty drive is success. Raises Absent, Broken."""

    async def insert(self, guest: InstanceId, iso: str) -> None:
        """Have the disc at that path in its drive, in place of what is there. Where it fails the drive is empty.
        Raises Absent, Refused (it has no drive), Broken."""
