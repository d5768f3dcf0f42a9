"""What is done inside a guest through its agent: programs, files, addresses, shutting down."""

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import NoReturn

import msgspec

from atoll.base.errors import Absent, AtollError, Broken, Invalid, Refused
from atoll.base.units import MiB
from atoll.instance.engine import Outcome
from atoll.instance.engines.qemu.agent import EXEC_LIMIT, Agent

CHUNK = 48 << 10
"""Bytes of a file a message; 64 KiB as base64."""
MAX_INPUT = 8 * MiB
_FIRST, _LAST = 0.01, 0.25  # seconds between two questions whether a program ended
_LOOKS = 20
_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
"""The agent replaces the whole environment of a program, so it always gets these."""


class _Started(msgspec.Struct, frozen=True):
    pid: int


class _Status(msgspec.Struct, frozen=True):
    exited: bool
    code: int = msgspec.field(name="exitcode", default=0)
    signal: int = 0
    out: str = msgspec.field(name="out-data", default="")
    err: str = msgspec.field(name="err-data", default="")
    out_truncated: bool = msgspec.field(name="out-truncated", default=False)
    err_truncated: bool = msgspec.field(name="err-truncated", default=False)


class _Read(msgspec.Struct, frozen=True):
    data: str = msgspec.field(name="buf-b64", default="")
    eof: bool = False


class _Written(msgspec.Struct, frozen=True):
    count: int


class _Address(msgspec.Struct, frozen=True):
    address: str = msgspec.field(name="ip-address", default="")


class _Interface(msgspec.Struct, frozen=True):
    name: str
    mac: str = msgspec.field(name="hardware-address", default="")
    addresses: tuple[_Address, ...] = msgspec.field(name="ip-addresses", default=())


async def ping(agent: Agent, *, timeout: float) -> None:
    await agent.call("guest-ping", dict, timeout=timeout)


async def execute(agent: Agent, argv: tuple[str, ...], *, input: bytes, env: Mapping[str, str]) -> Outcome:
    """Run a program to its end, however long that takes. Raises Absent (no such program), Refused (it cannot be
    executed), Invalid, Unreachable, Broken."""
    if len(input) > MAX_INPUT:
        raise Invalid("the input is more than 8 MiB", hint="copy it into the guest as a file")
    arguments: dict[str, object] = {"path": argv[0], "arg": argv[1:], "capture-output": True}
    arguments["env"] = [f"{name}={value}" for name, value in {**_ENV, **env}.items()]
    if input:
        arguments["input-data"] = base64.b64encode(input).decode()
    try:
        started = await agent.call("guest-exec", _Started, arguments)
    except (Absent, Broken) as error:
        _not_started(argv[0], error)
    delay = _FIRST
    while True:
        await asyncio.sleep(delay)
        delay = min(delay * 1.5, _LAST)
        status = await agent.call("guest-exec-status", _Status, {"pid": started.pid}, limit=EXEC_LIMIT)
        if status.exited:
            return Outcome(
                status.code,
                _decoded(status.out),
                _decoded(status.err),
                status.signal,
                status.out_truncated or status.err_truncated,
            )


def _not_started(program: str, error: AtollError) -> NoReturn:
    if isinstance(error, Absent):
        raise Absent(f"the guest has no program {program}") from error
    if "Permission denied" in error.message:
        raise Refused(f"the guest may not execute {program}") from error
    raise error


async def pull(agent: Agent, path: str) -> AsyncGenerator[bytes, None]:
    """A file's content. Raises Absent, Refused (a directory, no right), Unreachable."""
    handle = await _open(agent, path, "r")
    try:
        while True:
            part = await agent.call("guest-file-read", _Read, {"handle": handle, "count": CHUNK})
            if part.data:
                yield _decoded(part.data)
            if part.eof or not part.data:
                return
    finally:
        await _close(agent, handle)


async def push(agent: Agent, path: str, chunks: AsyncIterator[bytes], *, mode: int) -> int:
    """Write a file and give it its mode before its content, which may be secret. The bytes written."""
    handle = await _open(agent, path, "w")
    written = 0
    try:
        done = await execute(agent, ("chmod", f"{mode:o}", path), input=b"", env={})
        if done.code:
            raise Broken(f"the guest could not set the mode of {path}: {done.stderr.decode(errors='replace')}")
        async for chunk in chunks:
            for start in range(0, len(chunk), CHUNK):
                written += await _write(agent, handle, chunk[start : start + CHUNK], path)
    finally:
        await _close(agent, handle)
    return written


async def _write(agent: Agent, handle: int, data: bytes, path: str) -> int:
    text = base64.b64encode(data).decode()
    done = await agent.call("guest-file-write", _Written, {"handle": handle, "buf-b64": text}, timeout=30)
    if done.count != len(data):
        raise Broken(f"the guest wrote {done.count} of {len(data)} bytes to {path}", hint="is its disk full?")
    return done.count


async def _open(agent: Agent, path: str, mode: str) -> int:
    try:
        return await agent.call("guest-file-open", int, {"path": path, "mode": mode})
    except Absent as error:
        raise Absent(f"the guest has no {path}") from error
    except Broken as error:
        if any(words in error.message for words in ("denied", "directory", "Read-only", "Invalid argument")):
            raise Refused(error.message.partition(": ")[2]) from error
        raise


async def _close(agent: Agent, handle: int) -> None:
    """Also while being cancelled: the agent keeps open files for ever."""
    with contextlib.suppress(AtollError):
        await asyncio.shield(agent.call("guest-file-close", dict, {"handle": handle}))


async def addresses(agent: Agent) -> Mapping[str, tuple[str, ...]]:
    found = await agent.call("guest-network-get-interfaces", tuple[_Interface, ...])
    return {
        interface.mac.lower(): tuple(entry.address for entry in interface.addresses if entry.address)
        for interface in found
        if interface.mac and interface.mac != "00:00:00:00:00:00"
    }


class _Pci(msgspec.Struct, frozen=True):
    domain: int
    bus: int
    slot: int
    function: int


class FsDisk(msgspec.Struct, frozen=True):
    """A disk below a file system, as the guest knows it."""

    pci: _Pci = msgspec.field(name="pci-controller", default=_Pci(-1, -1, -1, -1))
    serial: str = ""

    @property
    def place(self) -> tuple[int, int, int]:
        return self.pci.bus, self.pci.slot, self.pci.function


class FileSystem(msgspec.Struct, frozen=True):
    mountpoint: str
    disks: tuple[FsDisk, ...] = msgspec.field(name="disk", default=())


async def file_systems(agent: Agent) -> list[FileSystem]:
    """What is mounted, with the disks below it."""
    return await agent.call("guest-get-fsinfo", list[FileSystem])


async def shut_down(agent: Agent) -> None:
    await agent.tell("guest-shutdown", {"mode": "powerdown"})


async def put_online(agent: Agent, *, cpus: int) -> None:
    """Best effort: CPUs and memory that were added are there, but a guest may leave using them to us.

    The guest's kernel needs a moment to find them, of which nothing tells.
    """
    delay = _FIRST
    for _ in range(_LOOKS):
        with contextlib.suppress(AtollError):
            known = await agent.call("guest-get-vcpus", list[_Vcpu])
            off = [{"logical-id": cpu.id, "online": True} for cpu in known if not cpu.online]
            if off:
                await agent.call("guest-set-vcpus", int, {"vcpus": off})
            if len(known) >= cpus:
                break
        await asyncio.sleep(delay)
        delay = min(delay * 1.5, _LAST)
    with contextlib.suppress(AtollError):
        blocks = await agent.call("guest-get-memory-blocks", list[_Block])
        dark = [{"phys-index": block.index, "online": True} for block in blocks if not block.online]
        if dark:
            await agent.call("guest-set-memory-blocks", list, {"mem-blks": dark})


class _Vcpu(msgspec.Struct, frozen=True):
    id: int = msgspec.field(name="logical-id")
    online: bool


class _Block(msgspec.Struct, frozen=True):
    index: int = msgspec.field(name="phys-index")
    online: bool


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Broken("the agent's answer is not base64") from error
