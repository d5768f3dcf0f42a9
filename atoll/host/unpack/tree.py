"""Writes members of an archive below an open directory, and never anywhere else.

Each directory on the way is opened by itself without following links; nothing that is there is opened again for
writing. So no name and no link of the archive leads a write to another place, whatever they say.
"""

import errno
import os
import stat
from dataclasses import dataclass, field

from atoll.host.unpack.tarstream import LONGEST_PATH, Archive, Hostile, Member, Path, components, show

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_ASK_ROOM = 64 << 20  # bytes written between two looks at how much is left
_ROOM_FILES = 10_000  # inodes left to others
_DEVICES = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)}
"""null, zero, full, random, urandom, tty, console, ptmx: every container gets its own."""
_DROPPED = ("security.selinux", "security.ima", "security.evm", "security.apparmor", "system.")
"""Attributes that mean something only to the host which wrote them."""
CAPABILITY = "security.capability"


class Full(Exception):
    """No room is left for it. The text is for people."""


@dataclass(frozen=True)
class Bounds:
    """`bytes`, `members`: what all of it may have; `reserve`: bytes of the file system that stay free."""

    bytes: int
    members: int = 2_000_000
    reserve: int = 64 << 20


@dataclass
class Counted:
    """What went in, and what was left out: device nodes that every container has, attributes of other hosts."""

    members: int = 0
    bytes: int = 0
    devices: int = 0
    attributes: int = 0
    machines: dict[int, int] = field(default_factory=dict)
    """How many programs there are for which machine, by ELF's number of it."""


class Tree:
    """`root`: an open, empty directory. `finish` when all members are in."""

    def __init__(self, root: int, bounds: Bounds) -> None:
        self.counted = Counted()
        self._root, self._bounds = root, bounds
        self._open: list[tuple[bytes, int]] = []
        self._times: dict[Path, int] = {}
        self._asked = 0

    def take(self, archive: Archive) -> None:
        """All of it. Raises Hostile, Full, OSError."""
        self._ask_room()
        for member in archive:
            self._count(member)
            try:
                self._put(member, archive)
            except FileExistsError as error:
                raise Hostile(f"{member} comes twice") from error
            except OSError as error:
                if error.errno in (errno.ENAMETOOLONG, errno.E2BIG, errno.ERANGE, errno.EINVAL, errno.EMLINK):
                    raise Hostile(f"{member} cannot be made: {error.strerror}") from error
                raise
        self._finish()

    def _count(self, member: Member) -> None:
        now = self.counted
        now.members += 1
        if now.members > self._bounds.members:
            raise Hostile(f"it has more than {self._bounds.members} members")
        if member.size > self._bounds.bytes or now.bytes + member.stored > self._bounds.bytes:
            raise Hostile(f"it has more than {self._bounds.bytes} bytes at {member}")
        if not now.members % 4096:
            self._ask_room()

    def _ask_room(self) -> None:
        space = os.fstatvfs(self._root)
        if space.f_bavail * space.f_frsize < self._bounds.reserve:
            raise Full("its file system is full")
        if space.f_files and space.f_favail < _ROOM_FILES:
            raise Full("its file system has no inodes left")

    def _put(self, member: Member, archive: Archive) -> None:
        if not member.path:
            self._dress(self._root, member)
            self._times[()] = member.mtime
            return
        if member.kind in ("chr", "blk"):
            self._leave_out(member)
            return
        parent, name = self._parent(member.path), member.path[-1]
        if member.kind == "file":
            self._file(parent, name, member, archive)
        elif member.kind == "dir":
            self._directory(parent, name, member)
        elif member.kind == "hardlink":
            self._hardlink(parent, name, member)
        else:
            if member.kind == "symlink":
                os.symlink(_inside(member), name, dir_fd=parent)
            else:
                os.mkfifo(name, 0o600, dir_fd=parent)
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
            if member.kind == "fifo":
                os.chmod(name, member.mode & 0o777, dir_fd=parent)
            os.utime(name, ns=(member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)

    def _leave_out(self, member: Member) -> None:
        """Devices in /dev, and the usual ones wherever they are. Raises Hostile for others."""
        if member.device == (0, 0):
            raise Hostile(f"{member} is a whiteout: this is one layer of a file system, not all of it")
        usual = member.kind == "chr" and member.device in _DEVICES
        if not usual and member.path[:1] != (b"dev",):
            raise Hostile(f"{member} is a device node ({member.kind} {member.device[0]}:{member.device[1]})")
        self.counted.devices += 1

    def _parent(self, path: Path) -> int:
        """The directory that it goes into, made where the archive does not name it."""
        return self._walk(path[:-1], make=True)

    def _walk(self, path: Path, *, make: bool) -> int:
        common = 0
        for (name, _), part in zip(self._open, path, strict=False):
            if name != part:
                break
            common += 1
        while len(self._open) > common:
            os.close(self._open.pop()[1])
        for part in path[common:]:
            above = self._open[-1][1] if self._open else self._root
            self._open.append((part, self._enter(above, part, path, make)))
        return self._open[-1][1] if self._open else self._root

    def _enter(self, above: int, part: bytes, path: Path, make: bool) -> int:
        try:
            return os.open(part, _DIRECTORY, dir_fd=above)
        except FileNotFoundError:
            if not make:
                raise
            os.mkdir(part, 0o755, dir_fd=above)
            self.counted.members += 1
            return os.open(part, _DIRECTORY, dir_fd=above)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise Hostile(
                    f"{show(b'/'.join(path))} leads through {show(part)}, which is no directory"
                ) from error
            raise

    def _file(self, parent: int, name: bytes, member: Member, archive: Archive) -> None:
        fd = os.open(name, _FRESH, 0o600, dir_fd=parent)
        try:
            first = self._fill(fd, member, archive)
            if member.mode & 0o111 and first.startswith(b"\x7fELF") and len(first) >= 20:
                machine = int.from_bytes(first[18:20], "little" if first[5] == 1 else "big")
                self.counted.machines[machine] = self.counted.machines.get(machine, 0) + 1
            self._dress(fd, member)
            os.utime(fd, ns=(member.mtime, member.mtime))
        finally:
            os.close(fd)

    def _fill(self, fd: int, member: Member, archive: Archive) -> bytes:
        """Returns its first bytes."""
        segments = [(0, member.size)] if member.segments is None else member.segments
        first = b""
        if member.segments is not None:
            os.ftruncate(fd, member.size)
        for at, length in segments:
            while length:
                chunk = archive.read(min(_CHUNK, length))
                first = first or (chunk[:64] if at == 0 else b"\0")
                done = 0
                while done < len(chunk):
                    done += os.pwrite(fd, chunk[done:], at + done)
                at, length = at + len(chunk), length - len(chunk)
                self._wrote(len(chunk))
        return first

    def _wrote(self, size: int) -> None:
        self.counted.bytes += size
        self._asked += size
        if self._asked >= _ASK_ROOM:
            self._asked = 0
            self._ask_room()

    def _directory(self, parent: int, name: bytes, member: Member) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            self._dress(fd, member)
        finally:
            os.close(fd)
        self._times[member.path] = member.mtime

    def _hardlink(self, parent: int, name: bytes, member: Member) -> None:
        """To a file that came before. The way to it is walked as any other."""
        parent = os.dup(parent)
        try:
            try:
                above = self._walk(member.target[:-1], make=False)
                kind = os.stat(member.target[-1], dir_fd=above, follow_symlinks=False).st_mode
            except (FileNotFoundError, IndexError) as error:
                raise Hostile(
                    f"{member} is a link to {_shown(member.target)}, which did not come before it"
                ) from error
            if stat.S_ISDIR(kind):
                raise Hostile(f"{member} is a link to the directory {_shown(member.target)}")
            os.link(member.target[-1], name, src_dir_fd=above, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def _dress(self, fd: int, member: Member) -> None:
        """Owner, then mode, then capabilities: each takes away what comes after it."""
        os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode)
        for name, value in member.xattrs.items():
            if name == CAPABILITY:
                os.setxattr(fd, name, _capability(value, member))
            elif name.startswith(_DROPPED):
                self.counted.attributes += 1
            elif name.startswith("user.") and not name.startswith("user.overlay."):
                os.setxattr(fd, name, value)
            else:
                raise Hostile(f"{member} has the attribute {name[:80]!r}, which would steer the host")

    def _finish(self) -> None:
        """Times of directories, which every new file in them had changed."""
        for path, mtime in self._times.items():
            fd = self._walk(path, make=False)
            os.utime(fd, ns=(mtime, mtime))
        while self._open:
            os.close(self._open.pop()[1])


def _shown(path: Path) -> str:
    return show(b"/".join(path))


def _inside(member: Member) -> bytes:
    """A symlink's target. An absolute one stays as it is: only who runs in the tree follows it, and its root is the
    tree's. Raises Hostile for one that climbs above the root, or is no path."""
    link = member.link
    if not 0 < len(link) <= LONGEST_PATH or any(byte < 32 or byte == 127 for byte in link):
        raise Hostile(f"{member} is a link to {show(link)}, which is no path")
    depth = 0 if link.startswith(b"/") else len(member.path) - 1
    for part in link.split(b"/"):
        depth += 0 if part in (b"", b".") else -1 if part == b".." else 1
        if depth < 0:
            raise Hostile(f"{member} is a link to {show(link)}, which climbs out of its tree")
    return link


def _capability(value: bytes, member: Member) -> bytes:
    """As version 2, whose root is that of the user namespace which writes it (linux/capability.h)."""
    version = int.from_bytes(value[:4], "little") >> 24
    if (version, len(value)) not in ((2, 20), (3, 24)):
        raise Hostile(f"{member} has capabilities of an odd form")
    return (0x0200_0000 | value[0] & 1).to_bytes(4, "little") + value[4:20]


__all__ = ["Bounds", "Counted", "Full", "Hostile", "Tree", "components"]
