"""An unprivileged user id of its own for each instance, given out by transaction from this host's range."""

from atoll.base.errors import Conflict, Exhausted
from atoll.base.ids import InstanceId
from atoll.store.api import ABSENT, Key, Store, Txn, read_all

PREFIX = "/uids/"
COUNT = 8192


def base_of(tag: str) -> int:
    """The first of COUNT ids that belong to the Atoll whose state directory's tag (hexadecimal) this is.

    1.9 to 2.1 thousand million: above what login tools, containers and systemd's DynamicUser hand out.
    """
    return 1_900_000_000 + int(tag, 16) % 30000 * COUNT


class Uids:
    def __init__(self, local: Store, tag: str) -> None:
        self._local, self._base = local, base_of(tag)

    async def of(self, instance: InstanceId) -> int:
        """The instance's uid, given out at first need. Raises Exhausted."""
        mine = Key(f"{PREFIX}of/{instance}")
        while True:
            if entry := await self._local.get(mine):
                return self._base + int(entry.value)
            taken = (await read_all(self._local, Key(f"{PREFIX}taken/"))).entries
            number = next((n for n in range(COUNT) if Key(f"{PREFIX}taken/{n:05d}") not in taken), None)
            if number is None:
                raise Exhausted(f"all {COUNT} user ids of this host are given out")
            slot = Key(f"{PREFIX}taken/{number:05d}")
            put = {slot: instance.encode(), mine: str(number).encode()}
            try:
                await self._local.commit(Txn(expect={slot: ABSENT, mine: ABSENT}, put=put))
            except Conflict:
                continue

    async def release(self, instance: InstanceId) -> None:
        mine = Key(f"{PREFIX}of/{instance}")
        if entry := await self._local.get(mine):
            slot = Key(f"{PREFIX}taken/{int(entry.value):05d}")
            await self._local.commit(Txn(delete=frozenset({mine, slot})))
