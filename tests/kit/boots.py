"""Things to boot: the image debian/12 in a state directory, built once a machine for each state of its recipe; and
an ISO of other tools' making."""

import asyncio
import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

from atoll.base.ids import Bytes
from atoll.image.book import ImageBook
from atoll.image.library import Library
from atoll.image.recipes.recipe import Built
from atoll.image.recipes.registry import RECIPES
from atoll.store.sqlite import SqliteStore
from tests.kit.images import RECIPES as FOLDER
from tests.kit.images import cache

CD_SAYS = "hello from the CD"
_GRUB = f"""
serial --unit=0 --speed=115200
terminal_output console serial
ls
echo "{CD_SAYS}"
sleep 1000
"""


def debian_base() -> Path:
    """A state directory with the image `debian-12` and nothing that is one host's own: a minute, the first time."""
    digest = hashlib.sha256()
    for path in sorted(path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(path.relative_to(FOLDER).as_posix().encode() + b"\0" + path.read_bytes())
    folder = cache() / f"debian-12-{digest.hexdigest()[:16]}"
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "debian-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            for old in cache().glob("debian-12-*"):  # half a gigabyte each
                shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _keep(folder, "debian-12", recipe="debian/12")
            (folder / "done").touch()
    return folder


def make_iso(folder: Path) -> Path:
    """A CD that says so on the serial port, on BIOS and UEFI, after what disks the firmware has found."""
    tree = folder / "tree/boot/grub"
    tree.mkdir(parents=True)
    (tree / "grub.cfg").write_text(_GRUB)
    iso = folder / "hello.iso"
    subprocess.run(["grub-mkrescue", "-o", iso, folder / "tree"], check=True, capture_output=True)
    return iso


def add_iso(state: Path, iso: Path, name: str) -> None:
    """Give a state directory whose daemon does not run an image with that CD."""
    _keep(state, name, built=Built(files={"iso": iso}, disk_size=Bytes(0)))


def _keep(state: Path, name: str, *, recipe: str = "", built: Built | None = None) -> None:
    async def keep() -> None:
        store = await SqliteStore.open(state / "shared.db")
        try:
            library = Library(state / "images", cache() / "debs", ImageBook(store), RECIPES)
            await library.open()
            made = built or await library.build(recipe, "kit", lambda *_: None)
            await library.add_built("default", name, made)
            await library.clear("kit")
        finally:
            await store.close()

    asyncio.run(keep())
