"""Where a daemon keeps what: everything below its state directory, downloads in a cache that may be shared."""

import grp
import os
from dataclasses import dataclass
from pathlib import Path

from atoll.base.errors import Invalid


def default_state() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/atoll")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "atoll"


def default_cache() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache/atoll")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atoll"


@dataclass(frozen=True, slots=True)
class Paths:
    state: Path
    cache: Path

    @classmethod
    def of(cls, state: str | None, cache: str | None = None) -> "Paths":
        at = state or os.environ.get("ATOLL_STATE") or default_state()
        return cls(Path(at).absolute(), Path(cache or os.environ.get("ATOLL_CACHE") or default_cache()).absolute())

    def make(self) -> None:
        """The state directory is its owner's alone: records, tokens' hashes and disks are in it."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state.chmod(0o700)
        for sub in (self.run, self.images, self.pools):
            sub.mkdir(mode=0o700, exist_ok=True)
        self.cache.mkdir(mode=0o755, parents=True, exist_ok=True)

    def admit(self, group: str) -> None:
        """Let a group's members pass to the socket; what lies beside it stays unreadable. Raises Invalid."""
        try:
            os.chown(self.state, -1, grp.getgrnam(group).gr_gid)
        except KeyError as error:
            raise Invalid(f"there is no group {group}", hint=f"groupadd {group}", field="listen.group") from error
        self.state.chmod(0o710)

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def parcels(self) -> Path:
        return self.state / "parcels"

    @property
    def pools(self) -> Path:
        return self.state / "pools"

    @property
    def log(self) -> Path:
        return self.state / "daemon.log"

    @property
    def socket(self) -> Path:
        return self.state / "atoll.sock"

    @property
    def tls(self) -> Path:
        return self.state / "tls"

    @property
    def shared(self) -> Path:
        return self.state / "shared.db"

    @property
    def local(self) -> Path:
        return self.state / "local.db"

    @property
    def config(self) -> Path:
        return self.state / "atoll.toml"
