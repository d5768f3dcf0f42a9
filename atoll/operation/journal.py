"""The undo journal: what would take back the acts of every running operation, durable before each act."""

import msgspec

from atoll.base.ids import OperationId
from atoll.operation.verb import UndoStep
from atoll.store.api import ABSENT, MAX_OPERATIONS, Key, Store, Txn, read_all

PREFIX = Key("/journal/")


class Note(msgspec.Struct, frozen=True):
    """One step of an operation: its name and the acts that take it back, in the order to be replayed.

    `about`: the id of its subject, "" where it was not known by then. Names move, ids do not.
    """

    step: str
    undo: tuple[UndoStep, ...] = ()
    about: str = ""


class Journal:
    def __init__(self, local: Store) -> None:
        self._local = local
        self._next: dict[OperationId, int] = {}

    async def add(self, operation: OperationId, note: Note) -> None:
        at = self._next.get(operation, 0)
        key = Key(f"{PREFIX}{operation}/{at:04d}")
        await self._local.commit(Txn(expect={key: ABSENT}, put={key: msgspec.json.encode(note)}))
        self._next[operation] = at + 1

    async def all(self) -> dict[OperationId, list[Note]]:
        """Every operation that is not finished with, its notes oldest first."""
        found: dict[OperationId, list[Note]] = {}
        for key, entry in (await read_all(self._local, PREFIX)).entries.items():
            operation = OperationId(key.split("/")[2])
            found.setdefault(operation, []).append(msgspec.json.decode(entry.value, type=Note))
        for operation, notes in found.items():
            self._next[operation] = len(notes)
        return found

    async def of(self, operation: OperationId) -> list[Note]:
        """One operation's notes, oldest first."""
        view = await read_all(self._local, Key(f"{PREFIX}{operation}/"))
        return [msgspec.json.decode(entry.value, type=Note) for entry in view.entries.values()]

    async def close(self, operation: OperationId) -> None:
        """Forget an operation: it is done, or wholly taken back."""
        prefix = Key(f"{PREFIX}{operation}/")
        keys = list((await read_all(self._local, prefix)).entries)
        while keys:
            await self._local.commit(Txn(delete=frozenset(keys[-MAX_OPERATIONS:])))
            del keys[-MAX_OPERATIONS:]
        self._next.pop(operation, None)
