"""Counters of one container, from its control groups and its links."""

from atoll.base.ids import Bytes
from atoll.instance.engine import Stats
from atoll.instance.engines.container.groups import Groups
from atoll.instance.engines.container.guest import Guest
from atoll.instance.engines.traffic import received_and_sent


def of(guest: Guest, groups: Groups) -> Stats:
    name = guest.run.name
    read, written, reads, writes = groups.io(name)
    received, sent = received_and_sent(guest.plan)
    return Stats(
        cpu_seconds=groups.cpu_seconds(name),
        memory=Bytes(groups.memory(name)),
        disk_read=read,
        disk_written=written,
        disk_reads=reads,
        disk_writes=writes,
        net_received=received,
        net_sent=sent,
    )
