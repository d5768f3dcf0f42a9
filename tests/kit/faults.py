"""Faults on demand, for every fake."""

from atoll.base.errors import AtollError


class Faults:
    """`fail("start", Broken("no KVM"))` makes the next call of that name raise; `times`: the next so many."""

    def __init__(self) -> None:
        self._next: dict[str, list[AtollError]] = {}

    def fail(self, call: str, error: AtollError, *, times: int = 1) -> None:
        self._next[call] = [error] * times

    def maybe(self, call: str) -> None:
        if waiting := self._next.get(call):
            raise waiting.pop()
