"""Instances as JSON, kept per row: a list of 10,000 of which two changed encodes two."""

from collections.abc import Iterable, Sequence

import msgspec

from atoll.base.ids import InstanceId
from atoll.instance.book import InstanceView

_encoder = msgspec.json.Encoder()


class Rows:
    """`of` gives the encoded row of each view. What has left the list is forgotten with the next whole list."""

    def __init__(self) -> None:
        self._kept: dict[InstanceId, tuple[InstanceView, bytes]] = {}

    def one(self, view: InstanceView) -> bytes:
        kept = self._kept.get(view.instance.id)
        if kept is not None and (kept[0] is view or _same(kept[0], view)):
            return kept[1]
        row = _encoder.encode(view)
        self._kept[view.instance.id] = (view, row)
        return row

    def array(self, views: Iterable[InstanceView]) -> bytes:
        return b"[" + b",".join([self.one(view) for view in views]) + b"]"

    def keep(self, views: Sequence[InstanceView]) -> None:
        """Forget every row that is not of these."""
        if len(self._kept) > 2 * len(views) + 100:
            present = {view.instance.id for view in views}
            self._kept = {id: kept for id, kept in self._kept.items() if id in present}


def _same(one: InstanceView, other: InstanceView) -> bool:
    return one.revision == other.revision and one.status_revision == other.status_revision


def list_tag(views: Sequence[InstanceView]) -> str:
    """Changes whenever any row does: a change raises the greatest revision, a removal lowers the count."""
    latest = max((max(view.revision, view.status_revision) for view in views), default=0)
    return f'"{latest}-{len(views)}"'
