"""Counters of one guest, from QEMU, its control group and its taps."""

from collections.abc import Mapping, Sequence
from typing import Any

from atoll.base.ids import Bytes
from atoll.host import process
from atoll.host.cgroups import Usage
from atoll.instance.engine import Stats
from atoll.instance.engines.traffic import received_and_sent
from atoll.instance.model import BootPlan


def combine(plan: BootPlan, pid: int, usage: Usage | None, blocks: Sequence[Mapping[str, Any]]) -> Stats:
    """`blocks`: the answer to query-blockstats."""
    disks = [block["stats"] for block in blocks if block.get("qdev")]
    received, sent = received_and_sent(plan)
    return Stats(
        cpu_seconds=usage.cpu_seconds if usage else process.cpu_seconds(pid),
        memory=Bytes(usage.memory if usage and usage.memory else process.resident(pid)),
        disk_read=sum(disk["rd_bytes"] for disk in disks),
        disk_written=sum(disk["wr_bytes"] for disk in disks),
        disk_reads=sum(disk["rd_operations"] for disk in disks),
        disk_writes=sum(disk["wr_operations"] for disk in disks),
        net_received=received,
        net_sent=sent,
    )
