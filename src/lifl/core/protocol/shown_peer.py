"""Who somebody is that has come by the HTTP door, as the gateway is told it."""

from __future__ import annotations

import msgspec

from lifl.core.fields import Name, Real, Word
from lifl.core.identity import ClusterName, Role
from lifl.core.trust.enrolment import JobNames


class ShownPeer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who somebody is, by the certificate or the `bearer` token (its number) that was checked at the HTTP door."""

    cluster: ClusterName
    role: Role
    name: Name
    serial: Word
    begins_unix_s: Real
    expires_unix_s: Real
    issued_unix_s: Real
    jobs: JobNames = ()
    bearer: Word = ""
