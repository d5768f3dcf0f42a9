"""Instances of one project."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec

from atoll.client.console import Console
from atoll.client.session import ExecSession
from atoll.client.transport import Query, Transport, decode, path_of
from atoll.client.wire import ExecBody, InsertBody, LaunchBody, Pushed, RenameBody, RestartBody, Screen, StopBody
from atoll.instance.book import InstanceView
from atoll.instance.cloudstate import CloudState
from atoll.instance.engine import Command, Outcome, Stats
from atoll.instance.model import CloudInit, DiskUse, InstanceSpec, MountSpec, State
from atoll.instance.verbs.args import GRACE, Changes
from atoll.operation.model import Operation

HOUR = 3600.0
CHUNK = 256 << 10
Views = list[InstanceView]
History = list[Operation]


class Instances:
    """Every change returns its Operation at once; `client.operations.wait` waits for it."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport, self._project = transport, project

    def _path(self, *rest: str) -> str:
        return path_of("projects", self._project, "instances", *rest)

    async def list(
        self, *, labels: Mapping[str, str] | None = None, states: Sequence[State] = (), everywhere: bool = False
    ) -> Views:
        """Those with all the `labels` in one of the `states`, by name; of every project where `everywhere`."""
        query: Query = {
            "label": [f"{key}={value}" for key, value in (labels or {}).items()],
            "state": [str(state) for state in states],
        }
        path = path_of("instances") if everywhere else self._path()
        return await self._transport.request("GET", path, Views, query=query)

    async def get(self, name: str) -> InstanceView:
        return await self._transport.request("GET", self._path(name), InstanceView)

    async def launch(
        self,
        spec: InstanceSpec,
        *,
        name: str = "",
        start: bool = True,
        key: str = "",
        cloud_init: CloudInit | None = None,
        volumes: Sequence[DiskUse] = (),
    ) -> Operation:
        """The operation's subject has the name, also a made-up one. `key`: an Idempotency-Key of your own."""
        body = LaunchBody(name=name or None, start=start, spec=spec, cloud_init=cloud_init, volumes=tuple(volumes))
        return await self._transport.change("POST", self._path(), Operation, body=body, key=key)

    async def change(self, name: str, changes: Changes, *, revision: int = 0) -> Operation:
        """`revision`: the definition's as you read it; raises Conflict where it moved since (0: whatever it is)."""
        headers = {"If-Match": f'"{revision}"'} if revision else {}
        return await self._transport.change("PATCH", self._path(name), Operation, body=changes, headers=headers)

    async def delete(self, name: str, *, force: bool = False) -> Operation:
        """`force`: also while it runs."""
        query: Query = {"force": force} if force else {}
        return await self._transport.change("DELETE", self._path(name), Operation, query=query)

    async def start(self, name: str) -> Operation:
        return await self._act(name, "start")

    async def stop(self, name: str, *, grace: float = GRACE, keep_wanted: bool = False) -> Operation:
        """By force after `grace` seconds; 0: at once. `keep_wanted`: it starts again with its host."""
        return await self._act(name, "stop", StopBody(grace=grace, keep_wanted=keep_wanted))

    async def restart(self, name: str, *, grace: float = GRACE) -> Operation:
        return await self._act(name, "restart", RestartBody(grace=grace))

    async def pause(self, name: str) -> Operation:
        return await self._act(name, "pause")

    async def resume(self, name: str) -> Operation:
        return await self._act(name, "resume")

    async def rename(self, name: str, to: str) -> Operation:
        return await self._act(name, "rename", RenameBody(to=to))

    async def _act(
        self, name: str, act: str, body: RestartBody | StopBody | RenameBody | InsertBody | None = None
    ) -> Operation:
        return await self._transport.change("POST", self._path(name, act), Operation, body=body)

    async def ready(self, name: str, *, timeout: float = 120.0) -> None:
        """Returns once its agent answers. Raises Unreachable at the deadline, Broken where the guest ends."""
        query = {"timeout": timeout}
        await self._transport.request(
            "GET", self._path(name, "ready"), type(None), query=query, timeout=timeout + 15
        )

    async def execute(
        self,
        name: str,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Outcome:
        """Run a program in the guest to its end: no shell, no terminal. `timeout` in seconds; none: an hour."""
        body = ExecBody(argv=tuple(argv), stdin=input, env=dict(env or {}), timeout=timeout)
        path = self._path(name, "exec")
        # never sent twice: what ran in a guest cannot be taken back
        return await self._transport.request("POST", path, Outcome, body=body, timeout=(timeout or HOUR) + 15)

    async def pull(self, name: str, path: str) -> AsyncIterator[bytes]:
        """A file of the guest, chunk by chunk. Raises Broken where it ends early."""
        async with self._transport.open("GET", self._path(name, "files"), query={"path": path}) as response:
            async for chunk in response.content.iter_any():
                yield chunk

    async def push(self, name: str, path: str, data: bytes | AsyncIterator[bytes], *, mode: int = 0o644) -> Pushed:
        """Write a file in the guest."""
        query = {"path": path, "mode": f"{mode:o}"}
        headers = {"Content-Type": "application/octet-stream"}
        where = self._path(name, "files")
        async with self._transport.open(
            "PUT",
            where,
            query=query,
            data=_chunks(data) if isinstance(data, bytes) else data,
            headers=headers,
            timeout=HOUR,
        ) as reply:
            raw = await reply.read()
        return decode(raw, Pushed, f"PUT {where}")

    async def log(self, name: str, *, limit: int = 64 << 10) -> bytes:
        """The last `limit` bytes of the guest's serial console and its engine's log."""
        return await self._transport.request("GET", self._path(name, "log"), bytes, query={"limit": limit})

    async def stats(self, name: str) -> Stats:
        return await self._transport.request("GET", self._path(name, "stats"), Stats)

    async def addresses(self, name: str) -> dict[str, tuple[str, ...]]:
        """By MAC: the addresses that the guest itself has."""
        return await self._transport.request("GET", self._path(name, "addresses"), dict[str, tuple[str, ...]])

    async def screenshot(self, name: str) -> bytes:
        """What is on its screen now, as PNG."""
        return await self._transport.request("GET", self._path(name, "screenshot"), bytes)

    async def display(self, name: str) -> Screen:
        """Where its screen is served as VNC on its host."""
        return await self._transport.request("GET", self._path(name, "display"), Screen)

    async def cloud_init(self, name: str) -> CloudState:
        """How far cloud-init is in it, and what failed."""
        return await self._transport.request("GET", self._path(name, "cloud-init"), CloudState)

    async def eject(self, name: str) -> Operation:
        return await self._act(name, "eject")

    async def insert(self, name: str, image: str) -> Operation:
        """Put the disc of an image into its CD-ROM drive, in place of what is there."""
        return await self._act(name, "insert", InsertBody(image=image))

    async def add_mount(self, name: str, mount: MountSpec) -> Operation:
        """A directory of the host into a container."""
        return await self._transport.change("POST", self._path(name, "mounts"), Operation, body=mount)

    async def remove_mount(self, name: str, path: str) -> Operation:
        return await self._transport.change("DELETE", self._path(name, "mounts"), Operation, query={"path": path})

    @asynccontextmanager
    async def shell(self, name: str, *, user: str, columns: int, rows: int) -> AsyncIterator[Console]:
        """A login over the network, from its host. Raises Refused, Unreachable at the first read where there is
        no way in."""
        query: Query = {"user": user, "columns": columns, "rows": rows}
        async with self._transport.websocket(self._path(name, "shell"), query) as socket:
            yield Console(socket)

    @asynccontextmanager
    async def session(self, name: str, command: Command) -> AsyncIterator[ExecSession]:
        """A program to talk to while it runs: containers have that. Raises Refused at the first read where not."""
        async with self._transport.websocket(self._path(name, "session")) as socket:
            await socket.send_str(msgspec.json.encode(command).decode())
            yield ExecSession(socket)

    @asynccontextmanager
    async def console(self, name: str) -> AsyncIterator[Console]:
        """Its serial console, beginning with the last lines."""
        async with self._transport.websocket(self._path(name, "console")) as socket:
            yield Console(socket)

    async def history(self, name: str, *, limit: int = 100) -> History:
        """What was done to it, the latest first; also after it is gone."""
        query: Query = {"kind": "instance", "name": name, "limit": limit}
        path = path_of("projects", self._project, "history")
        return await self._transport.request("GET", path, History, query=query)


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]
