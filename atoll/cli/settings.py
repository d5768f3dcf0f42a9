"""What every command is told by global options and the environment."""

import os
from dataclasses import dataclass, field


def _env(name: str, otherwise: str = "") -> str:
    return os.environ.get(name) or otherwise


def default_state() -> str:
    """ATOLL_STATE; /var/lib/atoll for root; else $XDG_DATA_HOME/atoll or ~/.local/share/atoll."""
    if given := _env("ATOLL_STATE"):
        return given
    if os.geteuid() == 0:
        return "/var/lib/atoll"
    home = _env("XDG_DATA_HOME", os.path.join(os.path.expanduser("~"), ".local", "share"))
    return os.path.join(home, "atoll")


@dataclass
class Settings:
    """`server` "": the unix socket in `state`. `fingerprint`, `ca`: see client.Endpoint.
    `chosen_project` "": nobody named one."""

    state: str = field(default_factory=default_state)
    server: str = field(default_factory=lambda: _env("ATOLL_SERVER"))
    token: str = field(default_factory=lambda: _env("ATOLL_TOKEN"))
    fingerprint: str = field(default_factory=lambda: _env("ATOLL_FINGERPRINT"))
    ca: str = field(default_factory=lambda: _env("ATOLL_CA"))
    chosen_project: str = field(default_factory=lambda: _env("ATOLL_PROJECT"))
    output: str = field(default_factory=lambda: _env("ATOLL_OUTPUT", "table"))
    quiet: bool = False

    @property
    def project(self) -> str:
        return self.chosen_project or "default"

    @property
    def socket(self) -> str:
        return os.path.join(os.path.abspath(self.state), "atoll.sock")

    @property
    def as_json(self) -> bool:
        return self.output == "json"
