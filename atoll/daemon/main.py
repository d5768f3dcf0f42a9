"""The daemon: control plane of one host. Guests never wait for it, and outlive it."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import msgspec
import uvloop

from atoll import __version__
from atoll.api import tls
from atoll.api.app import build
from atoll.api.server import serve
from atoll.base.errors import EXIT, AtollError, Denied, Invalid
from atoll.base.ids import InstanceId
from atoll.daemon import config as configuration
from atoll.daemon import identity, log
from atoll.daemon.compose import Atoll, boot_done, compose
from atoll.daemon.config import Config
from atoll.daemon.notify import notify
from atoll.daemon.paths import Paths
from atoll.host import files
from atoll.instance.engine import Observed
from atoll.operation.runner import Hook, nothing

logger = logging.getLogger("atoll.daemon")

TRIM = 60.0
"""Seconds between two looks at guests' logs, all guests at once: each is cut when it is over its bound."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="atoll daemon",
        description="Run the daemon in the foreground. Settings are in STATE/atoll.toml (docs/daemon.md).",
    )
    parser.add_argument("--state", help="state directory (ATOLL_STATE; /var/lib/atoll for root)")
    parser.add_argument("--cache", help="where downloads are kept (ATOLL_CACHE; /var/cache/atoll for root)")
    parser.add_argument("--listen", metavar="HOST:PORT", help="HTTPS address; 'auto' (the default) or 'none'")
    parser.add_argument("--group", help="whose members may use the unix socket")
    parser.add_argument("--version", action="version", version=f"atoll {__version__}")
    return parser.parse_args(argv)


def settings(paths: Paths, options: argparse.Namespace) -> Config:
    config = configuration.load(paths.config)
    listen = config.listen
    if options.listen is not None:
        listen = msgspec.structs.replace(listen, tcp="" if options.listen == "none" else options.listen)
    if options.group is not None:
        listen = msgspec.structs.replace(listen, group=options.group)
    return msgspec.structs.replace(config, listen=listen)


def address(listen: str) -> tuple[str, int | None] | None:
    """Where to serve HTTPS: host and port, the port None for the first free one. Raises Invalid."""
    if not listen:
        return None
    if listen == "auto":
        return "127.0.0.1", None
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise Invalid(f"{listen!r} is not HOST:PORT", hint="as 127.0.0.1:8443, or none", field="listen.tcp")
    return host.strip("[]"), int(port)


async def run(paths: Paths, config: Config, hook: Hook = nothing) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with compose(paths, config, hook) as atoll, contextlib.AsyncExitStack() as held:
        found = await atoll.adopt()
        atoll.keeper.start()
        atoll.services.operations.hold()
        serving = await serve(
            build(atoll.services),
            unix=paths.socket,
            group=config.listen.group or None,
            tcp=address(config.listen.tcp),
            tls=tls.ensure(paths.tls),
        )
        held.push_async_callback(serving.close)
        notify("READY=1")
        logger.info("atoll %s serves %s and %s", __version__, paths.socket, serving.address)
        work = [asyncio.create_task(_recover(atoll, found)), asyncio.create_task(_trim(atoll))]
        try:
            await stop.wait()
            notify("STOPPING=1")
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        await serving.close()
        await atoll.end()
    logger.info("ended; guests go on")


async def _recover(atoll: Atoll, found: Mapping[InstanceId, Observed]) -> None:
    """What a former daemon left in the middle, then records against what was found; then new requests' turn."""
    operations, starting = atoll.services.operations, None
    try:
        for operation in await operations.recover():
            logger.info("recovered %s of %s: %s", operation.verb, operation.subject.name, operation.status)
        starting = await atoll.keeper.reconcile(found, rebooted=atoll.rebooted)
    except Exception:
        logger.exception("recovery failed")
    operations.go()  # not where the daemon is being ended: who waits is told so
    if starting is not None:
        await starting
        await boot_done(atoll.local)


async def _trim(atoll: Atoll) -> None:
    while True:
        await asyncio.sleep(TRIM)
        await asyncio.to_thread(atoll.trim_logs)


def main(argv: Sequence[str] | None = None, hook: Hook = nothing) -> None:
    options = arguments(argv)
    paths = Paths.of(options.state, options.cache)
    try:
        os.umask(0o022)  # dnsmasq, unprivileged, reads what networks write; the state directory itself is private
        paths.make()
        held = identity.lock(paths.state)
        config = settings(paths, options)
        if config.listen.group:
            paths.admit(config.listen.group)
        log.set_up(paths.log, config.log)
        uvloop.run(run(paths, config, hook))
        os.close(held)
    except AtollError as error:
        _fail(error)
    except PermissionError as error:
        _fail(Denied(f"{error.filename} may not be used by you", hint="be root, or give another --state"))
    except OSError as error:
        _fail(files.translate(error, f"use {error.filename or paths.state}"))


def _fail(error: AtollError) -> NoReturn:
    """`atoll up` reads these lines and the code."""
    sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    sys.exit(EXIT[error.code])
