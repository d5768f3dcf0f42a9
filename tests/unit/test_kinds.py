"""What an instance of each kind may be, and which ids a container gets."""

import pytest

from atoll.base.errors import Invalid
from atoll.base.ids import Bytes, InstanceId
from atoll.instance import kinds, ranges
from atoll.instance.model import ContainerSpec, InstanceSpec, Kind, Limits, MountSpec
from atoll.store.memory import MemoryStore

CONTAINER = Kind.CONTAINER


@pytest.mark.parametrize(
    "spec",
    [
        InstanceSpec(image="", kind=CONTAINER),
        InstanceSpec(image="x", kind=CONTAINER, machine="q35"),
        InstanceSpec(image="x", kind=CONTAINER, forkable=True),
        InstanceSpec(image="x", kind=CONTAINER, cdrom="y"),
        InstanceSpec(image="x", container=ContainerSpec(nesting=True)),
        InstanceSpec(
            image="x", kind=CONTAINER, container=ContainerSpec(mounts=(MountSpec(source="/a", path="/proc/"),))
        ),
        InstanceSpec(
            image="x", kind=CONTAINER, container=ContainerSpec(mounts=(MountSpec(source="/a", path="/a/../.."),))
        ),
    ],
)
def test_what_is_another_kind_s_is_refused(spec: InstanceSpec) -> None:
    with pytest.raises(Invalid):
        kinds.check_kind(spec)


def test_each_kind_has_its_limits_and_its_least_memory() -> None:
    kinds.check_limits(CONTAINER, Limits(processes=5))
    with pytest.raises(Invalid):
        kinds.check_limits(Kind.VM, Limits(processes=5))
    kinds.check_memory(InstanceSpec(image="x", kind=CONTAINER, memory=Bytes(16 << 20)), None)
    with pytest.raises(Invalid):
        kinds.check_memory(InstanceSpec(image="x", kind=CONTAINER, memory=Bytes(8 << 20)), None)


def test_ranges_never_meet_those_of_others() -> None:
    first = ranges.FIRST
    assert ranges.choose(0, set(), []) == 0
    assert ranges.choose(0, {0, 1}, [(first + 2 * 65536 + 7, 1)]) == 3
    assert ranges.choose(ranges.COUNT - 1, {ranges.COUNT - 1}, []) == 0, "in a circle"
    assert ranges.choose(0, set(range(ranges.COUNT)), []) is None
    assert ranges.registered("root:100000:65536\nbroken\n") == [(100000, 65536)]
    assert ranges.ours("0 0 4294967295\n", first)
    assert not ranges.ours("0 1000000 65536\n", first)


async def test_a_range_is_an_instance_s_until_it_is_gone() -> None:
    given = ranges.Ranges(MemoryStore(), "abc123")
    one, two = await given.of(InstanceId("one")), await given.of(InstanceId("two"))
    assert abs(one - two) >= 65536
    assert await given.of(InstanceId("one")) == one
    await given.release(InstanceId("one"))
    await given.release(InstanceId("one"))
    assert await given.of(InstanceId("three")) == one
