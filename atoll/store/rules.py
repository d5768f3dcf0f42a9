"""The rules every driver judges by, so that the embedded stores decide as etcd does."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence

import msgspec

from atoll.base.errors import Absent, Conflict, Invalid, Refused
from atoll.store.api import ABSENT, Entry, Event, Key, LeaseId, Revision, Txn, View


class Change(msgspec.Struct, frozen=True):
    """An event and what the key held before it."""

    event: Event
    before: Entry | None


def check_key(key: Key) -> None:
    if not key.startswith("/") or key.endswith("/") or not key.isascii() or not key.isprintable():
        raise Invalid(f"{key!r} is not a key")


def check_prefix(prefix: Key) -> None:
    if not (prefix.startswith("/") and prefix.endswith("/") and prefix.isascii() and prefix.isprintable()):
        raise Invalid(f"{prefix!r} is not a prefix", hint="a prefix begins and ends with /")


def check_page(prefix: Key, limit: int) -> None:
    check_prefix(prefix)
    if limit < 1:
        raise Invalid(f"a page of {limit} entries")


def span(prefix: Key, after: Key | None) -> tuple[str, str]:
    """The bounds, both exclusive, of the keys below `prefix` and greater than `after`."""
    end = prefix[:-1] + chr(ord("/") + 1)
    return max(prefix, after or prefix), end


def conflict(key: Key, expected: Revision, found: Revision) -> Conflict:
    if expected == ABSENT:
        return Conflict(f"{key} exists already (revision {found})")
    if found == ABSENT:
        return Conflict(f"{key} is gone (expected at revision {expected})")
    return Conflict(f"{key} was changed: it is at revision {found}, not {expected}")


def closed() -> Refused:
    return Refused("the store is closed")


def judge(
    txn: Txn, revision: Revision, find: Callable[[Key], Entry | None], alive: Container[LeaseId]
) -> list[Change]:
    """The changes `txn` makes at `revision`, none when it only deletes what is absent.

    Raises Conflict or Absent (the lease is lost), in this order, as etcd does.
    """
    for key, expected in txn.expect.items():
        entry = find(key)
        found = entry.revision if entry else ABSENT
        if found != expected:
            raise conflict(key, expected, found)
    if txn.put and txn.lease is not None and txn.lease not in alive:
        raise Absent(f"lease {txn.lease} is lost")
    changes = [Change(Event(key, Entry(value, revision), revision), find(key)) for key, value in txn.put.items()]
    return changes + removals(txn.delete, revision, find)


def removals(keys: Iterable[Key], revision: Revision, find: Callable[[Key], Entry | None]) -> list[Change]:
    """The deletion of those of `keys` that exist."""
    return [Change(Event(key, None, revision), before) for key in sorted(keys) if (before := find(key)) is not None]


def page(
    rows: Sequence[tuple[Key, Entry]], past: Mapping[Key, Entry | None], limit: int, revision: Revision
) -> View:
    """One page as it was at `revision`.

    `rows` are as they are now, at least `limit + 1 + len(past)` of them where there are so many; `past` is what
    the keys changed since then held at `revision`.
    """
    if past:
        kept = {key: entry for key, entry in rows if key not in past}
        kept.update((key, entry) for key, entry in past.items() if entry is not None)
        rows = sorted(kept.items())
    return View(dict(rows[:limit]), revision, more=len(rows) > limit)
