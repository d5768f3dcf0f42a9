"""`atoll launch`."""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

import click
import msgspec

from atoll.base.errors import Absent, AtollError, Invalid, Unreachable
from atoll.base.names import check_label, did_you_mean, image_name
from atoll.base.units import parse_duration
from atoll.cli import containers, keys, output, seeds
from atoll.cli.commands import command
from atoll.cli.completing import images, launchable, networks, volumes
from atoll.cli.context import run
from atoll.cli.errors import plain
from atoll.cli.listing import planned
from atoll.cli.nicspec import parse_forward, parse_nic
from atoll.cli.progress import Waiting
from atoll.cli.settings import Settings

if TYPE_CHECKING:
    from atoll.client import Client, CloudInit, DiskUse, InstanceSpec, InstanceView

ADDRESS_TIME = 15.0
"""Seconds that a guest whose agent answers may take to have the addresses planned for it."""
LONGEST_WAIT = 3600.0
ELSEWHERE = {
    "image": "it is the first argument: atoll launch IMAGE",
    "name": "it is the second argument: atoll launch IMAGE NAME",
    "power": "leave it off with --no-start",
    "nics": "give --network once for each NIC",
    "network": "give --network once for each NIC",
}
ALIASES = {"disk": "root.size", "pool": "root.pool", "network": "nics"}


@command(
    "launch",
    examples=[
        "atoll launch tiny",
        "atoll launch tiny web -c 2 -m 1GiB --disk 10GiB",
        "atoll launch tiny db --set restart=always --set labels.role=db --set limits.cpu=1.5",
        "atoll launch tiny probe --machine microvm --no-wait",
        "atoll launch debian/12 web --ssh-key ~/.ssh/id_ed25519.pub --cloud-init web.yaml",
        "atoll launch --empty --disk 10GiB --cdrom installer --name new",
        "atoll launch tiny shop --volume data --volume logs,bus=scsi,cache=none",
        "atoll launch tiny cell --container --mount /srv/www:/var/www:ro",
        "atoll launch tiny www --port 8080:80 --nic network=lan,address=10.1.2.30,group=web,up=100Mbit",
    ],
)
@click.argument("image", shell_complete=launchable, required=False, default="")
@click.argument("name", required=False, default="")
@click.option("-c", "--cpus", metavar="N", help="Virtual CPUs (1).")
@click.option("-m", "--memory", metavar="SIZE", help="Memory (512MiB).")
@click.option("--disk", metavar="SIZE", help="Size of its disk (as the image's).")
@click.option(
    "--network", "nets", multiple=True, metavar="N", shell_complete=networks, help="Network of a NIC. Repeatable."
)
@click.option(
    "--volume",
    "uses",
    multiple=True,
    metavar="V[,bus=B][,cache=C]",
    shell_complete=volumes,
    help="A volume to attach (atoll volume attach --help tells B and C). Repeatable.",
)
@click.option(
    "--nic", "nics", multiple=True, metavar="K=V,...", help="A NIC with settings, see atoll nic add. Repeatable."
)
@click.option(
    "--port", "ports", multiple=True, metavar="HOST:GUEST", help="Lead a port of the host to it. Repeatable."
)
@click.option("--set", "pairs", multiple=True, metavar="K=V", help="Any other setting, see below. Repeatable.")
@click.option("--machine", metavar="TYPE", help="auto, q35, pc or microvm.")
@click.option("--accel", metavar="KIND", help="auto, kvm or tcg.")
@click.option("--firmware", metavar="KIND", help="auto, bios, uefi or direct.")
@click.option("--hardware", metavar="KIND", help="virtio, or compatible: AHCI disk and e1000 NIC.")
@containers.options
@click.option("--empty", is_flag=True, help="No image: an empty disk, for an installation.")
@click.option(
    "--cdrom", metavar="IMAGE", shell_complete=images, help="Image with an ISO file, in its CD-ROM drive."
)
@click.option("--boot-cdrom", is_flag=True, help="Boot the CD first, also where the disk can be booted.")
@click.option("--name", "named", metavar="NAME", default="", help="The same as NAME.")
@click.option("--ssh-key", "ssh_keys", multiple=True, metavar="FILE|KEY", help="Who may log in. Repeatable.")
@click.option("--cloud-init", metavar="FILE", help="A #cloud-config for its cloud-init.")
@click.option("--user-data", metavar="FILE", help="The same as any user-data: scripts, archives, includes.")
@click.option("--vendor-data", metavar="FILE", help="Vendor-data for its cloud-init.")
@click.option("--network-config", metavar="FILE", help="Network configuration for its cloud-init.")
@click.option("--forkable", is_flag=True, help="Keep its memory so that it can be cloned while it runs.")
@click.option("--no-start", is_flag=True, help="Create it, leave it stopped.")
@click.option("--no-wait", is_flag=True, help="Return once the daemon has accepted; prints the operation.")
@click.option(
    "--ready-timeout", default="5m", show_default=True, metavar="TIME", help="How long its agent may take."
)
@click.pass_context
def launch(ctx: click.Context, /, image: str, name: str, **options: Any) -> None:
    """Create an instance from IMAGE and start it. Without NAME it gets one.

    Returns once the agent in it answers and cloud-init, where it has that, is done. An IMAGE that is not there but
    can be built (`atoll image recipes`) is built first. Ctrl-C takes back what was begun; once the instance runs,
    it only ends the wait.

    Settings for --set are the keys of `atoll show NAME -o json` under instance.spec, with dots: restart=no,
    on-failure or always; limits.cpu=1.5; limits.cpu_weight=200; autostart.order=5; autostart.delay=10s;
    root.pool=fast; labels.role=web; description="a web server".
    """
    settings = ctx.ensure_object(Settings)
    image, name = _image_and_name(image, name, options)
    if name:
        check_label(name, what="name of an instance")
    spec, given = spec_of(image, options), seeds.given(options)
    uses = [disk_use(text) for text in options["uses"]]
    patience = parse_duration(options["ready_timeout"], field="--ready-timeout")
    if patience > LONGEST_WAIT:
        raise Invalid("an hour is the longest wait for an agent", hint="--no-wait", field="--ready-timeout")
    start, wait = not options["no_start"], not options["no_wait"]
    view = run(settings, lambda client: _launch(client, settings, spec, given, uses, name, start, wait, patience))
    if view is not None:
        output.emit(settings, view, lambda: None)


def _image_and_name(image: str, name: str, options: dict[str, Any]) -> tuple[str, str]:
    """With --empty there is no image, and the first word is the name. Raises Invalid."""
    if options["empty"]:
        if name:
            raise Invalid("--empty means without an image", hint="atoll launch --empty NAME", field="image")
        image, name = "", image
    elif not image:
        raise Invalid("missing argument 'IMAGE'", hint="atoll launch --help, or --empty without one", field="image")
    if name and options["named"] not in ("", name):
        raise Invalid("two names are given", field="--name")
    return image, name or options["named"]


def spec_of(image: str, options: dict[str, Any]) -> "InstanceSpec":
    """What the options and `--set` ask for. Raises Invalid."""
    from atoll.client import InstanceSpec

    pairs = [
        f"{key}={options[option]}"
        for option, key in (
            ("cpus", "cpus"),
            ("memory", "memory"),
            ("disk", "root.size"),
            ("machine", "machine"),
            ("accel", "accel"),
            ("firmware", "firmware"),
            ("hardware", "hardware"),
            ("cdrom", "cdrom"),
        )
        if options.get(option) is not None
    ]
    wanted = keys.parse([*pairs, *options["pairs"]], InstanceSpec, aliases=ALIASES, elsewhere=ELSEWHERE)
    wanted |= containers.spec_of(options)
    if options["nets"]:
        wanted["nics"] = [{"network": net} for net in options["nets"]]
    for flag in ("forkable", "boot_cdrom"):
        if options.get(flag):
            wanted[flag] = True
    if options.get("ssh_keys"):
        wanted["ssh_keys"] = [seeds.public_key(each) for each in options["ssh_keys"]]
    if options["nics"]:
        wanted["nics"] = wanted.get("nics", []) + [parse_nic(text) for text in options["nics"]]
    if options["ports"]:
        first, *rest = wanted.get("nics") or [{}]
        wanted["nics"] = [{**first, "forwards": [parse_forward(text) for text in options["ports"]]}, *rest]
    try:
        return msgspec.convert({**wanted, "image": image}, InstanceSpec)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$.")
        raise Invalid(text.replace("`", ""), field=where.rstrip("`"), hint="atoll launch --help") from error


def disk_use(text: str) -> "DiskUse":
    """`data,bus=scsi,cache=none`. Raises Invalid."""
    from atoll.client import DiskUse

    name, *rest = text.split(",")
    found = {"volume": check_label(name, what="name of a volume", field="--volume")}
    for part in rest:
        key, equals, value = part.partition("=")
        if key not in ("bus", "cache") or not equals or key in found:
            raise Invalid(f"{part!r} is no bus=... or cache=...", hint="NAME,bus=scsi,cache=none", field="--volume")
        found[key] = value
    try:
        return msgspec.convert(found, DiskUse)
    except msgspec.ValidationError as error:
        raise Invalid(
            f"{text!r}: {str(error).replace('`', '')}", hint="atoll volume attach --help", field="--volume"
        ) from error


async def _launch(
    client: "Client",
    settings: Settings,
    spec: "InstanceSpec",
    given: "CloudInit | None",
    uses: "list[DiskUse]",
    name: str,
    start: bool,
    wait: bool,
    patience: float,
) -> "InstanceView | None":
    async with Waiting(client, settings, steps=True) as waiting:
        if spec.image:
            await ensure_image(client, waiting, spec.image)
        operation = await client.instances.launch(spec, name=name, start=start, cloud_init=given, volumes=uses)
        name = operation.subject.name
        if not wait:
            output.emit(settings, operation, lambda: click.echo(_accepted(settings, name, operation.id)))
            return None
        await waiting.wait(operation, f"launching {name}")
        view = await client.instances.get(name)
        if start and view.status.state == "running" and await _has_agent(client, view):
            waiting.say(f"{name} runs, waiting for its agent")
            view = await _until_ready(client, view, patience)
            if view.instance.hardware.seed:
                waiting.say(f"{name} runs, waiting for its cloud-init")
                await seeds.until_done(client, name, patience)
    if settings.output == "table":
        click.echo(plain(name if settings.quiet else await _summary(client, view)))
    return view


def _accepted(settings: Settings, name: str, id: str) -> str:
    return name if settings.quiet else f"launching {name}; to wait for it: atoll operation wait {id}"


async def ensure_image(client: "Client", waiting: Waiting, name: str) -> None:
    """Build the image where it is not there and there is a recipe for it. Raises Absent with what may be meant.

    Somebody else may build it at the same time: what counts is that it is there afterwards.
    """
    if name.startswith("sha256:"):
        return
    recipe, name = name, image_name(name)
    try:
        await client.images.get(name)
    except Absent as absent:
        recipes = [recipe.name for recipe in await client.images.recipes()]
        if recipe not in recipes:
            known = {image.name for image in await client.images.list()} | set(recipes)
            hint = did_you_mean(name, sorted(known)) or "see atoll image list and atoll image recipes"
            raise Absent(absent.message, hint=hint, field="image") from absent
        waiting.print(f"image {name} is not there yet: building it")
        try:
            await waiting.wait(await client.images.build(recipe), f"building {recipe}")
        except AtollError as error:
            try:
                await client.images.get(name)
            except Absent:
                raise error from None


async def _has_agent(client: "Client", view: "InstanceView") -> bool:
    """Whether its image has an agent to wait for; taken for granted where the image has no name any more. Nothing
    is waited for in a container: it is as ready as its programs."""
    if view.instance.spec.kind == "container":
        return False
    if not view.instance.image:
        return False
    try:
        image = await client.images.get(image_name(view.instance.spec.image))
    except AtollError:
        return True
    return image.digest != view.instance.image or image.manifest.agent


async def _until_ready(client: "Client", view: "InstanceView", patience: float) -> "InstanceView":
    try:
        await client.instances.ready(view.name, timeout=patience)
    except Unreachable as error:
        raise Unreachable(
            f"{view.name} runs, but its agent has not answered within {patience:g} s",
            hint=f"see atoll log {view.name} or atoll console {view.name}",
        ) from error
    await _until_addressed(client, view)
    return await client.instances.get(view.name)


async def _until_addressed(client: "Client", view: "InstanceView") -> None:
    """Until the guest has the addresses its networks planned: what is launched can be reached. Some guests take
    none (their own affair), so this is a courtesy with an end, not a promise."""
    end = monotonic() + ADDRESS_TIME
    while monotonic() < end:
        try:
            inside = await asyncio.wait_for(client.instances.addresses(view.name), ADDRESS_TIME)
        except (AtollError, TimeoutError):
            return
        if all(set(nic.addresses) <= set(inside.get(nic.mac, ())) for nic in view.instance.hardware.nics):
            return
        await asyncio.sleep(0.2)


async def _summary(client: "Client", view: "InstanceView") -> str:
    """`web is running at 10.64.0.2, name web.atoll`."""
    where = ", ".join(planned(view))
    text = f"{view.name} is {view.status.state}" + (f" at {where}" if where else "")
    dns = await _dns_name(client, view)
    return text + (f", name {dns}" if dns else "")


async def _dns_name(client: "Client", view: "InstanceView") -> str:
    """The name under which other guests of its first network find it; "" where they cannot."""
    for nic, wanted in zip(view.instance.hardware.nics[:1], view.instance.spec.nics, strict=False):
        try:
            network = await client.networks.get(wanted.network)
        except AtollError:
            return ""
        for port in network.ports:
            if port.id == nic.port and port.name and network.network.domain:
                return f"{port.name}.{network.network.domain}"
    return ""
