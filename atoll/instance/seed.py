"""What cloud-init in a guest is told: the NoCloud seed, as a small ISO 9660 disk labelled `cidata`. Pure.

Reference: cloud-init's documentation, "NoCloud" and "Networking config Version 2".
"""

import io
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import yaml

from atoll.base.errors import Exhausted, Invalid
from atoll.base.units import show_size
from atoll.instance.model import CLOUD_INIT_MAX, CloudInit
from atoll.network.model import Mode, Network

_DEEPEST = 50
CLOUD_CONFIG = "#cloud-config"
_STARTS = (
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "#cloud-config-archive",
    "## template:",
    "Content-Type:",
    "MIME-Version:",
    "From ",
)
"""How user-data begins that is not cloud-config, as cloud-init knows it."""
_SHARED = ("disable_root: false", "ssh_pwauth: false")
"""Vendor-data where the user gives none: the project's key may log in as root, passwords may not at all."""


class Lan(msgspec.Struct, frozen=True):
    """A NIC and the network it is on."""

    mac: str
    addresses: tuple[str, ...]
    network: Network


def check(given: CloudInit) -> None:
    """Raises Invalid with line and column where it is not what cloud-init can read, Exhausted where too long."""
    size = len(msgspec.json.encode(given))
    if size > CLOUD_INIT_MAX:
        raise Exhausted(
            f"what is given for cloud-init is {show_size(size)}, more than {show_size(CLOUD_INIT_MAX)}",
            hint="let it fetch what is large: #include https://...",
            field="cloud_init",
        )
    for field in ("user_data", "vendor_data"):
        _check_data(getattr(given, field), field)
    if given.network_config:
        _check_yaml(given.network_config, "network_config")


def _check_data(text: str, field: str) -> None:
    if not text:
        return
    first = text.partition("\n")[0].rstrip()
    if first == CLOUD_CONFIG:
        _check_yaml(text, field)
    elif not text.startswith(_STARTS):
        raise Invalid(
            f"{_words(field)} begins with {first[:60]!r}, by which cloud-init does not know what it is",
            hint=f"begin with {CLOUD_CONFIG}, or #! for a script",
            field=f"cloud_init.{field}",
        )


def _check_yaml(text: str, field: str) -> None:
    """Its syntax, and that it is a mapping. Events only: nothing is built, so aliases cannot blow up."""
    try:
        first = _first_node(text)
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _invalid(field, f"{where}{error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        raise _invalid(field, f"line {line}, column {column}: {error.reason}") from error
    if first is not None and not isinstance(first, yaml.MappingStartEvent):
        mark = first.start_mark
        raise _invalid(field, f"line {mark.line + 1}, column {mark.column + 1}: keys with values are expected here")


def _first_node(text: str) -> Any:
    """Its outermost node, once all of it has been read. Raises what yaml raises, of deep nesting too."""
    first, depth = None, 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.NodeEvent) and first is None:
            first = event
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                mark: Any = event.start_mark
                raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=mark)
        depth -= isinstance(event, yaml.CollectionEndEvent)
    return first


def _invalid(field: str, what: str) -> Invalid:
    return Invalid(
        f"{_words(field)} is not valid YAML: {what}", hint="cloudinit.readthedocs.io", field=f"cloud_init.{field}"
    )


def _words(field: str) -> str:
    return field.replace("_", "-")


def files(given: CloudInit, *, id: str, name: str, keys: Sequence[str], lans: Sequence[Lan]) -> dict[str, bytes]:
    """The seed's files by name. `id`: a new one makes cloud-init begin anew."""
    meta = {"instance-id": id, "local-hostname": name, "public-keys": list(keys)}
    vendor = given.vendor_data or "\n".join((CLOUD_CONFIG, *_SHARED)) + "\n"
    network = given.network_config.encode() or msgspec.json.encode(network_config(lans))
    user = given.user_data or f"{CLOUD_CONFIG}\n{{}}\n"
    return {
        "meta-data": msgspec.json.encode(meta),
        "user-data": user.encode(),
        "vendor-data": vendor.encode(),
        "network-config": network,
    }


def network_config(lans: Sequence[Lan]) -> dict[str, Any]:
    """Version 2. Planned addresses as they are, so that nothing is waited for; where there are none, DHCP."""
    return {
        "version": 2,
        "ethernets": {f"nic{n}": _ethernet(lan, metric=100 * (n + 1)) for n, lan in enumerate(lans)},
    }


def _ethernet(lan: Lan, *, metric: int) -> dict[str, Any]:
    matched: dict[str, Any] = {"match": {"macaddress": lan.mac}}
    if not lan.addresses:
        return {**matched, "dhcp4": True, "dhcp6": False}
    subnets = [ip_network(subnet) for subnet in lan.network.subnets]
    found, routes = [], []
    for address in map(ip_address, lan.addresses):
        at = next((n for n, subnet in enumerate(subnets) if address in subnet), None)
        if at is None:
            continue
        found.append(f"{address}/{subnets[at].prefixlen}")
        leads = lan.network.mode is not Mode.ISOLATED  # its gateway answers DNS, and leads nowhere
        if leads and at < len(lan.network.gateways) and lan.network.gateways[at]:
            to = "0.0.0.0/0" if address.version == 4 else "::/0"
            routes.append({"to": to, "via": lan.network.gateways[at], "metric": metric})
    servers = [gateway for gateway in lan.network.gateways if gateway]
    said = {**matched, "dhcp4": False, "dhcp6": False, "accept-ra": False, "addresses": found, "routes": routes}
    if servers:
        search = {"search": [lan.network.domain]} if lan.network.domain else {}
        said["nameservers"] = {"addresses": servers, **search}
    return said


def iso(contents: Mapping[str, bytes]) -> bytes:
    """The disk's image."""
    import pycdlib  # 60 ms that only a start needs

    disk = pycdlib.PyCdlib()
    disk.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    out = io.BytesIO()
    try:
        for number, (name, data) in enumerate(sorted(contents.items())):
            disk.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
        disk.write_fp(out)
    finally:
        disk.close()
    return out.getvalue()
