"""The cluster's store: etcd (v3 API, 3.4 and newer), linearizable reads, compare-and-swap by mod_revision.

Of aetcd its stubs and messages are used: its `Client` knows one address, no page, no older revision and no
transaction's revision. API: https://etcd.io/docs/v3.4/learning/api/
"""

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any

import aetcd.rpc
import grpc.aio  # type: ignore[import-untyped]

from atoll.base.errors import (
    Absent,
    AtollError,
    Broken,
    Compacted,
    Denied,
    Exhausted,
    Invalid,
    Unreachable,
)
from atoll.store import rules
from atoll.store.api import ABSENT, PAGE, Entry, Event, Key, Lease, LeaseId, Revision, Txn, View, check

rpc: Any = aetcd.rpc
"""Generated, so without types."""
_CHANNEL = [
    ("grpc.max_receive_message_length", -1),  # a page of 1000 values of 64 KiB is over the 4 MiB default
    ("grpc.keepalive_time_ms", 10_000),  # a peer that vanished is noticed in 15 s, also by idle watches;
    ("grpc.keepalive_timeout_ms", 5_000),  # etcd allows a ping each 5 s (--grpc-keepalive-min-time)
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 3_000),
]
_HAS_LEADER = (("hasleader", "true"),)
"""Makes a member that lost its cluster end a watch instead of keeping silent."""
_KINDS: dict[grpc.StatusCode, type[AtollError]] = {
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unreachable,
    grpc.StatusCode.CANCELLED: Unreachable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.NOT_FOUND: Absent,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.UNAUTHENTICATED: Denied,
}


class EtcdStore:
    """Made by `connect`. Every call takes `timeout` seconds at most, or raises Unreachable.

    A watch outlives the connection: it goes on where it was as soon as a member answers again.
    A cancelled `commit`, as an Unreachable one, happened wholly or not at all: read to know which.
    """

    def __init__(self, target: str, root: str, timeout: float) -> None:
        if root and (not root.startswith("/") or root.endswith("/")):
            raise Invalid(f"{root!r} is not a root", hint="/ and a name, or nothing")
        self._root, self._timeout = root, timeout
        self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL)
        self._kv, self._leases = rpc.KVStub(self._channel), rpc.LeaseStub(self._channel)
        self._watching = rpc.WatchStub(self._channel)
        self._closed = False

    @classmethod
    async def connect(cls, endpoints: Sequence[str], *, root: str = "", timeout: float = 5.0) -> "EtcdStore":
        """`endpoints`: `host:port` of each member. Every key is kept below `root`. Raises Unreachable."""
        store = cls(await _target(endpoints, timeout), root, timeout)
        try:
            with store._translated():
                async with asyncio.timeout(timeout):
                    await store._channel.channel_ready()
            await store.get(Key("/any"))  # a quorum answers
        except BaseException:
            await store.close()
            raise
        return store

    async def get(self, key: Key) -> Entry | None:
        rules.check_key(key)
        reply = await self._call(self._kv.Range, rpc.RangeRequest(key=self._bytes(key)))
        return _entry(reply.kvs[0]) if reply.kvs else None

    async def read(
        self, prefix: Key, *, after: Key | None = None, limit: int = PAGE, at: Revision | None = None
    ) -> View:
        rules.check_page(prefix, limit)
        start, end = rules.span(prefix, after)
        request = rpc.RangeRequest(
            key=self._bytes(start) + b"\0", range_end=self._bytes(end), limit=limit, revision=at or 0
        )
        reply = await self._call(self._kv.Range, request)
        entries = {self._key(kv): _entry(kv) for kv in reply.kvs}
        return View(entries, at or Revision(reply.header.revision), reply.more)

    async def commit(self, txn: Txn) -> Revision:
        check(txn)
        reply = await self._call(self._kv.Txn, self._request(txn))
        if not reply.succeeded:
            raise self._conflict(txn, reply)
        return Revision(reply.header.revision)

    async def watch(self, prefix: Key, since: Revision) -> AsyncIterator[Event]:
        rules.check_prefix(prefix)
        pause = 0.1
        while True:
            try:
                async with contextlib.aclosing(self._stream(prefix, since)) as responses:
                    async for events in responses:
                        # A revision comes whole in one response, and is handed out with no other task between.
                        for event in events:
                            yield event
                        since, pause = events[-1].revision, 0.1
            except Unreachable:
                self._check_open()
                await asyncio.sleep(pause)
                pause = min(2 * pause, 3.0)

    async def lease(self, ttl: float) -> Lease:
        """etcd counts in seconds and has a shortest one: `ttl` of the lease is what was granted."""
        if ttl <= 0:
            raise Invalid(f"a lease of {ttl} seconds")
        reply = await self._call(self._leases.LeaseGrant, rpc.LeaseGrantRequest(TTL=math.ceil(ttl)))
        return EtcdLease(self, LeaseId(reply.ID), float(reply.TTL))

    async def renew(self, lease: LeaseId) -> None:
        self._check_open()
        call = self._leases.LeaseKeepAlive(timeout=self._timeout)
        try:
            with self._translated():
                await call.write(rpc.LeaseKeepAliveRequest(ID=lease))
                reply = await call.read()
        finally:
            call.cancel()
        if reply is grpc.aio.EOF:
            raise Unreachable("etcd did not answer")
        if reply.TTL <= 0:
            raise Absent(f"lease {lease} is lost")

    async def revoke(self, lease: LeaseId) -> None:
        with contextlib.suppress(Absent):
            await self._call(self._leases.LeaseRevoke, rpc.LeaseRevokeRequest(ID=lease))

    async def compact(self) -> None:
        """Forget what was, now and for every client of this etcd."""
        now = await self._call(self._kv.Range, rpc.RangeRequest(key=b"\0", count_only=True))
        with contextlib.suppress(Compacted):  # as it was before
            await self._call(self._kv.Compact, rpc.CompactionRequest(revision=now.header.revision))

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def _stream(self, prefix: Key, since: Revision) -> AsyncGenerator[list[Event], None]:
        """The events of each response, none empty, until Compacted or Unreachable."""
        self._check_open()
        call = self._watching.Watch(metadata=_HAS_LEADER)
        try:
            with self._translated():
                async with asyncio.timeout(self._timeout):
                    await call.write(self._watch_request(prefix, since))
                    response = await call.read()
                    await self._check_kept(since, response)
                while response is not grpc.aio.EOF:
                    if response.compact_revision:
                        raise Compacted(f"changes up to revision {response.compact_revision} are no longer kept")
                    if response.canceled:
                        raise Unreachable(f"etcd ended the watch: {response.cancel_reason}")
                    if response.events:
                        yield [self._event(event) for event in response.events]
                    response = await call.read()
            raise Unreachable("etcd ended the watch")
        finally:
            call.cancel()

    async def _check_kept(self, since: Revision, created: Any) -> None:
        """Raises Compacted unless every change after `since` is kept.

        The watch itself would not: from the compacted revision on, etcd before 3.4.36 leaves out the
        deletions made at that very revision (etcd-io/etcd#19179).
        """
        if created is grpc.aio.EOF or created.header.revision < since:
            return
        await self._call(self._kv.Range, rpc.RangeRequest(key=b"\0", count_only=True, revision=max(since, 1)))

    def _watch_request(self, prefix: Key, since: Revision) -> Any:
        start, end = rules.span(prefix, None)
        create = rpc.WatchCreateRequest(
            key=self._bytes(start), range_end=self._bytes(end), start_revision=since + 1
        )
        return rpc.WatchRequest(create_request=create)

    def _request(self, txn: Txn) -> Any:
        """Where an expectation fails it reads what the keys are at, for the message."""
        compare = [
            rpc.Compare(
                key=self._bytes(key), target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=revision
            )
            for key, revision in txn.expect.items()
        ]
        puts = [
            rpc.RequestOp(request_put=rpc.PutRequest(key=self._bytes(key), value=value, lease=txn.lease or 0))
            for key, value in txn.put.items()
        ]
        deletes = [
            rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=self._bytes(key)))
            for key in sorted(txn.delete)
        ]
        looks = [
            rpc.RequestOp(request_range=rpc.RangeRequest(key=self._bytes(key), keys_only=True))
            for key in txn.expect
        ]
        return rpc.TxnRequest(compare=compare, success=puts + deletes, failure=looks)

    def _conflict(self, txn: Txn, reply: Any) -> AtollError:
        for (key, expected), response in zip(txn.expect.items(), reply.responses, strict=True):
            kvs = response.response_range.kvs
            found = Revision(kvs[0].mod_revision) if kvs else ABSENT
            if found != expected:
                return rules.conflict(key, expected, found)
        return Broken("etcd refused a transaction whose expectations hold")

    async def _call(self, method: Any, request: Any) -> Any:
        self._check_open()
        with self._translated():
            return await method(request, timeout=self._timeout)

    def _check_open(self) -> None:
        if self._closed:
            raise rules.closed()

    def _bytes(self, key: str) -> bytes:
        return (self._root + key).encode()

    def _key(self, kv: Any) -> Key:
        return Key(kv.key.decode()[len(self._root) :])

    def _event(self, event: Any) -> Event:
        entry = _entry(event.kv) if event.type == rpc.Event.PUT else None
        return Event(self._key(event.kv), entry, Revision(event.kv.mod_revision))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Codes and texts: etcd's api/v3rpc/rpctypes/error.go"""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            text = error.details() or error.code().name
            if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                kind: type[AtollError] = Compacted if "compacted" in text else Invalid
            else:
                kind = _KINDS.get(error.code(), Broken)
            raise kind(f"etcd: {text.removeprefix('etcdserver: ')}") from error
        except TimeoutError as error:
            raise Unreachable(f"etcd did not answer in {self._timeout:g} s") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise Unreachable("the store was closed before etcd answered") from None
            raise


class EtcdLease:
    def __init__(self, store: EtcdStore, lease_id: LeaseId, ttl: float) -> None:
        self.id, self.ttl = lease_id, ttl
        self._store = store

    async def renew(self) -> None:
        await self._store.renew(self.id)

    async def revoke(self) -> None:
        await self._store.revoke(self.id)


def _entry(kv: Any) -> Entry:
    return Entry(kv.value, Revision(kv.mod_revision))


async def _target(endpoints: Sequence[str], timeout: float) -> str:
    """gRPC's name for the members: it talks to one and turns to the next when that fails.

    IPv6 only where no member has an IPv4 address, as one name cannot hold both.
    """
    loop = asyncio.get_running_loop()
    v4, v6 = list[str](), list[str]()
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        try:
            async with asyncio.timeout(timeout):
                infos: Sequence[Any] = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"etcd member {endpoint}: {error}", hint="write it as host:port") from error
        v4 += [f"{at[0]}:{at[1]}" for family, *_, at in infos if family == socket.AF_INET]
        v6 += [f"[{at[0]}]:{at[1]}" for family, *_, at in infos if family == socket.AF_INET6]
    if not v4 and not v6:
        raise Invalid("no etcd member is given")
    return "ipv4:" + ",".join(v4) if v4 else "ipv6:" + ",".join(v6)
