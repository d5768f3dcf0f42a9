"""How to tell whether a part works, without changing anything on the host.

Network parts are tried for real in a network namespace that ends with the program that tries them. What would load
a module is not tried: a module that is there and not loaded yet counts as present.
"""

import asyncio
import fcntl
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from atoll.base.errors import AtollError, Lacking
from atoll.host.probe.accel import Accel, device_trouble
from atoll.host.probe.cgroups import Cgroups
from atoll.host.run import find, run

State = Literal["present", "missing", "unknown"]
Found = tuple[State, str]
_FICLONE = 0x40049409  # linux/fs.h
_MODULE = re.compile(r"([^/]+?)\.ko(?:\.\w+)?(?::.*)?\Z")
_UNKNOWABLE = ("not permitted", "ermission denied", "unshare failed")


class Bench(NamedTuple):
    """What the ways share: where state is kept, what is known already, how to enter a namespace of one's own."""

    state: Path
    accel: Accel | None
    cgroups: Cgroups
    loadable: frozenset[str]
    unshare: tuple[str, ...]

    def pending(self, modules: tuple[str, ...]) -> str:
        """The modules of these that are there but not loaded yet."""
        return " ".join(
            module for module in modules if module in self.loadable and not Path("/sys/module", module).exists()
        )


def bench(state: Path, accel: Accel | None, cgroups: Cgroups) -> Bench:
    unshare = ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-rn")
    return Bench(state, accel, cgroups, frozenset(loadable_modules()), unshare)


def loadable_modules(root: Path = Path("/lib/modules")) -> Iterator[str]:
    """The modules of the running kernel that can be loaded, with underscores; none where it keeps none."""
    try:
        text = (root / platform.release() / "modules.dep").read_text()
    except OSError:
        return
    for line in text.splitlines():
        if match := _MODULE.search(line.partition(":")[0]):
            yield match.group(1).replace("-", "_")


def _text(path: str) -> str:
    """A file of the kernel's: memory, no disk, so read in place."""
    return Path(path).read_text()


def _exists(path: str) -> bool:
    return os.path.exists(path)


class Way(Protocol):
    async def look(self, bench: Bench, /) -> Found:
        """Present, missing or unknown, and in what way. Changes nothing; may raise an `AtollError` for unknown."""
        ...


class Tried(NamedTuple):
    """A command that works in a fresh network namespace where the part is there."""

    argv: tuple[str, ...]
    modules: tuple[str, ...] = ()
    input: str = ""

    async def look(self, bench: Bench) -> Found:
        if pending := bench.pending(self.modules):
            return "present", f"module {pending} is loaded at first use"
        find(self.argv[0])
        ran = await run([*bench.unshare, *self.argv], input=self.input.encode(), timeout=2.5, check=False)
        if ran.code == 0:
            return "present", ""
        said = " ".join(ran.stderr.decode(errors="replace").splitlines()[:1])
        return "unknown" if any(word in said for word in _UNKNOWABLE) else "missing", said[:200]


class Node(NamedTuple):
    """A device node that this user may open; not opened, for that would load its module."""

    path: str
    modules: tuple[str, ...] = ()

    async def look(self, bench: Bench) -> Found:
        if _exists(self.path):
            usable = os.access(self.path, os.R_OK | os.W_OK)
            return ("present", "") if usable else ("missing", f"{self.path} may not be opened by this user")
        if pending := bench.pending(self.modules):
            return "present", f"module {pending} is not loaded yet"
        return "missing", f"{self.path} is absent"


class Listed(NamedTuple):
    """A word in one of the kernel's lists, such as /proc/filesystems."""

    path: str
    word: str
    modules: tuple[str, ...] = ()

    async def look(self, bench: Bench) -> Found:
        if self.word in _text(self.path).split():
            return "present", ""
        if pending := bench.pending(self.modules):
            return "present", f"module {pending} is not loaded yet"
        return "missing", ""


class Setting(NamedTuple):
    """A sysctl with the wanted value; one that the kernel does not have counts as `absent` says."""

    path: str
    wanted: str
    absent: State = "missing"

    async def look(self, _: Bench) -> Found:
        try:
            value = _text(self.path).strip()
        except OSError:
            return self.absent, f"{self.path} is absent"
        return "present" if value == self.wanted else "missing", f"{self.path} is {value}"


class Tool(NamedTuple):
    program: str

    async def look(self, _: Bench) -> Found:
        try:
            return "present", str(find(self.program))
        except Lacking as error:
            return "missing", error.message


class File(NamedTuple):
    """Any one of these files."""

    paths: tuple[str, ...]

    async def look(self, _: Bench) -> Found:
        here = next((path for path in self.paths if _exists(path)), "")
        return ("present", here) if here else ("missing", f"{self.paths[0]} is absent")


class Controller(NamedTuple):
    """A cgroup controller by its v2 name."""

    name: str

    async def look(self, bench: Bench) -> Found:
        names = {self.name, "blkio"} if self.name == "io" else {self.name}
        if not names.intersection(bench.cgroups.controllers):
            return "missing", f"cgroup {bench.cgroups.version} without it"
        if not bench.cgroups.writable:
            return "missing", "this user may make no cgroups"
        return "present", f"cgroup {bench.cgroups.version}"


class Kvm(NamedTuple):
    """The verdict of the acceleration probe, where there is one."""

    async def look(self, bench: Bench) -> Found:
        if bench.accel and bench.accel.probed:
            return ("present" if bench.accel.kind == "kvm" else "missing"), bench.accel.reason
        if trouble := device_trouble():
            return "missing", trouble[0]
        return "unknown", bench.accel.reason if bench.accel else "not probed yet"


class Reflink(NamedTuple):
    """Whether files in the state directory can share blocks: tried on two files without a name."""

    async def look(self, bench: Bench) -> Found:
        return await asyncio.to_thread(_reflink, bench.state)


def _reflink(directory: Path) -> Found:
    made: list[int] = []
    try:
        made.extend(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600) for _ in range(2))
        os.write(made[0], bytes(4096))
        fcntl.ioctl(made[1], _FICLONE, made[0])
    except OSError as error:
        # O_TMPFILE itself is unknown to some network filesystems, and the directory may be absent.
        return ("missing" if len(made) == 2 else "unknown"), f"{directory}: {error.strerror}"
    finally:
        for descriptor in made:
            os.close(descriptor)
    return "present", str(directory)


async def look(way: Way, bench: Bench, *, deadline: float) -> Found:
    """Look, whatever happens: trouble and lateness are "unknown"."""
    try:
        async with asyncio.timeout(deadline):
            return await way.look(bench)
    except TimeoutError:
        return "unknown", f"no answer in {deadline:.1f} s"
    except AtollError as error:
        return "unknown", error.message
    except OSError as error:
        return "unknown", f"{error.filename or ''}: {error.strerror}"
