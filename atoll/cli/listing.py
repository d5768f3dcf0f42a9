"""`atoll list`."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from atoll.base.errors import Invalid
from atoll.base.units import show_size
from atoll.cli import output
from atoll.cli.commands import command
from atoll.cli.context import run
from atoll.cli.output import Column
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import InstanceView


def planned(view: "InstanceView") -> list[str]:
    """The addresses that the instance's networks give it."""
    return [address for nic in view.instance.hardware.nics for address in nic.addresses]


def plight(view: "InstanceView") -> str:
    """Why it is not as its user wants it, where something is known: paused for want of space, broken."""
    state = str(view.status.state)
    return f" ({view.status.reason})" if view.status.reason and state in ("paused", "broken") else ""


PRIVILEGED = ", PRIVILEGED"


def kind_of(view: "InstanceView") -> str:
    """A privileged container is marked wherever it is seen."""
    return str(view.instance.spec.kind) + (PRIVILEGED if view.instance.spec.container.privileged else "")


COLUMNS = [
    Column("NAME", lambda view: view.name),
    Column("KIND", kind_of),
    Column("STATE", lambda view: str(view.status.state) + plight(view), coloured=True),
    Column("IMAGE", lambda view: view.instance.spec.image),
    Column("CPUS", lambda view: str(view.instance.spec.cpus), right=True),
    Column("MEMORY", lambda view: show_size(view.instance.spec.memory), right=True),
    Column("ADDRESSES", lambda view: ", ".join(planned(view)) or "-"),
    Column("AGE", lambda view: output.age(view.instance.created)),
]
_LABEL = re.compile(r"[^=]{1,63}=.{0,255}", re.DOTALL)


@command(
    "list",
    examples=[
        "atoll list",
        "atoll list --state running --label role=web",
        "atoll list -o json | jq -r '.[].instance.name'",
        "atoll delete $(atoll list -q --state stopped)",
    ],
)
@click.option("--state", "states", multiple=True, metavar="STATE", help="Only those in this state. Repeatable.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only those with this label. Repeatable.")
@click.option("-A", "--all-projects", "everywhere", is_flag=True, help="Those of every project.")
@click.pass_context
def list_(ctx: click.Context, states: Sequence[str], labels: Sequence[str], everywhere: bool) -> None:
    """List the project's instances by name."""
    from atoll.client import State

    for state in states:
        if state not in State.__members__.values():
            raise Invalid(f"there is no state {state!r}", hint=f"one of {', '.join(State)}", field="--state")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise Invalid(f"{label!r} is not of the form key=value", hint="for example role=web", field="--label")
    wanted = dict(label.split("=", 1) for label in labels)
    settings = ctx.ensure_object(Settings)
    chosen = [State(state) for state in states]
    views = run(settings, lambda client: client.instances.list(labels=wanted, states=chosen, everywhere=everywhere))
    columns = [Column("PROJECT", lambda view: view.project), *COLUMNS] if everywhere else COLUMNS
    none = "no instance matches" if states or labels else "no instances yet: atoll launch tiny"
    output.emit_rows(settings, views, columns, name=lambda view: view.name, none=none)
