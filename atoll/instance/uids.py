"""An unprivileged user id of its own for each instance, given out by transaction from this host's range."""

from collections.abc import Set

from atoll.base.errors import Exhausted
from atoll.base.ids import InstanceId
from atoll.instance.slots import Slots
from atoll.store.api import Store

PREFIX = "/uids/"
COUNT = 8192


def base_of(tag: str) -> int:
    """The first of COUNT ids that belong to the Atoll whose state directory's tag (hexadecimal) this is.

    1.9 to 2.1 thousand million: above what login tools, containers and systemd's DynamicUser hand out.
    """
    return 1_900_000_000 + int(tag, 16) % 30000 * COUNT


class Uids:
    def __init__(self, local: Store, tag: str) -> None:
        self._base = base_of(tag)
        self._slots = Slots(local, PREFIX, choose)

    async def of(self, instance: InstanceId) -> int:
        """The instance's uid, given out at first need. Raises Exhausted."""
        return self._base + await self._slots.of(instance)

    async def release(self, instance: InstanceId) -> None:
        """Absent is success."""
        await self._slots.release(instance)


def choose(taken: Set[int]) -> int:
    number = next((number for number in range(COUNT) if number not in taken), None)
    if number is None:
        raise Exhausted(f"all {COUNT} user ids of this host are given out")
    return number
