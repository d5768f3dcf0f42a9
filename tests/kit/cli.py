"""The command line against the API on fakes: a unix socket in this loop, `atoll` as a process of its own."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from atoll.api.server import serve
from tests.kit.app import Kit, make_kit
from tests.kit.tty import Terminal

ATOLL = [sys.executable, "-m", "atoll.cli.main"]


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


def clean_env(state: Path, **more: str) -> dict[str, str]:
    """Nothing of the developer's own settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ATOLL_")}
    return {**kept, "ATOLL_STATE": str(state), "TZ": "UTC", "NO_COLOR": "1", **more}


async def atoll(*args: str, env: Mapping[str, str], input: bytes = b"", timeout: float = 60) -> Ran:
    """Run a command line to its end, on pipes."""
    process = await asyncio.create_subprocess_exec(
        *ATOLL, *args, env=env, stdin=-1, stdout=-1, stderr=-1, start_new_session=True
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(input)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return Ran(process.returncode or 0, out.decode(), err.decode())


@dataclass
class Shore:
    """A daemon on fakes, and command lines that talk to it."""

    kit: Kit
    state: Path

    async def atoll(self, *args: str, input: bytes = b"", **env: str) -> Ran:
        return await atoll(*args, env=clean_env(self.state, **env), input=input)

    def terminal(self, *args: str, **env: str) -> Terminal:
        return Terminal([*ATOLL, *args], env=clean_env(self.state, **env))


@asynccontextmanager
async def shore(state: Path) -> AsyncIterator[Shore]:
    kit = await make_kit()
    serving = await serve(kit.app, unix=state / "atoll.sock")
    try:
        yield Shore(kit, state)
    finally:
        await kit.close()
        await serving.close()
