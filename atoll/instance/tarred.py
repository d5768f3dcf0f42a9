"""The tar file of a parcel, written and read as a stream (POSIX.1-1988 ustar; lengths over 8 GiB as GNU tar does).

What is read is a stranger's: members are told apart by one header block each, so that no extended header, link,
directory or sparse map is ever followed; only the name that is expected next is taken.
"""

import hashlib
import os
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from atoll.base.errors import Invalid
from atoll.host import files
from atoll.image.sink import Sink, pour
from atoll.instance.parcel import LARGEST_MANIFEST, MANIFEST, Content, bad

BLOCK = 512
CHUNK = 1 << 20
END = bytes(2 * BLOCK)


def total(manifest: bytes, contents: Mapping[str, Content]) -> int:
    """Bytes of the whole file."""
    lengths = (len(manifest), *(content.length for content in contents.values()))
    return sum(BLOCK + -(-length // BLOCK) * BLOCK for length in lengths) + len(END)


async def write(manifest: bytes, contents: Mapping[str, Content], folder: Path) -> AsyncIterator[bytes]:
    """The file, chunk by chunk; each member lies in `folder` under its name."""
    yield _header(MANIFEST, len(manifest)) + manifest + _padding(len(manifest))
    for name, content in contents.items():
        yield _header(name, content.length)
        with files.translated(f"read {name}"), (folder / name).open("rb", buffering=0) as file:
            left = content.length
            while left:
                chunk = await files.in_thread(file.read, min(CHUNK, left))
                if not chunk:
                    raise Invalid(f"{name} became shorter while it was sent")
                left -= len(chunk)
                yield chunk
        if padding := _padding(content.length):
            yield padding
    yield END


def measure(path: Path) -> Content:
    """Length and sha256 of a file. Blocks."""
    with files.translated(f"read {path.name}"), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Content(os.fstat(file.fileno()).st_size, digest)


class Reader:
    """Members of a file that comes as a stream, one after the other."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._held = b""

    async def manifest(self) -> bytes:
        """The first member. Raises Invalid."""
        try:
            length = await self._next(MANIFEST)
        except tarfile.HeaderError as error:
            raise bad("it is no instance that Atoll exported") from error
        if length > LARGEST_MANIFEST:
            raise bad(f"its manifest has {length} bytes")
        raw = b"".join([chunk async for chunk in self._body(length, MANIFEST)])
        await self._skip_padding(length)
        return raw

    async def member(self, name: str, content: Content, path: Path) -> None:
        """The next one, which must be this, into a new file. Raises Invalid, Exhausted; then it is gone again."""
        with files.gone_if_failed(path):
            try:
                length = await self._next(name)
            except tarfile.HeaderError as error:
                raise bad(f"it is damaged: there is no {name} where it should be") from error
            if length != content.length:
                raise bad(f"it is damaged: {name} has {length} bytes and should have {content.length}")
            sink: Sink = await pour(self._body(length, name), path, content.length)
            if sink.digest.removeprefix("sha256:") != content.sha256:
                raise Invalid(
                    f"{name} is damaged: its sha256 is not what its manifest says",
                    hint="copy the file again, or export it again",
                    field="file",
                )
            await self._skip_padding(length)

    async def end(self) -> None:
        """Nothing may follow but zeros. Raises Invalid."""
        left = len(END)
        async for chunk in self._all():
            if chunk.count(0) != len(chunk):
                raise bad("something follows its last disk that its manifest does not list")
            left -= len(chunk)
        if left > 0:
            raise _cut("the end")

    async def _next(self, name: str) -> int:
        """The length of the next member. Raises HeaderError where no header of a plain file is there."""
        block = await self._exactly(BLOCK, name)
        info = tarfile.TarInfo.frombuf(block, "ascii", "replace")
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise bad(f"it holds {info.name[:60]!r}, which is no plain file")
        if info.name != name:
            raise bad(f"it holds {info.name[:60]!r} where {name} should be")
        if info.size < 0:
            raise bad(f"it says that {name} has {info.size} bytes")
        return info.size

    async def _body(self, length: int, name: str) -> AsyncIterator[bytes]:
        while length:
            if not self._held:
                await self._more(name)
            chunk, self._held = self._held[:length], self._held[length:]
            length -= len(chunk)
            yield chunk

    async def _skip_padding(self, length: int) -> None:
        await self._exactly(len(_padding(length)), "the padding")

    async def _exactly(self, length: int, what: str) -> bytes:
        parts = [chunk async for chunk in self._body(length, what)]
        return b"".join(parts)

    async def _more(self, what: str) -> None:
        self._held = await anext(self._chunks, b"")
        if not self._held:
            raise _cut(what)

    async def _all(self) -> AsyncIterator[bytes]:
        if self._held:
            yield self._held
        async for chunk in self._chunks:
            yield chunk


def _header(name: str, length: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = length, 0o600
    return info.tobuf(tarfile.GNU_FORMAT if length >= 8**11 else tarfile.USTAR_FORMAT, "ascii", "strict")


def _padding(length: int) -> bytes:
    return bytes(-length % BLOCK)


def _cut(what: str) -> Invalid:
    return Invalid(
        f"it is cut off: it ends before {what} is whole",
        hint="copy the file again, or export it again",
        field="file",
    )
