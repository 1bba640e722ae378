"""Who comes with a bearer token: a name and a job that it is for, until when, and whether it was revoked.

A bearer token is one line as a joining one is (`tokens.py`), and stands for an identity as a certificate does, for whom
a certificate is too much: many connections may come with it, each tells its secret, over TLS to a node of the authority
that the line names.  Every node has the list, with digests in the place of secrets, so that any of them can tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from lifl.core.errors import Refused
from lifl.core.fields import Name, Real
from lifl.core.identity import Identity, Role
from lifl.core.limits import BEARERS_MAX
from lifl.core.trust.enrolment import WrongToken
from lifl.core.trust.tokens import TokenNumber, digest_of, is_secret

_NOBODY = digest_of("")
"""What the secret of a token that is not there is compared with, so that it takes as long."""


class Bearer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bearer token as nodes keep it; a revoked one stays until it has expired."""

    number: TokenNumber
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    role: Role
    name: Name
    job: Name
    created_unix_s: Real
    expires_unix_s: Real
    revoked: bool = False

    @property
    def identity(self) -> Identity:
        """As whom its bearer takes part."""
        return Identity(self.role, self.name)

    def state(self, now_unix_s: float) -> str:
        """Return ``valid``, or why it is not: ``revoked``, ``expired``."""
        if self.revoked:
            return "revoked"
        return "valid" if now_unix_s < self.expires_unix_s else "expired"


Bearers = Annotated[tuple[Bearer, ...], msgspec.Meta(max_length=BEARERS_MAX)]


class BearerList:
    """Bearer tokens, to be asked."""

    def __init__(self, entries: Iterable[Bearer] = ()) -> None:
        self._entries = {entry.number: entry for entry in entries}

    def holder(self, number: str, secret: str, now_unix_s: float) -> Bearer:
        """Return the token whose number and secret somebody tells.

        Raise `WrongToken`, which says the same of all that are not known, and `Refused`, which says what is wrong.
        """
        entry = self._entries.get(number)
        if not is_secret(secret, entry.digest if entry is not None else _NOBODY) or entry is None:
            raise WrongToken("its secret is wrong" if entry is not None else "there is no such bearer token")
        if (state := entry.state(now_unix_s)) != "valid":
            text = f"this bearer token is {state}: ask for a new one (`lifl token create --bearer`)"
            raise Refused("token-over", "token", text)
        return entry

    def is_valid(self, number: str, now_unix_s: float) -> bool:
        """Return whether a token is still good for who has come with it."""
        entry = self._entries.get(number)
        return entry is not None and entry.state(now_unix_s) == "valid"


def merged(here: Iterable[Bearer], there: Iterable[Bearer], now_unix_s: float) -> tuple[Bearer, ...]:
    """Return what two nodes know together: each may have been told what the other was not, and a revocation counts."""
    known = {entry.number: entry for entry in here}
    for entry in there:
        if entry.number not in known or entry.revoked:
            known[entry.number] = entry
    valid = [entry for entry in known.values() if now_unix_s < entry.expires_unix_s]
    return tuple(sorted(valid, key=lambda entry: entry.number)[:BEARERS_MAX])
