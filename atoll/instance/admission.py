"""May this host promise that much more? A pure function of records."""

from collections.abc import Iterable

import msgspec

from atoll.base.errors import Exhausted
from atoll.base.ids import Bytes
from atoll.base.units import show_size
from atoll.instance.book import InstanceView
from atoll.instance.model import Kind, State

HOLDING = frozenset({State.CREATING, State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING, State.MIGRATING})
"""States in which an instance holds its memory; a stopped one holds none."""
ENGINE_OVERHEAD = Bytes(64 << 20)
"""What a VM costs its host beside its own memory, bytes: QEMU's own resident size, rounded up."""
MONITOR_OVERHEAD = Bytes(4 << 20)
"""The same of a container: its monitor's."""


def overhead(view: InstanceView) -> int:
    return MONITOR_OVERHEAD if view.instance.spec.kind is Kind.CONTAINER else ENGINE_OVERHEAD


class HostMemory(msgspec.Struct, frozen=True):
    """Bytes. `reserve` is kept for the host itself; guests are promised at most (total - reserve) * overcommit."""

    total: Bytes
    reserve: Bytes
    overcommit: float = 1.0

    @property
    def promisable(self) -> int:
        return max(0, int((self.total - self.reserve) * self.overcommit))


def promised(views: Iterable[InstanceView]) -> int:
    """Bytes promised to instances that hold memory now: one that is to shrink holds what it began with."""
    holding = [view for view in views if view.status.state in HOLDING]
    return sum(max(view.instance.spec.memory, view.status.memory) + overhead(view) for view in holding)


def admit(
    name: str, wants: int, others: Iterable[InstanceView], host: HostMemory, *, over: int = ENGINE_OVERHEAD
) -> None:
    """Raises Exhausted where `wants` bytes of guest memory, and `over`, do not fit beside the `others`."""
    left = host.promisable - promised(others)
    if wants + over > left:
        raise Exhausted(
            f"{name} wants {show_size(wants)} of memory, and this host can promise {show_size(max(0, left))} more",
            hint="stop or shrink an instance, or raise memory_overcommit in the daemon's configuration",
            field="spec.memory",
        )
