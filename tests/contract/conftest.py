"""Every driver of the store contract, each time empty."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from atoll.store.api import Store
from atoll.store.etcd import EtcdStore
from atoll.store.memory import MemoryStore
from atoll.store.sqlite import SqliteStore
from tests.kit.etcd import Etcd, running_etcd


class Compactable(Store, Protocol):
    async def compact(self) -> None:
        """Forget what was, now."""


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


async def _open(driver: str, tmp_path: Path, etcd: Callable[[], Etcd]) -> Compactable:
    if driver == "memory":
        return MemoryStore()
    if driver == "sqlite":
        return await SqliteStore.open(tmp_path / "store.db")
    return await EtcdStore.connect([etcd().endpoint], root=f"/test-{uuid.uuid4()}")


@pytest.fixture(params=["memory", "sqlite", "etcd"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Compactable]:
    made = await _open(request.param, tmp_path, lambda: request.getfixturevalue("etcd"))
    yield made
    await made.close()
