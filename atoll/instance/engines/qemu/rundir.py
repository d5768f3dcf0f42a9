"""The run directory of one generation of one guest: all that this host keeps of it while it runs.

RUN/ID.GENERATION/            ours alone
    handle.json               the plan, and the process once there is one
    exit.json                 how it ended, once it has
    qemu.log  serial.log      what QEMU and the guest's serial console said
    qmp.sock console.sock agent.sock atoll.sock
    own/                      QEMU's working directory; its user's alone
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
_SHM = Path("/dev/shm")  # noqa: S108 - tmpfs by definition; the names in it are ours
LOG_LIMIT = 1 << 20
"""Bytes of a log above which it is trimmed, to a quarter of them."""


class Handle(msgspec.Struct, frozen=True):
    """`pid` 0: it was being started. `started`: in clock ticks after boot, so that a reused pid is told apart."""

    plan: BootPlan
    boot: str
    pid: int = 0
    started: int = 0


Read = TypeVar("Read", Handle, Exit)


class RunDir:
    def __init__(self, root: Path, id: InstanceId, generation: Generation, tag: str) -> None:
        self.id, self.generation = id, generation
        self.name = f"{id}.{generation}"
        self.path = root / self.name
        self.own = self.path / "own"
        self.log, self.serial = self.path / "qemu.log", self.path / "serial.log"
        self.qmp, self.console = self.path / "qmp.sock", self.path / "console.sock"
        self.agent, self.atoll = self.path / "agent.sock", self.path / "atoll.sock"
        self.ram = _SHM / f"atoll-{tag}-{self.name}"

    def make(self, uid: int | None) -> None:
        """Empty, whatever was there before. Raises Exhausted, Lacking, Broken."""
        with translated("make the run directory"):
            self.remove()
            self.own.mkdir(parents=True, mode=0o700)
            self.path.chmod(0o700)
            if uid is not None:
                os.chown(self.own, uid, uid)

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
        self.ram.unlink(missing_ok=True)

    def trim_logs(self) -> None:
        """Cut logs that grew over LOG_LIMIT to their newest part. QEMU appends, so it goes on writing there."""
        for log in (self.log, self.serial):
            with contextlib.suppress(OSError):
                if log.stat().st_size > LOG_LIMIT:
                    kept = tail(log, LOG_LIMIT // 4)
                    with log.open("ab", buffering=0) as file:
                        file.truncate(0)
                        file.write(kept)

    def _write(self, name: str, value: msgspec.Struct) -> None:
        """Whole or not at all for whoever reads. Not synced: after a crash of the host it says nothing any more."""
        with translated(f"write {name}"):
            fresh = self.path / f".{name}"
            fresh.write_bytes(msgspec.json.encode(value))
            fresh.rename(self.path / name)

    def _read(self, name: str, kind: type[Read]) -> "Read | None":
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        return None


def all_in(root: Path, tag: str) -> list[RunDir]:
    """Every run directory there is, in the order of their generations."""
    names = os.listdir(root) if root.exists() else []
    found = [
        RunDir(root, InstanceId(match[1]), Generation(int(match[2])), tag)
        for match in map(_NAME.fullmatch, names)
        if match
    ]
    return sorted(found, key=lambda run: (run.id, run.generation))


def tail(path: Path, limit: int) -> bytes:
    """The last `limit` bytes of a file; none where it is absent."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read(limit)
    except OSError:
        return b""
