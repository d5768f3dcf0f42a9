"""The command `atoll`."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from atoll.cli import errors
from atoll.cli.commands import Entry, LazyGroup, global_options
from atoll.cli.settings import Settings

SECTIONS = {
    "Instances": {
        "launch": Entry("atoll.cli.launch:launch", "Create an instance from an image and start it"),
        "list": Entry("atoll.cli.listing:list_", "List instances"),
        "show": Entry("atoll.cli.show:show", "Tell everything about an instance"),
        "set": Entry("atoll.cli.edit:set_", "Change an instance's settings"),
        "rename": Entry("atoll.cli.edit:rename", "Give an instance another name"),
        "start": Entry("atoll.cli.power:start", "Start instances"),
        "stop": Entry("atoll.cli.power:stop", "Shut instances down"),
        "restart": Entry("atoll.cli.power:restart", "Shut instances down and start them again"),
        "pause": Entry("atoll.cli.power:pause", "Freeze instances in memory"),
        "resume": Entry("atoll.cli.power:resume", "Let paused instances go on"),
        "export": Entry("atoll.cli.parcels:export", "Write a whole instance to one file"),
        "import": Entry("atoll.cli.parcels:import_", "Make an instance of such a file"),
        "delete": Entry("atoll.cli.power:delete", "Remove instances and their disks"),
    },
    "In an instance": {
        "run": Entry("atoll.cli.runner:run_", "Run a program in a container of its own"),
        "exec": Entry("atoll.cli.execute:exec_", "Run a program in an instance"),
        "shell": Entry("atoll.cli.console:shell", "Log in to an instance"),
        "console": Entry("atoll.cli.console:console", "Attach to an instance's serial console"),
        "cp": Entry("atoll.cli.files:cp", "Copy a file to or from an instance"),
        "screenshot": Entry("atoll.cli.screens:screenshot", "Save a picture of an instance's screen"),
        "insert": Entry("atoll.cli.screens:insert", "Put a CD into an instance's drive"),
        "eject": Entry("atoll.cli.screens:eject", "Take the CD out of an instance's drive"),
        "log": Entry("atoll.cli.watch:log", "Show what an instance wrote to its console"),
        "stats": Entry("atoll.cli.watch:stats", "Show what instances use"),
    },
    "What happened": {
        "history": Entry("atoll.cli.audit:history", "Audit of every move, add and change"),
        "events": Entry("atoll.cli.audit:events", "Show events as they happen"),
        "operation": Entry("atoll.cli.operation:operation", "List, wait for and cancel operations"),
    },
    "Images, networks, storage": {
        "image": Entry("atoll.cli.image_files:image", "Build, import, list and remove images"),
        "network": Entry("atoll.cli.network:network", "Networks, port forwards, security groups"),
        "mount": Entry("atoll.cli.mount:mount", "Directories of the host in containers: add, remove"),
        "nic": Entry("atoll.cli.nic:nic", "NICs of instances: add, remove, change"),
        "pool": Entry("atoll.cli.storage:pool", "Storage pools"),
        "volume": Entry("atoll.cli.storage:volume", "Volumes: disks of their own, to attach and detach"),
    },
    "The daemon and its host": {
        "up": Entry("atoll.cli.daemon:up", "Start the daemon in the background"),
        "down": Entry("atoll.cli.daemon:down", "End the daemon; guests stay"),
        "daemon": Entry("atoll.cli.daemon:daemon", "Run the daemon in the foreground"),
        "host": Entry("atoll.cli.host:host", "What this host can do"),
        "token": Entry("atoll.cli.token:token", "Tokens for access over HTTPS"),
        "version": Entry("atoll.cli.misc:version", "Show Atoll's version"),
        "completion": Entry("atoll.cli.misc:completion", "Tab completion for your shell"),
    },
}
HELP = "Virtual servers on this machine. Begin with `atoll up`, then `atoll launch tiny`."

cli = LazyGroup("atoll", sections=SECTIONS, help=HELP, params=global_options(leaf=False), no_args_is_help=True)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. The only place where an error becomes text and a number."""
    given = list(sys.argv[1:] if args is None else args)
    try:
        result: Any = cli.main(given, prog_name="atoll", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as help_:
        click.echo(help_.format_message())
        return errors.USAGE
    except errors.SomeFailed as failed:
        return failed.exit
    except click.Abort as abort:
        return errors.CTRL_C if isinstance(abort.__cause__, KeyboardInterrupt) else _report(abort, given)
    except KeyboardInterrupt:
        return errors.CTRL_C
    except (errors.ReaderLeft, BrokenPipeError):
        return _reader_left()
    except Exception as error:
        return _report(error, given)


def _report(error: BaseException, given: Sequence[str]) -> int:
    try:
        return errors.report(error, as_json=_json_wanted(given))
    except BrokenPipeError:
        return _reader_left()


def _reader_left() -> int:
    """Whoever read our output ended (`atoll list | head`): end quietly, also when Python flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return errors.PIPE_CLOSED


def _json_wanted(given: Sequence[str]) -> bool:
    """Whether `-o json` was asked for, also where the command line could not be parsed."""
    ours = list(given[: given.index("--")] if "--" in given else given)
    for at, word in enumerate(ours):
        if word in ("-ojson", "--output=json", "-o=json"):
            return True
        if word in ("-o", "--output"):
            return ours[at + 1 : at + 2] == ["json"]
    return Settings().as_json


if __name__ == "__main__":
    sys.exit(main())
