"""liblxc's programs, as command lines. PATH is short: with newuidmap on it liblxc would ask for a line in
/etc/subuid for every container, which root needs not."""

from collections.abc import Mapping, Sequence

from atoll.host.run import find
from atoll.instance.engines.container.rundir import RunDir

ENV = {"PATH": "/usr/sbin:/sbin", "LANG": "C.UTF-8"}
INSIDE = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_IN_DIRECTORY = 'cd "$1" && shift && exec "$@"'


def _of(program: str, run: RunDir) -> list[str]:
    return [str(find(program)), "-n", run.name, "-P", str(run.names)]


def start(run: RunDir, command: Sequence[str]) -> list[str]:
    """The monitor, in the foreground. Its log says how the container ended, hence so much of it."""
    line = [*_of("lxc-start", run), "-F", "-f", str(run.config), "-o", str(run.log), "-l", "DEBUG"]
    return [*line, "--", *command] if command else line


def console(run: RunDir) -> list[str]:
    return [*_of("lxc-console", run), "-t", "0", "-e", "-1"]


def attach(
    run: RunDir, argv: Sequence[str], env: Mapping[str, str], *, uid: int = 0, gid: int = 0, directory: str = ""
) -> list[str]:
    """A program in the container: with its namespaces, groups, capabilities, seccomp and security label."""
    words = [f"--set-var={name}={value}" for name, value in {**INSIDE, **env}.items()]
    who = [f"--uid={uid}", f"--gid={gid}"] if uid or gid else []
    inner = ["/bin/sh", "-c", _IN_DIRECTORY, "sh", directory, *argv] if directory else list(argv)
    return [*_of("lxc-attach", run), "--clear-env", *words, *who, "--", *inner]
