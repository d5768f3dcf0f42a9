"""How far cloud-init is in a guest, from the files it keeps for that: what `cloud-init status --format json` would
say, without the seconds that starting it costs where the CPU is emulated.

Reference: cloud-init's documentation, "status.json" and "result.json". Their content is the guest's: untrusted.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from atoll.base.errors import Absent, Broken, Refused
from atoll.base.ids import InstanceId
from atoll.base.units import KiB
from atoll.instance.engine import Executes

FOLDER = "/run/cloud-init"
READY = 10.0
"""Seconds for its agent to answer."""
LIMIT = 256 * KiB
_ERRORS, _WORDS = 16, 1000
Status = Literal["absent", "disabled", "waiting", "running", "done", "failed"]


class CloudState(msgspec.Struct, frozen=True, kw_only=True):
    """`absent`: the guest has no cloud-init. `stage`: what it is at. `errors`: what failed, as it tells it."""

    status: Status
    stage: str = ""
    errors: tuple[str, ...] = ()


async def cloud_state(engine: Executes, guest: InstanceId) -> CloudState:
    """Raises Absent (it does not run), Refused (paused, or without agent), Unreachable, Broken (nonsense)."""
    await engine.ready(guest, timeout=READY)  # or a guest that does not run would pass for one without cloud-init
    status = await _read(engine, guest, "status.json")
    result = await _read(engine, guest, "result.json")
    if status is None and result is None:
        for name, state in (("disabled", "disabled"), ("enabled", "waiting")):
            if await _there(engine, guest, f"{FOLDER}/{name}"):
                return CloudState(status=state)  # type: ignore[arg-type]
        return CloudState(status="absent")
    return judged(status or {}, result)


def judged(status: Mapping[str, Any], result: Mapping[str, Any] | None) -> CloudState:
    """Pure. `result` is there once it has ended."""
    stages = _mapping(status.get("v1"))
    errors: list[str] = []
    for stage in stages.values():
        errors += _texts(_mapping(stage).get("errors"))
        for level, said in _mapping(_mapping(stage).get("recoverable_errors")).items():
            errors += _texts(said) if level in ("ERROR", "CRITICAL") else []
    if result is None:
        at = stages.get("stage")
        # A stage that failed hard is the last one: cloud-init's later units do not write a result then.
        return CloudState(status="running", stage=at[:64] if isinstance(at, str) else "", errors=_bounded(errors))
    errors += [text for text in _texts(_mapping(result.get("v1")).get("errors")) if text not in errors]
    return CloudState(status="failed" if errors else "done", errors=_bounded(errors))


def _bounded(errors: list[str]) -> tuple[str, ...]:
    return tuple(text[:_WORDS] for text in errors[:_ERRORS])


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


async def _read(engine: Executes, guest: InstanceId, name: str) -> Mapping[str, Any] | None:
    """None where it is not there."""
    data = bytearray()
    try:
        async for part in engine.pull(guest, f"{FOLDER}/{name}"):
            data += part
            if len(data) > LIMIT:
                raise Broken(f"{name} of cloud-init is larger than it can be")
        found = msgspec.json.decode(bytes(data)) if data else {}
    except Absent:
        return None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Broken(f"{name} of cloud-init makes no sense") from error
    return _mapping(found)


async def _there(engine: Executes, guest: InstanceId, path: str) -> bool:
    try:
        async for _ in engine.pull(guest, path):
            break
    except (Absent, Refused):
        return False
    return True
