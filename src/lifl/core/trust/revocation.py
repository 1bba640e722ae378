"""What is not believed any more, though it has not expired: the list that every node and its gateway keep."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import msgspec

from lifl.core.fields import Real
from lifl.core.identity import Identity
from lifl.core.limits import NAME_CHARS_MAX, REVOKED_MAX

_Which = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX + 16, pattern=r"\A[A-Za-z0-9._:/-]*\Z")]


class Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry: `which` is a serial (as `lifl.tls.peer.Peer` has it), or ROLE/NAME: all that was issued until then.

    It is forgotten when that has expired.
    """

    which: _Which
    revoked_unix_s: Real
    expires_unix_s: Real


Revocations = Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=REVOKED_MAX)]


class RevokedList:
    """Entries, to be asked."""

    def __init__(self, entries: Iterable[Revocation] = ()) -> None:
        self._at = {entry.which: entry.revoked_unix_s for entry in entries}

    def names(self, identity: Identity, serial: str, issued_unix_s: float) -> bool:
        """Return whether a certificate is revoked: by its serial, or because it is somebody's and was issued before."""
        return serial in self._at or issued_unix_s <= self.since(identity)

    def since(self, identity: Identity) -> float:
        """Return until when all that was issued to somebody is revoked; below all times: nothing is, as a whole."""
        return self._at.get(name_of(identity), -math.inf)


def name_of(identity: Identity) -> str:
    """Return how the list names all that is somebody's."""
    return f"{identity.role}/{identity.name}"
