"""What a file holds and takes, told by its file system."""

import os
from pathlib import Path

from atoll.base.units import MiB
from atoll.host.extents import measure


def told(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        found = measure(file.fileno())
    return found.used // MiB, found.allocated // MiB


def test_holes_reserved_and_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 16 * MiB)
    assert told(path) == (0, 0)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 16 * MiB)
    assert told(path) == (0, 16)
    with path.open("r+b") as file:
        file.write(b"x" * 4 * MiB)
        os.fsync(file.fileno())
    assert told(path) == (4, 16)


def test_without_a_map_it_is_what_is_taken() -> None:
    path = Path("/dev/shm") / f"atoll-test-{os.getpid()}"
    try:
        path.write_bytes(b"x" * MiB)
        os.truncate(path, 8 * MiB)
        assert told(path) == (1, 1)
    finally:
        path.unlink()


def test_many_pieces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        for number in range(2000):
            file.seek(number * 16384)
            file.write(b"x" * 4096)
        os.fsync(file.fileno())
    assert told(path) == (2000 * 4096 // MiB, 2000 * 4096 // MiB)
