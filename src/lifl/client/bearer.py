"""How a client comes with a bearer token, in the place of a certificate: whom it believes, and to whom it is told.

The token names the cluster's authority by a digest.  A gateway is asked for its roots over a connection that is not
verified; the one with that digest is believed from then on.  The secret is told over another connection, whose
certificate that root vouches for: a node's, for the host that was dialled.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from weakref import WeakKeyDictionary

from lifl.core.errors import Refused, RemoteFault
from lifl.core.limits import ENROLLED_BYTES_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.trust.tokens import Token
from lifl.tls.contexts import client_context, unverified_context
from lifl.tls.faults import TlsFault
from lifl.tls.roots import root_named
from lifl.tls.tls_socket import TlsSocket
from lifl.tls.token_file import token_in

Secure = Callable[[ssl.SSLContext], TlsSocket]
"""Makes a new connection to the node with this context, and agrees on TLS."""


class BearerAccess:
    """The token in a file, read anew for each connection: a new one may take its place."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._contexts: dict[str, ssl.SSLContext] = {}  # by the digest of the authority
        self._tokens: WeakKeyDictionary[TlsSocket, Token] = WeakKeyDictionary()

    def connect(self, address: str, secure: Secure) -> TlsSocket:
        """Return a connection to a node of the token's cluster, which the token may be told.

        Raise `OSError`, `ResourceFault`, and `Refused` where it is not the token's cluster.
        """
        token = token_in(self._path, bearer=True)
        context = self._contexts.get(token.authority)
        if context is None:
            context = self._contexts[token.authority] = client_context(_root(address, token, secure))
        sock = secure(context)
        try:
            peer = sock.peer
        except RemoteFault as fault:
            sock.close()
            raise TlsFault(f"{address}: {fault}") from fault
        if peer is None or peer.identity.role != "node":
            sock.close()
            raise TlsFault(f"{address}: its certificate is no node's; the token was not told")
        self._tokens[sock] = token
        return sock

    def token_for(self, sock: object) -> Token | None:
        """Return the token that may be told over a connection, if it was made for that."""
        return self._tokens.get(sock) if isinstance(sock, TlsSocket) else None


def _root(address: str, token: Token, secure: Secure) -> str:
    """Return the root (PEM) that a token names, as a gateway tells it."""
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
    root = root_named(answer.roots, token.authority) if isinstance(answer, cm.Roots) else None
    if root is None:
        text = f"{address} is not where the token comes from: its authority is not the one that the token names"
        raise Refused(
            "wrong-authority", "token", f"{text}; the token was not told: compare the address with whoever made it"
        )
    return root
