"""Counters of one guest, from QEMU, its control group and its taps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.base.ids import Bytes
from atoll.host import process
from atoll.host.cgroups import Usage
from atoll.instance.engine import Stats
from atoll.instance.model import BootPlan


def combine(plan: BootPlan, pid: int, usage: Usage | None, blocks: Sequence[Mapping[str, Any]]) -> Stats:
    """`blocks`: the answer to query-blockstats. What a tap receives is what its guest sent."""
    disks = [block["stats"] for block in blocks if block.get("qdev")]
    links = [nic.plugged.link for nic in plan.nics if nic.plugged.link]
    return Stats(
        cpu_seconds=usage.cpu_seconds if usage else process.cpu_seconds(pid),
        memory=Bytes(usage.memory if usage and usage.memory else process.resident(pid)),
        disk_read=sum(disk["rd_bytes"] for disk in disks),
        disk_written=sum(disk["wr_bytes"] for disk in disks),
        disk_reads=sum(disk["rd_operations"] for disk in disks),
        disk_writes=sum(disk["wr_operations"] for disk in disks),
        net_received=sum(_counter(link, "tx_bytes") for link in links),
        net_sent=sum(_counter(link, "rx_bytes") for link in links),
    )


def _counter(link: str, name: str) -> int:
    try:
        return int((Path("/sys/class/net") / link / "statistics" / name).read_text())
    except (OSError, ValueError):
        return 0
