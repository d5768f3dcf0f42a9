"""Instances for reading: mirrors of their records, decoded once, so that a list of 10,000 costs milliseconds."""

from types import TracebackType
from typing import Self

from atoll.base.errors import Absent
from atoll.base.ids import InstanceId
from atoll.base.names import did_you_mean
from atoll.instance.book import DEFINITIONS, STATUSES, InstanceView, load_definition, load_status, name_of, status
from atoll.instance.book import definition as definition_of
from atoll.instance.model import Instance, InstanceStatus
from atoll.store.api import Revision, Store
from atoll.store.mirror import Mirror


class Catalog:
    """A list may be a moment late; `get` is never older than the instance's creation or last renaming."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._views: dict[InstanceId, InstanceView] = {}
        self._listed: list[InstanceView] = []
        self._listed_at: tuple[Revision, Revision] | None = None
        self._definitions: Mirror[tuple[Instance, Revision]] = Mirror(store, DEFINITIONS, load_definition)
        self._statuses: Mirror[tuple[InstanceStatus, Revision]] = Mirror(store, STATUSES, load_status)

    async def __aenter__(self) -> Self:
        await self._definitions.start()
        await self._statuses.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._definitions.close()
        await self._statuses.close()

    async def list(self, project: str | None = None) -> list[InstanceView]:
        """Every instance (of one project), by project and name. Do not change the list."""
        at = (self._definitions.revision, self._statuses.revision)
        if at != self._listed_at:
            joined = (self._join(instance, revision) for instance, revision in self._definitions.values())
            views = [view for view in joined if view is not None]
            views.sort(key=lambda view: (view.instance.project, view.instance.name))
            self._views = {view.instance.id: view for view in views}
            self._listed, self._listed_at = views, at
        if project is None:
            return self._listed
        return [view for view in self._listed if view.instance.project == project]

    async def get(self, project: str, name: str) -> InstanceView:
        """Raises Absent with what may have been meant."""
        entry = await self._store.get(name_of(project, name))
        if entry is not None:
            await self._definitions.caught_up(entry.revision)
            definition = self._definitions.get(definition_of(entry.value.decode()))
            view = self._join(*definition) if definition else None
            if view is not None:
                return view
        names = [view.name for view in await self.list(project)]
        raise Absent(
            f"there is no instance {name} in project {project}", hint=did_you_mean(name, names) or "atoll list"
        )

    def _join(self, instance: Instance, revision: Revision) -> InstanceView | None:
        """Definition and status as one view: the same object for as long as both stay as they are."""
        found = self._statuses.get(status(instance.id))
        if found is None:
            return None
        known = self._views.get(instance.id)
        if known is not None and (known.revision, known.status_revision) == (revision, found[1]):
            return known
        view = InstanceView(instance=instance, status=found[0], revision=revision, status_revision=found[1])
        self._views[instance.id] = view
        return view
