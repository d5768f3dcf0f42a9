"""Who this host is: a uuid made once, and what every host-wide name derives from."""

import fcntl
import hashlib
import os
from pathlib import Path

import msgspec

from atoll.base import clock
from atoll.base.errors import Broken, Exhausted, Refused
from atoll.base.ids import HostId, new_uuid

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """`tag`: 6 hexadecimal digits of the id's sha256, in every link, table and cgroup name of this Atoll."""

    id: HostId
    created: clock.Timestamp

    @property
    def tag(self) -> str:
        return hashlib.sha256(self.id.encode()).hexdigest()[:6]


def load(state: Path) -> Identity:
    """Read the identity, making it at first. Raises Broken (it is damaged or lost), Exhausted (no space)."""
    path = state / "host.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        if (state / "local.db").exists():
            raise Broken(f"{path} is gone", hint="restore it from a backup: it names this host") from None
        identity = Identity(id=HostId(new_uuid()), created=clock.now())
        write(path, msgspec.json.encode(identity))
        return identity
    except msgspec.DecodeError as error:
        raise Broken(f"{path} is damaged: {error}", hint="restore it from a backup: it names this host") from error


def write(path: Path, data: bytes) -> None:
    """Replace a small file as a whole, durably."""
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Exhausted(f"cannot write {path}: {error.strerror}") from error


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def lock(state: Path) -> int:
    """Hold the state directory for this process: a file descriptor to keep open. Raises Refused."""
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise Refused(
            f"another daemon runs on {state}", hint="use it, end it with `atoll down`, or choose another --state"
        ) from error
    return fd
