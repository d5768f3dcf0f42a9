"""The daemon's events over SSE, resumed by last id when the connection breaks."""

from collections.abc import AsyncIterator, Sequence

import msgspec

from atoll.base import clock
from atoll.base.errors import Broken, Compacted, Unreachable
from atoll.client.transport import Cut, Transport, path_of, pause
from atoll.operation.model import News


class Events:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def follow(
        self,
        *,
        since: str | None = None,
        kinds: Sequence[str] = (),
        project: str | None = None,
        patience: float = 30.0,
    ) -> AsyncIterator[News]:
        """Events after the one with id `since` ("0": all that are kept; None: from now on), without end.

        `kinds`: whole ("instance.started") or a noun with its dot ("instance."). A broken connection is taken up
        again at the last id for `patience` seconds; after that, and where nobody answers to begin with,
        Unreachable. Raises Compacted where the daemon no longer has what follows `since`.
        """
        last, failing, attempt, heard = since, clock.monotonic(), 0, False
        while True:
            try:
                async for news in self._stream(last, kinds, project):
                    if isinstance(news, str):
                        last = news or last
                    else:
                        last = news.id or last
                        yield news
                    failing, attempt, heard = clock.monotonic(), 0, True
            except (Unreachable, Cut):
                if not heard or clock.monotonic() - failing > patience:
                    raise
            await pause(attempt)
            attempt += 1

    async def _stream(
        self, since: str | None, kinds: Sequence[str], project: str | None
    ) -> AsyncIterator[News | str]:
        """The news of one connection; a bare id is where to resume from."""
        query = {"since": since, "kind": list(kinds), "project": project}
        async with self._transport.open("GET", path_of("events"), query=query) as response:
            fields: dict[str, str] = {}
            async for raw in response.content:
                line = raw.decode().rstrip("\r\n")
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
                    continue
                if fields.get("event") == "compacted":
                    raise Compacted("this reader of events fell too far behind", hint="read afresh, then follow")
                if "data" in fields:
                    yield _news(fields["data"])
                elif fields:
                    yield fields.get("id", "")
                fields = {}


def _news(data: str) -> News:
    try:
        return msgspec.json.decode(data.encode(), type=News)
    except msgspec.MsgspecError as error:
        raise Broken(f"an event of the daemon makes no sense: {error}") from error
