"""What went over a guest's links: the kernel's counters, from the guest's side."""

from pathlib import Path

from atoll.instance.model import BootPlan


def received_and_sent(plan: BootPlan) -> tuple[int, int]:
    """Bytes. What a link of the host receives is what the guest sent."""
    links = [nic.plugged.link for nic in plan.nics if nic.plugged.link]
    return sum(_counter(link, "tx_bytes") for link in links), sum(_counter(link, "rx_bytes") for link in links)


def _counter(link: str, name: str) -> int:
    try:
        return int((Path("/sys/class/net") / link / "statistics" / name).read_text())
    except (OSError, ValueError):
        return 0
