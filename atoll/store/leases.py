"""Leases of an embedded store: their holders live in this very process, on this event loop."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from atoll.base.errors import Absent, AtollError, Invalid, Refused, Unreachable
from atoll.store import rules
from atoll.store.api import LeaseId

RETRY = 1.0
"""Seconds between attempts to delete a dead lease's keys (the disk may be full)."""
PATIENCE = 5.0


class Leases:
    """`delete` removes the keys of a lease that has just left this set."""

    def __init__(self, delete: Callable[[LeaseId], Awaitable[object]]) -> None:
        self._delete = delete
        self._alive: dict[LeaseId, LocalLease] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.closed = False

    def __contains__(self, lease: object) -> bool:
        return lease in self._alive

    def grant(self, ttl: float) -> "LocalLease":
        if ttl <= 0:
            raise Invalid(f"a lease of {ttl} seconds")
        lease = LocalLease(self, LeaseId(secrets.randbits(62)), ttl)
        self._alive[lease.id] = lease
        return lease

    def end(self, lease: "LocalLease") -> asyncio.Task[None] | None:
        """The task that deletes its keys; None when it had ended before."""
        if self._alive.pop(lease.id, None) is None:
            return None
        task = asyncio.get_running_loop().create_task(self._delete_keys(lease.id))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def close(self) -> None:
        self.closed = True
        for lease in self._alive.values():
            lease.timer.cancel()
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _delete_keys(self, lease: LeaseId) -> None:
        while True:
            try:
                await self._delete(lease)
                return
            except Refused:
                return
            except AtollError:
                await asyncio.sleep(RETRY)


class LocalLease:
    def __init__(self, leases: Leases, lease_id: LeaseId, ttl: float) -> None:
        self.id, self.ttl = lease_id, ttl
        self._leases = leases
        self._loop = asyncio.get_running_loop()
        self._start()

    async def renew(self) -> None:
        if self._leases.closed:
            raise rules.closed()
        if self.id in self._leases and self._loop.time() >= self.timer.when():
            self._expire()  # a busy loop: the timer is due but has not run
        if self.id not in self._leases:
            raise Absent(f"lease {self.id} is lost")
        self.timer.cancel()
        self._start()

    async def revoke(self) -> None:
        if self._leases.closed:
            raise rules.closed()
        self.timer.cancel()
        if (ending := self._leases.end(self)) is None:
            return
        await asyncio.wait({ending}, timeout=PATIENCE)
        if not ending.done():
            raise Unreachable(f"the keys of lease {self.id} are not deleted yet", hint="is the disk full?")

    def _start(self) -> None:
        self.timer = self._loop.call_later(self.ttl, self._expire)

    def _expire(self) -> None:
        self._leases.end(self)
