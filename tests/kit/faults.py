"""Faults on demand, for every fake."""

from atoll.base.errors import AtollError


class Faults:
    """`fail("start", Broken("no KVM"))` makes the next call of that name raise, once."""

    def __init__(self) -> None:
        self._next: dict[str, AtollError] = {}

    def fail(self, call: str, error: AtollError) -> None:
        self._next[call] = error

    def maybe(self, call: str) -> None:
        if error := self._next.pop(call, None):
            raise error
