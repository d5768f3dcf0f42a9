"""Root file systems that strangers made: what a file of one is, and its tree, made in a cell (host/unpack).

A stream runs from the file through its unpacker, in a cell of its own, to the process that writes the tree.
Squashfs becomes such a stream too (sqfs2tar): no tool that knows its format ever writes a file, so that what
unsquashfs was made to write outside (CVE-2021-40153, CVE-2021-41072) has no place here.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

import atoll
from atoll.base.errors import Broken, Exhausted, Invalid, Lacking, Refused, Unreachable
from atoll.base.units import MiB, TiB
from atoll.host import confined, files
from atoll.host.confined import Bounds
from atoll.host.inspector.inspect import packing
from atoll.host.run import clean_env, run

STREAMS: Mapping[str, tuple[str, ...]] = {
    "tar": ("cat",),
    "tar.gz": ("gzip", "-dc"),
    "tar.xz": ("xz", "-dc"),
    "tar.zst": ("zstd", "-dc", "--long=27", "-q"),
    "squashfs": ("sqfs2tar", "--no-skip"),
}
"""How each format becomes a tar stream; squashfs's needs the file by name, for it is read here and there."""
LARGEST = 2 * TiB
RESERVE = 64 * MiB
"""Bytes of the file system that stay free, whatever comes."""
_HOURS = 6 * 3600.0
_CPU = 6 * 3600
_HEAD = 16 * 1024
_MACHINES = {
    3: "i386", 8: "mips", 20: "ppc", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64",
    243: "riscv64", 258: "loongarch64",
}  # fmt: skip
"""Of ELF (e_machine), in QEMU's words."""
_BOOT = "import sys; sys.path.append(sys.argv[1]); from atoll.host.unpack.child import main; main()"
_TOPS = frozenset({"bin", "sbin", "usr", "init"})


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A tree. `bytes` of its files; `devices`, `attributes`: how many were left out; `machines`: how many programs
    there are for which; `init`, `shell`: paths in it, "" where it has none; `top`: names in its root."""

    members: int
    bytes: int
    devices: int = 0
    attributes: int = 0
    machines: dict[int, int] = {}
    top: tuple[str, ...] = ()
    init: str = ""
    shell: str = ""
    system: str = ""

    @property
    def arch(self) -> str:
        """That of most of its programs; "" where it has none."""
        if not self.machines:
            return ""
        most = max(sorted(self.machines), key=lambda machine: self.machines[machine])
        return _MACHINES.get(most, f"machine{most}")


class _Answer(msgspec.Struct, frozen=True):
    facts: Facts | None = None
    error: str = ""
    message: str = ""


def looks_like(head: bytes, packed: str) -> str:
    """The format of a file, of STREAMS, by the first bytes of what is in it; "" where that is no root file system.
    `packed`: how it is compressed, "" where it is not."""
    if head.startswith(b"hsqs"):
        return "" if packed else "squashfs"
    if head[257:262] == b"ustar":
        return f"tar.{packed}" if packed else "tar"
    return ""


async def head(path: Path, packed: str) -> bytes:
    """The first bytes of what a compressed file holds, b"" where it cannot be unpacked. Raises Absent, Lacking."""
    if not packed:
        return await files.in_thread(_first, path)
    found = b""
    with files.translated(f"read {path.name}"), path.open("rb") as file:
        chunks = confined.piped(
            STREAMS[f"tar.{packed}"], file.fileno(), bounds=Bounds(cpu=60, written=0), timeout=60
        )
        try:
            async for chunk in chunks:
                found += chunk
                if len(found) >= _HEAD:
                    break
        except (Broken, TimeoutError):
            return found
        finally:
            await chunks.aclose()
    return found[:_HEAD]


def _first(path: Path) -> bytes:
    with files.translated(f"read {path.name}"), path.open("rb") as file:
        return file.read(_HEAD)


async def unpack(
    source: Path,
    format: str,
    target: Path,
    *,
    first: int,
    count: int,
    largest: int = LARGEST,
    reserve: int = RESERVE,
) -> Facts:
    """Make `target`, an empty directory, the tree that `source` holds. Its ids are `first` on, `count` of them.

    Everything is on the disk when it returns. Raises Invalid (damaged, made to do harm, no root file system),
    Exhausted, Lacking (only root may, and a tool or the kernel may lack), Unreachable; what is in `target` then is
    of no use to anybody.
    """
    if os.geteuid() != 0:
        raise Lacking("root file systems are unpacked by root's daemon only", hint="run the daemon as root")
    await files.in_thread(os.chown, target, first, first)
    order = msgspec.json.encode(
        {"target": str(target), "first": first, "count": count, "largest": largest, "reserve": reserve, "cpu": _CPU}
    ).decode()
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with files.translated(f"unpack {source.name}"):
        fd = os.open(source, flags)
    try:
        async with asyncio.timeout(_HOURS):
            return _judged(await _stream(fd, format, order))
    except TimeoutError as error:
        raise Unreachable(f"it could not be unpacked within {_HOURS / 3600:.0f} hours") from error
    finally:
        os.close(fd)


async def _stream(fd: int, format: str, order: str) -> _Answer:
    argv = [*STREAMS[format], *([confined.name_of(fd)] if format == "squashfs" else [])]
    command = await confined.command(argv, bounds=Bounds(cpu=_CPU, memory=2048 * MiB))
    ours, its = os.pipe2(os.O_CLOEXEC)
    running: list[asyncio.subprocess.Process] = []
    try:
        reader = await _spawn(command, stdin=fd, stdout=its, pass_fds=(fd,))
        running.append(reader)
        root = str(Path(atoll.__file__).parent.parent)
        python = (sys.executable, "-I", "-S", "-c", _BOOT, root, order)
        writer = await _spawn(python, stdin=ours, stdout=asyncio.subprocess.PIPE)
        running.append(writer)
        os.close(its)
        os.close(ours)
        ours = its = -1
        told, said = await writer.communicate()
        answer = _read(told, writer.returncode or 0, said)
        if answer.error and "truncated" not in answer.message:
            return answer  # the reader's complaint would be that nobody reads
        assert reader.stderr is not None
        wrong = (await reader.stderr.read(4096)).decode(errors="replace").strip()
        if await reader.wait():
            last = wrong.splitlines()[-1][-300:] if wrong else f"exit code {reader.returncode}"
            return _Answer(error="invalid", message=f"{argv[0]} cannot read it: {last}")
        return answer
    finally:
        for end in (ours, its):
            if end >= 0:
                os.close(end)
        for process in running:
            await _ended(process)


async def _spawn(command: tuple[str, ...], **named: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stderr=asyncio.subprocess.PIPE,
        env=clean_env(),
        start_new_session=True,
        **named,  # type: ignore[arg-type]
    )


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _read(told: bytes, code: int, said: bytes) -> _Answer:
    """What the process answered: nothing, where it was ended."""
    try:
        return msgspec.json.decode(told, type=_Answer)
    except msgspec.MsgspecError:
        if code in (137, 152, 153, 247, 248, 231):  # KILL, XCPU, XFSZ
            return _Answer(error="invalid", message="it needs more than an image may to be unpacked")
        lines = said.decode(errors="replace").strip().splitlines()
        return _Answer(error="broken", message=f"exit code {code}: {lines[-1][:300] if lines else ''}")


def _judged(answer: _Answer) -> Facts:
    if answer.facts is not None:
        return _system(answer.facts)
    if answer.error == "invalid":
        hint = "compare its checksum with the publisher's; what is left out can be left out when it is packed"
        raise Invalid(f"it is not taken: {answer.message}", hint=hint, field="file")
    if answer.error in ("exhausted", "errno 28", "errno 122"):
        raise Exhausted(
            f"it cannot be unpacked: {answer.message}", hint="make room, or remove images: atoll image prune"
        )
    if answer.error == "lacking":
        raise Lacking(answer.message, hint="sysctl user.max_user_namespaces; in a container, allow user namespaces")
    raise Broken(f"it cannot be unpacked: {answer.message}")


def _system(facts: Facts) -> Facts:
    """Raises Invalid where nothing could run on it."""
    if _TOPS & set(facts.top) and (facts.machines or facts.shell):
        return facts
    tops = ", ".join(facts.top[:5]) or "nothing"
    if len(facts.top) == 1 and not _TOPS & set(facts.top):
        hint = f"pack it from inside that directory: tar -C {facts.top[0]} -cf ROOTFS.tar ."
    else:
        hint = "it has bin, sbin or usr at its top, and programs; a container's file system does: docker export"
    what = "no program in it" if _TOPS & set(facts.top) else f"at its top is {tops}"
    raise Invalid(f"this is not a root file system: {what}", hint=hint, field="file")


async def format_of(path: Path) -> str:
    """The format of a file, of STREAMS, by its content; "" where it is no root file system. Raises Absent."""
    packed = await files.in_thread(packing, path)
    return looks_like(await head(path, packed), packed)


async def remove(tree: Path) -> None:
    """A tree or a part of one, however deep, subvolumes in it too. Absent is success.

    Raises Refused where something is mounted in it, Broken.
    """
    if mounted := await files.in_thread(_mounted_below, tree):
        raise Refused(f"{mounted} is mounted in what is to be removed", hint=f"umount {mounted}")
    await run(("rm", "-rf", "--", str(tree)), timeout=3600)


def _mounted_below(tree: Path) -> str:
    below = f"{tree}/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return next((at for line in mounts if f"{(at := line.split()[4])}/".startswith(below)), "")
