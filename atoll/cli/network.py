"""`atoll network`, with `atoll network forward` and `atoll network group`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from atoll.base.errors import Invalid
from atoll.base.names import check_label
from atoll.base.units import parse_rate, show_rate
from atoll.cli import output, several
from atoll.cli.commands import group
from atoll.cli.completing import instances, networks
from atoll.cli.context import run
from atoll.cli.nic import converted, mac_of, rows
from atoll.cli.nicspec import parse_forward, parse_port, parse_rule, show_rule
from atoll.cli.output import Column, Section
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, InstanceView, NetworkView, Operation

network = group("network", "Networks: make, list, remove; forwards to guests; security groups.")
forward = group("forward", "Ports of the host that lead to guests.")
groups = group("group", "Security groups: what may reach, and be reached by, the NICs in them.")
network.add_command(forward)
network.add_command(groups)

NETWORKS = [
    Column("NAME", lambda view: view.network.name),
    Column("MODE", lambda view: mode(view)),
    Column("SUBNETS", lambda view: ", ".join(view.network.subnets) or view.network.uplink or "-"),
    Column("DOMAIN", lambda view: view.network.domain or "-"),
    Column("PORTS", lambda view: str(len(view.ports)), right=True),
    Column("AGE", lambda view: output.age(view.network.created)),
]
FORWARDS = [
    Column("PORT", lambda row: f"{row['port']}/{row['protocol']}"),
    Column("INSTANCE", lambda row: row["instance"]),
    Column("GUEST PORT", lambda row: str(row["to"]), right=True),
    Column("ADDRESSES", lambda row: ", ".join(row["addresses"]) or "-"),
]
GROUPS = [
    Column("NAME", lambda view: view.group.name),
    Column("RULES", lambda view: str(len(view.group.rules)), right=True),
    Column("USERS", lambda view: ", ".join(view.users) or "-"),
    Column("AGE", lambda view: output.age(view.group.created)),
]


def mode(view: "NetworkView") -> str:
    return "user" if view.network.driver == "user" else str(view.network.mode)


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
    """Tell a network's subnets, which instance has which address on it, and what of the host is in its way."""
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
        ("mode", mode(view)),
        ("driver", found.driver),
        ("uplink", found.uplink),
        ("subnets", found.subnets),
        ("gateways", found.gateways),
        ("domain", found.domain),
        ("mtu", str(found.mtu)),
        ("bandwidth", show_rate(found.bandwidth) if found.bandwidth else ""),
        ("id", found.id),
        ("created", f"{output.local_time(found.created)} ({output.age(found.created)} ago)"),
        ("in its way", view.warnings),
    ]
    output.emit(settings, view, lambda: output.write_sections([Section("", head), Section("ports", ports)]))


@network.command(
    "create",
    examples=[
        "atoll network create lan",
        "atoll network create lan --mode isolated --subnet 10.1.2.0/24",
        "atoll network create office --mode bridged --uplink br0",
        "atoll network create web --mode routed --subnet 192.0.2.0/24 --subnet6 2001:db8:1::/64 --mtu 1400",
    ],
)
@click.argument("name")
@click.option(
    "--mode",
    type=click.Choice(["nat", "routed", "isolated", "bridged"]),
    default="nat",
    show_default=True,
    help="What lies between its guests and the rest.",
)
@click.option("--subnet", metavar="CIDR", help="IPv4 subnet (one is chosen).")
@click.option("--subnet6", metavar="CIDR", help="IPv6 subnet, a /64 (one is chosen where no subnet is given).")
@click.option("--mtu", type=int, default=1500, show_default=True, help="Bytes of a frame's content.")
@click.option("--uplink", "--bridge", metavar="LINK", help="Bridged: a bridge of the host, or a link for macvtaps.")
@click.option("--bandwidth", metavar="RATE", help="What its limited NICs share each way (1Gbit).")
@click.option("--description", default="", help="What it is for.")
@click.pass_context
def create_network(ctx: click.Context, /, name: str, **options: Any) -> None:
    """Make a network. It takes nothing of the host while no guest is on it.

    nat: guests reach everything, only forwards reach them. routed: they are reached under their own addresses too.
    isolated: they reach each other, beside DHCP and DNS nobody. bridged: they are on a wire of the host.
    """
    from atoll.client import NetworkBody

    settings = ctx.ensure_object(Settings)
    check_label(name, what="name of a network")
    subnets = [subnet for subnet in (options.pop("subnet"), options.pop("subnet6")) if subnet]
    rate = options.pop("bandwidth")
    wanted = {**options, "name": name, "subnets": subnets or None}
    wanted["bandwidth"] = parse_rate(rate, field="--bandwidth") if rate else None
    body = converted(wanted, NetworkBody)
    ended = _one(settings, lambda client: client.networks.create(body), f"creating network {name}")
    output.emit(settings, ended, lambda: click.echo(name if settings.quiet else f"network {name} is there"))


@network.command("delete", examples=["atoll network delete lan"])
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=networks)
@click.pass_context
def delete_network(ctx: click.Context, names: Sequence[str]) -> None:
    """Remove networks that no instance is on."""
    _several(ctx, names, lambda client, name: client.networks.delete(name), "deleting network")


@forward.command("list", examples=["atoll network forward list"])
@click.pass_context
def list_forwards(ctx: click.Context) -> None:
    """List the host's ports that lead to guests of the project."""
    settings = ctx.ensure_object(Settings)
    views = run(settings, lambda client: client.instances.list())
    found = [row for view in views for row in _forwards(view)]
    output.emit_rows(
        settings, found, FORWARDS, name=lambda row: f"{row['port']}/{row['protocol']}", none="no forwards"
    )


def _forwards(view: "InstanceView") -> list[dict[str, Any]]:
    pairs = zip(view.instance.spec.nics, view.instance.hardware.nics, strict=False)
    return [
        {
            "port": each.port,
            "protocol": each.protocol,
            "instance": view.name,
            "to": each.to,
            "addresses": fixed.addresses,
        }
        for wanted, fixed in pairs
        for each in wanted.forwards
    ]


@forward.command(
    "add", examples=["atoll network forward add web 8080:80", "atoll network forward add dns 5353:53/udp"]
)
@click.argument("instance", shell_complete=instances)
@click.argument("ports", nargs=-1, required=True, metavar="HOST:GUEST...")
@click.option("--nic", "which", default="0", show_default=True, help="Number, MAC or network of the NIC.")
@click.pass_context
def add_forward(ctx: click.Context, instance: str, ports: Sequence[str], which: str) -> None:
    """Lead ports of the host to an instance: from outside, and from the host's loopback."""
    added = [parse_forward(text) for text in ports]
    _set(ctx, instance, lambda view: mac_of(view, which), {"add_forwards": added}, "forwarded")


@forward.command("remove", examples=["atoll network forward remove web 8080"])
@click.argument("instance", shell_complete=instances)
@click.argument("ports", nargs=-1, required=True, metavar="PORT...")
@click.pass_context
def remove_forward(ctx: click.Context, instance: str, ports: Sequence[str]) -> None:
    """Lead ports of the host nowhere any more."""
    gone = [parse_port(text) for text in ports]

    def mac(view: "InstanceView") -> str:
        first = f"{gone[0]['port']}:"
        found = [row["mac"] for row in rows(view) if any(text.startswith(first) for text in row["forwards"])]
        if not found:
            raise Invalid(
                f"no port {ports[0]} leads to {instance}", hint="atoll network forward list", field="port"
            )
        return str(found[0])

    _set(ctx, instance, mac, {"remove_forwards": gone}, "no longer forwarded")


def _set(ctx: click.Context, instance: str, mac: Any, changes: dict[str, Any], said: str) -> None:
    from atoll.client import NicChanges

    settings = ctx.ensure_object(Settings)
    wanted = converted(changes, NicChanges)

    async def ask(client: "Client") -> "Operation":
        return await client.nics.change(instance, mac(await client.instances.get(instance)), wanted)

    ended = _one(settings, ask, f"changing forwards of {instance}")
    output.emit(settings, ended, lambda: None if settings.quiet else click.echo(said))


@groups.command("list", examples=["atoll network group list"])
@click.pass_context
def list_groups(ctx: click.Context) -> None:
    """List the project's security groups."""
    settings = ctx.ensure_object(Settings)
    found = run(settings, lambda client: client.groups.list())
    output.emit_rows(settings, found, GROUPS, name=lambda view: view.group.name, none="no groups")


@groups.command("show", examples=["atoll network group show web"])
@click.argument("name")
@click.pass_context
def show_group(ctx: click.Context, name: str) -> None:
    """Tell a group's rules and the instances in it."""
    settings = ctx.ensure_object(Settings)
    view = run(settings, lambda client: client.groups.get(name))
    head = [
        ("name", view.group.name),
        ("project", view.group.project),
        ("description", view.group.description),
        ("rules", [show_rule(rule) for rule in view.group.rules]),
        ("users", view.users),
        ("id", view.group.id),
    ]
    output.emit(settings, view, lambda: output.write_sections([Section("", head)]))


@groups.command(
    "create",
    examples=[
        "atoll network group create web",
        "atoll network group create db --rule 'ingress any from group:web'",
    ],
)
@click.argument("name")
@click.option("--rule", "rules", multiple=True, metavar="RULE", help="Beside egress to anybody. Repeatable.")
@click.option("--closed", is_flag=True, help="Without the rule that lets its guests reach anybody.")
@click.option("--description", default="", help="What it is for.")
@click.pass_context
def create_group(ctx: click.Context, name: str, rules: Sequence[str], closed: bool, description: str) -> None:
    """Make a group. Its guests reach anybody, and nobody reaches them until a rule says so; answers always pass.

    RULE: ingress or egress; any, tcp, udp or icmp, with a port or range; from or to a CIDR or group:NAME.
    """
    settings = ctx.ensure_object(Settings)
    check_label(name, what="name of a group")
    texts = [*([] if closed else ["egress any"]), *rules]

    async def ask(client: "Client") -> "Operation":
        return await client.groups.create(name, rules=_rules(texts), description=description)

    ended = _one(settings, ask, f"creating group {name}")
    output.emit(settings, ended, lambda: click.echo(name if settings.quiet else f"group {name} is there"))


@groups.command(
    "allow", examples=["atoll network group allow web 'ingress tcp/80' 'ingress tcp/22 from 10.0.0.0/8'"]
)
@click.argument("name")
@click.argument("rules", nargs=-1, required=True, metavar="RULE...")
@click.pass_context
def allow(ctx: click.Context, name: str, rules: Sequence[str]) -> None:
    """Add rules to a group, in force at once."""
    _rule(ctx, name, {"add": rules})


@groups.command("revoke", examples=["atoll network group revoke web 'ingress tcp/80'"])
@click.argument("name")
@click.argument("rules", nargs=-1, required=True, metavar="RULE...")
@click.pass_context
def revoke(ctx: click.Context, name: str, rules: Sequence[str]) -> None:
    """Take rules out of a group, in force at once."""
    _rule(ctx, name, {"remove": rules})


@groups.command("delete", examples=["atoll network group delete web"])
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_context
def delete_group(ctx: click.Context, names: Sequence[str]) -> None:
    """Remove groups that no instance is in."""
    _several(ctx, names, lambda client, name: client.groups.delete(name), "deleting group")


def _rules(texts: Sequence[str]) -> Any:
    from atoll.client import GroupRule

    return tuple(converted(parse_rule(text), GroupRule) for text in texts)


def _rule(ctx: click.Context, name: str, changes: dict[str, Sequence[str]]) -> None:
    settings = ctx.ensure_object(Settings)
    wanted = {key: _rules(texts) for key, texts in changes.items()}
    ended = _one(settings, lambda client: client.groups.change(name, **wanted), f"changing group {name}")
    output.emit(settings, ended, lambda: None if settings.quiet else click.echo(f"group {name} is changed"))


def _several(ctx: click.Context, names: Sequence[str], ask: Any, doing: str) -> None:
    settings = ctx.ensure_object(Settings)

    async def work(client: "Client") -> None:
        await several.each(client, settings, names, lambda name: ask(client, name), doing=doing, done="deleted")

    run(settings, work)


def _one(settings: Settings, ask: Any, label: str) -> "Operation":
    async def work(client: "Client") -> "Operation":
        async with Waiting(client, settings) as waiting:
            return await waiting.wait(await ask(client), label)

    return run(settings, work)
