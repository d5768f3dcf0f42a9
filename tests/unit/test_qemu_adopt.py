from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.base.ids import Generation, InstanceId, new_uuid
from atoll.instance.engines.adoption import decide
from atoll.instance.engines.qemu import adopt
from atoll.instance.engines.qemu.adopt import Trace, marked
from atoll.instance.engines.qemu.argv import process
from atoll.instance.engines.qemu.rundir import Handle
from tests.kit.plans import boot_plan

PLAN = boot_plan()
A, B = InstanceId(new_uuid()), InstanceId(new_uuid())


def trace(generation: int, *, pid: int = 0, alive: Sequence[int] = (), id: InstanceId = A) -> Trace:
    handle = Handle(PLAN, "boot", pid, 1) if pid >= 0 else None
    return Trace(id=id, generation=Generation(generation), handle=handle, pids=frozenset(alive))


def test_the_newest_that_runs_is_held_and_older_ones_are_cleared() -> None:
    old, new = trace(1, pid=10, alive=[10]), trace(2, pid=20, alive=[20])
    decision = decide([old, new])
    assert (decision.hold, decision.report, decision.clear) == ((new,), (), (old,))


def test_a_half_made_start_does_not_hide_the_one_that_runs() -> None:
    runs, half = trace(1, pid=10, alive=[10]), trace(2, pid=0, alive=[20])
    assert decide([runs, half]).hold == (runs,)
    assert decide([runs, half]).clear == (half,)


def test_what_ended_is_reported() -> None:
    old, new = trace(1, pid=10), trace(2, pid=20)
    decision = decide([new, old])
    assert (decision.report, decision.clear) == ((new,), (old,))


@pytest.mark.parametrize("lost", [trace(1, pid=-1, alive=[7]), trace(1, pid=0), trace(1, pid=10, alive=[11])])
def test_what_cannot_be_steered_is_cleared(lost: Trace) -> None:
    assert decide([lost]).clear == (lost,)


TRACES = st.builds(
    lambda id, generation, pid, alive: trace(generation, pid=pid, alive=sorted(alive), id=id),
    st.sampled_from([A, B]),
    st.integers(1, 4),
    st.integers(-1, 3),
    st.frozensets(st.integers(1, 3)),
)


@given(st.lists(TRACES, unique_by=lambda found: (found.id, found.generation)))
def test_at_most_one_of_a_guest_stays_and_every_trace_has_a_fate(traces: list[Trace]) -> None:
    decision = decide(traces)
    kept = [found.id for found in (*decision.hold, *decision.report)]
    assert len(kept) == len(set(kept))
    assert len(decision.hold) + len(decision.report) + len(decision.clear) == len(traces)
    assert all(found.whole for found in decision.hold)
    assert not any(found.pids for found in decision.report)


def test_a_process_says_whose_it_is_from_its_fork_on() -> None:
    qemu = ["qemu", "-name", f"guest=default/web.g3,{process('a1b2c3')}", "-uuid", A, "-S"]
    for before in ([], ["sh", "-c", "x", "atoll-spawn", "--"], ["setpriv", "--reuid", "1", "--"]):
        assert marked([*before, *qemu], "a1b2c3") == (A, 3)
        assert marked([*before, *qemu], "ffffff") is None
    assert marked(qemu[:3], "a1b2c3") is None
    assert marked([], "a1b2c3") is None


def test_looking_at_nothing(tmp_path: Path) -> None:
    assert adopt.look(tmp_path / "absent", "0a0b0c", None) == []
