"""Faults on demand, for working stand-ins."""

from atoll.base.errors import AtollError


class Faults:
    """Make the next call of a name fail: `fail("start", Broken("no KVM"))`."""

    def __init__(self) -> None:
        self._next: dict[str, AtollError] = {}

    def fail(self, call: str, error: AtollError) -> None:
        self._next[call] = error

    def _maybe(self, call: str) -> None:
        if error := self._next.pop(call, None):
            raise error
