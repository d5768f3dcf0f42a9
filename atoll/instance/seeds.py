"""Secrets of cloud-init: the only file that knows their keys. They are never listed, logged or shown.

/seeds/ID           what a user gave at launch
/ssh-keys/PROJECT   the project's own key pair, with which `atoll shell` logs in
"""

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from atoll.base.errors import Absent, Conflict
from atoll.base.ids import new_uuid
from atoll.instance.book import SEEDS, seed_key
from atoll.instance.model import CloudInit
from atoll.instance.seed import check
from atoll.store.api import ABSENT, Key, Store, Txn, read_all

KEYS = Key("/ssh-keys/")


class SecretSeed(msgspec.Struct, frozen=True):
    project: str
    given: CloudInit


class KeyPair(msgspec.Struct, frozen=True):
    """In OpenSSH's formats."""

    private: str
    public: str


class SeedBook:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, project: str, given: CloudInit) -> str:
        """Its id. Raises Invalid, Exhausted."""
        check(given)
        id = new_uuid()
        record = msgspec.json.encode(SecretSeed(project, given))
        await self._store.commit(Txn(expect={seed_key(id): ABSENT}, put={seed_key(id): record}))
        return id

    async def get(self, project: str, id: str) -> CloudInit:
        """What that project's user gave; nothing where `id` is "". Raises Absent."""
        if not id:
            return CloudInit()
        entry = await self._store.get(seed_key(id))
        record = msgspec.json.decode(entry.value, type=SecretSeed) if entry else None
        if record is None or record.project != project:
            raise Absent("what was given for cloud-init is gone", hint="launch it again")
        return record.given

    async def forget(self, id: str) -> None:
        """Absent is success."""
        await self._store.commit(Txn(delete=frozenset({seed_key(id)})))

    async def sweep(self, used: set[str]) -> None:
        """Remove those that no instance uses: their launch never came to be. Before requests are taken."""
        for key in (await read_all(self._store, SEEDS)).entries:
            if (id := key.removeprefix(SEEDS)) not in used:
                await self.forget(id)

    async def keys(self, project: str) -> KeyPair:
        """The project's pair, made at its first use."""
        key = Key(KEYS + project)
        for _ in range(3):
            if (entry := await self._store.get(key)) is not None:
                return msgspec.json.decode(entry.value, type=KeyPair)
            try:
                await self._store.commit(Txn(expect={key: ABSENT}, put={key: msgspec.json.encode(_draw(project))}))
            except Conflict:
                continue  # another launch made it
        raise Conflict("the project's key pair could not be made", hint="try again")


def _draw(project: str) -> KeyPair:
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return KeyPair(secret.decode(), f"{public.decode()} atoll-{project}")
