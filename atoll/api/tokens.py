"""Tokens of people and programs that come over TCP. The only file that knows their keys; secrets are hashed."""

import hashlib
import hmac
import logging
import secrets
from datetime import UTC, datetime, timedelta

import msgspec

from atoll.base import clock
from atoll.base.clock import Timestamp
from atoll.base.errors import Absent, AtollError, Conflict, Exists
from atoll.base.names import check_label, did_you_mean
from atoll.client.wire import NewToken, Token
from atoll.store.api import ABSENT, Key, Revision, Store, Txn, read_all

log = logging.getLogger(__name__)
PREFIX = Key("/secrets/tokens/")
MARK = "atoll_"
FRESH = 10.0
"""Seconds for which what was read is believed: another host's revocation is noticed after that; ours at once."""
REREAD = 0.5
"""Seconds between two readings that unknown tokens may cause."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A token as recorded. `digest`: sha256 of the whole secret, hexadecimal (32 random bytes need no salt)."""

    name: str
    digest: str
    created: Timestamp
    used: str = ""
    expires: Timestamp | None = None

    def shown(self) -> Token:
        return Token(name=self.name, created=self.created, used=self.used, expires=self.expires)


class TokenBook:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[Kept, Revision]] = {}
        self._read = float("-inf")

    async def create(self, name: str, *, days: int | None = None) -> NewToken:
        """Raises Exists."""
        check_label(name, what="name of a token")
        secret = MARK + secrets.token_urlsafe(32)
        expires = _in_days(days) if days is not None else None
        kept = Kept(name=name, digest=_digest(secret), created=clock.now(), expires=expires)
        key = Key(PREFIX + name)
        try:
            await self._store.commit(Txn(expect={key: ABSENT}, put={key: msgspec.json.encode(kept)}))
        except Conflict as error:
            raise Exists(
                f"token {name} already exists", hint="revoke it or choose another name", field="name"
            ) from error
        self._forget()
        return NewToken(token=kept.shown(), secret=secret)

    async def list(self) -> list[Token]:
        await self._load()
        return sorted((kept.shown() for kept, _ in self._known.values()), key=lambda token: token.name)

    async def revoke(self, name: str) -> None:
        """Raises Absent."""
        key = Key(PREFIX + check_label(name, what="name of a token"))
        entry = await self._store.get(key)
        if entry is None:
            raise Absent(f"there is no token {name}", hint=did_you_mean(name, [t.name for t in await self.list()]))
        await self._store.commit(Txn(delete=frozenset({key})))
        self._forget()

    async def owner(self, secret: str) -> str | None:
        """The name of the token that this secret is, None where it is none, was revoked or has expired."""
        digest = _digest(secret)
        age = clock.monotonic() - self._read
        if age > FRESH or (digest not in self._known and age > REREAD):
            await self._load()
        kept, revision = self._known.get(digest, (None, Revision(0)))
        if kept is None or not hmac.compare_digest(kept.digest, digest):
            return None
        if kept.expires is not None and clock.parse(kept.expires) <= datetime.now(UTC):
            return None
        today = clock.now()[:10]
        if kept.used != today:
            await self._note_use(kept, revision, today)
        return kept.name

    async def _note_use(self, kept: Kept, revision: Revision, today: str) -> None:
        """Once a day; that it fails is no reason to turn somebody away."""
        key, now = Key(PREFIX + kept.name), msgspec.structs.replace(kept, used=today)
        try:
            revision = await self._store.commit(Txn(expect={key: revision}, put={key: msgspec.json.encode(now)}))
        except Conflict:
            self._forget()
        except AtollError as error:
            log.warning("could not note the use of token %s: %s", kept.name, error)
        else:
            self._known[kept.digest] = (now, revision)

    async def _load(self) -> None:
        began = clock.monotonic()
        view = await read_all(self._store, PREFIX)
        found = [(msgspec.json.decode(entry.value, type=Kept), entry.revision) for entry in view.entries.values()]
        self._known = {kept.digest: (kept, revision) for kept, revision in found}
        self._read = began

    def _forget(self) -> None:
        self._read = float("-inf")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _in_days(days: int) -> Timestamp:
    at = datetime.now(UTC) + timedelta(days=days)
    return Timestamp(at.strftime("%Y-%m-%dT%H:%M:%S.000Z"))
