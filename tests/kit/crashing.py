"""A daemon that dies by SIGKILL at a chosen moment.

The file named by ATOLL_TEST_CRASH says which, as `instance.launch/disk/journalled`; it is read at every moment,
so that one running daemon can be told the next. Absent or empty: it lives.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

from atoll.daemon.main import main

VARIABLE = "ATOLL_TEST_CRASH"


def crash(verb: str, step: str, moment: str) -> None:
    wanted = ""
    with contextlib.suppress(FileNotFoundError):
        wanted = Path(os.environ[VARIABLE]).read_text()
    if wanted == f"{verb}/{step}/{moment}":
        os.unlink(os.environ[VARIABLE])
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:], hook=crash)
