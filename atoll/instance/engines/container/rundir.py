"""The run directory of one generation of one container: all that this host keeps of it while it runs.

RUN/ID.GENERATION/            ours alone; liblxc's name for the container is ID.GENERATION
    handle.json               the plan, its monitor and its first process
    exit.json                 how it ended, once it has
    config  seccomp           what liblxc reads
    lxc.log  console.log      what liblxc and the container's console said
    up  go                    pipes: that it is set up; that it may begin, where something is to be mounted before
    mounts/                   where its file systems are mounted, in its monitor's own mount namespace
"""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import TypeVar

import msgspec

from atoll.base.errors import AtollError
from atoll.base.ids import Generation, InstanceId
from atoll.host.files import translated
from atoll.instance.model import BootPlan, Exit

_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(\d{1,9})")
LOG_LIMIT = 1 << 20


class Handle(msgspec.Struct, frozen=True):
    """`monitor`, `init` 0: it was being started. With their start times, so that reused pids are told apart."""

    plan: BootPlan
    boot: str
    monitor: int = 0
    monitor_started: int = 0
    init: int = 0
    init_started: int = 0
    cpus: tuple[int, ...] = ()


Read = TypeVar("Read", Handle, Exit)


def names_of(tag: str) -> Path:
    """What liblxc takes for its own path: an empty directory that every container's root can pass (it insists), and
    by whose name the containers of this Atoll are told from all others."""
    return Path("/run/atoll") / tag / "ct"


class RunDir:
    """`names`: as names_of."""

    def __init__(self, root: Path, id: InstanceId, generation: Generation, names: Path) -> None:
        self.id, self.generation, self.names = id, generation, names
        self.name = f"{id}.{generation}"
        self.path = root / self.name
        self.config, self.seccomp = self.path / "config", self.path / "seccomp"
        self.log, self.console = self.path / "lxc.log", self.path / "console.log"
        self.up, self.go, self.mounts = self.path / "up", self.path / "go", self.path / "mounts"

    def make(self) -> None:
        """Empty, whatever was there before. Raises Exhausted, Lacking, Broken."""
        with translated("make the run directory"):
            self.remove()
            self.mounts.mkdir(parents=True, mode=0o700)
            self.path.chmod(0o700)
            os.mkfifo(self.up, 0o600)

    def write(self, handle: Handle) -> None:
        self._write("handle.json", handle)

    def write_exit(self, exit: Exit) -> None:
        with contextlib.suppress(AtollError):  # a full disk must not hide the death itself
            self._write("exit.json", exit)

    def handle(self) -> Handle | None:
        """None where there is none that can be read."""
        return self._read("handle.json", Handle)

    def exit(self) -> Exit | None:
        return self._read("exit.json", Exit)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def trim_logs(self) -> None:
        """Cut logs that grew over LOG_LIMIT to their newest part: liblxc appends."""
        for log in (self.log, self.console):
            with contextlib.suppress(OSError):
                if log.stat().st_size > LOG_LIMIT:
                    kept = tail(log, LOG_LIMIT // 4)
                    with log.open("ab", buffering=0) as file:
                        file.truncate(0)
                        file.write(kept)

    def _write(self, name: str, value: msgspec.Struct) -> None:
        with translated(f"write {name}"):
            fresh = self.path / f".{name}"
            fresh.write_bytes(msgspec.json.encode(value))
            fresh.rename(self.path / name)

    def _read(self, name: str, kind: type[Read]) -> "Read | None":
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        return None


def parsed(name: str) -> tuple[InstanceId, Generation] | None:
    match = _NAME.fullmatch(name)
    return (InstanceId(match[1]), Generation(int(match[2]))) if match else None


def all_in(root: Path, names: Path) -> list[RunDir]:
    """Every run directory there is, in the order of their generations."""
    found = [RunDir(root, *who, names) for who in map(parsed, os.listdir(root) if root.exists() else []) if who]
    return sorted(found, key=lambda run: (run.id, run.generation))


def tail(path: Path, limit: int) -> bytes:
    """The last `limit` bytes of a file; none where it is absent."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read(limit)
    except OSError:
        return b""
