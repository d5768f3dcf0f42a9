"""What a tree is, seen from inside it: its own root is the process's root, so its links lead nowhere else."""

import os
import stat

INITS = ("sbin/init", "usr/sbin/init", "bin/init", "init", "usr/lib/systemd/systemd", "lib/systemd/systemd")
SHELLS = ("bin/sh", "usr/bin/sh")
_MOST = 64 * 1024


def survey(root: str) -> dict[str, object]:
    """`top`: names in its root, the first 20; `init`, `shell`: paths, "" where there is none; `system`: what it
    calls itself."""
    return {
        "top": sorted(os.listdir(root))[:20],
        "init": _first(root, INITS),
        "shell": _first(root, SHELLS),
        "system": _system(root),
    }


def _first(root: str, paths: tuple[str, ...]) -> str:
    return next((f"/{path}" for path in paths if _runs(os.path.join(root, path))), "")


def _runs(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and bool(found.st_mode & 0o111)


def _system(root: str) -> str:
    """PRETTY_NAME of os-release(5), else its NAME."""
    told: dict[str, str] = {}
    for path in ("etc/os-release", "usr/lib/os-release"):
        for line in _text(os.path.join(root, path)).splitlines():
            key, _, value = line.partition("=")
            told.setdefault(key.strip(), value.strip().strip("\"'"))
    found = told.get("PRETTY_NAME") or told.get("NAME") or ""
    return "".join(letter for letter in found if letter.isprintable())[:100]


def _text(path: str) -> str:
    """Never waits for a pipe, never reads more than a little."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.read(fd, _MOST).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
