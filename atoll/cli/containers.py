"""What `atoll launch` says of containers: options into the words of the spec."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from atoll.base.errors import Invalid

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = (
    click.option("--container", is_flag=True, help="A container: no kernel of its own, and starts at once."),
    click.option("--privileged", is_flag=True, help="Its root is the host's root, held back as far as that goes."),
    click.option("--nesting", is_flag=True, help="It may run containers itself."),
    click.option(
        "--mount",
        "mounts",
        multiple=True,
        metavar="DIR:/PATH[:ro]",
        help="A directory of the host in it. Repeatable.",
    ),
)
HINT = "--mount /srv/data:/data, or /srv/data:/data:ro"


def options(command: F) -> F:
    """Give a command those of a container."""
    for each in reversed(_OPTIONS):
        command = each(command)
    return command


def mount(text: str) -> dict[str, Any]:
    """`/srv/data:/data:ro`. Raises Invalid."""
    source, _, rest = text.partition(":")
    path, _, mode = rest.partition(":")
    if not source.startswith("/") or not path.startswith("/") or mode not in ("", "ro", "rw"):
        raise Invalid(f"{text!r} is no mount", hint=HINT, field="--mount")
    return {"source": source, "path": path, "read_only": mode == "ro"}


def spec_of(options: dict[str, Any]) -> dict[str, Any]:
    """Raises Invalid where what is a container's is asked of a VM."""
    own: dict[str, Any] = {name: True for name in ("privileged", "nesting") if options.get(name)}
    if options.get("mounts"):
        own["mounts"] = [mount(text) for text in options["mounts"]]
    if not options.get("container"):
        if own:
            raise Invalid(f"--{next(iter(own)).removesuffix('s')} is for containers", hint="--container")
        return {}
    return {"kind": "container", **({"container": own} if own else {})}
