"""Names people give: RFC 1123 labels, made-up ones, and what they may have meant."""

import difflib
import re
import secrets
from collections.abc import Iterable

from atoll.base.errors import Invalid

LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""An RFC 1123 label in lower case: 1 to 63 letters, digits and inner hyphens."""
_LABEL = re.compile(LABEL.removesuffix("$") + r"\Z")
RECIPE = r"^[a-z0-9][a-z0-9-]{0,30}(/[a-z0-9][a-z0-9.-]{0,30})?$"
"""A recipe's name: `tiny`, `debian/12`."""
_FIRST = (
    "amber brave calm clear coral deep early fair fresh gentle keen light lively lucid mellow noble "
    "quick quiet rapid sandy silver smooth solid steady still sunny swift tidal warm wild"
).split()
_SECOND = (
    "anemone bay blenny conch cove crab current dolphin dune egret gull harbor heron island kelp lagoon "
    "manta marlin osprey oyster palm pearl pelican reef seal shoal skipper starfish surf tern turtle wave"
).split()


def check_label(name: str, *, what: str = "name", field: str = "name") -> str:
    if not _LABEL.match(name):
        raise Invalid(
            f"{name[:80]!r} cannot be the {what}",
            hint="1 to 63 lower-case letters, digits and hyphens, no hyphen at either end (RFC 1123)",
            field=field,
        )
    return name


def image_name(ref: str) -> str:
    """The name of the image that a recipe makes: `debian-12` of `debian/12`. Other names stay as they are."""
    return re.sub(r"[/.]", "-", ref) if re.fullmatch(RECIPE.removesuffix("$"), ref) else ref


def make_up(taken: Iterable[str] = ()) -> str:
    """A name such as `quiet-heron` that is not in `taken`; a number follows once most are."""
    used = set(taken)
    for attempt in range(1000):
        name = f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}"
        name += f"-{secrets.randbelow(9000) + 1000}" if attempt >= 20 else ""
        if name not in used:
            return name
    return f"instance-{secrets.token_hex(6)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint such as `did you mean web1 or web2?`, or "" where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else ""
