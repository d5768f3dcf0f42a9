"""UEFI firmware for guests, as the host's packages bring it.

A build is a pair that belongs together: code, which guests share and never write, and a template of the variable
store, of which each guest has a copy of its own for ever.
"""

from pathlib import Path

import msgspec

from atoll.base.errors import Lacking

_PLACES = (
    # (what the record of a guest calls it, code, template): Debian and Ubuntu; Fedora; Arch and SUSE.
    ("ovmf-4m", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("ovmf-4m", "/usr/share/edk2/ovmf/OVMF_CODE_4M.fd", "/usr/share/edk2/ovmf/OVMF_VARS_4M.fd"),
    ("ovmf-4m", "/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("ovmf", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
)


class Uefi(msgspec.Struct, frozen=True):
    """`build`: the layout of its variable store. A store works with code of the same build only."""

    build: str
    code: Path
    template: Path


def uefi(build: str = "") -> Uefi:
    """Of that build; "": the best there is. Raises Lacking."""
    for name, code, template in _PLACES:
        if build in ("", name) and Path(code).exists() and Path(template).exists():
            return Uefi(name, Path(code), Path(template))
    raise Lacking(
        f"there is no UEFI firmware{f' {build}' if build else ''} on this host", hint="apt-get install ovmf"
    )
