"""A NIC as people write it: `network=lan,address=10.1.2.30,group=web,up=100Mbit`."""

import re
from typing import Any

from atoll.base.errors import Invalid
from atoll.base.names import did_you_mean
from atoll.base.units import parse_rate, parse_size, show_rate, show_size

HELP = (
    "network=NAME, address=IPV4, mac=MAC, link=up|down, guard=on|off, group=NAME (several: a+b), down=RATE and "
    "up=RATE (ceilings to and from the guest), down-min=RATE and up-min=RATE (guaranteed), burst=SIZE"
)
WORDS = {
    "on": True,
    "up": True,
    "yes": True,
    "true": True,
    "off": False,
    "down": False,
    "no": False,
    "false": False,
}
_PLAIN = ("network", "address", "mac")
_FORWARD = re.compile(r"(\d{1,5}):(\d{1,5})(?:/(tcp|udp))?")
_PORT = re.compile(r"(\d{1,5})(?:/(tcp|udp))?")
_KEYS = (*_PLAIN, "link", "guard", "group", "down", "up", "down-min", "up-min", "burst")


def parse_nic(text: str, *, keys: tuple[str, ...] = _KEYS) -> dict[str, Any]:
    """As plain values of a NicSpec; only `keys` are taken. Raises Invalid that names the key."""
    found: dict[str, Any] = {}
    burst = 0
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key not in keys:
            hint = did_you_mean(key, keys) or f"as {keys[0]}=VALUE: there are {', '.join(keys)}"
            raise Invalid(f"{pair!r} is no setting of a NIC", hint=hint, field="--nic")
        if key in ("link", "guard"):
            found[key] = word(value, key)
        elif key == "group":
            found["groups"] = [name for name in value.split("+") if name]
        elif key == "burst":
            burst = parse_size(value, field=key)
        elif key in _PLAIN:
            found[key] = value
        else:
            way, _, least = key.partition("-")
            rate = parse_rate(value, field=key)
            if rate or least:
                found.setdefault(way, {})["guaranteed" if least else "ceiling"] = rate
            else:
                found[way] = {}
    for way in ("down", "up"):
        if burst and found.get(way):
            found[way]["burst"] = burst
    return found


def word(value: str, field: str) -> bool:
    if value not in WORDS:
        raise Invalid(
            f"{value!r} cannot be {field}", hint="up or down" if field == "link" else "on or off", field=field
        )
    return WORDS[value]


def parse_forward(text: str) -> dict[str, Any]:
    """`8080:80` or `5353:53/udp`. Raises Invalid."""
    match = _FORWARD.fullmatch(text)
    if match is None:
        raise Invalid(f"{text!r} is no forward", hint="HOST:GUEST, as 8080:80 or 5353:53/udp", field="--port")
    return {"port": _number(match[1]), "to": _number(match[2]), "protocol": match[3] or "tcp"}


def parse_port(text: str) -> dict[str, Any]:
    """`8080` or `5353/udp`. Raises Invalid."""
    match = _PORT.fullmatch(text)
    if match is None:
        raise Invalid(f"{text!r} is no port", hint="as 8080 or 5353/udp", field="port")
    return {"port": _number(match[1]), "protocol": match[2] or "tcp"}


def parse_rule(text: str) -> dict[str, Any]:
    """`ingress tcp/80 from 10.0.0.0/8`, `ingress tcp/8000-8100 from group:web`, `egress any`. Raises Invalid."""
    match = re.fullmatch(r"(ingress|egress)(?:\s+(\S+))?(?:\s+(?:from|to)\s+(\S+))?", text.strip())
    if match is None:
        hint = "as 'ingress tcp/80 from 10.0.0.0/8', 'ingress any from group:web', 'egress udp/53'"
        raise Invalid(f"{text!r} is no rule", hint=hint, field="rule")
    direction, what, peer = match.groups()
    found: dict[str, Any] = {"direction": direction}
    protocol, _, ports = (what or "any").partition("/")
    found["protocol"] = protocol
    if ports:
        first, _, last = ports.partition("-")
        found["port"] = _number(first)
        if last:
            found["last"] = _number(last)
    if peer:
        found["group" if peer.startswith("group:") else "cidr"] = peer.removeprefix("group:")
    return found


def show_rule(rule: Any) -> str:
    """As it is written."""
    ports = "" if rule.port is None else f"/{rule.port}" + (f"-{rule.last}" if rule.last else "")
    peer = rule.cidr or (f"group:{rule.group}" if rule.group else "")
    way = "from" if rule.direction == "ingress" else "to"
    return f"{rule.direction} {rule.protocol}{ports}" + (f" {way} {peer}" if peer else "")


def show_bandwidth(wanted: Any) -> str:
    parts = [f"at most {show_rate(wanted.ceiling)}"] if wanted.ceiling else []
    parts += [f"at least {show_rate(wanted.guaranteed)}"] if wanted.guaranteed else []
    parts += [f"burst {show_size(wanted.burst)}"] if wanted.burst and parts else []
    return ", ".join(parts)


def _number(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise Invalid(f"{text!r} is no port", hint="1 to 65535", field="port")
    return int(text)
