"""The ports that are plugged on this host, and the groups in force for them, as files beside their network's
others: what a driver object that was not there then knows of them."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from atoll.base.ids import PortId
from atoll.network.groups import GroupPlan
from atoll.network.model import Port


class PlacedPort(msgspec.Struct, frozen=True, kw_only=True):
    """`number`: of its classes among its network's limited ports, 0 where it has none."""

    port: Port
    link: str
    number: int = 0


class PortFiles:
    """Small files on a RAM disk: written whole, read whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "ports"
        self._groups = directory / "groups"

    def all(self) -> dict[PortId, PlacedPort]:
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for file in self._directory.iterdir():
                if not file.name.startswith("."):
                    with contextlib.suppress(
                        OSError, msgspec.MsgspecError
                    ):  # removed meanwhile, or another Atoll's
                        placed = msgspec.json.decode(file.read_bytes(), type=PlacedPort)
                        found[placed.port.id] = placed
        return found

    def get(self, id: PortId) -> PlacedPort | None:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode((self._directory / id).read_bytes(), type=PlacedPort)
        return None

    def put(self, placed: PlacedPort) -> None:
        if self.get(placed.port.id) == placed:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        draft = self._directory / f".{placed.port.id}"
        draft.write_bytes(msgspec.json.encode(placed))
        draft.replace(self._directory / placed.port.id)

    def remove(self, id: PortId) -> None:
        (self._directory / id).unlink(missing_ok=True)

    def groups(self) -> dict[str, GroupPlan]:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(self._groups.read_bytes(), type=dict[str, GroupPlan])
        return {}

    def put_groups(self, plans: Iterable[GroupPlan]) -> None:
        """These are so now; others stay."""
        self._groups.parent.mkdir(parents=True, exist_ok=True)
        draft = self._groups.with_name(".groups")
        draft.write_bytes(msgspec.json.encode({**self.groups(), **{plan.id: plan for plan in plans}}))
        draft.replace(self._groups)

    def clear(self) -> None:
        """Of all ports; the directory goes where nothing else is in it."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._groups.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._directory.parent.rmdir()
