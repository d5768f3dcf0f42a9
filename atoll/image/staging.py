"""Where images wait that are not yet taken in: nothing here is trusted.

ROOT/.up-HEX         a file that a client sends, swept by `open`
ROOT/KEY             the file of import KEY (an operation's id): whole, as it came
ROOT/KEY.part        one being fetched, and KEY.note what is known of it, to go on after a break
ROOT/KEY.disk        unpacked

Files of a key belong to its operation, which outlives the daemon; `clear` takes them back.
"""

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from atoll.base.errors import Broken, Interrupted, Invalid
from atoll.base.ids import Digest
from atoll.base.names import check_label
from atoll.base.units import TiB
from atoll.host import files
from atoll.host.confined import Bounds, piped
from atoll.image.sink import check_room, pour

MAX_SIZE = 2 * TiB
UNPACKERS = {"gz": ("gzip", "-dc"), "xz": ("xz", "-dc"), "zst": ("zstd", "-dc", "--long=27", "-q")}
_UNPACKING = Bounds(cpu=6 * 3600)
_HOURS = 6 * 3600.0
_UPLOAD = ".up-"


class Upload(msgspec.Struct, frozen=True):
    """A file that a client has sent, whole."""

    name: str
    digest: Digest
    size: int


class Staging:
    """`largest`: bytes of an image, as it comes and unpacked."""

    def __init__(self, root: Path, largest: int = MAX_SIZE) -> None:
        self._root, self.largest = root.absolute(), largest

    def open(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in self._root.iterdir():
            if entry.name.startswith(_UPLOAD):
                entry.unlink(missing_ok=True)

    def whole(self, key: str) -> Path:
        return self._root / check_label(key, what="key of an import")

    def part(self, key: str) -> Path:
        return self.whole(key).with_name(f"{key}.part")

    def note(self, key: str) -> Path:
        return self.whole(key).with_name(f"{key}.note")

    def disk(self, key: str) -> Path:
        return self.whole(key).with_name(f"{key}.disk")

    async def receive(self, chunks: AsyncIterator[bytes], length: int | None) -> Upload:
        """Take in what a client sends; `length` as it was announced. Raises Invalid, Exhausted, Broken (it ended
        early), and leaves nothing then."""
        if length is not None and length > self.largest:
            raise Invalid(f"{length} bytes are too many", hint="images.max_size in atoll.toml allows more")
        check_room(self._root, length or 0)
        path = self._root / f"{_UPLOAD}{secrets.token_hex(8)}"
        sink = await pour(chunks, path, self.largest)
        if length is not None and sink.size != length:
            path.unlink(missing_ok=True)
            raise Broken(f"{sink.size} bytes came of {length}", hint="send it again")
        return Upload(path.name, sink.digest, sink.size)

    def drop(self, upload: str) -> None:
        """By its name. Absent is success."""
        if upload.startswith(_UPLOAD) and "/" not in upload:
            (self._root / upload).unlink(missing_ok=True)

    def claim(self, upload: str, key: str) -> None:
        """An upload becomes an import's. Once done it stays done. Raises Interrupted: the daemon was restarted."""
        if not upload.startswith(_UPLOAD) or "/" in upload:
            raise Invalid(f"{upload[:40]!r} is not an upload")
        try:
            os.rename(self._root / upload, self.whole(key))
        except FileNotFoundError as error:
            raise Interrupted("the daemon ended before it had taken the file in", hint="send it again") from error

    async def unpack(self, key: str, format: str) -> Digest:
        """The compressed file `key` into its `disk`, in a cell. Returns the disk's digest.

        Raises Invalid (too large, damaged), Exhausted.
        """
        disk = self.disk(key)
        disk.unlink(missing_ok=True)
        fd = os.open(self.whole(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            try:
                sink = await pour(
                    piped(UNPACKERS[format], fd, bounds=_UNPACKING, timeout=_HOURS), disk, self.largest
                )
            except Broken as error:
                raise Invalid(
                    f"it cannot be unpacked: {error.message}", hint="fetch it again", field="file"
                ) from error
            except TimeoutError as error:
                raise Invalid(f"it could not be unpacked within {_HOURS / 3600:.0f} hours", field="file") from error
        finally:
            os.close(fd)
        return sink.digest

    def ready(self, key: str) -> Path:
        """The image itself."""
        return self.disk(key) if self.disk(key).exists() else self.whole(key)

    async def clear(self, key: str) -> None:
        """Absent is success."""
        with files.translated(f"clear import {key}"):
            for path in (self.part(key), self.note(key), self.disk(key), self.whole(key)):
                path.unlink(missing_ok=True)
