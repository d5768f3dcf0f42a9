"""A range of ids of its own for each container: what its root and users are on the host. Given out by transaction.

Between 600 and 1879 million, where systemd puts containers (https://systemd.io/UIDS-GIDS): above people, login
tools and DynamicUser, below the ids of VMs (uids.py) and those of trees on disks. Each Atoll begins elsewhere, by
its tag; ranges that /etc/subuid or /etc/subgid gives to somebody are left to them.
"""

from collections.abc import Iterable, Set
from pathlib import Path

from atoll.base.errors import Exhausted, Lacking
from atoll.base.ids import InstanceId
from atoll.instance.slots import Slots
from atoll.store.api import Store

PREFIX = "/idranges/"
IDS = 65536
FIRST, LAST = 0x2400_0000, 0x7000_0000
COUNT = (LAST - FIRST) // IDS
"""How many ranges there are."""
_REGISTERED = ("/etc/subuid", "/etc/subgid")


def begin(tag: str) -> int:
    """The number of the first range that the Atoll with this tag (hexadecimal) tries."""
    return int(tag, 16) * 7919 % COUNT


def registered(text: str) -> list[tuple[int, int]]:
    """(first id, how many) of each line `name:first:count` (subuid(5)). Pure."""
    found = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            found.append((int(fields[1]), int(fields[2])))
    return found


def ours(uid_map: str, first: int) -> bool:
    """Whether our own user namespace (proc_pid_uid_map(5)) has a whole range. Pure."""
    for line in uid_map.splitlines():
        inside, _, count = (int(word) for word in line.split())
        if inside <= first and first + IDS <= inside + count:
            return True
    return False


def choose(start: int, taken: Set[int], others: Iterable[tuple[int, int]]) -> int | None:
    """The number of the first free range from `start` on, in a circle; None where there is none. Pure."""
    foreign: set[int] = set()
    for first, count in others:
        low, high = max(first, FIRST), min(first + count, LAST)
        if low < high:
            foreign.update(range((low - FIRST) // IDS, (high - 1 - FIRST) // IDS + 1))
    return next(
        (n for step in range(COUNT) if (n := (start + step) % COUNT) not in taken and n not in foreign), None
    )


class Ranges:
    def __init__(self, local: Store, tag: str) -> None:
        self._begin = begin(tag)
        self._slots = Slots(local, PREFIX, self._choose)

    async def of(self, instance: InstanceId) -> int:
        """The first id of the instance's range, given out at first need. Raises Exhausted, Lacking."""
        return self._usable(await self._slots.of(instance))

    async def release(self, instance: InstanceId) -> None:
        """Absent is success."""
        await self._slots.release(instance)

    def _choose(self, taken: Set[int]) -> int:
        number = choose(self._begin, taken, _others())
        if number is None:
            raise Exhausted(
                f"all {COUNT} ranges of ids for containers are given out",
                hint="delete containers, or take lines out of /etc/subuid and /etc/subgid",
            )
        return number

    def _usable(self, number: int) -> int:
        first = FIRST + number * IDS
        if not ours(Path("/proc/self/uid_map").read_text(), first):
            raise Lacking(
                f"this daemon runs in a user namespace that has no ids {first} to {first + IDS - 1}",
                hint="give it all ids (lxc.idmap = u 0 0 4294967295), or launch with --privileged",
            )
        return first


def _others() -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for name in _REGISTERED:
        path = Path(name)
        found += registered(path.read_text()) if path.exists() else []
    return found
