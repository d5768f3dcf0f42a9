"""The one door to short-lived tools.

Every program runs with a clean environment, in a session of its own, under a deadline, with bounded output.
Nothing outlives the call: at the deadline and on cancellation the whole process group is killed and reaped, and
the kernel kills the program if this process itself is killed.
Programs that stay (QEMU, dnsmasq) do not come through here.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from atoll.base.errors import Broken, Lacking, Unreachable
from atoll.base.units import MiB, show_duration, show_size

PACKAGES: dict[str, str] = {
    "bridge": "iproute2",
    "btrfs": "btrfs-progs",
    "busybox": "busybox-static",
    "cp": "coreutils",
    "cpio": "cpio",
    "dnsmasq": "dnsmasq-base",
    "dpkg-deb": "dpkg",
    "etcd": "etcd-server",
    "gzip": "gzip",
    "genisoimage": "genisoimage",
    "grub-mkimage": "grub-common",
    "ip": "iproute2",
    "losetup": "mount",
    "lxc-start": "lxc",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmd": "mtools",
    "mmdebstrap": "mmdebstrap",
    "modprobe": "kmod",
    "mount": "mount",
    "nft": "nftables",
    "ovs-vsctl": "openvswitch-switch",
    "prlimit": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-arm": "qemu-system-arm",
    "qemu-system-i386": "qemu-system-x86",
    "qemu-system-riscv64": "qemu-system-misc",
    "qemu-system-x86_64": "qemu-system-x86",
    "resize2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "sqfs2tar": "squashfs-tools-ng",
    "ssh": "openssh-client",
    "stat": "coreutils",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "systemctl": "systemd",
    "systemd-run": "systemd",
    "tc": "iproute2",
    "tgtd": "tgt",
    "unshare": "util-linux",
    "xz": "xz-utils",
    "zstd": "zstd",
}
"""Program -> the Debian package that brings it, for hints."""

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_KEPT = ("HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy")
_SETPRIV = shutil.which("setpriv", path=_SYSTEM_PATH)
_TIED = (_SETPRIV, "--pdeathsig", "KILL", "--") if _SETPRIV else ()
"""Ends the program when we are killed. It survives exec; a preexec_fn may deadlock in a process with threads."""
_REAP = 5.0  # seconds for a killed group to go; one in uninterruptible sleep is left to the kernel
_DRAIN = 0.5  # seconds to the end of output once the program itself has ended


class Ran(NamedTuple):
    """What a program did. `code` is its exit status, or minus the signal that ended it."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


def search_path() -> str:
    """PATH with the sbin beside each bin: an ordinary user's PATH lacks /usr/sbin, where nft and mke2fs live."""
    wanted: list[str] = []
    for entry in (os.environ.get("PATH") or _SYSTEM_PATH).split(os.pathsep):
        wanted.append(entry)
        if entry.rstrip("/").endswith("/bin"):
            wanted.append(entry.rstrip("/").removesuffix("/bin") + "/sbin")
    return os.pathsep.join(dict.fromkeys(entry for entry in wanted if entry))


def find(program: str) -> Path:
    """The path of a program. Raises `Lacking`, with the package to install as the hint."""
    found = shutil.which(program, path=search_path())
    if found is None:
        package = PACKAGES.get(Path(program).name)
        raise Lacking(f"{program} is missing", hint=f"apt-get install {package}" if package else "")
    return Path(found)


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment a tool gets: PATH, a fixed locale, home, temporary directory, proxies, and `extra`."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": search_path(), "LANG": "C.UTF-8", **kept, **(extra or {})}


async def run(
    argv: Sequence[str],
    *,
    input: bytes | None = None,
    timeout: float = 30.0,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    ok: frozenset[int] = frozenset({0}),
    limit: int = 16 * MiB,
    output: IO[bytes] | None = None,
    within: Sequence[str] = (),
    fds: Sequence[int] = (),
) -> Ran:
    """Run a program to its end. `env` is added to the clean environment; `timeout` is in seconds, spawn included.

    `limit` bounds stdout and stderr, each, in bytes. With `output`, both go to that open file instead, for a caller
    who reads along. A child that the program leaves behind is not waited for. `within`: a command line that ends by
    running the program (host/confined.py). `fds`: descriptors that it gets, under their numbers.
    Raises `Lacking` (no such program), `Broken` (an exit code outside `ok`, unless `check` is false; too much
    output; not startable) and `Unreachable` (not done in time: killed, outcome unknown). The command line is part
    of the hint and is visible to every user in `ps`: no secret belongs on it.
    """
    command = (*_TIED, *within, str(find(argv[0])), *argv[1:])
    into = asyncio.subprocess.PIPE if output is None else output
    loop = asyncio.get_running_loop()
    transport: asyncio.SubprocessTransport | None = None
    tool = _Tool(loop, limit)
    try:
        async with asyncio.timeout(timeout):
            spawned, _ = await loop.subprocess_exec(
                lambda: tool,
                *command,
                stdin=asyncio.subprocess.DEVNULL if input is None else asyncio.subprocess.PIPE,
                stdout=into,
                stderr=into,
                cwd=cwd,
                env=clean_env(env),
                start_new_session=True,
                pass_fds=tuple(fds),
            )
            transport = spawned
            if input is not None:
                _feed(transport, input)
            await tool.ended()
    except TimeoutError:
        late = f"{argv[0]} did not end within {show_duration(timeout)} and was killed"
        raise Unreachable(late + _last_lines(tool.out[2]), hint=shlex.join(argv)) from None
    except OSError as error:
        raise Broken(f"{argv[0]} could not be started: {error}", hint=shlex.join(argv)) from error
    finally:
        if transport is not None:
            await _end(transport, tool)
    if tool.over:
        raise Broken(f"{argv[0]} printed more than {show_size(limit)} and was killed", hint=shlex.join(argv))
    ran = Ran(tuple(argv), cast(int, transport.get_returncode()), bytes(tool.out[1]), bytes(tool.out[2]))
    if check and ran.code not in ok:
        raise Broken(_complaint(ran), hint=shlex.join(argv))
    return ran


class _Tool(asyncio.SubprocessProtocol):
    """Collects output; `gone` when the program has been reaped, `closed` when its output has ended too."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self.out = {1: bytearray(), 2: bytearray()}
        self.over = False
        self.gone = loop.create_future()
        self.closed = loop.create_future()
        self._stop = loop.create_future()
        self._limit = limit

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.out[fd] += data
        if len(self.out[fd]) > self._limit:
            self.over = True
            _settle(self._stop)

    def process_exited(self) -> None:
        _settle(self.gone)

    def connection_lost(self, _: Exception | None) -> None:
        _settle(self.closed)

    async def ended(self) -> None:
        await asyncio.wait({self.gone, self._stop}, return_when=asyncio.FIRST_COMPLETED)
        # A daemon that the program left behind may hold its output open for ever.
        await asyncio.wait({self.closed, self._stop}, timeout=_DRAIN, return_when=asyncio.FIRST_COMPLETED)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _feed(transport: asyncio.SubprocessTransport, data: bytes) -> None:
    pipe = cast(asyncio.WriteTransport | None, transport.get_pipe_transport(0))
    if pipe is not None and not pipe.is_closing():
        pipe.write(data)
        pipe.write_eof()


async def _end(transport: asyncio.SubprocessTransport, tool: _Tool) -> None:
    """Leave nothing: kill the group of a program that still runs, close its pipes, reap it."""
    if transport.get_returncode() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
    transport.close()
    await asyncio.wait({tool.gone}, timeout=_REAP)


def _complaint(ran: Ran) -> str:
    how = f"was ended by {signal.Signals(-ran.code).name}" if ran.code < 0 else f"failed with exit code {ran.code}"
    return f"{ran.argv[0]} {how}{_last_lines(ran.stderr or ran.stdout)}"


def _last_lines(output: bytes | bytearray) -> str:
    said = " / ".join(output.decode(errors="replace").strip().splitlines()[-3:])
    return f": {said[-500:]}" if said else ""
