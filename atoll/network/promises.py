"""What bandwidth a network may promise its ports, as a pure function."""

from collections.abc import Iterable

from atoll.base.errors import Invalid, Refused
from atoll.base.units import show_rate
from atoll.network.model import Network, Port


def check_promises(network: Network | None, port: Port, others: Iterable[Port]) -> None:
    """A guarantee is a part of what the network has, and all of them together are no more than that. Raises Invalid
    (this port contradicts itself), Refused (others have been promised too much of it)."""
    rest = [other for other in others if other.id != port.id]
    for way in ("down", "up"):
        wanted = getattr(port.settings, way)
        least, field = wanted.guaranteed, f"nics.{way}"
        if network is None or not least:
            continue
        if not network.bandwidth:
            raise Invalid(
                f"network {network.name} has no bandwidth of which a part could be guaranteed",
                hint=f"a ceiling ({way}=RATE), or a network made with --bandwidth",
                field=field,
            )
        if wanted.ceiling and least > wanted.ceiling:
            raise Invalid(
                f"at least {show_rate(least)} and at most {show_rate(wanted.ceiling)} cannot both be",
                hint="a guarantee up to the ceiling",
                field=field,
            )
        promised = sum(getattr(other.settings, way).guaranteed or 0 for other in rest)
        if promised + least > network.bandwidth:
            left = max(network.bandwidth - promised, 0)
            raise Refused(
                f"of {show_rate(network.bandwidth)} of network {network.name} {show_rate(promised)} are promised",
                hint=f"at most {show_rate(left)}, or less for others" if left else "promise others less",
                field=field,
            )
