"""What a process is shut into before it takes an archive apart: a user namespace whose ids own nothing, its tree as
its whole file system, no network, few capabilities, bounds. Linux only; standard library only."""

import ctypes
import os
import resource
import signal
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
_OPEN_TREE, _MOVE_MOUNT, _PIVOT_ROOT = 428, 429, {"x86_64": 155, "aarch64": 41, "riscv64": 41}
_AT_FDCWD, _AT_EMPTY_PATH, _CLONE, _FROM_FD = -100, 0x1000, 1, 4
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x4000, 0x40000, 2
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_KEPT = (0, 1, 3, 4, 31)
"""CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP: over the tree's own ids."""
_LAST_CAPABILITY = 63


def die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def unshare(tree: int) -> None:
    """Into namespaces of its own, in the open directory `tree`. Ids mean nothing until somebody outside has written
    the maps."""
    os.fchdir(tree)  # the one thing that is led over into the new mount namespace
    os.close(tree)
    _check(_libc.unshare(_NEWUSER | _NEWNS | _NEWUTS | _NEWIPC | _NEWNET))


def shut_in() -> None:
    """Become root of the namespace, with the present directory as / and no way out of it."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    Path("/proc/sys/user/max_user_namespaces").write_text("0\n")  # in a new one it would have every right again
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    mount = _call(_OPEN_TREE, _AT_FDCWD, b"", _CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC)
    _call(_MOVE_MOUNT, mount, b"", _AT_FDCWD, b"/proc", _FROM_FD)
    os.fchdir(mount)
    _call(_PIVOT_ROOT[os.uname().machine], b".", b".")
    _check(_libc.umount2(b".", _MNT_DETACH))
    os.chdir("/")
    os.close(mount)


def bound(*, memory: int, cpu: int, largest: int) -> None:
    """`memory`: bytes of address space; `cpu`: seconds; `largest`: bytes of one file."""
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, largest),
        (resource.RLIMIT_NOFILE, 512),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 1),
    ):
        resource.setrlimit(what, (most, most))


def drop() -> None:
    """Keep only what giving files to the tree's ids takes."""
    for number in range(_LAST_CAPABILITY + 1):
        if number not in _KEPT and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # the kernel knows no more
    kept = sum(1 << number for number in _KEPT)
    head = (ctypes.c_uint32 * 2)(0x2008_0522, 0)  # _LINUX_CAPABILITY_VERSION_3
    data = (ctypes.c_uint32 * 6)(kept & 0xFFFFFFFF, kept & 0xFFFFFFFF, 0, 0, 0, 0)
    _check(_libc.capset(head, data))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def write_maps(pid: int, first: int, count: int) -> None:
    """From outside, with the right to."""
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"0 {first} {count}\n")


def sync(fd: int) -> None:
    """Returns when all of its file system is on the disk."""
    _check(_libc.syncfs(fd))


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    _check(result)
    return result


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
