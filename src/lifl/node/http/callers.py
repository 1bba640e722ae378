"""Who asks by HTTP: by a certificate, a bearer token, or a line of the state folder; and what the gateway is told."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lifl.core.errors import Refused, ResourceFault
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.shown_peer import ShownPeer
from lifl.core.protocol.ticket_line import TicketLine, content_of
from lifl.core.trust import policy
from lifl.core.trust.tokens import read_token
from lifl.node.security import Secured, Security
from lifl.node.who import who_is
from lifl.tls.peer import Peer

ASKS_FOR_HEADER = (
    "this node takes clients of its own account alone: send the line of http.header in its state folder "
    "(curl -H @FILE); it is another one whenever the node has started"
)
ASKS_FOR_CREDENTIAL = (
    "this node asks for a certificate (lifl enroll), or for a bearer token (lifl token create --bearer) as "
    "Authorization: Bearer TOKEN"
)
OF_ANOTHER_SITE = (
    "a page of another site asks with this browser's certificate, which is not the page's: a page shows a bearer token "
    "(lifl token create --bearer), and no certificate"
)
_OWN_SITE = ("none", "same-origin")
"""Of `Sec-Fetch-Site`, which browsers alone send: the browser's user asks, or a page of this door."""
_SCHEME = "bearer "
TICKET = "lifl-ticket"
"""The header that has the line of a ticket."""


def read_header(path: Path) -> str:
    """Return the value that a request must have as Authorization.  Raise `ResourceFault`."""
    try:
        return path.read_text().partition(":")[2].strip()
    except OSError as error:
        raise ResourceFault(f"{path} cannot be read: {error.strerror}") from error


class Caller(NamedTuple):
    """Somebody at `host`; `peer` is None where nobody is asked for a certificate."""

    host: str
    peer: Peer | None = None
    bearer: str = ""
    ticket: TicketLine | None = None
    by_ticket: bool = False
    """It has shown nothing but its ticket, where a certificate is asked for."""

    @property
    def whose(self) -> tuple[str, str]:
        """Who it is, and its name; of one that shows no certificate or token, where it is."""
        return (str(self.peer.identity), self.peer.identity.name) if self.peer is not None else (self.host, "")

    def check_client(self, name: str, job: str) -> None:
        """Raise `Refused` unless it may take part in a job by a name."""
        if self.ticket is not None and (name, job) != (self.ticket.client, self.ticket.job):
            text = f"that ticket is for client {self.ticket.client!r} in session {self.ticket.job!r} alone"
            raise Refused("not-own-name" if job == self.ticket.job else "not-own-job", "ticket", text)
        if self.peer is not None:
            who = (self.peer.identity, policy.Action.TAKE_PART)
            policy.check(*who, name, job, self.peer.jobs, bool(self.bearer))

    def check_reader(self) -> None:
        """Raise `Refused` unless it may see what the node does."""
        if self.by_ticket:
            raise Refused("not-allowed", "ticket", "a ticket is for taking part in its fold, and nothing else")
        if self.peer is not None:
            for action in (policy.Action.SEE_NODES, policy.Action.SEE_JOBS):
                policy.check(self.peer.identity, action, bearer=bool(self.bearer))

    def came(self) -> gm.ClientCame:
        """Return what the gateway is told."""
        peer = self.peer
        if peer is None:
            return gm.ClientCame(self.host, by_ticket=self.by_ticket)
        identity, times = peer.identity, (peer.begins_unix_s, peer.expires_unix_s, peer.issued_unix_s)
        shown = ShownPeer(peer.cluster, identity.role, identity.name, peer.serial, *times, peer.jobs, self.bearer)
        return gm.ClientCame(self.host, shown)


class Callers:
    """Tells who asks; `header` is what is asked for where there are no certificates, empty: nothing is."""

    def __init__(self, security: Security, header: str) -> None:
        self._security = security
        self._header = header

    def of(self, secured: Secured, headers: Mapping[str, str]) -> Caller:
        """Return who asks over a connection.  Raise `Refused`."""
        ticket = content_of(headers[TICKET], TicketLine) if TICKET in headers else None
        secret = headers.get("authorization", "")
        if self._security.is_on and secured.is_stranger and not secret and ticket is not None and ticket.entry:
            return Caller(who_is(secured.sock), ticket=ticket, by_ticket=True)
        return self._credited(secured, headers)._replace(ticket=ticket)

    def _credited(self, secured: Secured, headers: Mapping[str, str]) -> Caller:
        """Return who asks by a certificate, a bearer token or the line.  Raise `Refused`."""
        host, shown = who_is(secured.sock), headers.get("authorization", "")
        contexts = self._security.contexts
        if contexts is None:
            if self._header and not shown:
                raise Refused("no-cookie", "Authorization", ASKS_FOR_HEADER)
            if self._header and not hmac.compare_digest(shown.encode(), self._header.encode()):
                raise Refused("wrong-cookie", "Authorization", f"that is not its line: {ASKS_FOR_HEADER}")
            return Caller(host)
        if secured.peer is not None:
            if headers.get("sec-fetch-site", "none") not in _OWN_SITE:
                raise Refused("wrong-origin", "Sec-Fetch-Site", OF_ANOTHER_SITE)
            return Caller(host, secured.peer)
        if not shown.lower().startswith(_SCHEME):
            raise Refused("no-certificate", "Authorization", ASKS_FOR_CREDENTIAL)
        token = read_token(shown[len(_SCHEME) :], bearer=True)
        found = self._security.holder(token.number, token.secret, host)
        times = (found.created_unix_s, found.expires_unix_s)
        peer = Peer(contexts.own.cluster, found.identity, "", *times, (found.job,), issued_unix_s=found.created_unix_s)
        return Caller(host, peer, token.number)
