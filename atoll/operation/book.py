"""Operation records: the only file that knows their keys. They are kept: `atoll history` is the audit."""

import hashlib
import time

import msgspec

from atoll.base.errors import Absent, Conflict, Invalid
from atoll.base.ids import OperationId, made_at
from atoll.operation.model import Actor, Operation, OperationStatus, Subject
from atoll.store.api import ABSENT, MAX_OPERATIONS, Key, Store, Txn, read_all

RECORDS = Key("/operations/")
RUNNING = Key("/operations-running/")
BY_SUBJECT = "/operations-of/"
BY_ID = "/operations-of-id/"
"""Names move, ids do not: the whole life of what bore a name is found by its id."""
IDEMPOTENCY = "/idempotency/"
KEY_LASTS = 24 * 3600.0
"""Seconds for which an idempotency key is remembered at least."""
_MIRROR = str.maketrans("0123456789abcdef", "fedcba9876543210")


class Claimed(msgspec.Struct, frozen=True):
    """What an Idempotency-Key was first used for."""

    operation: OperationId
    request: str


def record(id: str) -> Key:
    """Newest first: the digits are mirrored, so that a page in key order begins with the latest."""
    return Key(RECORDS + id.translate(_MIRROR))


def of_subject(subject: Subject) -> str:
    return f"{BY_SUBJECT}{subject.project or '-'}/{subject.kind}/{subject.name or '-'}/"


def of_id(id: str) -> str:
    return f"{BY_ID}{id.replace('/', '-')}/"


class OperationBook:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def open(self, operation: Operation, key: str = "", fingerprint: str = "") -> Operation:
        """Record a new operation; with an idempotency `key` that was used before, the former one instead.

        Raises Invalid where that key was used for a request with another `fingerprint`.
        """
        txn = self._opening(operation)
        if not key:
            await self._store.commit(txn)
            return operation
        at = idempotency(operation.actor, key)
        claim = Claimed(operation.id, fingerprint)
        expect = {**txn.expect, at: ABSENT}
        put = {**txn.put, at: msgspec.json.encode(claim)}
        try:
            await self._store.commit(Txn(expect=expect, put=put))
        except Conflict:
            return await self._former(at, claim)
        return operation

    async def _former(self, at: Key, claim: Claimed) -> Operation:
        entry = await self._store.get(at)
        if entry is None:
            raise Conflict("the idempotency key was claimed and released just now", hint="send the request again")
        former = msgspec.json.decode(entry.value, type=Claimed)
        if former.request != claim.request:
            raise Invalid(
                "this Idempotency-Key was used for another request",
                hint=f"use a new key; the former is operation {former.operation}",
                field="Idempotency-Key",
            )
        return await self.get(former.operation)

    def _opening(self, operation: Operation) -> Txn:
        at = record(operation.id)
        index = Key(of_subject(operation.subject) + operation.id.translate(_MIRROR))
        put = {at: msgspec.json.encode(operation), index: b"", Key(RUNNING + operation.id): b""}
        return Txn(expect={at: ABSENT}, put=put)

    async def close(self, operation: Operation) -> None:
        """Record the outcome. Its subject's name may have come with it: the index follows."""
        index = Key(of_subject(operation.subject) + operation.id.translate(_MIRROR))
        put = {record(operation.id): msgspec.json.encode(operation), index: b""}
        if operation.subject.id:
            put[Key(of_id(operation.subject.id) + operation.id.translate(_MIRROR))] = b""
        await self._store.commit(Txn(put=put, delete=frozenset({Key(RUNNING + operation.id)})))

    async def forget_keys(self, older: float = KEY_LASTS) -> None:
        """Release the idempotency keys claimed more than `older` seconds ago."""
        before = time.time() - older
        view = await read_all(self._store, Key(IDEMPOTENCY))
        stale = [
            key
            for key, entry in view.entries.items()
            if made_at(msgspec.json.decode(entry.value, type=Claimed).operation) < before
        ]
        for at in range(0, len(stale), MAX_OPERATIONS):
            await self._store.commit(Txn(delete=frozenset(stale[at : at + MAX_OPERATIONS])))

    async def get(self, id: str) -> Operation:
        entry = await self._store.get(record(id)) if id.isascii() and id.isalnum() else None
        if entry is None:
            raise Absent(f"there is no operation {id[:80]}", hint="atoll history")
        return msgspec.json.decode(entry.value, type=Operation)

    async def running(self) -> list[Operation]:
        view = await self._store.read(RUNNING)
        return [await self.get(key.removeprefix(RUNNING)) for key in view.entries]

    async def latest(
        self, *, limit: int = 100, after: str = "", status: OperationStatus | None = None, project: str = ""
    ) -> list[Operation]:
        """The latest first; `after` is the id of the last one of the former page."""
        found: list[Operation] = []
        last = record(after) if after else None
        while len(found) < limit:
            view = await self._store.read(RECORDS, after=last, limit=200)
            for key, entry in view.entries.items():
                last = key
                operation = msgspec.json.decode(entry.value, type=Operation)
                if (status in (None, operation.status)) and project in ("", operation.subject.project):
                    found.append(operation)
            if not view.more:
                break
        return found[:limit]

    async def of(self, subject: Subject, *, limit: int = 100) -> list[Operation]:
        """What was done to all that ever bore that name, also under other names; the latest first."""
        found = {operation.id: operation for operation in await self._indexed(of_subject(subject), limit)}
        for id in {operation.subject.id for operation in found.values() if operation.subject.id}:
            found |= {operation.id: operation for operation in await self._indexed(of_id(id), limit)}
        return sorted(found.values(), key=lambda operation: operation.id, reverse=True)[:limit]

    async def _indexed(self, prefix: str, limit: int) -> list[Operation]:
        view = await self._store.read(Key(prefix), limit=limit)
        return [await self.get(key.removeprefix(prefix).translate(_MIRROR)) for key in view.entries]

    async def former(self, actor: Actor, key: str, fingerprint: str) -> Operation | None:
        """The operation that this idempotency key began. Raises Invalid where it was for another request."""
        entry = await self._store.get(idempotency(actor, key)) if key else None
        return await self._former(idempotency(actor, key), Claimed(OperationId(""), fingerprint)) if entry else None


def idempotency(actor: Actor, key: str) -> Key:
    digest = hashlib.sha256(f"{actor.kind}:{actor.name}:{key}".encode()).hexdigest()
    return Key(IDEMPOTENCY + digest[:32])
