"""Certificates for tests, made by `cryptography`: a CA, and identities of it that are right or wrong in one way."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lifl.core.identity import Identity, Role, identity_uri
from lifl.tls.folder import IdentityFiles, load, save

CLUSTER = "hospitals"
DAY = datetime.timedelta(days=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Authority:
    """A CA of the test's own."""

    def __init__(self, cluster: str = CLUSTER) -> None:
        self.cluster = cluster
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA of {cluster}")])
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - 400 * DAY)
            .not_valid_after(now() + 400 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """The CA's certificate."""
        return self._certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        role: Role,
        name: str,
        hosts: Sequence[str] = (),
        *,
        days: float = 30,
        since_days: float = 1,
        uris: Sequence[str] | None = None,
    ) -> tuple[bytes, bytes]:
        """Certificate and key (PEM) of an identity; `uris` stand in place of its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(uri)
            for uri in ([identity_uri(self.cluster, Identity(role, name))] if uris is None else uris)
        ]
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role == "node":
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - since_days * DAY)
            .not_valid_after(now() + days * DAY)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        made = builder.sign(self._key, hashes.SHA256())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return made.public_bytes(Encoding.PEM), pem

    def enroll(self, folder: Path, role: Role, name: str, hosts: Sequence[str] = (), **how: float) -> IdentityFiles:
        """An identity folder, written."""
        certificate, key = self.issue(role, name, hosts, **how)  # type: ignore[arg-type]
        save(folder, ca=self.pem, certificate=certificate, key=key)
        files = load(folder)
        assert files is not None
        return files
