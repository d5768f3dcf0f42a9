"""What is given for cloud-init on the command line, and waiting for it."""

import asyncio
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from atoll.base.errors import Absent, AtollError, Broken, Invalid, Unreachable

if TYPE_CHECKING:
    from atoll.client import Client, CloudInit

POLL = 0.5
HEAD = "#cloud-config"
LARGEST = 48 << 10


def given(options: dict[str, Any]) -> "CloudInit | None":
    """None where nothing is. Raises Absent (no such file), Invalid."""
    from atoll.client import CloudInit

    user_data = _read(options, "user_data")
    if options.get("cloud_init"):
        if user_data:
            raise Invalid("--cloud-init and --user-data are the same to cloud-init", hint="give one of them")
        user_data = _read(options, "cloud_init")
        if not user_data.startswith(HEAD):
            user_data = f"{HEAD}\n{user_data}" if not user_data.startswith("#!") else user_data
    found = CloudInit(
        user_data=user_data,
        vendor_data=_read(options, "vendor_data"),
        network_config=_read(options, "network_config"),
    )
    return found or None


def _read(options: dict[str, Any], option: str) -> str:
    path, field = options.get(option), "--" + option.replace("_", "-")
    if not path:
        return ""
    text = _text(Path(path), field)
    if not text.strip():
        raise Invalid(f"{path} is empty", field=field)
    return text


def _text(path: Path, field: str) -> str:
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise Invalid(
                f"{path} is larger than 48 KiB", hint="let cloud-init fetch it: #include URL", field=field
            )
        return data.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is not text (UTF-8)", field=field) from error
    except FileNotFoundError as error:
        raise Absent(f"there is no file {path}", field=field) from error
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", field=field) from error


def public_key(given: str) -> str:
    """Of a file or as it is. Raises Invalid, Absent."""
    text = given if " " in given.strip() else _text(Path(given), "--ssh-key")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if lines and "PRIVATE KEY" in lines[0]:
        raise Invalid("this is a private key", hint=f"give the public one: {given}.pub", field="--ssh-key")
    if len(lines) != 1 or not lines[0].startswith(("ssh-", "ecdsa-", "sk-")):
        raise Invalid(f"{given[:60]} is no public key", hint="a .pub file, or its one line", field="--ssh-key")
    return lines[0]


async def until_done(client: "Client", name: str, patience: float) -> None:
    """Until cloud-init has ended. Raises Broken with what failed, Unreachable where it takes longer."""
    end = monotonic() + patience
    while monotonic() < end:
        try:
            state = await client.instances.cloud_init(name)
        except (Unreachable, Broken):  # user-data may restart the agent, or the guest
            await asyncio.sleep(POLL)
            continue
        if state.status == "failed":
            raise Broken(
                f"{name} runs, but its cloud-init failed: {'; '.join(state.errors)[:500]}",
                hint=f"atoll exec {name} -- tail -50 /var/log/cloud-init-output.log",
            )
        if state.status in ("absent", "disabled", "done"):
            return
        await asyncio.sleep(POLL)
    raise Unreachable(
        f"{name} runs, but its cloud-init is not done after {patience:g} s",
        hint=f"atoll show {name} tells when it is",
    )


async def told(client: "Client", name: str, timeout: float) -> str:
    """How far it is, in words; "" where that cannot be told."""
    try:
        state = await asyncio.wait_for(client.instances.cloud_init(name), timeout)
    except (AtollError, TimeoutError):
        return ""
    more = state.stage if state.status == "running" else "; ".join(state.errors)
    return "" if state.status == "absent" else f"{state.status}{f' ({more})' if more else ''}"
