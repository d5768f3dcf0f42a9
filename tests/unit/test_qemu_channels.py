"""The agent's protocol and the console's multiplexing against servers that misbehave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll.base.errors import Absent, Broken, Unreachable
from atoll.instance.engines.console import BEHIND, RECENT, Console
from atoll.instance.engines.qemu.agent import Agent


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """A serial console that echoes; the connections made to it."""
    made: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(writer)
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "console.sock")
    yield made
    server.close()
    for writer in made:
        writer.close()
    await server.wait_closed()


async def connected(guest: list[asyncio.StreamWriter], count: int = 1) -> asyncio.StreamWriter:
    async with asyncio.timeout(5):
        while len(guest) < count:
            await asyncio.sleep(0.001)
    return guest[-1]


def console(tmp_path: Path) -> Console:
    (tmp_path / "serial.log").write_bytes(b"before\n")
    return Console(tmp_path / "console.sock", tmp_path / "serial.log", "web")


async def test_all_share_one_connection_that_lasts_while_somebody_looks(
    guest: list[asyncio.StreamWriter], tmp_path: Path
) -> None:
    made = console(tmp_path)
    first = await made.open()
    assert await first.read() == b"before\n"
    await first.write(b"typed")
    assert await first.read() == b"typed"
    second = await made.open()
    assert await second.read() == b"before\ntyped"
    assert len(guest) == 1
    await first.close()
    await second.write(b"!")
    assert await second.read() == b"!"
    await second.close()
    again = await made.open()
    assert await again.read() == b"before\n"
    await connected(guest, 2)
    await made.close()
    assert await again.read() == b""
    with pytest.raises(Unreachable):
        await again.write(b"x")


async def test_who_reads_too_slowly_is_dropped_and_nobody_else_notices(
    guest: list[asyncio.StreamWriter], tmp_path: Path
) -> None:
    made = console(tmp_path)
    slow, quick = await made.open(), await made.open()
    await quick.read()
    total = 0
    while total <= 2 * BEHIND:
        (await connected(guest)).write(b"x" * RECENT)
        total += len(await quick.read())
    left = 0
    while part := await asyncio.wait_for(slow.read(), 5):
        left += len(part)
    assert left <= BEHIND
    await quick.close()
    await slow.close()


async def test_a_console_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(Absent):
        await console(tmp_path).open()


async def test_the_guests_end_ends_every_reader(guest: list[asyncio.StreamWriter], tmp_path: Path) -> None:
    reader = await console(tmp_path).open()
    await reader.read()
    (await connected(guest)).close()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    await reader.close()


async def test_a_hostile_agent(tmp_path: Path) -> None:
    """Whatever a guest answers, the caller gets an error in time, and the next call begins afresh."""
    answers = [
        b"nonsense\n",
        b'{"return": 5}\n',
        b'{"error": {"desc": 7}}\n',
        b"[" * 10_000 + b"\n",
        b'"x"\n',
        b"\n",
    ]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(Exception):
            while line := await reader.readline():
                if b"sync" in line:
                    number = line.split(b'"id":')[1].split(b"}")[0]
                    writer.write(b'junk\n\xff{"return": ' + number + b"}\n")
                else:
                    writer.write(answers.pop(0))
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "agent.sock")
    agent = Agent(tmp_path / "agent.sock", "web")
    while answers:
        with pytest.raises(Broken):
            await agent.call("guest-ping", dict, timeout=5)
    answers.append(b'{"return": {"ok": 1}}\n')
    assert await agent.call("guest-ping", dict, timeout=5) == {"ok": 1}
    answers.append(b"x" * (2 << 20))
    with pytest.raises(Broken, match="more than"):
        await agent.call("guest-ping", dict, timeout=5)
    agent.close()
    server.close()
    await server.wait_closed()
