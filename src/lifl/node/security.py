"""How a node's TCP connections are secured, whichever door they come in by, and those that it dials.

`Security()` leaves them as they are; with an identity they are TLS, mutual.  The door then says whom it takes
(`Secured.check`), and tells who is not taken why, over the connection that is secured by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from lifl.core import limits
from lifl.core.errors import Refused
from lifl.core.identity import Identity, Role
from lifl.core.trust.bearers import Bearer, BearerList
from lifl.core.trust.enrolment import Guesses, WrongToken
from lifl.core.trust.revocation import RevokedList
from lifl.core.trust.ticket import Holder, TicketKeys
from lifl.node.expiries import Expiries
from lifl.node.greetings import source_of
from lifl.node.handshakes import Handshakes
from lifl.tls.contexts import Contexts
from lifl.tls.cookie_file import read
from lifl.tls.faults import TlsFault
from lifl.tls.peer import Peer
from lifl.tls.tls_socket import Stream, TlsSocket
from lifl.tls.waits import lingered, ready, shaken

TLS_HANDSHAKE = b"\x16"
"""The first byte of a TLS connection; a plain frame with it, 22 bytes over a multiple of 256, is told so by TLS."""


NODES: tuple[Role, ...] = ("node",)


class PlainSpeech(ConnectionError):
    """What came is no TLS, and this port takes nothing else; the text can be told to whoever it was, in plain."""


class Secured:
    """A connection, and who is at its other end; without `security` nobody is asked for a certificate."""

    def __init__(self, sock: Stream, security: Security | None = None) -> None:
        self.sock = sock
        self.peer: Peer | None = None
        """Who it is, from `check` on, if a certificate says so; from `take` on, if a bearer token does."""
        self.bearer = ""
        """The number of that token."""
        self.holder: Holder | None = None
        """What the ticket says by which somebody has come, in the place of a token."""
        self._security = security
        self._contexts = security.contexts if security is not None else None

    @property
    def is_open(self) -> bool:
        """Whether nobody is asked for a certificate here."""
        return self._contexts is None

    @property
    def is_stranger(self) -> bool:
        """Whether a certificate was asked for and none was shown."""
        return isinstance(self.sock, TlsSocket) and not self.sock.peer_certificate

    def check(self, roles: Collection[Role]) -> None:
        """Note who it is: of this cluster, in one of the roles, and not revoked.  Raise `TlsFault` else."""
        if self._security is not None and self._contexts is not None:
            assert isinstance(self.sock, TlsSocket)
            self.peer = self._contexts.check_peer(self.sock, roles)
            self._security.expiries.add(self.sock, self.peer)
        if self.is_revoked:
            assert self.peer is not None
            raise TlsFault(f"certificate {self.peer.serial} of {self.peer.identity} is revoked")

    def take(self, number: str, secret: str, source: str) -> None:
        """Note who it is by a bearer token, of who has shown no certificate.  Raise `Refused`."""
        if self._security is None or self._contexts is None or not self.is_stranger:
            text = "a bearer token is for who comes by TLS and has no certificate: this connection needs none"
            raise Refused("no-token-wanted", "token", text)
        found = self._security.holder(number, secret, source)
        since = found.created_unix_s
        who = (self._contexts.own.cluster, found.identity, "", since, found.expires_unix_s)
        self.peer, self.bearer = Peer(*who, jobs=(found.job,), issued_unix_s=since), number

    def take_ticket(self, holder: Holder, entry: str, source: str) -> None:
        """Note who it is by a ticket's entry, of who has shown no certificate.  Raise `Refused`."""
        if self._security is None or self._contexts is None or not self.is_stranger:
            text = "a ticket lets in who comes by TLS and has no certificate: this connection needs none"
            raise Refused("no-token-wanted", "ticket", text)
        self._security.check_entry(holder, entry, source)
        who = (self._contexts.own.cluster, Identity("client", holder.client), "", *holder[3:])
        self.peer, self.holder = Peer(*who, jobs=(holder.job,), issued_unix_s=holder.made_unix_s), holder

    @property
    def by_secret(self) -> bool:
        """Whether somebody has come without a certificate: by a bearer token, or by a ticket."""
        return bool(self.bearer) or self.holder is not None

    @property
    def is_revoked(self) -> bool:
        """Whether the certificate, or the bearer token, is not believed any more."""
        peer = self.peer
        if peer is None or self._security is None:
            return False
        if self.bearer and not self._security.bearers.is_valid(self.bearer, time.time()):
            return True
        if self.holder is not None and not self._security.tickets.counts(self.holder, time.time()):
            return True
        return self._security.revoked.names(peer.identity, peer.serial, peer.issued_unix_s)

    @property
    def name(self) -> str:
        """The name in the certificate; empty when there is none."""
        return self.peer.identity.name if self.peer is not None else ""


class Vouched(Secured):
    """A connection by the node's HTTP door, at which it was checked who has come: `who`, and what `peer` says."""

    def __init__(self, sock: socket.socket, security: Security, who: str, peer: Peer | None, bearer: str) -> None:
        super().__init__(sock, security)
        self.who = who
        self.peer = peer
        self.bearer = bearer
        self.shows_ticket = False
        """It has shown no certificate at the door, and is to show a ticket here."""

    @property
    def is_stranger(self) -> bool:
        """Whether a certificate was asked for and none was shown."""
        return self.shows_ticket

    def check(self, roles: Collection[Role]) -> None:
        """Raise `TlsFault` unless it is still believed and has one of the roles."""
        if self.peer is None:
            return
        if self.is_revoked or self.peer.identity.role not in roles:
            raise TlsFault(f"what {self.peer.identity} has shown is not believed here")
        if self._security is not None:
            self._security.expiries.add(self.sock, self.peer)


class Cookie(NamedTuple):
    """What clients that come by TCP must have read, on a node that has no certificate; it lies at `path`."""

    path: str
    value: bytes

    @classmethod
    def read(cls, path: Path) -> Cookie:
        """Return the one in a file.  Raise `ResourceFault`."""
        return cls(str(path), read(path))


class Security:
    """TLS with the identity of `contexts`; else `cookie`, if there is one, lets clients of this account in alone."""

    def __init__(self, contexts: Contexts | None = None, cookie: Cookie | None = None) -> None:
        self.contexts = contexts
        self.cookie = cookie
        self.revoked = RevokedList()
        """What is not believed any more: it is put in the place of the list that was."""
        self.bearers = BearerList()
        """The bearer tokens, in the same way."""
        self.tickets = TicketKeys()
        """By what the tickets of sessions are known that let their holders in."""
        self._guesses = Guesses()
        self.expiries = Expiries()
        self._handshakes = Handshakes()

    def holder(self, number: str, secret: str, source: str) -> Bearer:
        """Return the bearer token of which somebody at an address tells the secret, whatever door it comes by.

        Raise `Refused`.
        """
        now = time.time()
        try:
            found = self.bearers.holder(number, secret, now)
        except WrongToken:
            self._guesses.wrong(source, now)
            raise
        if self.revoked.names(found.identity, "", found.created_unix_s):
            raise Refused("revoked", "token", f"all that {found.identity} had was revoked: ask for a new token")
        return found

    def check_entry(self, holder: Holder, entry: str, source: str) -> None:
        """Raise `Refused` unless somebody at an address has a ticket's entry."""
        now = time.time()
        try:
            self.tickets.check(holder, entry, now)
        except Refused as refused:
            if refused.code == "wrong-ticket":
                self._guesses.wrong(source, now)
            raise
        if self.revoked.names(Identity("client", holder.client), "", holder.made_unix_s):
            raise Refused(
                "revoked", "ticket", f"all that client {holder.client!r} had was revoked: ask for a new ticket"
            )

    def roots(self) -> str:
        """Return the authority's roots (PEM).  Raise `Refused` where there are none."""
        if self.contexts is None:
            raise Refused("not-secured", "", "this node has no certificates: it takes no bearer tokens")
        try:
            return self.contexts.files.ca.read_text()
        except OSError as error:
            raise Refused("no-roots", "", "this node cannot read its authority's roots: its log says more") from error

    @property
    def is_on(self) -> bool:
        """Whether connections are secured at all."""
        return self.contexts is not None

    async def taken(self, raw: socket.socket) -> Secured:
        """Secure a connection that was taken in; `raw` stays the caller's to close.  Raise `OSError`."""
        if self.contexts is None or raw.family == socket.AF_UNIX:
            return Secured(raw)
        await ready(raw)
        first = raw.recv(1, socket.MSG_PEEK)
        if not first:
            raise ConnectionResetError("it closed the connection before it said anything")
        if first != TLS_HANDSHAKE:
            raise PlainSpeech(
                "it is a TLS port: come with an identity of this cluster (lifl enroll; a node: lifl up --token-file, "
                "without --insecure)"
            )
        await self._turn(raw)
        sock = TlsSocket(raw, self.contexts.server(), server=True)
        try:
            await shaken(sock)
        except TlsFault:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(limits.LINGER_S):
                    await lingered(raw)  # so that the other side reads the alert
            raise
        return Secured(sock, self)

    async def _turn(self, raw: socket.socket) -> None:
        """Return when whoever comes may have a handshake.  Raise `ConnectionError` when that would be too late."""
        source = source_of(str(raw.getpeername()[0]))
        wait_s = self._handshakes.wait_s(source, asyncio.get_running_loop().time())
        if wait_s:
            await asyncio.sleep(wait_s)

    async def dialled(self, raw: socket.socket) -> Secured:
        """Secure a connection that was made to a node, which must show that it is one.  Raise `OSError`."""
        if self.contexts is None:
            return Secured(raw)
        sock = TlsSocket(raw, self.contexts.node_client())
        await shaken(sock)
        secured = Secured(sock, self)
        secured.check(NODES)
        return secured
