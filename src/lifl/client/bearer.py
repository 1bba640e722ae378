"""How a client comes with a bearer token, in the place of a certificate: whom it believes, and to whom it is told.

The token names the cluster's authority by a digest.  A gateway is asked for its roots over a connection that is not
verified; the one with that digest is believed from then on.  The secret is told over another connection, whose
certificate that root vouches for: a node's, for the host that was dialled.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakKeyDictionary

from lifl.core.errors import Refused, RemoteFault
from lifl.core.limits import ENROLLED_BYTES_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import tickets as tm
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.tls.contexts import client_context, unverified_context
from lifl.tls.faults import TlsFault
from lifl.tls.roots import roots_in
from lifl.tls.tls_socket import TlsSocket
from lifl.tls.token_file import token_in

Secure = Callable[[ssl.SSLContext], TlsSocket]
"""Makes a new connection to the node with this context, and agrees on TLS."""


class Shown(NamedTuple):
    """What is told, and to nodes of which authority: the one with this digest."""

    authority: str
    message: cm.ShowToken | tm.ShowTicket


class Access:
    """A secret in the place of a certificate."""

    def __init__(self) -> None:
        self._contexts: dict[str, ssl.SSLContext] = {}  # by the digest of the authority
        self._told: WeakKeyDictionary[TlsSocket, Shown] = WeakKeyDictionary()

    def shown(self) -> Shown:
        """Return what is told over a new connection."""
        raise NotImplementedError

    def connect(self, address: str, secure: Secure) -> TlsSocket:
        """Return a connection to a node of the token's cluster, which the token may be told.

        Raise `OSError`, `ResourceFault`, and `Refused` where it is not the token's cluster.
        """
        shown = self.shown()
        context = self._contexts.get(shown.authority)
        if context is None:
            root = _root(address, shown.authority, secure)
            context = self._contexts[shown.authority] = client_context(root)
        sock = secure(context)
        try:
            peer = sock.peer
        except RemoteFault as fault:
            sock.close()
            raise TlsFault(f"{address}: {fault}") from fault
        if peer is None or peer.identity.role != "node":
            sock.close()
            raise TlsFault(f"{address}: its certificate is no node's; the token was not told")
        self._told[sock] = shown
        return sock

    def message_for(self, sock: object) -> cm.ShowToken | tm.ShowTicket | None:
        """Return what may be told over a connection, if it was made for that."""
        shown = self._told.get(sock) if isinstance(sock, TlsSocket) else None
        return shown.message if shown is not None else None


class BearerAccess(Access):
    """The token in a file, read anew for each connection: a new one may take its place."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._path = path

    def shown(self) -> Shown:
        """Return the token.  Raise `Refused`, `ResourceFault`."""
        token = token_in(self._path, bearer=True)
        return Shown(token.authority, cm.ShowToken(token.number, token.secret))


class TicketAccess(Access):
    """A ticket that lets its holder in, to nodes of an authority."""

    def __init__(self, authority: str, message: tm.ShowTicket) -> None:
        super().__init__()
        self._shown = Shown(authority, message)

    def shown(self) -> Shown:
        """Return the ticket."""
        return self._shown


def authority_of(address: str, secure: Secure) -> str:
    """Return the digest of the authority that vouches for the node at an address, of those whose roots it tells.

    It is to be known already that this is the node.  Raise `OSError`, and `Refused` where there is none.
    """
    found = roots_in(_told_roots(address, secure))
    for digest, root in found.items() if len(found) > 1 else ():
        with suppress(TlsFault):
            secure(client_context(root)).close()
            return digest
    if not found:
        raise Refused("not-secured", "", f"{address} tells of no authority")
    return next(iter(found))


def _root(address: str, authority: str, secure: Secure) -> str:
    """Return the root (PEM) that a token names, as a gateway tells it."""
    root = roots_in(_told_roots(address, secure)).get(authority)
    if root is None:
        text = f"{address} is not where the token comes from: its authority is not the one that the token names"
        raise Refused(
            "wrong-authority", "token", f"{text}; the token was not told: compare the address with whoever made it"
        )
    return root


def _told_roots(address: str, secure: Secure) -> str:
    """Return the roots (PEM) that a gateway tells."""
    sock = secure(unverified_context())
    decoder: FrameDecoder[cm.ToClient] = FrameDecoder(cm.ToClient, ENROLLED_BYTES_MAX)
    try:
        sock.sendall(encode(cm.AskRoots()))
        while (answer := decoder.next_message()) is None:
            data = sock.recv(decoder.missing_bytes)
            if not data:
                raise ConnectionResetError(f"{address} closed the connection before it answered")
            decoder.feed(data)
    finally:
        sock.close()
    if isinstance(answer, cm.Refusal):
        if answer.code in cm.NO_PLACE:
            raise ConnectionRefusedError(answer.text)
        text = f"{address} takes no bearer tokens, or is of an earlier release: {answer.text}"
        raise Refused(answer.code, "token", f"{text}; the token was not told")
    if not isinstance(answer, cm.Roots):
        raise Refused("wrong-authority", "token", f"{address} tells no roots; the token was not told")
    return answer.roots
