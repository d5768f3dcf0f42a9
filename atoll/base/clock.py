"""Wall time for people, the monotonic clock for durations."""

import time
from datetime import UTC, datetime
from typing import NewType

Timestamp = NewType("Timestamp", str)
"""RFC 3339 in UTC with milliseconds, as `2026-01-31T09:30:00.125Z`. For people: never compared across hosts."""

monotonic = time.monotonic


def now() -> Timestamp:
    return Timestamp(datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z")


def parse(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp)
