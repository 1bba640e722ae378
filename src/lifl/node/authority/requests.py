"""What the command line asks about tokens and certificates."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from lifl.core.errors import Refused
from lifl.core.identity import Identity
from lifl.core.protocol import cli as om
from lifl.node.authority.credentials import Credentials

BEARER_SHOWN = ("number", "role", "created_unix_s", "expires_unix_s")
CERTIFICATES_SHOWN = 4_096
"""Certificates in one answer: each takes some hundred bytes."""


class CredentialRequests:
    """Answers them; `home` tells the control address of the node that has the authority, empty when none is known."""

    def __init__(self, credentials: Credentials, home: Callable[[], str]) -> None:
        self._credentials = credentials
        self._home = home

    def handle(self, message: Any, who: str) -> dict[str, Any] | None:
        """Return the result of one request of `who`; None when it is about something else.  Raise `LiflError`."""
        credentials = self._credentials
        match message:
            case om.CreateToken(role, pattern, jobs, uses, ttl_s):
                made = credentials.authority_here(self._home()).create_token(role, pattern, jobs, uses, ttl_s)
                about = {"token": made.number, "role": role, "name": pattern, "job": ",".join(jobs)}
                credentials.note("token.made", who, uses=uses, ttl_s=round(ttl_s), **about)
                return {"token": made.line(), "number": made.number, "expires_unix_s": time.time() + ttl_s}
            case om.CreateBearer():
                return self._create_bearer(message, who)
            case om.ListTokens():
                credentials.authority_here(self._home())
                return {"tokens": self._tokens()}
            case om.RevokeToken(number):
                return self._revoke_token(number, who)
            case om.ListCertificates(after):
                credentials.authority_here(self._home())
                return self._certificates(after)
            case om.RevokeCertificate(which):
                credentials.check_home(self._home())
                revoked = credentials.revocations.revoke(which, credentials.own_serial)
                credentials.note("cert.revoked", who, " ".join(revoked), which=which)
                return {"revoked": revoked}
            case om.RenewCertificate():
                credentials.renew_now()
                credentials.note("cert.told", who, serial=credentials.own_serial)
                return {}
            case om.RotateAuthority():
                digest = credentials.rotate(credentials.authority_here(self._home()))
                credentials.note("cert.rotated", who, authority=digest)
                return {"digest": digest}
            case _:
                return None

    def _create_bearer(self, message: om.CreateBearer, who: str) -> dict[str, Any]:
        credentials = self._credentials
        authority = credentials.authority_here(self._home()).certificates.digest
        identity = Identity(message.role, message.name)
        after = credentials.revocations.issued(identity, 0.0)
        made = credentials.bearers.create(authority, identity, message.job, message.ttl_s, after)
        about = {"token": made.number, "role": message.role, "name": message.name, "job": message.job}
        credentials.note("token.made", who, bearer=1, ttl_s=round(message.ttl_s), **about)
        return {"token": made.line(), "number": made.number, "expires_unix_s": time.time() + message.ttl_s}

    def _tokens(self) -> list[dict[str, Any]]:
        now = time.time()
        lines = []
        for each in self._credentials.bearers.entries:
            line = {name: value for name, value in msgspec.structs.asdict(each).items() if name in BEARER_SHOWN}
            state = {"pattern": each.name, "jobs": [each.job], "bearer": True, "state": each.state(now)}
            lines.append({**line, "uses": 0, "used": 0, **state})
        for row in self._credentials.store.tokens():
            line = {name: value for name, value in msgspec.structs.asdict(row).items() if name != "digest"}
            lines.append({**line, "jobs": list(row.jobs), "bearer": False, "state": row.state(now)})
        return sorted(lines, key=lambda line: line["created_unix_s"])

    def _revoke_token(self, number: str, who: str) -> dict[str, Any]:
        credentials = self._credentials
        credentials.authority_here(self._home())
        if credentials.bearers.revoke(number):
            credentials.note("token.revoked", who, token=number)
            return {"number": number}
        if credentials.store.token(number) is None:
            text = f"there is no token {number!r}; `lifl token list` shows them"
            raise Refused("unknown-token", "number", text)
        credentials.store.revoke_token(number, time.time())
        credentials.note("token.revoked", who, token=number)
        return {"number": number}

    def _certificates(self, after: int) -> dict[str, Any]:
        store, revoked = self._credentials.store, self._credentials.revocations
        rows = store.certificates(after, CERTIFICATES_SHOWN)
        now = time.time()
        lines = []
        for row in rows:
            line = {name: value for name, value in msgspec.structs.asdict(row).items() if name not in ("key", "number")}
            state = "expired" if row.expires_unix_s <= now else "revoked" if revoked.has(row) else "valid"
            lines.append({**line, "jobs": list(row.jobs), "state": state})
        return {"certificates": lines, "more": rows[-1].number if len(rows) == CERTIFICATES_SHOWN else None}
