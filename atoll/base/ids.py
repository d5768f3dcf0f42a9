"""Names for things, so that one id cannot be passed for another."""

import secrets
import time
import uuid
from typing import NewType

HostId = NewType("HostId", str)
"""uuid4 of a host, made once and kept in its state directory."""
InstanceId = NewType("InstanceId", str)
"""uuid4 with dashes; also the guest's SMBIOS uuid."""
VolumeId = NewType("VolumeId", str)
PortId = NewType("PortId", str)
NetworkId = NewType("NetworkId", str)
PoolId = NewType("PoolId", str)
OperationId = NewType("OperationId", str)
Digest = NewType("Digest", str)
"""`sha256:` and 64 hexadecimal digits."""
Generation = NewType("Generation", int)
"""Raised at every start and change of owner of an instance; the first start is 1."""
Bytes = NewType("Bytes", int)


def new_uuid() -> str:
    return str(uuid.uuid4())


def new_time_id() -> str:
    """20 hexadecimal digits that sort by the time they were made: 48 bits of Unix milliseconds, 32 random.

    Those of one process are strictly ascending, also within a millisecond or when the clock is set back.
    """
    global _last_time_id
    drawn = (time.time_ns() // 1_000_000) << 32 | secrets.randbits(32)
    _last_time_id = max(drawn, _last_time_id + 1 + secrets.randbits(16))
    return f"{_last_time_id:020x}"


def made_at(time_id: str) -> float:
    """When a time id was made, seconds of the Unix epoch."""
    return (int(time_id, 16) >> 32) / 1000


_last_time_id = 0
