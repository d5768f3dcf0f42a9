"""The daemon's settings: `atoll.toml` in its state directory. All have defaults; an unknown one is an error."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from atoll.base.errors import Invalid
from atoll.base.units import parse_duration, parse_size
from atoll.host.outward import parse_networks


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tcp`: HOST:PORT for HTTPS; "" for none; "auto": 127.0.0.1 and the first free port from 8443 on.

    `group`: whose members may use the unix socket beside its owner.
    """

    tcp: str = "auto"
    group: str = ""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`memory_reserve`: kept for the host itself. `memory_overcommit`: 1.0 promises no more than there is."""

    memory_overcommit: Annotated[float, Meta(ge=0.1, le=100)] = 1.0
    memory_reserve: str = "512MiB"


class Storage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`warn_at`: percent of a pool whose use raises an event. `check_every`: between two looks at pools."""

    warn_at: Annotated[tuple[Annotated[int, Meta(ge=1, le=100)], ...], Meta(max_length=10)] = (80, 90)
    check_every: str = "30s"


class Images(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`private`: networks from which images may be fetched though they are not the internet ("10.0.0.0/8").

    `max_size`: of an image that is brought. `ubuntu_mirror`, `ubuntu_keyring`: where the recipes ubuntu/* have
    their packages from (a URL), and the file with the keys that these are signed with.
    """

    private: tuple[str, ...] = ()
    max_size: str = "2TiB"
    ubuntu_mirror: Annotated[str, Meta(pattern=r"^(https?://[^\s\[\]]+)?$", max_length=500)] = ""
    ubuntu_keyring: Annotated[str, Meta(pattern=r"^(/[^\s]+)?$", max_length=500)] = ""


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`size`: of one file; two are kept."""

    level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"
    size: str = "8MiB"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen: Listen = Listen()
    limits: Limits = Limits()
    storage: Storage = Storage()
    images: Images = Images()
    log: Log = Log()


def load(path: Path) -> Config:
    """Raises Invalid with the file, and the setting where one is wrong."""
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=Config)
        parse_size(config.limits.memory_reserve, field="limits.memory_reserve")
        parse_size(config.images.max_size, field="images.max_size")
        parse_networks(config.images.private, field="images.private")
        parse_size(config.log.size, field="log.size")
        if parse_duration(config.storage.check_every, field="storage.check_every") < 0.1:
            raise Invalid("storage.check_every is too short", field="storage.check_every")
    except FileNotFoundError:
        return Config()
    except (msgspec.DecodeError, Invalid, ValueError) as error:
        raise Invalid(f"{path}: {error}", hint="docs/daemon.md lists the settings") from error
    return config
