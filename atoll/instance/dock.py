"""Where parcels lie between the stream and the pools: of instances that leave, and of those that come.

ROOT/.up-HEX/     what a client sends: member by member, none of them trusted; swept by `open`
ROOT/KEY/         what belongs to operation KEY

Files of a key belong to its operation, which a crash outlives; `clear` takes them back.
"""

import os
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from atoll.base.errors import Interrupted, Invalid
from atoll.base.names import check_label
from atoll.host import files
from atoll.host.inspector.inspect import inspect
from atoll.image.sink import check_room
from atoll.image.staging import MAX_SIZE
from atoll.instance.parcel import MANIFEST, DiskPart, Parcel, disk_name, read
from atoll.instance.tarred import Reader

_UPLOAD = ".up-"
Judge = Callable[[Parcel], Awaitable[None]]
"""Raises what is against a parcel, before its content is taken in."""


class Received(msgspec.Struct, frozen=True):
    """A parcel that a client has sent, whole and checked."""

    upload: str
    parcel: Parcel


class Dock:
    """`largest`: bytes of a disk that is brought."""

    def __init__(self, root: Path, largest: int = MAX_SIZE) -> None:
        self._root, self.largest = root.absolute(), largest

    def open(self) -> None:
        with files.translated(f"make {self._root}"):
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for entry in self._root.iterdir():
                if entry.name.startswith(_UPLOAD):
                    shutil.rmtree(entry)

    def folder(self, key: str) -> Path:
        return self._root / check_label(key, what="key of an export")

    def make(self, key: str) -> Path:
        """An empty folder of an operation's own."""
        path = self.folder(key)
        with files.translated(f"make {path}"):
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(mode=0o700)
        return path

    def check_room(self, wanted: int) -> None:
        """Raises Exhausted."""
        check_room(self._root, wanted)

    async def receive(self, chunks: AsyncIterator[bytes], judge: Judge) -> Received:
        """Take in what a client sends: each member's checksum holds, and the inspector has passed each disk.

        Raises Invalid, Exhausted and what `judge` raises; then nothing of it is left.
        """
        reader = Reader(chunks)
        raw = await reader.manifest()
        parcel = read(raw, largest=self.largest)
        await judge(parcel)
        members = dict(parcel.members())
        self.check_room(sum(content.length for content in members.values()))
        upload = f"{_UPLOAD}{secrets.token_hex(8)}"
        folder = self._root / upload
        try:
            with files.translated(f"make {folder}"):
                folder.mkdir(mode=0o700)
                files.write_whole(folder / MANIFEST, raw)
            for name, content in members.items():
                await reader.member(name, content, folder / name)
            await reader.end()
            for number, disk in enumerate(parcel.disks):
                await files.in_thread(_look, folder / disk_name(number), disk, self.largest)
        except BaseException:
            self.drop(upload)
            raise
        return Received(upload, parcel)

    def drop(self, upload: str) -> None:
        """Absent is success."""
        if upload.startswith(_UPLOAD) and "/" not in upload:
            shutil.rmtree(self._root / upload, ignore_errors=True)

    def claim(self, upload: str, key: str) -> Path:
        """An upload becomes an operation's. Raises Interrupted: the daemon was restarted meanwhile."""
        if not upload.startswith(_UPLOAD) or "/" in upload:
            raise Invalid(f"{upload[:40]!r} is not an upload")
        with files.translated(f"claim {upload}"):
            try:
                os.rename(self._root / upload, self.folder(key))
            except FileNotFoundError as error:
                raise Interrupted(
                    "the daemon ended before it had taken the file in", hint="send it again"
                ) from error
        return self.folder(key)

    def parcel(self, key: str) -> Parcel:
        """What an operation has claimed."""
        with files.translated("read the manifest of an import"):
            return read((self.folder(key) / MANIFEST).read_bytes(), largest=self.largest)

    async def clear(self, key: str) -> None:
        """Absent is success."""
        with files.translated(f"clear {self.folder(key)}"):
            await files.in_thread(_remove, self.folder(key))


def _look(path: Path, disk: DiskPart, largest: int) -> None:
    facts = inspect(path, said="qcow2", largest=largest)
    if facts.virtual_size != disk.size:
        raise Invalid(
            f"{path.name} has a disk of {facts.virtual_size} bytes, and its manifest says {disk.size}",
            hint="export it again",
            field="file",
        )


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
