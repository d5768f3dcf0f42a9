"""What a measurement found, against the raw tool and its goal: a table, printed and for docs/bench.md."""

import statistics
from collections.abc import Iterable, Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Median, 10th and 90th percentile of `rounds` values."""

    median: float
    p10: float
    p90: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(statistics.median(ordered), ordered[round(last * 0.1)], ordered[round(last * 0.9)], len(ordered))


class Goal(msgspec.Struct, frozen=True):
    """`added`: of the difference to the raw tool, not of the value itself. `least`: a lower bound."""

    bound: float
    added: bool = False
    least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.least else value <= self.bound


class Row(msgspec.Struct, frozen=True):
    """`raw`, `added`: the raw tool, and the differences of the pairs; measured in turns in the same run."""

    what: str
    unit: str
    ours: Spread
    raw: Spread | None = None
    added: Spread | None = None
    goal: Goal | None = None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        judged = self.added if self.goal.added and self.added else self.ours
        return "met" if self.goal.met(judged.median) else "MISSED"


def row(what: str, unit: str, values: Sequence[float], goal: Goal | None = None) -> Row:
    return Row(what, unit, Spread.of(values), goal=goal)


def pairs(what: str, unit: str, ours: Sequence[float], raw: Sequence[float], goal: Goal | None = None) -> Row:
    """Values measured in turns: ours[i] beside raw[i]."""
    added = [one - other for one, other in zip(ours, raw, strict=True)]
    return Row(what, unit, Spread.of(ours), Spread.of(raw), Spread.of(added), goal)


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(found: Spread | None, *, sign: bool = False) -> str:
    if found is None:
        return ""
    plus = "+" if sign and found.median >= 0 else ""
    if found.rounds == 1:
        return f"{plus}{number(found.median)}"
    return f"{plus}{number(found.median)} ({number(found.p10)} to {number(found.p90)})"


def bound(goal: Goal | None, unit: str) -> str:
    if goal is None:
        return ""
    return f"{'>=' if goal.least else '<='} {goal.bound:,.10g} {unit}{' added' if goal.added else ''}"


HEAD = ("what", "unit", "Atoll", "raw tool", "added", "goal", "")


def cells(one: Row) -> tuple[str, ...]:
    return (
        one.what,
        one.unit,
        spread(one.ours),
        spread(one.raw),
        spread(one.added, sign=True),
        bound(one.goal, one.unit),
        one.verdict,
    )


def text(rows: Iterable[Row]) -> str:
    """For a terminal."""
    lines = [HEAD, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(rows: Iterable[Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
