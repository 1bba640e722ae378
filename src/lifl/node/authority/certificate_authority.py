"""The cluster's certificate authority: its key and its certificates, and what it issues.

They are one file (PEM, 0600) in the state folder, so that a change is one rename: the private key, then certificates,
first the one that the key signs with, then older roots that are still trusted, and the cross-certificates by which each
of these vouches for its successor.  Whoever trusts an old root alone finds the way by such a one, so that a rotation
has no moment at which anybody is not believed: old and new are trusted side by side until the last certificate of the
old one has expired.  An authority that is given (`--ca-cert`, `--ca-key`) is read where it lies, and never written.

A signing request is asked for its key alone: name, role and lifetime come from elsewhere (`core/trust/enrolment.py`).
`cryptography` is imported when it is needed: a node without an authority never loads it.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from lifl.core.errors import Refused, ResourceFault
from lifl.core.identity import AUTHORITY_URI, Identity, identity_uri, issued_uri, job_uri
from lifl.core.limits import CERTIFICATE_LIFETIME_S, CLOCK_SKEW_S, REQUEST_BYTES_MAX
from lifl.tls.unreadable import unreadable

if TYPE_CHECKING:
    from cryptography import x509

AUTHORITY_LIFETIME_S = 10 * 365 * 24 * 3600.0
ENDED_REMEDY = (
    "`lifl cert rotate` makes a new one; where lifld does not run, move authority.pem and identity away "
    "(they are in its state folder) and start it: that makes a new one, and everybody else enrolls again"
)
"""What to do about an authority that has expired: where no `lifld` runs, nothing can be rotated."""
ROOTS_MAX = 8
"""Roots of an authority that are trusted side by side."""


class Issued(NamedTuple):
    """A certificate as it was issued: `chain` is PEM, its own first; `key` is the SHA-256 digest of its public key.

    `serial` is as `lifl.tls.peer.Peer` has it.
    """

    serial: str
    chain: bytes
    key: bytes
    not_after_unix_s: float


class CertificateAuthority:
    """Issues certificates of `cluster`.

    `certificates`: the one of `key` first, then roots, the newest first, and crosses.  `given`: all its roots are
    trusted, and it is not rotated here.
    """

    def __init__(self, cluster: str, key: Any, certificates: Sequence[x509.Certificate], given: bool = False) -> None:
        self.cluster = cluster
        self.given = given
        self._key = key
        self._certificates = list(certificates)

    @property
    def digest(self) -> str:
        """The SHA-256 digest of the newest root, as 64 hex digits."""
        return hashlib.sha256(_der(self._roots()[0])).hexdigest()

    @property
    def not_before_unix_s(self) -> float:
        """When its own certificate begins."""
        return self._certificates[0].not_valid_before_utc.timestamp()

    @property
    def not_after_unix_s(self) -> float:
        """When its own certificate ends."""
        return self._certificates[0].not_valid_after_utc.timestamp()

    def pem(self) -> bytes:
        """Return the authority's file: whoever has it is the authority."""
        from cryptography.hazmat.primitives import serialization as s

        key: bytes = self._key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        return key + _pem(self._certificates)

    def trusted(self, now_unix_s: float) -> bytes:
        """Return the roots (PEM) that members of the cluster trust now."""
        return _pem(self._trusted(now_unix_s))

    def _roots(self) -> list[x509.Certificate]:
        return [each for each in self._certificates if _is_root(each)]

    def _trusted(self, now_unix_s: float) -> list[x509.Certificate]:
        """Return the roots; one that was replaced goes when all that it has issued has expired."""
        newest, *older = self._roots()
        if self.given:
            return [newest, *older]
        found = [newest]
        for root in older:
            replaced_unix_s = found[-1].not_valid_before_utc.timestamp() + CLOCK_SKEW_S
            if now_unix_s > replaced_unix_s + CERTIFICATE_LIFETIME_S + CLOCK_SKEW_S:
                break
            found.append(root)
        return found

    def issue(
        self,
        request: bytes,
        identity: Identity,
        jobs: Sequence[str],
        hosts: Sequence[str],
        now_unix_s: float,
        issued_unix_s: float,
        own: bool = False,
    ) -> Issued:
        """Certify the key of a signing request (DER) as `identity`'s, for `jobs` alone if there are any.

        `issued_unix_s` is what the certificate says of when that was, whatever the clock says.

        `hosts` are the names and addresses by which a node is reached; `own`: that node has the authority.  Raise
        `Refused` when the request is none, is not signed by its own key, or its key is not on the curve P-256.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.x509.oid import ExtendedKeyUsageOID as Use

        key, issuer = _key_of(request), self._certificates[0]
        end = min(_moment(now_unix_s + CERTIFICATE_LIFETIME_S), issuer.not_valid_after_utc)
        if end.timestamp() <= now_unix_s:
            remedy = "give one that is valid (--ca-cert, --ca-key)" if self.given else ENDED_REMEDY
            raise ResourceFault(f"the cluster's authority has expired (or this clock is wrong): {remedy}")
        uses = [Use.CLIENT_AUTH, *([Use.SERVER_AUTH] if identity.role == "node" else [])]
        uris = [identity_uri(self.cluster, identity), issued_uri(issued_unix_s), *map(job_uri, jobs)]
        uris += [AUTHORITY_URI] if own else []
        names = [*map(x509.UniformResourceIdentifier, uris), *map(_host, hosts)]
        builder = _builder(identity.name, issuer.subject, key, now_unix_s).not_valid_after(end)
        extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(authority=False), True),
            (x509.ExtendedKeyUsage(uses), False),
            (x509.SubjectAlternativeName(names), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), False),  # type: ignore[arg-type]
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        signed = builder.sign(self._key, None if _is_edwards(self._key) else hashes.SHA256())
        chain = [signed, *(each for each in self._certificates if not _is_root(each))]
        return Issued(f"{signed.serial_number:X}", _pem(chain), _key_digest(key), end.timestamp())

    def rotated(self, now_unix_s: float) -> CertificateAuthority:
        """Return its successor, with a new key, which those who trust this one believe as well."""
        if self.given:
            text = (
                "the authority was given by --ca-cert: put the new one before it in that file, and its key in the other"
            )
            raise Refused("authority-given", "ca_cert", f"{text}; then start the node again")
        kept = self._trusted(now_unix_s)
        if len(kept) >= ROOTS_MAX:
            text = f"{ROOTS_MAX} authorities are trusted side by side: wait until what the oldest issued has expired"
            raise Refused("too-many-roots", "", text)
        issuers = [root.subject for root in kept]
        crosses = [each for each in self._certificates if not _is_root(each) and each.issuer in issuers]
        made = make_authority(self.cluster, now_unix_s)
        root = made._certificates[0]
        cross = _self_made(root.subject, root.public_key(), self._certificates[0].subject, self._key, now_unix_s)
        return CertificateAuthority(self.cluster, made._key, [root, *kept, cross, *crosses])


def make_authority(cluster: str, now_unix_s: float) -> CertificateAuthority:
    """Return a new authority for `cluster`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()  # a name of its own: roots of one cluster are told apart by it
    name = _called(f"LIFL {cluster[:32]} {serial:x}"[:CN_CHARS_MAX])
    return CertificateAuthority(cluster, key, [_self_made(name, key.public_key(), name, key, now_unix_s)])


def read_authority(cluster: str, key: bytes, certificates: bytes, where: str, given: bool) -> CertificateAuthority:
    """Return the authority in PEM texts; a key behind the certificates is not minded.

    Raise `ResourceFault`, naming `where` it lies, when it cannot be one.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        private = serialization.load_pem_private_key(key, None)
        found = x509.load_pem_x509_certificates(certificates)
        certified = _key_der(found[0].public_key())
        for each in found:  # what is asked of them later is read here
            _ = (each.issuer, each.subject, each.extensions, each.not_valid_before_utc, each.not_valid_after_utc)
    except unreadable() as error:
        text = f"{where} is no authority: {str(error).splitlines()[0] if str(error) else 'it cannot be read'}"
        raise ResourceFault(f"{text}; it takes a private key (PEM, without a password) and its certificate") from error
    if _key_der(private.public_key()) != certified:
        raise ResourceFault(f"{where}: the first certificate is not that of the private key")
    if not any(map(_is_root, found)):
        raise ResourceFault(f"{where}: no root is among the certificates; put it behind those that it has signed")
    try:
        constraints = found[0].extensions.get_extension_for_class(x509.BasicConstraints).value
    except unreadable():
        constraints = None
    if constraints is None or not constraints.ca:
        raise ResourceFault(f"{where}: the first certificate is not that of an authority (CA:TRUE is missing)")
    return CertificateAuthority(cluster, private, found, given)


def request_key(request: bytes) -> bytes:
    """Return the SHA-256 digest of the key in a signing request.  Raise `Refused` as `issue` does."""
    return _key_digest(_key_of(request))


def _key_digest(key: Any) -> bytes:
    return hashlib.sha256(_key_der(key)).digest()


CN_CHARS_MAX = 64


def _called(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(name: str, issuer: x509.Name, key: Any, now_unix_s: float) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(_called(name))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now_unix_s - CLOCK_SKEW_S))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _self_made(subject: x509.Name, key: Any, issuer: x509.Name, signer: Any, now_unix_s: float) -> x509.Certificate:
    """Return the certificate of an authority's key: a root when it is signed by itself, else a cross."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
    builder = _builder(name, issuer, key, now_unix_s).not_valid_after(_moment(now_unix_s + AUTHORITY_LIFETIME_S))
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(signed_by, critical=False)
        .sign(signer, hashes.SHA256())
    )


def _usage(authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_of(request: bytes) -> Any:
    """Return the key in a signing request.  Raise `Refused`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    if len(request) > REQUEST_BYTES_MAX:
        raise Refused("bad-request", "request", f"a signing request has at most {REQUEST_BYTES_MAX} bytes")
    try:
        found = x509.load_der_x509_csr(request)
        key = found.public_key()
        right = found.is_signature_valid
    except unreadable() as error:
        raise Refused("bad-request", "request", "that is no certificate signing request (DER)") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused("bad-request", "request", "the key of a signing request must be on the curve P-256")
    if not right:
        raise Refused("bad-request", "request", "the signing request is not signed by its own key")
    return key


def _moment(unix_s: float) -> datetime:
    return datetime.fromtimestamp(int(unix_s), UTC)


def _is_root(certificate: x509.Certificate) -> bool:
    return certificate.issuer == certificate.subject


def _is_edwards(key: Any) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ed448, ed25519

    return isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _key_der(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    found: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found
