"""A process of one thread that mounts what a container stands on and starts its monitor (liblxc's lxc-start).

liblxc forks, and so does the making of a user namespace: neither may happen in a daemon with threads. One helper
serves a whole daemon and ends with it; the monitors go on. Each monitor has a mount namespace of its own, in which
everything is mounted that its container needs: with the last process of the container all of it is gone, and the
host's own mount table never changes.

Requests are messages on a SOCK_SEQPACKET socket (descriptor 3), each with a pipe on which its child says what went
wrong; the pipe ends without a word once the program runs, or the mount is made. The answer is the child's pid with
a pidfd. Formats: `Start`, `Attach`, `Detach`.
"""

import contextlib
import ctypes
import errno
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from atoll.base.errors import AtollError
from atoll.host import beneath
from atoll.host.idmap import Extent, clone_mount

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS = 0x0002_0000
_MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x4, 0x1000, 0x4000, 0x4_0000
_UMOUNT_NOFOLLOW = 8
_MOVE_MOUNT = 429  # the same on every architecture
_EMPTY_FROM, _EMPTY_TO = 0x04, 0x40
ROOT = "/mnt"
"""Where the monitor finds the root file system: in its own mount namespace only. Its container's ids must be able
to reach it, which they could not below a state directory."""
MESSAGE = 256 << 10
"""Bytes of the longest request."""


class Bind(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of the host at a path of the container, with the owners of `extents`."""

    source: str
    path: str
    extents: tuple[Extent, ...]
    read_only: bool = False


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A small file, written before the first process runs. `keep`: where there is none, or an empty one."""

    path: str
    content: str
    keep: bool = False


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """`lowers`: trees nobody writes to, topmost first; none: `volume`/upper is the whole tree. `volume` has upper/
    and work/. `at`: an existing directory, in which the mounts are made; the root file system is `at`/root."""

    at: str
    volume: str
    lowers: tuple[str, ...]
    extents: tuple[Extent, ...]


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    root: Root
    texts: tuple[Text, ...]
    owner: int
    """Of those: the container's root."""
    argv: tuple[str, ...]
    env: dict[str, str]
    log: str


class Attach(msgspec.Struct, frozen=True, kw_only=True, tag="attach"):
    """Into the container whose first process is `pid`: also one that is about to begin. (What is mounted before a
    container has its user namespace, nobody could ever unmount in it: mount_namespaces(7), MNT_LOCKED.)"""

    pid: int
    owner: int
    bind: Bind


class Detach(msgspec.Struct, frozen=True, kw_only=True, tag="detach"):
    pid: int
    path: str


Order = Start | Attach | Detach


def checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def mount(source: str, target: str, kind: str, flags: int, data: str | None = None) -> None:
    given = data.encode() if data is not None else None
    checked(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), given), target)


def move(tree: int, to: int) -> None:
    """A mount that is nowhere yet onto the directory open as `to`."""
    checked(_libc.syscall(ctypes.c_long(_MOVE_MOUNT), tree, b"", to, b"", _EMPTY_FROM | _EMPTY_TO), "move_mount")


def assemble(root: Root) -> str:
    """Mount the root file system; its path."""
    at = Path(root.at)

    def place(name: str) -> str:
        (at / name).mkdir(exist_ok=True)
        return str(at / name)

    def put(source: str, name: str, extents: tuple[Extent, ...], *, read_only: bool) -> str:
        to, tree = os.open(place(name), os.O_PATH | os.O_CLOEXEC), clone_mount(
            Path(source), extents, read_only=read_only
        )  # fmt: skip
        move(tree, to)
        os.close(tree)
        os.close(to)
        return str(at / name)

    if not root.lowers:
        return put(f"{root.volume}/upper", "root", root.extents, read_only=False)
    # The overlay itself makes its work directory and its marks of removed files as the host's root.
    own = (*root.extents, (0, 0, 1))
    first, seen, _ = root.extents[0]
    if seen == 0:  # a privileged one: the host's root is the tree's, here too
        own = root.extents
        for folder in (root.volume, f"{root.volume}/work"):
            os.chown(folder, first, first)
    os.chdir(at)  # names relative to it: what is mounted how, everybody in the container can read
    put(root.volume, "volume", own, read_only=False)
    for number, lower in enumerate(root.lowers):
        put(lower, f"lower{number}", root.extents, read_only=True)
    lowers = ":".join(f"lower{number}" for number in range(len(root.lowers)))
    names = f"lowerdir={lowers},upperdir=volume/upper,workdir=volume/work"
    mount("overlay", place("root"), "overlay", _MS_NODEV, names)
    return place("root")


def write(top: int, text: Text, owner: int) -> None:
    """Where the folder is absent there is nothing to tell."""
    folder, name = beneath.split(text.path)
    try:
        where = beneath.directory(top, folder)
    except OSError:
        return
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=where, follow_symlinks=False)
        if text.keep and not (stat.S_ISREG(found.st_mode) and found.st_size == 0):
            return
        os.unlink(name, dir_fd=where)
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=where)
    os.write(fd, text.content.encode())
    os.fchown(fd, owner, owner)
    os.close(fd)
    os.close(where)


def start(order: Start) -> None:
    os.setsid()
    checked(_libc.unshare(_NEWNS), "unshare")
    mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    top = os.open(assemble(order.root), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for text in order.texts:
        write(top, text, order.owner)
    mount(f"{order.root.at}/root", ROOT, "none", _MS_BIND | _MS_REC)
    null = os.open("/dev/null", os.O_RDONLY)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir("/")
    os.umask(0o022)
    for number in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.execve(order.argv[0], order.argv, order.env)  # noqa: S606 - no shell is wanted


def enter(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    checked(_libc.setns(fd, _NEWNS), "setns")


def attach(order: Attach) -> None:
    tree = clone_mount(Path(order.bind.source), order.bind.extents, read_only=order.bind.read_only)
    enter(order.pid)
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    move(tree, beneath.made(top, order.bind.path, order.owner))


def detach(order: Detach) -> None:
    enter(order.pid)
    try:
        checked(_libc.umount2(order.path.encode(), _UMOUNT_NOFOLLOW), order.path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # its own root took it away already
            raise


ACTS: dict[type, Callable[..., None]] = {Start: start, Attach: attach, Detach: detach}


def child(order: Order, report: int) -> None:
    """In the child: act, or say why not. Never returns."""
    try:
        ACTS[type(order)](order)
        os._exit(0)
    except AtollError as error:
        said: dict[str, object] = {"code": error.code, "message": error.message, "hint": error.hint}
    except OSError as error:
        said = {"errno": error.errno, "message": f"{error.filename or ''}: {error.strerror}".lstrip(": ")}
    except BaseException as error:
        said = {"message": repr(error)}
    with contextlib.suppress(OSError):
        os.write(report, msgspec.json.encode(said))
    os._exit(71)


def serve(orders: socket.socket) -> None:
    """Until the other end is closed: the daemon has ended."""
    while True:
        data, fds, _, _ = socket.recv_fds(orders, MESSAGE, 1)
        if not data:
            return
        answer, pidfds = b"{}", []
        try:
            order = msgspec.json.decode(data, type=Order)
            pid = os.fork()
            if pid == 0:
                orders.close()
                os.set_inheritable(fds[0], False)
                child(order, fds[0])
            pidfds = [os.pidfd_open(pid)]
            answer = b'{"pid": %d}' % pid
        except (OSError, msgspec.DecodeError) as error:
            answer = msgspec.json.encode({"message": str(error)})
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(orders, [answer], pidfds)
        for fd in pidfds:
            os.close(fd)
        _reap()


def _reap() -> None:
    """Those that ended by now; a zombie waits for the next order at most."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon's end is ours
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
