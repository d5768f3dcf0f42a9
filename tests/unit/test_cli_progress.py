"""Progress may be quicker than the answer that says whose it is."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from atoll.base import clock
from atoll.base.ids import OperationId
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings
from atoll.client import News, Progress
from atoll.operation.model import Subject

OURS, OTHERS = OperationId("1"), OperationId("2")


async def test_what_was_heard_before_the_answer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = asyncio.Event()

    async def follow(**_: Any) -> AsyncIterator[News]:
        for id, step in ((OTHERS, "disk"), (OURS, "claim")):
            body = msgspec.Raw(msgspec.json.encode(Progress(id, step, 10)))
            subject = Subject("instance", "default", "web")
            yield News(kind="operation.progress", subject=subject, at=clock.now(), body=body)
        told.set()
        await asyncio.Event().wait()

    async def wait(operation: Any, **_: Any) -> Any:
        return operation

    client: Any = SimpleNamespace(events=SimpleNamespace(follow=follow), operations=SimpleNamespace(wait=wait))
    async with Waiting(client, Settings(output="table"), steps=True) as waiting:
        await told.wait()
        await waiting.wait(SimpleNamespace(id=OURS), "launching web")  # type: ignore[arg-type]
    assert capsys.readouterr().err == "launching web: claim\n"
