"""Changes of the packet filter that come together: each is whole, each has its own answer."""

import asyncio

from atoll.base.errors import Absent
from atoll.host import nft
from tests.kit.netns import namespace


def made(number: int) -> list[nft.Command]:
    table = {"family": "inet", "name": f"t{number}"}
    return [{"add": {"table": table}}, {"add": {"chain": {"family": "inet", "table": table["name"], "name": "c"}}}]


def test_what_is_refused_takes_nothing_else_with_it() -> None:
    async def scene() -> None:
        wrong = [*made(99), {"delete": {"table": {"family": "inet", "name": "never"}}}]
        answers = await asyncio.gather(
            *(nft.apply(wrong if number % 10 == 5 else made(number)) for number in range(40)),
            *(nft.tables() for _ in range(5)),
            return_exceptions=True,
        )
        assert [number for number, answer in enumerate(answers) if isinstance(answer, Absent)] == [5, 15, 25, 35]
        assert not [a for a in answers if isinstance(a, Exception) and not isinstance(a, Absent)]
        expected = {("inet", f"t{number}") for number in range(40) if number % 10 != 5}
        assert set(await nft.tables()) == expected

    with namespace() as space, space.entered():
        asyncio.run(scene())


def test_two_network_namespaces_share_nothing() -> None:
    async def scene(number: int) -> list[tuple[str, str]]:
        await asyncio.gather(*(nft.apply(made(number * 10 + each)) for each in range(10)))
        return await nft.tables()

    def inside(number: int) -> list[tuple[str, str]]:
        with namespace() as space, space.entered():
            return asyncio.run(scene(number))

    async def both() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        return await asyncio.gather(asyncio.to_thread(inside, 1), asyncio.to_thread(inside, 2))

    one, two = asyncio.run(both())
    assert {name for _, name in one} == {f"t{10 + each}" for each in range(10)}
    assert {name for _, name in two} == {f"t{20 + each}" for each in range(10)}
