"""Containers that hold themselves for what is run in them: they go with the last who runs anything (`atoll run`).

Whoever leaves, and however, his end of the session ends: so nothing is forgotten where a client is killed.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atoll.api.services import Services
from atoll.base.errors import AtollError
from atoll.instance.book import InstanceView
from atoll.instance.verbs.args import DeleteArgs
from atoll.operation.model import Subject
from atoll.operation.runner import Request

log = logging.getLogger(__name__)


class Held:
    """Counts the sessions of each."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._sessions: Counter[str] = Counter()

    @asynccontextmanager
    async def by_session(self, view: InstanceView, by: Request) -> AsyncIterator[None]:
        """Around a session in it. Of others nothing is removed."""
        if not view.instance.spec.container.hold:
            yield
            return
        self._sessions[view.id] += 1
        try:
            yield
        finally:
            self._sessions[view.id] -= 1
            if not self._sessions[view.id]:
                del self._sessions[view.id]
                await self._remove(view, by)

    async def _remove(self, view: InstanceView, by: Request) -> None:
        args = DeleteArgs(project=view.project, name=view.name, force=True)
        subject = Subject("instance", view.project, view.name, view.id)
        try:
            await self._services.operations.submit("instance.delete", args, subject, Request(actor=by.actor))
        except AtollError as error:
            log.warning("%s could not be removed after its program: %s", view.name, error)
