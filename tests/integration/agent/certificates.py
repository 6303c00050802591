"""Certificate authorities of a test, and what they sign."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def pem_of_key(key: ec.EllipticCurvePrivateKey, *, password: bytes | None = None) -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


class Authority:
    """Signs certificates; keeps its own and all that it has signed in a folder."""

    def __init__(self, folder: Path, *, name: str = "Test CA") -> None:
        self.folder = folder / name.replace(" ", "-")
        self.folder.mkdir(parents=True)
        self._name = named(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = self.folder / "ca.pem"
        self._certificate = self._sign(self._name, self._key, days=(-2, 3650), authority=True)
        self.file.write_bytes(self._certificate)

    def issue(
        self, name: str, *, hosts: tuple[str, ...] = ("127.0.0.1", "localhost"), days: tuple[int, int] = (-1, 30)
    ) -> Path:
        """A PEM file of a certificate and its key, valid from and until so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        file = self.folder / f"{name}.pem"
        file.write_bytes(self._sign(named(name), key, hosts=hosts, days=days) + pem_of_key(key))
        return file

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        days: tuple[int, int],
        hosts: tuple[str, ...] = (),
        authority: bool = False,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        ours = self._key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), critical=False)
            .add_extension(usage(authority=authority), critical=True)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([general(host) for host in hosts]), False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def serving(certificate: Path, *, requires: Path | None = None) -> ssl.SSLContext:
    """What a server with this certificate speaks; it may require one that the other authority has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if requires is not None:
        context.load_verify_locations(requires)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def split(both: Path, *, certificate: Path, key: Path) -> None:
    """Write the two parts of a PEM file into files of their own, in the order in which programs do so."""
    text = both.read_text()
    at = text.index("-----BEGIN PRIVATE")
    certificate.write_text(text[:at])
    key.write_text(text[at:])


def encrypted(both: Path) -> str:
    """The same file, its key with a passphrase."""
    content = both.read_bytes()
    key = serialization.load_pem_private_key(content, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return content[: content.index(b"-----BEGIN PRIVATE")].decode() + pem_of_key(key, password=b"secret").decode()
