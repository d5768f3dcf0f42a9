"""The content store of this host: files under their sha256, never changed once they are there.

ROOT/sha256-HEX    a blob, mode 0444
ROOT/.new-*        one on its way in, swept by `open`
"""

import errno
import hashlib
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from atoll.base.errors import Broken, Invalid
from atoll.base.ids import Bytes, Digest
from atoll.base.units import MiB
from atoll.host import files
from atoll.image.digest import check_digest
from atoll.image.model import File

CHUNK = MiB
_TURN = 32  # chunks hashed in one visit to a thread: about 20 ms, so that a cancelled call ends soon
_ZEROS = bytes(CHUNK)
_NAME = re.compile(r"sha256-[0-9a-f]{64}\Z")
_NEW = ".new-"
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})

Told = Callable[[int], None]
"""Called with the bytes taken in so far."""


def untold(_: int) -> None:
    return None


class Blobs:
    """`add` holds what it adds until `release`: nobody may prune a blob before a record can name it."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._held: Counter[Digest] = Counter()

    async def open(self) -> None:
        """Idempotent; before anything is added. Raises Lacking, Broken."""
        with files.translated(f"open the image store {self._root}"):
            await files.in_thread(self._open)

    def path(self, digest: Digest) -> Path:
        return self._root / check_digest(digest).replace(":", "-")

    def present(self, digest: Digest) -> bool:
        return self.path(digest).exists()

    def held(self, digest: Digest) -> bool:
        return self._held[digest] > 0

    def release(self, *digests: Digest) -> None:
        """A record names them now, or nothing ever will."""
        self._held.subtract(digests)
        self._held += Counter()

    async def add(self, source: Path | AsyncIterator[bytes], *, ours: bool = False, told: Told = untold) -> File:
        """Take in a file or a stream; content that is here already is not kept twice. The blob is held.

        `ours`: the file lies in our own tree and nobody writes to it again: it is linked, not copied.
        Raises Exhausted, Absent, Invalid (not a plain file), Lacking, Broken; then nothing is left.
        """
        fresh = self._root / f"{_NEW}{secrets.token_hex(8)}"
        with files.translated(f"add {source if isinstance(source, Path) else 'a stream'} to the image store"):
            try:
                intake = await _take_in(source, fresh, ours, told)
                await files.in_thread(_seal, fresh)
                return await self._keep(fresh, intake.digest, intake.size)
            finally:
                fresh.unlink(missing_ok=True)

    async def adopt(self, source: Path, digest: Digest) -> File:
        """As `add` of a file of our own tree whose content was hashed when it was written: it is not read again."""
        fresh = self._root / f"{_NEW}{secrets.token_hex(8)}"
        with files.translated(f"add {source} to the image store"):
            try:
                if not _linked(source, fresh):
                    return await self.add(source, ours=True)
                await files.in_thread(_seal, fresh)
                return await self._keep(fresh, check_digest(digest), fresh.stat().st_size)
            finally:
                fresh.unlink(missing_ok=True)

    async def read(self, digest: Digest) -> AsyncIterator[bytes]:
        """Its content, also where it is removed meanwhile. Raises Absent, Broken."""
        with files.translated(f"read blob {digest}"), _open_plain(self.path(digest)) as file:
            while chunk := await files.in_thread(file.read, CHUNK):
                yield chunk

    async def verify(self, digest: Digest) -> None:
        """Read it all again. Raises Absent, Broken (its content is no longer what its name says)."""
        path = self.path(digest)
        intake = Intake(None)
        with files.translated(f"verify blob {digest}"), _open_plain(path) as file:
            await intake.drain(file, untold)
        if intake.digest != digest:
            hint = f"remove {path}, then build or fetch the image again"
            raise Broken(f"blob {digest} is damaged: its content is {intake.digest}", hint=hint)

    def remove(self, digest: Digest) -> None:
        """Absent is success. Never in a thread: what was found unneeded may be needed a moment later."""
        with files.translated(f"remove blob {digest}"):
            self.path(digest).unlink(missing_ok=True)

    async def usage(self) -> Mapping[Digest, Bytes]:
        """Every blob here and the bytes it takes of the disk."""
        with files.translated("list the image store"):
            return await files.in_thread(self._look)

    async def _keep(self, fresh: Path, digest: Digest, size: int) -> File:
        self._held[digest] += 1
        try:
            if not self.present(digest):
                _rename(fresh, self.path(digest))
                await files.in_thread(files.sync, self._root)
        except BaseException:
            self.release(digest)
            raise
        return File(digest, Bytes(size))

    def _open(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
        for entry in self._root.iterdir():
            if entry.name.startswith(_NEW):
                entry.unlink(missing_ok=True)

    def _look(self) -> dict[Digest, Bytes]:
        with os.scandir(self._root) as entries:
            blobs = [entry for entry in entries if _NAME.match(entry.name)]
        return {Digest(blob.name.replace("-", ":", 1)): Bytes(blob.stat().st_blocks * 512) for blob in blobs}


class Intake:
    """Hashes what comes, and writes it to `out` where given; holes stay holes."""

    def __init__(self, out: BinaryIO | None) -> None:
        self.size = 0
        self._hash = hashlib.sha256()
        self._out = out

    @property
    def digest(self) -> Digest:
        return Digest(f"sha256:{self._hash.hexdigest()}")

    async def drain(self, source: BinaryIO | AsyncIterator[bytes], told: Told) -> None:
        if isinstance(source, AsyncIterator):
            async for chunk in source:
                await files.in_thread(self._feed, chunk)
                told(self.size)
        else:
            while await files.in_thread(self._turn, source):
                told(self.size)
        if self._out is not None:
            self._out.truncate(self.size)  # it may end in a hole

    def _turn(self, source: BinaryIO) -> bool:
        for _ in range(_TURN):
            chunk = source.read(CHUNK)
            if not chunk:
                return False
            self._feed(chunk)
        return True

    def _feed(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.size += len(chunk)
        if self._out is None:
            return
        if len(chunk) == CHUNK and chunk == _ZEROS:
            self._out.seek(CHUNK, os.SEEK_CUR)
        else:
            self._out.write(chunk)


async def _take_in(source: Path | AsyncIterator[bytes], fresh: Path, ours: bool, told: Told) -> Intake:
    if not isinstance(source, Path):
        with fresh.open("xb", buffering=0) as out:
            intake = Intake(out)
            await intake.drain(source, told)
        return intake
    with _open_plain(source) as file:
        if ours and _linked(source, fresh):
            intake = Intake(None)
            await intake.drain(file, told)
        else:
            with fresh.open("xb", buffering=0) as out:
                intake = Intake(out)
                await intake.drain(file, told)
    return intake


def _open_plain(path: Path) -> BinaryIO:
    """Never through a symlink, never a device or pipe."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.fdopen(os.open(path, flags), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Invalid(f"{path} is not a plain file")
    return file


def _linked(source: Path, to: Path) -> bool:
    try:
        os.link(source, to, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _rename(fresh: Path, to: Path) -> None:
    """Not in a thread: a cancelled call must not see it happen later."""
    fresh.rename(to)


def _seal(path: Path) -> None:
    path.chmod(0o444)
    files.sync(path)
