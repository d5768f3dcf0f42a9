"""Numbers of this host for its instances, each given to one at a time, by transaction."""

from collections.abc import Callable, Set

from atoll.base.errors import Conflict
from atoll.base.ids import InstanceId
from atoll.store.api import ABSENT, Key, Store, Txn, read_all


class Slots:
    """`prefix`: of its keys. `choose`: a number that is not in the set of those given out; it raises Exhausted."""

    def __init__(self, local: Store, prefix: str, choose: Callable[[Set[int]], int]) -> None:
        self._local, self._prefix, self._choose = local, prefix, choose

    async def of(self, instance: InstanceId) -> int:
        """The instance's number, given out at first need."""
        mine = Key(f"{self._prefix}of/{instance}")
        while True:
            if entry := await self._local.get(mine):
                return int(entry.value)
            used = (await read_all(self._local, Key(f"{self._prefix}taken/"))).entries
            number = self._choose({int(key.rpartition("/")[2]) for key in used})
            slot = self._slot(number)
            put = {slot: instance.encode(), mine: str(number).encode()}
            try:
                await self._local.commit(Txn(expect={slot: ABSENT, mine: ABSENT}, put=put))
            except Conflict:
                continue

    async def release(self, instance: InstanceId) -> None:
        """Absent is success."""
        mine = Key(f"{self._prefix}of/{instance}")
        if entry := await self._local.get(mine):
            await self._local.commit(Txn(delete=frozenset({mine, self._slot(int(entry.value))})))

    def _slot(self, number: int) -> Key:
        return Key(f"{self._prefix}taken/{number:05d}")
