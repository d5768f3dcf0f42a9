"""What the API's routes ask of exports and imports: files that come, and files that go."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from atoll.base.errors import Absent
from atoll.base.ids import OperationId
from atoll.instance.dock import Dock, Received
from atoll.instance.fitting import fit
from atoll.instance.here import Here
from atoll.instance.outbox import Outbox, Sending
from atoll.instance.parcel import Parcel
from atoll.instance.seed import check
from atoll.instance.verbs.args import Fitting
from atoll.operation.model import as_error
from atoll.operation.runner import Operations


@dataclass(frozen=True, slots=True)
class Parcels:
    here: Here
    dock: Dock
    outbox: Outbox
    operations: Operations

    async def receive(self, project: str, chunks: AsyncIterator[bytes], how: Fitting) -> Received:
        """Take in a parcel that a client sends; what is against it is found out before its content is taken.

        Raises Invalid, Exhausted, Exists, Absent, Unreachable; then nothing of it is left.
        """

        async def judge(parcel: Parcel) -> None:
            check(parcel.cloud_init)
            await fit(self.here, project, parcel, how)

        return await self.dock.receive(chunks, judge)

    def drop(self, received: Received) -> None:
        """Absent is success."""
        self.dock.drop(received.upload)

    async def fetch(self, project: str, id: str) -> Sending:
        """The file of a running export, once it is there. Raises Absent, Refused, and what the export
        fails with."""
        key = OperationId(id)
        operation = await self.operations.wait(key, timeout=0)
        if operation.verb != "instance.export" or operation.subject.project != project:
            raise Absent(f"{id[:40]} is no export of project {project}", hint="atoll export NAME FILE")
        fetching = asyncio.ensure_future(self.outbox.fetch(key))
        ending = asyncio.ensure_future(self.operations.wait(key))
        try:
            await asyncio.wait({fetching, ending}, return_when=asyncio.FIRST_COMPLETED)
            if fetching.done():
                return fetching.result()
            operation = ending.result()
        finally:
            for task in (fetching, ending):
                task.cancel()
            await asyncio.gather(fetching, ending, return_exceptions=True)
        if operation.problem is not None:
            raise as_error(operation.problem)
        raise Absent("this export was fetched already", hint="export it again")
