"""Every request's way in: an id, who it is, and the answer to those who are nobody."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from atoll.api.access import CLOSING, KEY, Caller
from atoll.api.errors import PROBLEM, details, headers_of, status_of
from atoll.api.tokens import MARK, TokenBook
from atoll.base.errors import AtollError, Denied, Unauthenticated
from atoll.base.ids import new_time_id
from atoll.operation.model import Actor

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]
PEER = "peer_uid"
"""In an ASGI scope's state: the uid at the other end of the unix socket, put there by our protocol class only."""
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Door:
    """ASGI around the app. Over TCP there is no way in without a token, not even to learn that a path is none."""

    def __init__(self, app: App, tokens: TokenBook) -> None:
        self._app, self._tokens = app, tokens
        self.closing = asyncio.Event()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _ID.fullmatch(given) else new_time_id()
        state = scope.setdefault("state", {})
        try:
            actor = await self._actor(state, headers)
            if scope["type"] == "websocket" and PEER not in state:
                _same_origin(headers)
        except AtollError as error:
            await refuse(scope, send, error, request_id)
            return
        state[KEY], state[CLOSING] = Caller(actor, request_id), self.closing
        echo = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], echo]
            await send(message)

        await self._app(scope, receive, send_with_id)

    async def _actor(self, state: dict[str, Any], headers: dict[bytes, bytes]) -> Actor:
        if (uid := state.get(PEER)) is not None:
            return Actor("uid", str(uid))
        scheme, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        secret = secret.strip()
        if scheme.lower() == "bearer" and secret.startswith(MARK) and len(secret) < 200:
            name = await self._tokens.owner(secret)
            if name is not None:
                return Actor("token", name)
        why = "this token is not valid" if secret else "who are you? this needs a token"
        raise Unauthenticated(why, hint="make one on the host: atoll token create NAME")


def _same_origin(headers: dict[bytes, bytes]) -> None:
    """A page of another site must not open our sockets with a browser's rights."""
    origin = headers.get(b"origin")
    if origin is not None and origin.lower() != b"https://" + headers.get(b"host", b"").lower():
        raise Denied("a page of another origin may not connect")


async def refuse(scope: Any, send: Send, error: AtollError, request_id: str) -> None:
    """A problem before the app is reached; a WebSocket gets it instead of its upgrade."""
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 4000 + status_of(error), "reason": error.message[:120]})
            return
        kind = "websocket.http.response"
    body = msgspec.json.encode(details(error, request_id))
    headers = {
        "content-type": PROBLEM,
        "content-length": str(len(body)),
        "x-request-id": request_id,
        **headers_of(error),
    }
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": f"{kind}.start", "status": status_of(error), "headers": pairs})
    await send({"type": f"{kind}.body", "body": body})
