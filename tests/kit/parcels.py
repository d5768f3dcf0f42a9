"""Files of whole instances, made by hand: right ones, and every wrong one that somebody may bring."""

import hashlib
import io
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

SIZE = 1 << 20


def disk(folder: Path, size: int = SIZE) -> bytes:
    path = folder / "made.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)
    return path.read_bytes()


def content(raw: bytes) -> dict[str, Any]:
    return {"length": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def manifest(*disks: bytes, **changes: Any) -> dict[str, Any]:
    """Of a guest that boots by BIOS, with these disks: its own, then volumes."""
    parts = [{"content": content(raw), "size": SIZE, "volume": f"v{n}" if n else ""} for n, raw in enumerate(disks)]
    told = {
        "format": "atoll-instance", "version": 1, "id": "11111111-1111-4111-8111-111111111111", "name": "web",
        "spec": {"image": ""}, "arch": "x86_64", "machine": "pc-q35-7.2", "firmware": "bios", "disks": parts,
    }  # fmt: skip
    return told | changes


def tarred(*members: tuple[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def whole(told: Any, *disks: bytes) -> bytes:
    raw = told if isinstance(told, bytes) else msgspec.json.encode(told)
    return tarred(("atoll.json", raw), *((f"disk-{n}.qcow2", each) for n, each in enumerate(disks)))


async def chunks(raw: bytes, step: int = 5000) -> AsyncIterator[bytes]:
    for at in range(0, len(raw), step):
        yield raw[at : at + step]
