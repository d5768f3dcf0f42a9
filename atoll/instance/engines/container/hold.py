"""The first program of a container that is there for others: it waits, and buries what is left to it.

No image needs to have it: it is a static program of some 200 bytes that this host brings along, for each machine
that Atoll runs on. Its loop: wait4(-1); where there is no child, sleep for a second.
"""

import os
import struct
from pathlib import Path

from atoll.base.errors import Lacking
from atoll.host import files

FOLDER, PROGRAM = "/.atoll", "/.atoll/hold"
"""Where it is in the container."""
_BASE, _HEADERS = 0x400000, 120
_X86_64 = bytes.fromhex(
    "b83d000000"  # mov eax, 61: wait4
    "48c7c7ffffffff"  # mov rdi, -1
    "31f6" "31d2" "4531d2"  # xor esi, esi; xor edx, edx; xor r10d, r10d
    "0f05"  # syscall
    "4885c0" "79e6"  # test rax, rax; jns to the beginning
    "b823000000"  # mov eax, 35: nanosleep
    "488d3d06000000"  # lea rdi, [rip + 6]: the time below
    "31f6" "0f05"  # xor esi, esi; syscall
    "ebd4"  # jmp to the beginning
)  # fmt: skip
_AARCH64 = struct.pack(
    "<12I",
    0x92800000,  # mov x0, -1
    0xD2800001, 0xD2800002, 0xD2800003,  # mov x1, 0; mov x2, 0; mov x3, 0
    0xD2802088,  # mov x8, 260: wait4
    0xD4000001,  # svc 0
    0xB6FFFF40,  # tbz x0, 63 to the beginning
    0x100000A0,  # adr x0: the time below
    0xD2800001,  # mov x1, 0
    0xD2800CA8,  # mov x8, 101: nanosleep
    0xD4000001,  # svc 0
    0x17FFFFF5,  # b to the beginning
)  # fmt: skip
_SECOND = struct.pack("<QQ", 1, 0)
_CODE = {"x86_64": (62, _X86_64), "aarch64": (183, _AARCH64)}


def program(machine: str) -> bytes:
    """Raises Lacking."""
    if machine not in _CODE:
        raise Lacking(
            f"atoll run knows no machine {machine}", hint="launch a container with an init, and atoll exec"
        )
    number, code = _CODE[machine]
    body = code + _SECOND
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, number, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = _HEADERS + len(body)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + body


def place(run: Path) -> Path:
    """The directory that is mounted on FOLDER, in a run directory."""
    return run / "hold"


def lay(run: Path) -> None:
    """Make it. Blocks. Raises Lacking."""
    at = place(run)
    made = program(os.uname().machine)
    with files.translated("lay out what holds a container"):
        at.mkdir(mode=0o755, exist_ok=True)
        path = at / Path(PROGRAM).name
        path.write_bytes(made)
        path.chmod(0o755)
