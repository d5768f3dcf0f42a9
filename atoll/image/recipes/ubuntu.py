"""Recipes `ubuntu/22.04`, `ubuntu/24.04`: Ubuntu servers, made as Debian's are, from a mirror in the settings.

Debian has no package with the keys that Ubuntu's archive is signed with, and packages are never taken unverified:
the host's administrator says where both are.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import msgspec

from atoll.base.errors import Lacking
from atoll.image.recipes import bootstrap
from atoll.image.recipes.debian import PACKAGES, Server, folder
from atoll.image.recipes.recipe import Recipe

KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
"""Where Ubuntu's package ubuntu-keyring has it."""
_SETTINGS = "images.ubuntu_mirror and images.ubuntu_keyring in atoll.toml name a mirror and the file of its keys"


class Release(msgspec.Struct, frozen=True):
    """`absent`: packages of Debian's list that it has not, or has within others."""

    name: str
    suite: str
    absent: tuple[str, ...] = ()


class Archive(msgspec.Struct, frozen=True):
    """`mirror`: a URL, "" where none is known. `keyring`: the file with the keys that it is signed with."""

    mirror: str = ""
    keyring: Path = KEYRING


RELEASES = (
    Release("ubuntu/22.04", "jammy", ("systemd-resolved", "libnss-resolve")),
    Release("ubuntu/24.04", "noble"),
)


def recipes(archive: Archive) -> Mapping[str, Recipe]:
    """By name. Without a mirror or its keys each says what is missing."""
    return {one.name: Server(one.name, functools.partial(system, archive, one), __doc__ or "") for one in RELEASES}


def system(archive: Archive, release: Release) -> bootstrap.System:
    """Raises Lacking."""
    if not archive.mirror:
        raise Lacking(f"no mirror for {release.name} is set", hint=_SETTINGS)
    if not archive.keyring.is_file():
        raise Lacking(f"the keys of Ubuntu's archive are missing: there is no {archive.keyring}", hint=_SETTINGS)
    kernel = {"linux-image-cloud-amd64": "linux-image-virtual"}
    packages = tuple(kernel.get(name, name) for name in PACKAGES if name not in release.absent)
    pockets = (release.suite, f"{release.suite}-updates", f"{release.suite}-security")
    return bootstrap.System(
        name=release.name,
        suite=release.suite,
        sources=tuple(f"deb {archive.mirror} {pocket} main universe" for pocket in pockets),
        packages=packages,
        overlays=(folder() / "root",),
        script=folder() / "customize",
        keyring=archive.keyring,
    )
