"""The `tiny` image for live tests: built once a machine for each state of its recipe, shared by every run."""

import asyncio
import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from atoll.image.recipes import tiny as recipe

RECIPES = Path(recipe.__file__).parent


class Image(NamedTuple):
    kernel: Path
    initrd: Path
    disk: Path
    cmdline: str


def cache() -> Path:
    return Path(os.environ.get("ATOLL_TEST_CACHE") or Path.home() / ".cache" / "atoll-tests")


def tiny() -> Image:
    """Builds it where it is not there yet: seconds, and a package mirror. Not to be called within an event loop."""
    digest = hashlib.sha256()
    for path in sorted(path for path in RECIPES.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(path.relative_to(RECIPES).as_posix().encode() + b"\0" + path.read_bytes())
    folder = cache() / f"tiny-{digest.hexdigest()[:16]}"
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:  # test runs beside each other build it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = folder / "cmdline"
        if not line.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            built = asyncio.run(recipe.build(folder, cache() / "debs", lambda *_: None))
            line.write_text(built.cmdline)
        return Image(folder / "kernel", folder / "initrd", folder / "disk.qcow2", line.read_text())
