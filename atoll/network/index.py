"""The number by which a network's links are known on this host, claimed in the local store.

Link names hold 15 bytes, too few for an id: each network on a host gets the lowest free number instead.
"""

from atoll.base.ids import NetworkId
from atoll.store.api import ABSENT, Key, Store, Txn, read_all
from atoll.store.txn import commit_afresh

_INDEXES = Key("/network-links/")
_TAKEN = Key("/network-link-numbers/")


def _index_of(network: str) -> Key:
    return Key(f"{_INDEXES}{network}")


def _number(index: int) -> Key:
    return Key(f"{_TAKEN}{index}")


async def claim_index(local: Store, network: NetworkId) -> int:
    """The network's number on this host, claimed at first need and the same ever after."""

    async def make() -> tuple[int, Txn]:
        if entry := await local.get(_index_of(network)):
            return int(entry.value), Txn()
        taken = {int(key.removeprefix(_TAKEN)) for key in (await read_all(local, _TAKEN)).entries}
        index = next(number for number in range(1, len(taken) + 2) if number not in taken)
        put = {_index_of(network): str(index).encode(), _number(index): network.encode()}
        return index, Txn(dict.fromkeys(put, ABSENT), put)

    if entry := await local.get(_index_of(network)):
        return int(entry.value)
    index, _ = await commit_afresh(local, make)
    return index


async def release_index(local: Store, network: NetworkId) -> None:
    """Once nothing of the network is left on this host. Absent is success."""
    entry = await local.get(_index_of(network))
    if entry is not None:
        keys = frozenset({_index_of(network), _number(int(entry.value))})
        await local.commit(Txn({_index_of(network): entry.revision}, delete=keys))


async def indexes(local: Store) -> dict[NetworkId, int]:
    """Every network that this host has, or had and may not have wholly removed."""
    entries = (await read_all(local, _INDEXES)).entries
    return {NetworkId(key.removeprefix(_INDEXES)): int(entry.value) for key, entry in entries.items()}
