"""Networks and ports on record: names, subnets, addresses given out by transaction."""

import asyncio

import msgspec
import pytest

from atoll.base.errors import Absent, Conflict, Exists, Invalid, Refused
from atoll.base.ids import PortId
from atoll.network.book import NetworkBook
from atoll.network.model import Network, Port
from atoll.store.api import Key, Txn, read_all
from atoll.store.memory import MemoryStore
from atoll.store.txn import commit_afresh, merge


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def book(store: MemoryStore) -> NetworkBook:
    return NetworkBook(store)


async def plug(store: MemoryStore, book: NetworkBook, network: Network, name: str) -> Port:
    port, _ = await commit_afresh(
        store, lambda: book.plan_port(network, project="default", instance=f"id-{name}", name=name)
    )
    return port


async def test_a_network_is_found_by_name(book: NetworkBook) -> None:
    made = await book.create("default", "blue", "bridge")
    assert await book.get("default", "blue") == made
    assert made.domain == "blue.default.internal"
    assert len(made.subnets) == len(made.gateways) == 2
    with pytest.raises(Exists):
        await book.create("default", "blue", "bridge")
    with pytest.raises(Absent) as told:
        await book.get("default", "bleu")
    assert "blue" in told.value.hint
    for odd in ("ü", "", "a/b", "x" * 300, "\n"):
        with pytest.raises(Absent):
            await book.get("default", odd)
        with pytest.raises(Invalid):
            await book.create("default", odd, "bridge")


async def test_the_default_projects_networks_are_everybodys(book: NetworkBook) -> None:
    shared, own = await book.create("default", "shared", "bridge"), await book.create("lab", "own", "bridge")
    hidden = await book.create("default", "own", "bridge")
    assert await book.get("lab", "shared") == shared
    assert await book.get("lab", "own") == own
    assert [network.id for network in await book.visible("lab")] == [own.id, shared.id]
    assert [network.id for network in await book.visible("default")] == [hidden.id, shared.id]


async def test_subnets_never_overlap(book: NetworkBook) -> None:
    blue = await book.create("default", "blue", "bridge", subnets=["10.77.0.0/16"])
    with pytest.raises(Refused, match="blue"):
        await book.create("default", "red", "bridge", subnets=["10.77.3.0/24"])
    with pytest.raises(Refused, match="routes"):
        await book.create("default", "red", "bridge", subnets=["10.78.3.0/24"], taken=["10.78.0.0/16"])
    with pytest.raises(Invalid):
        await book.create("default", "red", "bridge", subnets=["10.78.3.1/24"])
    chosen = await book.create("default", "red", "bridge", taken=["10.0.0.0/8"])
    assert chosen.subnets[0].startswith("172.")
    await book.delete(blue)
    await book.create("default", "red2", "bridge", subnets=["10.77.3.0/24"])


async def test_the_same_subnet_at_the_same_time(book: NetworkBook) -> None:
    makes = [book.create("default", f"n{n}", "bridge", subnets=["10.77.0.0/24"]) for n in range(5)]
    done = await asyncio.gather(*makes, return_exceptions=True)
    assert sum(isinstance(each, Network) for each in done) == 1
    assert sum(isinstance(each, Refused) for each in done) == 4


async def test_the_default_network_is_made_once(store: MemoryStore) -> None:
    books = [NetworkBook(store) for _ in range(8)]
    made = await asyncio.gather(*(b.ensure_default("lab", "bridge", plans_addresses=True) for b in books))
    assert len({network.id for network in made}) == 1
    assert (made[0].project, made[0].name) == ("lab", "default")
    plain = await books[0].ensure_default("other", "user", plans_addresses=False)
    assert plain.subnets == ()


async def test_a_port_claims_all_it_has_in_one_commit(store: MemoryStore, book: NetworkBook) -> None:
    network = await book.create("default", "blue", "bridge", subnets=["10.77.0.0/24", "fd00::/64"])
    port, part = await book.plan_port(network, project="default", instance="i", name="web")
    assert port.addresses[0] == "10.77.0.10"
    assert port.addresses[1].startswith("fd00::")
    assert port.name == "web"
    await store.commit(merge(part, Txn(put={Key("/other"): b"1"})))
    assert await book.port(network.id, port.id) == port
    assert await book.ports(network.id) == [port]
    with pytest.raises(Conflict):
        await store.commit(part)


async def test_many_launches_at_once_get_each_their_own(store: MemoryStore) -> None:
    """Of one daemon without a single conflict, of several with retries."""
    books = [NetworkBook(store) for _ in range(3)]
    network = await books[0].create("default", "blue", "bridge", subnets=["10.77.0.0/24"])
    ports = await asyncio.gather(*(plug(store, books[n % 3], network, f"g{n}") for n in range(30)))
    addresses = sorted(int(port.addresses[0].rpartition(".")[2]) for port in ports)
    assert len(set(addresses)) == 30
    assert len({port.mac for port in ports}) == 30

    alone = NetworkBook(store)
    plans = await asyncio.gather(
        *(alone.plan_port(network, project="default", instance="i", name=f"h{n}") for n in range(10))
    )
    for _, part in plans:
        await store.commit(part)


async def test_a_released_port_gives_everything_back(store: MemoryStore, book: NetworkBook) -> None:
    network = await book.create("default", "blue", "bridge")
    before = (await read_all(store, Key("/"))).entries.keys()
    port = await plug(store, book, network, "web")
    release = await book.release_port(network.id, port.id)
    await store.commit(release)
    assert (await read_all(store, Key("/"))).entries.keys() == before
    heir = await plug(store, book, network, "heir")
    assert heir.addresses[0] == port.addresses[0]
    with pytest.raises(Conflict):
        await store.commit(release)  # must not take the heir's address away
    assert await book.release_port(network.id, port.id) == Txn()
    assert await book.release_port(network.id, PortId("never-was")) == Txn()


async def test_names_seen_from_another_project(book: NetworkBook) -> None:
    network = await book.create("default", "blue", "bridge")
    port, _ = await book.plan_port(network, project="lab", instance="i", name="web")
    assert port.name == "web.lab"


async def test_a_port_takes_its_guests_new_name(store: MemoryStore, book: NetworkBook) -> None:
    network = await book.create("default", "blue", "bridge")
    port = await plug(store, book, network, "web")
    renamed = await book.rename_port(network, port.id, project="default", name="www")
    assert renamed == msgspec.structs.replace(port, name="www") == await book.port(network.id, port.id)
    assert await book.rename_port(network, PortId("never-was"), project="default", name="www") is None


async def test_a_network_without_subnets_plans_no_address(store: MemoryStore, book: NetworkBook) -> None:
    network = await book.create("default", "plain", "user", subnets=())
    port = await plug(store, book, network, "web")
    assert port.addresses == ()
    assert port.mac


async def test_a_used_network_is_not_deleted(store: MemoryStore, book: NetworkBook) -> None:
    network = await book.create("default", "blue", "bridge")
    port = await plug(store, book, network, "web")
    with pytest.raises(Refused, match="web"):
        await book.delete(network)
    assert await book.get("default", "blue") == network
    await store.commit(await book.release_port(network.id, port.id))
    await book.delete(network)
    await book.delete(network)
    assert (await read_all(store, Key("/"))).entries == {}
    with pytest.raises(Absent):
        await book.plan_port(network, project="default", instance="i", name="web")


async def test_a_port_planned_before_the_deletion_cannot_be_committed_after(
    store: MemoryStore, book: NetworkBook
) -> None:
    network = await book.create("default", "blue", "bridge")
    _, part = await book.plan_port(network, project="default", instance="i", name="web")
    await book.delete(network)
    with pytest.raises(Conflict):
        await store.commit(part)


async def test_a_port_that_comes_while_the_network_goes(store: MemoryStore) -> None:
    """Between the first look and the record's moving aside: the deletion is refused and the network stays."""

    class Late(MemoryStore):
        late: Txn | None = None

        async def commit(self, txn: Txn):  # type: ignore[no-untyped-def]
            if self.late and any(key.startswith("/networks-ending/") for key in txn.put):
                late, self.late = self.late, None
                await super().commit(late)
            return await super().commit(txn)

    slow = Late()
    book = NetworkBook(slow)
    network = await book.create("default", "blue", "bridge")
    port, slow.late = await book.plan_port(network, project="default", instance="guest", name="web")
    with pytest.raises(Refused, match="web"):
        await book.delete(network)
    assert await book.get("default", "blue") == network
    await slow.commit(await book.release_port(network.id, port.id))
    await book.delete(network)
    assert (await read_all(slow, Key("/"))).entries == {}


async def test_a_deletion_cut_short_is_finished_by_the_next(store: MemoryStore, book: NetworkBook) -> None:
    network = await book.create("default", "blue", "bridge")
    entry = await store.get(Key(f"/networks/default/{network.id}"))
    assert entry is not None
    here, aside = Key(f"/networks/default/{network.id}"), Key(f"/networks-ending/default/{network.id}")
    await store.commit(Txn({here: entry.revision}, {aside: entry.value}, frozenset({here})))
    with pytest.raises(Absent):
        await book.get("default", "blue")
    await book.delete(network)
    assert (await read_all(store, Key("/"))).entries == {}
