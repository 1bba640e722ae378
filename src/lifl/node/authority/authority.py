"""Lets people and machines in: tokens, certificates for who has one, and for who comes with an earlier certificate.

It decides by `core/trust/enrolment.py`, signs by `certificate_authority.py`, and hands nothing out before it is written
down (`credential_store.py`).  What is refused to a stranger is noted with its reason, and tells the stranger none.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lifl.core.errors import Refused
from lifl.core.identity import Identity, Role
from lifl.core.limits import KEY_AGE_S_MAX, UNASKED_PER_DAY_MAX
from lifl.core.trust.enrolment import TOO_MANY_GUESSES, Asked, Guesses, TokenRow, WrongToken, known, named
from lifl.core.trust.tokens import NUMBER_BYTES, SECRET_BYTES, Token, digest_of
from lifl.node.authority.authority_file import write_authority
from lifl.node.authority.certificate_authority import CertificateAuthority, request_key
from lifl.node.authority.credential_store import CertificateRow, CredentialStore
from lifl.node.authority.revocations import Revocations

log = logging.getLogger("lifl.authority")

DAY_S = 24 * 3600.0


class Handed(NamedTuple):
    """What who joins, or renews, is handed: its certificate with those up to the root, and whom to trust (PEM)."""

    chain: bytes
    trusted: bytes
    serial: str


class Holder(NamedTuple):
    """Who comes with an earlier certificate: what that one says."""

    identity: Identity
    jobs: tuple[str, ...]
    serial: str
    issued_unix_s: float


class Authority:
    """The authority of a cluster; `path` is its file, or None when it was given.  `clock` is the time of day.

    `note` is the audit log's.
    """

    def __init__(
        self,
        authority: CertificateAuthority,
        path: Path | None,
        store: CredentialStore,
        revocations: Revocations,
        note: Callable[..., None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.certificates = authority
        self._path = path
        self._store = store
        self._revocations = revocations
        self._note = note
        self._clock = clock
        self._guesses = Guesses()

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        return self.certificates.cluster

    def trusted(self) -> bytes:
        """Return the roots (PEM) that members trust now."""
        return self.certificates.trusted(self._clock())

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def create_token(self, role: Role, pattern: str, jobs: tuple[str, ...], uses: int, ttl_s: float) -> Token:
        """Make a token; its secret is in what is returned, and nowhere else."""
        if jobs and role != "client":
            raise Refused("bad-token", "job", f"only a client's token is for a job, not a {role}'s")
        number, secret = secrets.token_hex(NUMBER_BYTES), secrets.token_urlsafe(SECRET_BYTES)
        now = self._clock()
        row = TokenRow(number, digest_of(secret), role, pattern, jobs, uses, 0, now, now + ttl_s)
        self._store.add_token(row, now)
        log.info("token.created token=%s role=%s name=%s uses=%d ttl_s=%g", number, role, pattern, uses, ttl_s)
        return Token(self.certificates.digest, number, secret)

    # ---- certificates ------------------------------------------------------------------------------------------------

    def enrol(
        self, number: str, secret: str, asked: Asked, request: bytes, hosts: Sequence[str], source: str
    ) -> Handed:
        """Certify the key of a signing request for who has a token; `source` is the address that it comes from.

        Raise `Refused`.
        """
        about = {"token": number}
        try:
            handed = self._enrolled(self._known(number, secret, source), asked, request, hosts)
        except Refused as refused:
            why = refused.why if isinstance(refused, WrongToken) else refused.text
            which = {} if refused.code == TOO_MANY_GUESSES else about  # who guesses without end gets one line
            self._note("token.refused", source, why, code=refused.code, **which)
            raise
        row = self._store.certificate(handed.serial)
        if row is not None:
            self._note("token.used", source, serial=row.serial, role=row.role, name=row.name, **about)
        return handed

    def _known(self, number: str, secret: str, source: str) -> TokenRow:
        """Return a token whose secret somebody knows.  Raise `Refused`."""
        try:
            return known(self._store.token(number), secret)
        except WrongToken:
            self._guesses.wrong(source, self._clock())
            raise

    def _enrolled(self, row: TokenRow, asked: Asked, request: bytes, hosts: Sequence[str]) -> Handed:
        now = self._clock()
        key = request_key(request)
        again = any(each.token == row.number for each in self._store.certificates_with(key))
        name = named(row, asked, now, again)
        identity = Identity(row.role, name)  # type: ignore[arg-type]
        self._check_not_revoked(row, identity, now)
        if again:
            self._check_pace(identity, now)
        if "*" in row.pattern:
            self._check_free(identity, key, now)
        return self._issue(identity, row.jobs, request, hosts, row.number, now, use=not again)

    def _check_pace(self, identity: Identity, now: float) -> None:
        """Raise `Refused` when somebody gets certificates, which cost no use of a token, faster than anybody needs."""
        rows = self._store.certificates_of(identity.role, identity.name, now)
        if sum(now - row.issued_unix_s < DAY_S for row in rows) >= UNASKED_PER_DAY_MAX:
            text = f"{identity} has got {UNASKED_PER_DAY_MAX} certificates or more within a day: use the last one"
            raise Refused("too-many-certificates", "request", f"{text}, or enroll with a new token")

    def _check_not_revoked(self, row: TokenRow, identity: Identity, now: float) -> None:
        """Raise `Refused` when what a token gave to somebody was revoked: its other uses let that one in no more."""
        for each in self._store.certificates_of(identity.role, identity.name, now):
            if each.token == row.number and self._revocations.has(each):
                text = f"a certificate that this token gave to {identity} was revoked: ask for a new token"
                raise Refused("revoked", "token", text)

    def _check_free(self, identity: Identity, key: bytes, now: float) -> None:
        """Raise `Refused` when a name that the token leaves open is somebody's."""
        for each in self._store.certificates_of(identity.role, identity.name, now):
            if each.key != key and not self._revocations.has(each):
                text = (
                    f"there is a {identity.role} {identity.name!r} already: take another name, or a token for this one"
                )
                raise Refused("name-taken", "name", f"{text} alone (--name {identity.name})")

    def renew(self, holder: Holder, request: bytes, hosts: Sequence[str]) -> Handed:
        """Certify a key for who comes with a certificate that is valid; role, name and jobs are those that it has.

        Raise `Refused`.
        """
        if self._revocations.list.names(holder.identity, holder.serial, holder.issued_unix_s):
            raise Refused("revoked", "certificate", f"certificate {holder.serial} is revoked")
        now = self._clock()
        self._check_pace(holder.identity, now)
        before = self._store.certificate(holder.serial)
        token = before.token if before is not None else ""
        handed = self._issue(holder.identity, holder.jobs, request, hosts, token, now, use=False)
        self._note("cert.renewed", str(holder.identity), serial=handed.serial, before=holder.serial)
        return handed

    def issue_own(self, name: str, request: bytes, hosts: Sequence[str]) -> Handed:
        """Certify the key of the authority's own node."""
        return self._issue(Identity("node", name), (), request, hosts, "", self._clock(), use=False, own=True)

    def _issue(
        self,
        identity: Identity,
        jobs: tuple[str, ...],
        request: bytes,
        hosts: Sequence[str],
        token: str,
        now: float,
        use: bool,
        own: bool = False,
    ) -> Handed:
        key_since = self._key_since(request_key(request), identity, now)
        reached = hosts if identity.role == "node" else ()
        issued = self._revocations.issued(identity, now)
        found = self.certificates.issue(request, identity, jobs, reached, now, issued, own)
        times = (issued, found.not_after_unix_s)
        row = CertificateRow(0, found.serial, *_who(identity), jobs, found.key, key_since, token, *times)
        self._store.add_certificate(row, token if use else "", now)
        log.info("certificate.issued serial=%s role=%s name=%s token=%s", found.serial, *_who(identity), token or "-")
        return Handed(found.chain, self.trusted(), found.serial)

    def _key_since(self, key: bytes, identity: Identity, now: float) -> float:
        """Return since when a key is certified.  Raise `Refused` when it is too old, another's, or was revoked."""
        rows = self._store.certificates_with(key)
        since = min((row.key_since_unix_s for row in rows), default=now)
        if any((row.role, row.name) != _who(identity) for row in rows):
            raise Refused("key-taken", "request", "this key is another's: make a new one")
        if any(map(self._revocations.has, rows)):
            raise Refused("key-revoked", "request", "a certificate of this key was revoked: make a new one")
        if now - since > KEY_AGE_S_MAX:
            days = KEY_AGE_S_MAX / 86_400
            raise Refused("key-too-old", "request", f"this key is older than {days:g} days: make a new one")
        return since

    # ---- the authority itself ----------------------------------------------------------------------------------------

    def rotate(self) -> str:
        """Put a new authority in the place of this one, which stays trusted; return the new one's digest."""
        successor = self.certificates.rotated(self._clock())
        assert self._path is not None  # else it was given, and has refused
        write_authority(self._path, successor)
        self.certificates = successor
        log.warning("authority.rotated digest=%s", successor.digest)
        return successor.digest


def _who(identity: Identity) -> tuple[str, str]:
    return identity.role, identity.name
