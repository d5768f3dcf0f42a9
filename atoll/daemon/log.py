"""The daemon's log: one JSON object a line, bounded in size."""

import logging
import logging.handlers
import traceback
from pathlib import Path

import msgspec

from atoll.base import clock
from atoll.base.units import parse_size
from atoll.daemon.config import Log

QUIET = ("uvicorn", "asyncio", "qemu.qmp", "pyroute2", "websockets", "litestar")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": clock.now(),
            "level": record.levelname.lower(),
            "from": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = "".join(traceback.format_exception(*record.exc_info))[-8000:]
        return msgspec.json.encode(line).decode()


def set_up(path: Path, settings: Log) -> None:
    """Log to `path`; two files of `settings.size` at most."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=parse_size(settings.size), backupCount=1)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
