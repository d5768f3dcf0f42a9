"""`--set k=v`: dotted keys of a settings struct, each value read as its field's type wants it."""

import types
import typing
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import msgspec

from atoll.base.errors import Invalid
from atoll.base.ids import Bytes
from atoll.base.names import did_you_mean
from atoll.base.units import parse_duration, parse_size

DURATIONS = frozenset({"autostart.delay"})
"""Number fields that hold seconds and may be written 90s or 5m."""


def known_keys(struct: type[msgspec.Struct], prefix: str = "") -> dict[str, Any]:
    """Every settable key with its type: `limits.cpu`; `labels.` ends with a dot: any name may follow."""
    keys: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(struct, include_extras=True).items():
        inner = _without_none(hint)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            keys |= known_keys(inner, f"{prefix}{name}.")
        elif typing.get_origin(inner) is dict:
            keys[f"{prefix}{name}."] = typing.get_args(inner)[1]
        elif typing.get_origin(inner) is not tuple:
            keys[prefix + name] = hint
    return keys


def _without_none(hint: Any) -> Any:
    """A type without `| None` and `| UnsetType`, and what an Annotated list or struct is about."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        rest = [kind for kind in typing.get_args(hint) if kind not in (types.NoneType, msgspec.UnsetType)]
        hint = rest[0] if len(rest) == 1 else hint
    origin = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return origin if typing.get_origin(origin) in (tuple, dict) else hint


def parse(
    pairs: Iterable[str],
    struct: type[msgspec.Struct],
    *,
    aliases: Mapping[str, str] = {},
    elsewhere: Mapping[str, str] = {},
) -> dict[str, Any]:
    """`["limits.cpu=1.5", "labels.role=web"]` as a nested dict of plain values.

    `aliases`: short names of keys. `elsewhere`: keys that are set by another option, and which.
    Raises Invalid that names the key.
    """
    keys = known_keys(struct)
    found: dict[str, Any] = {}
    for pair in pairs:
        given, equals, value = pair.partition("=")
        if not equals:
            raise Invalid(f"{pair!r} is not of the form key=value", hint="for example restart=always", field=given)
        key = aliases.get(given, given)
        if given in elsewhere:
            raise Invalid(f"{given} is not set this way", hint=elsewhere[given], field=given)
        _put(found, key, convert(value, _type_of(key, keys), key))
    return found


def _type_of(key: str, keys: Mapping[str, Any]) -> Any:
    group, _, name = key.partition(".")
    if key in keys:
        return keys[key]
    if name and f"{group}." in keys:
        return keys[f"{group}."]
    names = [f"{known}NAME" if known.endswith(".") else known for known in keys]
    raise Invalid(
        f"there is no setting {key!r}",
        hint=did_you_mean(key, names) or f"the settings are {', '.join(names)}",
        field=key,
    )


def _put(found: dict[str, Any], key: str, value: Any) -> None:
    """Labels may hold dots: only the first one of a key parts it."""
    group, dot, name = key.partition(".")
    if dot:
        found.setdefault(group, {})[name] = value
    else:
        found[key] = value


def convert(value: str, hint: Any, key: str) -> Any:
    """A value as people write it, as a plain value of the type `hint`. Empty means None where that is allowed."""
    inner = _without_none(hint)
    if value == "" and inner is not hint and types.NoneType in typing.get_args(hint):
        return None
    try:
        if typing.get_origin(inner) is Annotated and typing.get_args(inner)[0] is Bytes:
            return msgspec.convert(int(parse_size(value, field=key)), inner)
        if key in DURATIONS:
            return msgspec.convert(parse_duration(value, field=key), inner)
        return msgspec.to_builtins(msgspec.convert(value, inner, strict=False))
    except msgspec.ValidationError as error:
        raise Invalid(f"{value!r} cannot be {key}", hint=_wanted(error, inner), field=key) from error


def _wanted(error: Exception, hint: Any) -> str:
    """What the field takes: bounds as msgspec tells them, words and kinds as people know them."""
    bounds = str(error).replace("`", "").partition("Expected ")[2]
    bounds = bounds.replace("int ", "a whole number ").replace("float ", "a number ")
    return (
        f"it must be {bounds}" if "=" in bounds or ">" in bounds or "<" in bounds else _allowed(hint) or str(error)
    )


def _allowed(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return f"one of {', '.join(hint)}"
    base = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(base, "")
