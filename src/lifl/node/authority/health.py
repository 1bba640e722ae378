"""What a node says of its own identity: in the report of its start, and as warnings ahead in `lifl top`."""

from __future__ import annotations

import time

from lifl.core.limits import CERTIFICATE_LIFETIME_S
from lifl.node.authority.credentials import Credentials
from lifl.node.authority.renewal import Renewal

LATE = 0.25
"""From this part of its time on a certificate that was not renewed is told of."""
AUTHORITY_ENDS_S = 2 * CERTIFICATE_LIFETIME_S
"""So long before its end an authority is to be rotated."""


class IdentityHealth:
    """Looks at credentials and at their renewal."""

    def __init__(self, credentials: Credentials, renewal: Renewal) -> None:
        self._credentials = credentials
        self._renewal = renewal

    def text(self) -> str:
        """Return who the node is, and until when; empty where it has no certificate."""
        credentials = self._credentials
        if credentials.contexts is None:
            return ""
        own = credentials.own
        authority = "; the cluster's authority is here" if credentials.authority is not None else ""
        return f"{own.identity} of cluster {own.cluster}, until {_day(own.expires_unix_s)}{authority}"

    def warnings(self) -> list[str]:
        """Return what somebody should see to."""
        credentials = self._credentials
        if credentials.contexts is None:
            return []
        own, now = credentials.own, time.time()
        found = [*filter(None, (self._renewal.trouble, credentials.revocations.trouble))]
        if own.expires_unix_s <= now:
            ended = _day(own.expires_unix_s)
            found.append(f"the node's certificate has expired on {ended}: nobody believes it any more")
        elif own.expires_unix_s - now < LATE * (own.expires_unix_s - own.begins_unix_s):
            why = "and was not renewed" if credentials.renews else "and is of another PKI: put a new one in its place"
            found.append(f"the node's certificate ends on {_day(own.expires_unix_s)}, {why}")
        authority = credentials.authority
        if authority is not None and authority.certificates.not_after_unix_s - now < AUTHORITY_ENDS_S:
            ends = _day(authority.certificates.not_after_unix_s)
            found.append(f"the cluster's authority ends on {ends}: `lifl cert rotate` puts a new one beside it")
        return found


def _day(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(unix_s))
