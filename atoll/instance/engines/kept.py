"""What an engine keeps on this host of one generation of one guest while it runs: a directory ROOT/ID.GENERATION.

    handle.json               the plan, and its processes once there are some
    exit.json                 how it ended, once it has

The rest of it is each engine's own.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from atoll.base.errors import AtollError
from atoll.base.ids import Generation, InstanceId
from atoll.host.files import translated
from atoll.instance.model import Exit

_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(\d{1,9})")
LOG_LIMIT = 1 << 20
"""Bytes of a log above which it is trimmed, to a quarter of them."""

Who = tuple[InstanceId, Generation]
Handle = TypeVar("Handle", bound=msgspec.Struct)
Read = TypeVar("Read", bound=msgspec.Struct)


class Kept(Generic[Handle]):
    """`shape`: of its handle. `logs`: names of the files that are kept bounded."""

    def __init__(self, root: Path, id: InstanceId, generation: Generation, shape: type[Handle], *logs: str) -> None:
        self.id, self.generation = id, generation
        self.name = f"{id}.{generation}"
        self.path = root / self.name
        self._shape, self._logs = shape, logs

    def clear(self, inner: Path) -> None:
        """Empty but for the folder `inner`, whatever was there before. Raises OSError."""
        self.remove()
        inner.mkdir(parents=True, mode=0o700)
        self.path.chmod(0o700)

    def write(self, handle: Handle) -> None:
        self._write("handle.json", handle)

    def write_exit(self, exit: Exit) -> None:
        with contextlib.suppress(AtollError):  # a full disk must not hide the death itself
            self._write("exit.json", exit)

    def handle(self) -> Handle | None:
        """None where there is none that can be read."""
        return self._read("handle.json", self._shape)

    def exit(self) -> Exit | None:
        return self._read("exit.json", Exit)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def trim_logs(self) -> None:
        """Cut logs that grew over LOG_LIMIT to their newest part. Writers append: they go on there."""
        for log in (self.path / name for name in self._logs):
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

    def _read(self, name: str, kind: type[Read]) -> Read | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        return None


def parsed(name: str) -> Who | None:
    match = _NAME.fullmatch(name)
    return (InstanceId(match[1]), Generation(int(match[2]))) if match else None


def listed(root: Path) -> list[Who]:
    """Whose directories there are, in the order of their generations."""
    return sorted(who for who in map(parsed, os.listdir(root) if root.exists() else ()) if who)


def tail(path: Path, limit: int) -> bytes:
    """The last `limit` bytes of a file; none where it is absent."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read(limit)
    except OSError:
        return b""
