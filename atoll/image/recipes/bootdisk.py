"""A GPT disk that boots by itself on BIOS and UEFI, assembled from files: no loop device, no mount, no root.

Layout, as Debian's own cloud images have it, with the root file system last so that it can grow:

    14  BIOS boot partition, 2 MiB: GRUB's core image, which the 440 bytes of the MBR load
    15  EFI system partition (FAT32): /EFI/BOOT/BOOTX64.EFI, GRUB again
     1  the root file system

Both GRUBs hold every module they need and read /boot/grub/grub.cfg of the root file system, found by its label.
"""

import asyncio
import os
import struct
from pathlib import Path

import msgspec

from atoll.base.errors import Broken, Lacking
from atoll.base.ids import Bytes
from atoll.base.units import MiB
from atoll.host.run import run

SECTOR = 512
BIOS_AT, ESP_AT, ROOT_AT = 1 * MiB, 3 * MiB, 64 * MiB
_TAIL = 1 * MiB
"""Bytes at the end for the second partition table."""
_GRUB = Path("/usr/lib/grub")
_COMMON = (
    "part_gpt part_msdos ext2 fat search search_label normal configfile linux echo serial terminal test ls cat"
)
_MODULES = {
    "i386-pc": f"biosdisk {_COMMON} halt reboot minicmd",
    "x86_64-efi": f"efi_gop efi_uga all_video {_COMMON} halt reboot minicmd",
}
_PACKAGE = {"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"}
_TIMEOUT = 120.0


class Ids(msgspec.Struct, frozen=True):
    """uuids of the disk and its partitions; `volume`: the FAT's serial number, 8 hexadecimal digits."""

    disk: str
    bios: str
    esp: str
    root: str
    volume: str


async def assemble(disk: Path, *, size: Bytes, root: Path, label: str, ids: Ids, work: Path) -> None:
    """Make `disk`, raw and sparse, of `size` bytes. `root`: an ext4 file system of `root_size(size)` bytes, whose
    label is `label`; it is moved into the disk where it can be. Raises Lacking (no GRUB here), Broken."""
    core = await _grub("i386-pc", work / "core.img", label, work)
    efi = await _grub("x86_64-efi", work / "bootx64.efi", label, work)
    esp = await _esp(work / "esp.fat", efi, ids.volume)
    with disk.open("wb") as file:
        file.truncate(size)
    await run(["sfdisk", "--quiet", str(disk)], input=table(size, ids).encode(), timeout=_TIMEOUT)
    await asyncio.to_thread(_place, disk, esp, ESP_AT)
    await asyncio.to_thread(_place, disk, root, ROOT_AT)
    await asyncio.to_thread(_install_bios, disk, core)


def root_size(size: int) -> Bytes:
    """Bytes of the root partition on a disk of `size` bytes."""
    return Bytes(size - ROOT_AT - _TAIL)


def table(size: int, ids: Ids) -> str:
    """What sfdisk(8) reads. Pure."""
    parts = (
        (1, ROOT_AT, root_size(size), "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", ids.root),
        (14, BIOS_AT, ESP_AT - BIOS_AT, "21686148-6449-6E6F-744E-656564454649", ids.bios),
        (15, ESP_AT, ROOT_AT - ESP_AT, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", ids.esp),
    )
    lines = ["label: gpt", f"label-id: {ids.disk}", "unit: sectors"]
    lines += [
        f"{number} : start={at // SECTOR}, size={length // SECTOR}, type={kind}, uuid={id}"
        for number, at, length, kind, id in parts
    ]
    return "\n".join(lines) + "\n"


async def _grub(platform: str, out: Path, label: str, work: Path) -> Path:
    modules = _GRUB / platform
    if not (modules / "normal.mod").exists():
        raise Lacking(f"GRUB for {platform} is missing", hint=f"apt-get install {_PACKAGE[platform]}")
    early = work / f"{platform}.cfg"
    early.write_text(f"search --no-floppy --set=root --label {label}\nset prefix=($root)/boot/grub\nnormal\n")
    argv = ["grub-mkimage", "-O", platform, "-o", str(out), "-d", str(modules), "-p", "/boot/grub"]
    await run([*argv, "-c", str(early), *_MODULES[platform].split()], timeout=_TIMEOUT)
    return out


async def _esp(fat: Path, efi: Path, serial: str) -> Path:
    with fat.open("wb") as file:
        file.truncate(ROOT_AT - ESP_AT)
    await run(["mkfs.vfat", "-F", "32", "-i", serial, "-n", "ATOLL-ESP", "--invariant", str(fat)])
    env = {"MTOOLS_SKIP_CHECK": "1", "SOURCE_DATE_EPOCH": "1577836800"}
    await run(["mmd", "-i", str(fat), "::/EFI", "::/EFI/BOOT"], env=env)
    await run(["mcopy", "-i", str(fat), "-o", str(efi), "::/EFI/BOOT/BOOTX64.EFI"], env=env)
    return fat


def _place(disk: Path, source: Path, at: int) -> None:
    """Copy what holds data of a sparse file to an offset of another. The kernel copies: no byte passes here."""
    with source.open("rb") as file, disk.open("r+b") as out:
        end = os.fstat(file.fileno()).st_size
        start = 0
        while start < end:
            try:
                start = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError:
                return
            stop = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            while start < stop:
                copied = os.copy_file_range(file.fileno(), out.fileno(), stop - start, start, at + start)
                if not copied:
                    raise Broken(f"{source.name} became shorter while it was copied")
                start += copied


def _install_bios(disk: Path, core: Path) -> None:
    """What grub-bios-setup does, on a file. Format: GRUB, include/grub/i386/pc/boot.h: boot.img loads the sector
    named at 0x5c, the first of core.img, whose last 12 bytes name the sectors of the rest."""
    boot = bytearray((_GRUB / "i386-pc" / "boot.img").read_bytes())
    body = bytearray(core.read_bytes())
    if len(boot) != SECTOR or len(body) > ESP_AT - BIOS_AT:
        raise Broken("GRUB's images are not of the size they have on Debian")
    first = BIOS_AT // SECTOR
    struct.pack_into("<Q", boot, 0x5C, first)
    boot[0x66:0x68] = b"\x90\x90"  # never doubt the drive that the firmware names
    struct.pack_into("<QHH", body, 0x1F4, first + 1, (len(body) + SECTOR - 1) // SECTOR - 1, 0x820)
    with disk.open("r+b") as file:
        file.write(boot[:440])
        file.seek(BIOS_AT)
        file.write(body)
