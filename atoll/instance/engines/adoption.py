"""Which guests stay after a former engine: decided purely from what was found."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from atoll.base.ids import Generation, InstanceId


class Found(Protocol):
    """One generation of one guest. `whole`: it runs and we know it. `over`: it ran, and nothing of it does."""

    @property
    def id(self) -> InstanceId: ...
    @property
    def generation(self) -> Generation: ...
    @property
    def whole(self) -> bool: ...
    @property
    def over(self) -> bool: ...


Trace = TypeVar("Trace", bound=Found)


@dataclass(frozen=True, slots=True)
class Decision(Generic[Trace]):
    """`hold`: alive and ours. `report`: ended, of the newest generation. `clear`: end and remove all of it."""

    hold: tuple[Trace, ...]
    report: tuple[Trace, ...]
    clear: tuple[Trace, ...]


def decide(traces: Iterable[Trace]) -> Decision[Trace]:
    """Of each guest at most one generation stays: the newest that runs whole, else the newest that ran.

    Invariant: no two processes of one guest are left alive, and none that we cannot steer.
    """
    hold: list[Trace] = []
    report: list[Trace] = []
    clear: list[Trace] = []
    guests: dict[InstanceId, list[Trace]] = {}
    for trace in traces:
        guests.setdefault(trace.id, []).append(trace)
    for found in guests.values():
        found.sort(key=lambda trace: trace.generation, reverse=True)
        chosen = next((trace for trace in found if trace.whole), None)
        if chosen:
            hold.append(chosen)
        else:
            chosen = next((trace for trace in found if trace.over), None)
            report += [chosen] if chosen else []
        clear += [trace for trace in found if trace is not chosen]
    return Decision(tuple(hold), tuple(report), tuple(clear))
