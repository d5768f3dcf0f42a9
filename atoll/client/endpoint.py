"""Where a daemon answers."""

from pathlib import Path

import msgspec

from atoll.base.errors import Invalid


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Either `socket` (this host; the kernel says who we are) or `url` (https) with a `token`.

    `fingerprint`: sha256 of the daemon's certificate in hexadecimal, with or without colons; it is then the only
    certificate believed. `ca`: a file of certificates to believe instead. Neither: the system's authorities.
    """

    socket: Path | None = None
    url: str = ""
    token: str = ""
    fingerprint: str = ""
    ca: Path | None = None

    def __post_init__(self) -> None:
        if (self.socket is None) == (not self.url):
            raise Invalid("an endpoint is either a socket or an https:// address")
        if self.url and not self.url.startswith("https://"):
            raise Invalid(f"{self.url!r} is not an https:// address", hint="tokens are never sent in the clear")

    @property
    def base(self) -> str:
        return self.url.rstrip("/") if self.url else "http://atoll"

    @property
    def where(self) -> str:
        return str(self.socket) if self.socket else self.url
