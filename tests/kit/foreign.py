"""A root file system for another machine, of two programs written by hand: no compiler of that machine is here."""

import struct
from pathlib import Path

from tests.kit import eviltar

_BASE, _HEADERS, _AARCH64 = 0x400000, 120, 183
_SYSCALL = struct.pack("<I", 0xD4000001)
_WRITE, _EXIT, _EXECVE = 64, 93, 221
SAYS, CODE = "hello from aarch64\n", 7


def rootfs(path: Path) -> Path:
    """/bin/hello says SAYS and exits with CODE; /bin/parent becomes /bin/hello."""
    members = [
        eviltar.file(b"bin/hello", _hello(SAYS.encode(), CODE), mode=0o755),
        eviltar.file(b"bin/parent", _becomes(b"/bin/hello"), mode=0o755),
        *(eviltar.directory(name) for name in (b"dev", b"proc", b"sys", b"etc", b"tmp", b"root")),
        eviltar.file(b"etc/os-release", b'PRETTY_NAME="Two programs"\n'),
    ]
    path.write_bytes(eviltar.archive(*members))
    return path


def _hello(text: bytes, code: int) -> bytes:
    write = _set(0, 1) + _address(1, 28) + _set(2, len(text)) + _set(8, _WRITE) + _SYSCALL
    return _elf(write + _set(0, code) + _set(8, _EXIT) + _SYSCALL + text)


def _becomes(path: bytes) -> bytes:
    padded = path + bytes(8 - len(path) % 8)
    code = _address(0, 32) + _address(1, 28 + len(padded)) + _set(2, 0) + _set(8, _EXECVE) + _SYSCALL
    code += _set(0, 99) + _set(8, _EXIT) + _SYSCALL  # it could not
    arguments = struct.pack("<QQ", _BASE + _HEADERS + len(code), 0)
    return _elf(code + padded + arguments)


def _set(register: int, value: int) -> bytes:
    return struct.pack("<I", 0xD2800000 | value << 5 | register)


def _address(register: int, distance: int) -> bytes:
    return struct.pack("<I", 0x10000000 | (distance >> 2) << 5 | register)


def _elf(body: bytes) -> bytes:
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, _AARCH64, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = _HEADERS + len(body)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + body
