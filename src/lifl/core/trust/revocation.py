"""What is not believed any more, though it has not expired: the list that every node and its gateway keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from lifl.core.fields import Real
from lifl.core.identity import Identity
from lifl.core.limits import NAME_CHARS_MAX, REVOKED_MAX

_Which = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX + 16, pattern=r"\A[A-Za-z0-9._:/-]*\Z")]


class Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry: `which` is a serial (as `lifl.tls.peer.Peer` has it), or ROLE/NAME: all that began before it.

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

    def has(self, serial: str) -> bool:
        """Return whether the certificate with this serial is revoked by it."""
        return serial in self._at

    def names(self, identity: Identity, serial: str, begins_unix_s: float) -> bool:
        """Return whether a certificate is revoked: by its serial, or because it is somebody's and began before."""
        at = self._at.get(f"{identity.role}/{identity.name}")
        return serial in self._at or (at is not None and begins_unix_s < at)
