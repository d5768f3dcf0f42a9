"""Making a distribution's kernel quick to boot directly, and its modules findable."""

import bz2
import ctypes
import gzip
import lzma
import struct
from collections.abc import Iterable, Mapping

import msgspec

from atoll.base.errors import Broken
from atoll.image.recipes import elf

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20


def direct(image: bytes) -> bytes:
    """The kernel as an ELF file that a hypervisor enters through PVH, so that the guest need not decompress it.

    Falls back to the bzImage itself, which boots too, where its compression is not known here.
    Format: Linux, Documentation/arch/x86/boot.rst (setup_sects, payload_offset, payload_length).
    """
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    plain = _decompress(image[start : start + length])
    return elf.pack(plain) if elf.is_elf(plain) else image


def _decompress(data: bytes) -> bytes:
    """The payload; b"" where its compression is unknown. Its last 4 bytes are its plain size, where not gzip's."""
    try:
        if data.startswith(_LZ4_LEGACY):
            return _lz4(data[4:-4])
        if data.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor().decompress(data)
        if data.startswith(b"\x1f\x8b"):
            return gzip.decompress(data)
        if data.startswith(b"BZh"):
            return bz2.decompress(data[:-4])
    except (OSError, lzma.LZMAError, EOFError):
        return b""
    return b""


def _lz4(data: bytes) -> bytes:
    """Blocks of the "legacy" frame. liblz4 is there wherever apt is: apt is linked with it."""
    library = ctypes.CDLL("liblz4.so.1")
    plain = ctypes.create_string_buffer(_LZ4_BLOCK)
    out = bytearray()
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        count = library.LZ4_decompress_safe(data[at + 4 : at + 4 + size], plain, size, _LZ4_BLOCK)
        if count <= 0:
            raise EOFError
        out += ctypes.string_at(plain, count)
        at += 4 + size
    return bytes(out)


class Module(msgspec.Struct, frozen=True):
    """A kernel module: its path under the modules' folder, what it needs first, the devices it serves."""

    path: str
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def module(path: str, data: bytes) -> tuple[str, Module]:
    """Its name, with underscores as the kernel lists it, and what its .modinfo section says."""
    pairs = [item.partition("=") for item in elf.section(data, ".modinfo").decode().split("\0")]
    values: dict[str, list[str]] = {}
    for key, _, value in pairs:
        values.setdefault(key, []).append(value)
    depends = tuple(name.replace("-", "_") for name in ",".join(values.get("depends", [])).split(",") if name)
    return values["name"][0], Module(path, depends, tuple(values.get("alias", ())))


def in_order(modules: Mapping[str, Module], names: Iterable[str]) -> tuple[str, ...]:
    """Those modules and all they need, each after what it needs."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in modules:
            raise Broken(f"the kernel has no module {name}")
        if name not in order:
            for need in modules[name].depends:
                visit(need)
            order.setdefault(name)

    for name in names:
        visit(name)
    return tuple(order)


def index(modules: Mapping[str, Module]) -> dict[str, bytes]:
    """The files modules.dep and modules.alias, as modprobe reads them (modules.dep(5))."""
    depends, aliases = [], []
    for name, one in sorted(modules.items()):
        needs = reversed(in_order(modules, [name])[:-1])
        depends.append(f"{one.path}: {' '.join(modules[need].path for need in needs)}".rstrip() + "\n")
        aliases += [f"alias {alias} {name}\n" for alias in sorted(one.aliases)]
    return {"modules.dep": "".join(depends).encode(), "modules.alias": "".join(aliases).encode()}
