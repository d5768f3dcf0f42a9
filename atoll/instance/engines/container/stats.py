"""Counters of one container, from its control groups and its links."""

from pathlib import Path

from atoll.base.ids import Bytes
from atoll.instance.engine import Stats
from atoll.instance.engines.container.groups import Groups
from atoll.instance.engines.container.guest import Guest


def of(guest: Guest, groups: Groups) -> Stats:
    """What a link of the host receives is what the container sent."""
    name = guest.run.name
    read, written, reads, writes = groups.io(name)
    links = [nic.plugged.link for nic in guest.plan.nics if nic.plugged.link]
    return Stats(
        cpu_seconds=groups.cpu_seconds(name),
        memory=Bytes(groups.memory(name)),
        disk_read=read,
        disk_written=written,
        disk_reads=reads,
        disk_writes=writes,
        net_received=sum(_counter(link, "tx_bytes") for link in links),
        net_sent=sum(_counter(link, "rx_bytes") for link in links),
    )


def _counter(link: str, name: str) -> int:
    try:
        return int((Path("/sys/class/net") / link / "statistics" / name).read_text())
    except (OSError, ValueError):
        return 0
