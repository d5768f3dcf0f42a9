"""A btrfs of a test's own, on a file."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def btrfs(place: Path, *, size: int) -> Iterator[Path]:
    """Where it is mounted: a directory in `place`. `size` in bytes; it takes what is written. Needs root, a kernel
    with loop devices and btrfs, and btrfs-progs."""
    image, at = place / "btrfs.img", place / "mnt"
    at.mkdir()
    with image.open("xb") as file:
        file.truncate(size)
    run("mkfs.btrfs", "-q", str(image))
    mount(image, at)
    try:
        yield at
    finally:
        if at.is_mount():
            run("umount", "-l", str(at))
        image.unlink()


def mount(image: Path, at: Path) -> None:
    run("mount", "-o", "loop", str(image), str(at))


def unmount(at: Path) -> None:
    run("umount", str(at))


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr} (make setup)"
