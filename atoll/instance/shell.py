"""Logging in to a guest over the network, from its host, with the key of its project.

The key never leaves the daemon: ssh runs here, on a terminal of its own, and only what is typed and shown travels.
"""

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from atoll.base.errors import Refused, Unreachable
from atoll.host import files
from atoll.host.pty import Pty
from atoll.instance.book import InstanceView
from atoll.instance.boots import Boots
from atoll.instance.model import State

PORT = 22
CONNECT = 4.0
"""Seconds for the guest's sshd to answer."""
_BANNER = b"SSH-"


@dataclass(frozen=True, slots=True)
class Shells:
    boots: Boots

    async def open(self, view: InstanceView, *, user: str, columns: int, rows: int) -> Pty:
        """Raises Refused (it does not run, knows no key of ours, has no address), Unreachable (no sshd answers)."""
        if view.status.state is not State.RUNNING:
            raise Refused(f"{view.name} is {view.status.state}", hint=f"atoll start {view.name}")
        if not view.instance.hardware.seed:
            raise Refused(f"{view.name} was not told the project's key: its image has no cloud-init")
        address = await self._answering(view)
        key = await self._key(view.project)
        argv = [
            *("ssh", "-tt", "-F", "none", "-i", str(key), "-l", user, "-p", str(PORT)),
            *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"),
            *("-o", f"UserKnownHostsFile={self.boots.home(view.id) / 'known_hosts'}"),
            *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=accept-new"),
            *(
                "-o",
                f"HostKeyAlias={view.id}",
                "-o",
                "ServerAliveInterval=15",
                "-o",
                f"ConnectTimeout={CONNECT:.0f}",
            ),
            *("--", address),
        ]
        return await Pty.open(argv, columns=columns, rows=rows)

    async def _answering(self, view: InstanceView) -> str:
        """The first of its planned addresses at which an sshd answers."""
        planned = [address for nic in view.instance.hardware.nics for address in nic.addresses]
        if not planned:
            raise Refused(f"{view.name} has no address that its host could reach")
        for address in planned:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT):
                    reader, writer = await asyncio.open_connection(address, PORT)
                    try:
                        if (await reader.read(len(_BANNER))).startswith(_BANNER[:1]):
                            return address
                    finally:
                        writer.close()
        raise Unreachable(f"no sshd answers at {' or '.join(planned)}", hint=f"atoll console {view.name}")

    async def _key(self, project: str) -> Path:
        """The private key as the file that ssh wants, readable by us alone."""
        pair = await self.boots.seeds.keys(project)
        path = self.boots.root / f".key-{project}"
        if not path.exists() or await files.in_thread(path.read_text) != pair.private:
            with files.translated(f"write the key of project {project}"):
                self.boots.root.mkdir(mode=0o700, exist_ok=True)
                await files.in_thread(files.write_whole, path, pair.private.encode())
                os.chmod(path, 0o600)
        return path
