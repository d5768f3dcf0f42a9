"""A daemon that dies by SIGKILL at a chosen moment: `--crash instance.launch/disk/journalled`."""

import os
import signal
import sys

from atoll.daemon.main import main


def crash_at(wanted: str) -> None:
    def hook(verb: str, step: str, moment: str) -> None:
        if f"{verb}/{step}/{moment}" == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    at = sys.argv.index("--crash")
    del sys.argv[at : at + 2]
    main(sys.argv[1:], hook=hook)


if __name__ == "__main__":
    crash_at(sys.argv[sys.argv.index("--crash") + 1])
