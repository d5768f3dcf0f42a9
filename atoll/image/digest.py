"""An image's digest: the sha256 of its manifest's canonical JSON.

Canonical: keys sorted, no spaces, and fields at their default left out, so that a field which a later Atoll adds
to the manifest changes no digest.
"""

import hashlib
import re

import msgspec

from atoll.base.errors import Broken, Invalid
from atoll.base.ids import Digest
from atoll.image.model import Manifest

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


def canonical(manifest: Manifest) -> bytes:
    return msgspec.json.encode(_bare(manifest), order="sorted")


def digest_of(manifest: Manifest) -> Digest:
    return digest_of_bytes(canonical(manifest))


def digest_of_bytes(content: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")


def check_digest(text: str) -> Digest:
    if not _DIGEST.match(text):
        raise Invalid(f"{text[:80]!r} is not a digest", hint="sha256: and 64 hexadecimal digits in lower case")
    return Digest(text)


def read_manifest(digest: Digest, content: bytes) -> Manifest:
    """Raises Broken where the content is not what its digest names."""
    manifest = msgspec.json.decode(content, type=Manifest)
    if digest_of(manifest) != digest:
        raise Broken(f"the manifest of image {digest} is damaged", hint="build or fetch the image again")
    return manifest


def _bare(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        fields = {field.name: field for field in msgspec.structs.fields(value)}
        return {
            name: _bare(getattr(value, name))
            for name, field in fields.items()
            if getattr(value, name) != field.default
        }
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items()}
    return value
