"""What a wish must say, and may not, for the kind of instance that it is for. Pure."""

import posixpath

from atoll.base.errors import Invalid
from atoll.base.units import show_size
from atoll.image.model import ROOTFS, Manifest, serves
from atoll.instance.model import CONTAINER_ONLY, ContainerSpec, InstanceSpec, Kind, Limits
from atoll.network.model import End

LEAST = {Kind.VM: 32 << 20, Kind.CONTAINER: 16 << 20}
"""Bytes of memory."""
_VM_ONLY = ("machine", "accel", "firmware", "hardware", "forkable", "cdrom", "boot_cdrom", "ssh_keys")
_SACRED = ("/", "/proc", "/sys", "/dev")
"""What no directory of the host is mounted on."""


def end_of(kind: Kind) -> End:
    """What an instance of this kind takes hold of on a network."""
    return "veth" if kind is Kind.CONTAINER else "tap"


def check_image(spec: InstanceSpec, manifest: Manifest, name: str) -> None:
    """Raises Invalid where no instance of this kind can be made of that image."""
    if spec.kind in serves(manifest):
        return
    if spec.kind is Kind.CONTAINER:
        raise Invalid(
            f"image {name} has no root file system for containers",
            hint="atoll image list shows which images have one; atoll image import FILE.tar.xz NAME brings one",
            field="spec.image",
        )
    if ROOTFS in manifest.files:
        raise Invalid(
            f"image {name} is a root file system: no disk can be made of it",
            hint="atoll launch IMAGE --container",
            field="spec.image",
        )
    raise Invalid(
        f"image {name} is an ISO image: no disk can be made of it",
        hint=f"install from it: atoll launch --empty --disk 10GiB --cdrom {name}",
        field="spec.image",
    )


def check_kind(spec: InstanceSpec, *, seed: str = "") -> None:
    """Raises Invalid for what is another kind's."""
    if spec.kind is Kind.VM:
        if spec.container != ContainerSpec():
            raise Invalid(
                "only a container is privileged, nests or mounts", hint="--container", field="spec.container"
            )
        return
    if not spec.image:
        raise Invalid("a container begins with an image", hint="atoll image list", field="spec.image")
    plain = InstanceSpec(image=spec.image)
    for name in _VM_ONLY:
        if getattr(spec, name) != getattr(plain, name):
            raise Invalid(
                f"a container has no {name.replace('_', ' ')}", hint=f"leave {name} out", field=f"spec.{name}"
            )
    if seed:
        raise Invalid(
            "cloud-init is for VMs here",
            hint="configure a container with atoll exec and atoll cp",
            field="cloud_init",
        )
    for mount in spec.container.mounts:
        if posixpath.normpath(mount.path) in _SACRED or ".." in mount.path.split("/"):
            raise Invalid(f"nothing can be mounted on {mount.path}", field="spec.container.mounts")


def check_limits(kind: Kind, limits: Limits) -> None:
    """Raises Invalid where a VM is given what only a container's control groups can keep."""
    wrong = [name for name in CONTAINER_ONLY if getattr(limits, name) is not None]
    if kind is Kind.VM and wrong:
        raise Invalid(f"limits.{wrong[0]} is for containers", field=f"limits.{wrong[0]}")


def least(spec: InstanceSpec, manifest: Manifest | None) -> int:
    """Bytes of memory below which it is none."""
    own = manifest.min_memory if manifest is not None and spec.kind is Kind.VM else 0
    return max(own, LEAST[spec.kind])


def check_memory(spec: InstanceSpec, manifest: Manifest | None) -> None:
    wanted = least(spec, manifest)
    if spec.memory < wanted:
        raise Invalid(
            f"{f'image {spec.image}' if spec.image else 'a guest'} needs {show_size(wanted)} of memory at least",
            hint=f"-m {show_size(wanted)} or more",
            field="spec.memory",
        )
