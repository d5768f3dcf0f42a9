"""A project's instances as JSON, kept in blocks: a list of 10,000 of which two changed encodes two hundred."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Response
from litestar.response.base import ASGIResponse

from atoll.instance.book import InstanceView

BLOCK = 100
PROJECTS = 4
"""Projects whose blocks are kept, the last ones asked for: 1 KiB an instance."""
_encoder = msgspec.json.Encoder()


class Arrays:
    def __init__(self) -> None:
        self._kept: OrderedDict[str, list[tuple[Sequence[InstanceView], bytes]]] = OrderedDict()

    def encode(self, project: str, views: Sequence[InstanceView]) -> list[bytes]:
        """The whole list of a project, in pieces. Blocks of the same objects as before are reused."""
        kept, now = self._kept.pop(project, []), []
        for number, at in enumerate(range(0, len(views), BLOCK)):
            block = views[at : at + BLOCK]
            if number < len(kept) and kept[number][0] == block:
                now.append(kept[number])
            else:
                comma = b"," if number else b""
                now.append((block, comma + _encoder.encode(block)[1:-1]))
        self._kept[project] = now
        if len(self._kept) > PROJECTS:
            self._kept.popitem(last=False)
        if not now:
            return [b"[]"]
        return [b"[", *(encoded for _, encoded in now), b"]"]


class Pieces(Response[bytes]):
    """A body sent as it lies, piece by piece: joining 10 MB takes longer than all the rest."""

    def __init__(self, pieces: list[bytes], headers: dict[str, str]) -> None:
        super().__init__(b"", headers=headers, media_type="application/json")
        self._pieces = pieces

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        return _PiecesSent(self._pieces, self.headers)


class _PiecesSent(ASGIResponse):
    def __init__(self, pieces: list[bytes], headers: dict[str, str]) -> None:
        super().__init__(content_length=sum(map(len, pieces)), headers=headers, media_type="application/json")
        self._pieces = pieces

    async def send_body(self, send: Any, receive: Any) -> None:  # noqa: ARG002
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def list_tag(views: Sequence[InstanceView]) -> str:
    """Changes whenever any row does: a change raises a greatest revision (of definitions, of statuses: one commit
    may write both, and a reader have seen one of them yet), a removal lowers the count."""
    defined = max((view.revision for view in views), default=0)
    seen = max((view.status_revision for view in views), default=0)
    return f'"{defined}-{seen}-{len(views)}"'
