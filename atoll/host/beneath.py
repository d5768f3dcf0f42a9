"""Paths in trees that strangers own: opened so that no link in them leads out (openat2(2), RESOLVE_IN_ROOT)."""

import ctypes
import os
import struct

_OPENAT2 = 437  # the same on every architecture
_NO_MAGIC_LINKS, _IN_ROOT = 0x02, 0x10
_libc = ctypes.CDLL(None, use_errno=True)


def opened(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as a process would for which the directory `root` is /. Raises OSError."""
    how = ctypes.create_string_buffer(
        struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, _IN_ROOT | _NO_MAGIC_LINKS), 24
    )
    name = os.fsencode(path.lstrip("/")) or b"."
    found = int(_libc.syscall(ctypes.c_long(_OPENAT2), root, name, how, ctypes.c_size_t(24)))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return found


def directory(root: int, path: str) -> int:
    return opened(root, path, os.O_PATH | os.O_DIRECTORY)


def made(root: int, path: str, owner: int) -> int:
    """A directory, made with its parents where it is absent; what is made is `owner`'s."""
    done, parent = "", directory(root, "/")
    for name in [part for part in path.split("/") if part not in ("", ".", "..")]:
        done += f"/{name}"
        try:
            there = directory(root, done)
        except FileNotFoundError:
            os.mkdir(name, 0o755, dir_fd=parent)
            os.chown(name, owner, owner, dir_fd=parent, follow_symlinks=False)
            there = directory(root, done)
        os.close(parent)
        parent = there
    return parent


def split(path: str) -> tuple[str, str]:
    """(folder, name). Raises IsADirectoryError for what is none's name."""
    folder, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise IsADirectoryError(21, "Is a directory", path)
    return folder or "/", name
