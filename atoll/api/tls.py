"""The daemon's own certificate, made once. Clients pin its fingerprint."""

import hashlib
import ipaddress
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from atoll.base.errors import Broken

YEARS = 10


def ensure(directory: Path) -> tuple[Path, Path]:
    """Paths of certificate and key (0600) in `directory`, made at first need. Raises Broken."""
    certificate, key = directory / "tls.crt", directory / "tls.key"
    if not (certificate.exists() and key.exists()):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        made, secret = _make(socket.gethostname())
        _write(key, secret, 0o600)
        _write(certificate, made, 0o644)
    fingerprint(certificate)
    return certificate, key


def fingerprint(certificate: Path) -> str:
    """sha256 of the certificate: 64 hexadecimal digits. Raises Broken.

    By the standard library: cryptography, which only making one needs, is 10 MiB in memory.
    """
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()
    except (OSError, ValueError) as error:
        hint = "remove tls.crt and tls.key beside it: new ones are made at the next start"
        raise Broken(f"cannot read the certificate {certificate}: {error}", hint=hint) from error


def _make(host: str) -> tuple[bytes, bytes]:
    """A self-signed P-256 certificate for this host's names, and its key, both PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Atoll on {host}"[:64])])
    names = [x509.DNSName("localhost")]
    if host and host.isascii() and host != "localhost":
        names.append(x509.DNSName(host))
    addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")]
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return built.public_bytes(pem), secret


def _write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, with its mode from the first byte on."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
