"""`atoll network`."""

import click

from atoll.cli import output
from atoll.cli.commands import group
from atoll.cli.completing import networks
from atoll.cli.context import run
from atoll.cli.output import Column, Section
from atoll.cli.settings import Settings

network = group("network", "List networks and the ports on them.")

NETWORKS = [
    Column("NAME", lambda view: view.network.name),
    Column("DRIVER", lambda view: view.network.driver),
    Column("SUBNETS", lambda view: ", ".join(view.network.subnets) or "-"),
    Column("DOMAIN", lambda view: view.network.domain or "-"),
    Column("PORTS", lambda view: str(len(view.ports)), right=True),
    Column("AGE", lambda view: output.age(view.network.created)),
]


@network.command("list", examples=["atoll network list"])
@click.pass_context
def list_networks(ctx: click.Context) -> None:
    """List the project's networks."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.networks.list())
    output.emit_rows(settings, found, NETWORKS, name=lambda view: view.network.name, none="no networks")


@network.command("show", examples=["atoll network show default"])
@click.argument("name", shell_complete=networks)
@click.pass_context
def show_network(ctx: click.Context, name: str) -> None:
    """Tell a network's subnets, and which instance has which address on it."""
    settings = ctx.ensure_object(Settings)
    view = run(settings, lambda client: client.networks.get(name))
    ports = [
        (port.name or port.instance, f"{port.mac}  {', '.join(port.addresses) or '-'}")
        for port in sorted(view.ports, key=lambda port: port.name)
    ]
    found = view.network
    head = [
        ("name", found.name),
        ("project", found.project),
        ("description", found.description),
        ("driver", found.driver),
        ("subnets", found.subnets),
        ("gateways", found.gateways),
        ("domain", found.domain),
        ("mtu", str(found.mtu)),
        ("id", found.id),
        ("created", f"{output.local_time(found.created)} ({output.age(found.created)} ago)"),
    ]
    output.emit(settings, view, lambda: output.write_sections([Section("", head), Section("ports", ports)]))
