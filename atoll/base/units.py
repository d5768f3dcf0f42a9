"""Sizes and durations as people write them."""

import re

from atoll.base.errors import Invalid
from atoll.base.ids import Bytes

_SIZE = re.compile(r"(\d{1,15})(\.\d{1,6})?\s*([kKmMgGtTpP]?)(i?)([bB]?)")
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = re.compile(r"(\d{1,9})(\.\d{1,3})?(ms|s|m|h|d|w)?")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, None: 1}
_RATE = re.compile(r"(\d{1,9})(\.\d{1,3})?\s*([kmgt]?)(bit|bps|bit/s|)", re.IGNORECASE)
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
MAX_SIZE = 1 << 60

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40


def parse_size(text: str, *, field: str = "") -> Bytes:
    """`1GiB`, `512M`, `1.5g`, `4096`: bytes. Units are binary with or without the `i` (as in QEMU and lvm)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Invalid(f"{text!r} is not a size", hint="write it as 512MiB, 10GiB or 1.5T", field=field)
    whole, part, prefix, _, _ = match.groups()
    power = _POWER[prefix.lower()]
    size = int(whole) * 1024**power + int(float(part or 0) * 1024**power)
    if size > MAX_SIZE:
        raise Invalid(f"{text!r} is more than 1 EiB", field=field)
    return Bytes(size)


def show_size(size: int) -> str:
    """`1GiB`, `1.5GiB`, `700MiB`: at most one decimal, exact where it can be."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{value:.1f}".removesuffix(".0") + unit
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + "PiB"


def parse_duration(text: str, *, field: str = "") -> float:
    """`90s`, `5m`, `2h`, `1.5`: seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise Invalid(f"{text!r} is not a duration", hint="write it as 90s, 5m or 2h", field=field)
    whole, part, unit = match.groups()
    return float(whole + (part or "")) * _SECONDS[unit]


def show_duration(seconds: float) -> str:
    """`45s`, `12m`, `3h 5m`, `2d 4h`: the two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])


def parse_rate(text: str, *, field: str = "") -> int:
    """`100Mbit`, `1.5G`, `64kbit`: bits a second. Units are decimal, as everywhere in networking."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise Invalid(f"{text!r} is not a bandwidth", hint="write it as 100Mbit, 1Gbit or 64kbit", field=field)
    whole, part, prefix, _ = match.groups()
    return int(float(whole + (part or "")) * _THOUSANDS[prefix.lower()])


def show_rate(rate: int) -> str:
    """`100Mbit`, `1.5Gbit`: bits a second, at most one decimal."""
    value = float(rate)
    for unit in ("bit", "kbit", "Mbit", "Gbit"):
        if value < 1000:
            return f"{value:.1f}".removesuffix(".0") + unit
        value /= 1000
    return f"{value:.1f}".removesuffix(".0") + "Tbit"
