"""A picture of a guest's screen.

QEMU writes it where it may write, as a user that may be hostile: what is read there is checked to be its own plain
file, whatever has been put in its place.
"""

import os
import secrets
import stat
from pathlib import Path

from atoll.base.errors import Broken
from atoll.base.units import MiB
from atoll.host import files
from atoll.host.qmp import Qmp

LIMIT = 64 * MiB
_PNG = b"\x89PNG\r\n\x1a\n"


async def shot(qmp: Qmp, own: Path) -> bytes:
    """As PNG. `own`: QEMU's working directory. Raises Broken, Unreachable."""
    name = f"screen-{secrets.token_hex(4)}.png"
    try:
        await qmp.execute("screendump", {"filename": name, "format": "png"})
        return await files.in_thread(_read, own, name)
    finally:
        await files.in_thread((own / name).unlink, missing_ok=True)


def _read(own: Path, name: str) -> bytes:
    with files.translated("read the picture of the screen"):
        owner = own.stat().st_uid
        fd = os.open(own / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            seen = os.fstat(fd)
            if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1 or seen.st_uid != owner:
                raise Broken("what QEMU left as the picture of its screen is not its own file")
            data = file.read(LIMIT)
    if not data.startswith(_PNG):
        raise Broken("QEMU made no picture of its screen")
    return data
