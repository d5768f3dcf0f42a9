"""Which QEMU this host has, and its machine types."""

import contextlib
import os
import re

import msgspec

from atoll.host.run import find, run, search_path

_BINARY = re.compile(r"qemu-system-([a-z0-9_]+)\Z")
_VERSION = re.compile(r"version (\d+\.\d+[.\d]*)")
_MACHINE = re.compile(r"(\S+)\s+(.*)")
_ALIAS = re.compile(r" \(alias of (\S+)\)")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine type. `alias_of` is the versioned type that a name such as `q35` means in this QEMU."""

    name: str
    title: str = ""
    alias_of: str = ""
    default: bool = False
    deprecated: bool = False


class Qemu(msgspec.Struct, frozen=True, kw_only=True):
    """`binaries` maps an architecture to its program; `machines` are those of qemu-system-x86_64."""

    version: str
    machines: tuple[Machine, ...] = ()
    binaries: dict[str, str] = {}

    def versioned(self, name: str) -> str:
        """The versioned type behind a name: `q35` -> `pc-q35-7.2`. A name that is no alias is returned as it is."""
        return next((machine.alias_of or name for machine in self.machines if machine.name == name), name)


def parse_machines(text: str) -> tuple[Machine, ...]:
    """The output of `-machine help`: a heading, then a name and a title with remarks in brackets a line."""
    machines = []
    for line in text.splitlines()[1:]:
        if match := _MACHINE.match(line):
            name, title = match.groups()
            alias = _ALIAS.search(title)
            machines.append(
                Machine(
                    name=name,
                    title=re.sub(r" \((alias of \S+|default|deprecated)\)", "", title).strip(),
                    alias_of=alias.group(1) if alias else "",
                    default="(default)" in title,
                    deprecated="(deprecated)" in title,
                )
            )
    return tuple(machines)


def parse_version(text: str) -> str:
    """`QEMU emulator version 7.2.22 (Debian ...)` -> `7.2.22`; "" where there is none."""
    match = _VERSION.search(text)
    return match.group(1) if match else ""


def binaries() -> dict[str, str]:
    """Architecture -> path of its system emulator, the first on the search path."""
    found: dict[str, str] = {}
    for directory in search_path().split(os.pathsep):
        with contextlib.suppress(OSError):  # PATH may name what is not there or may not be read
            for name in sorted(os.listdir(directory)):
                path = os.path.join(directory, name)
                if (match := _BINARY.match(name)) and os.access(path, os.X_OK):
                    found.setdefault(match.group(1), path)
    return found


_known: dict[tuple[str, int, int], Qemu] = {}


async def qemu() -> Qemu:
    """This host's QEMU for x86_64. Asked once for each state of the binary. Raises `Lacking` without one."""
    program = find("qemu-system-x86_64")
    stat = program.stat()
    key = (str(program), stat.st_size, stat.st_mtime_ns)
    if key not in _known:
        version = await run([str(program), "--version"], timeout=10)
        machines = await run([str(program), "-machine", "help"], timeout=10)
        _known[key] = Qemu(
            version=parse_version(version.text), machines=parse_machines(machines.text), binaries=binaries()
        )
    return _known[key]
