"""How a client's connections are made: to whom, as whom, and how a thread that waits on one is woken.

Beyond this machine all of it is TLS, mutual.  The client shows the certificate of its identity folder, and the node
must show one of the same cluster, of a node, for the host that was dialled.  Without an identity nothing is sent.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress

from lifl.client.addresses import target
from lifl.client.bearer import Access, BearerAccess, Secure, authority_of
from lifl.core.config.values import is_loopback, joined_address
from lifl.core.errors import LocalFault, Refused
from lifl.core.identity import Role
from lifl.tls.contexts import Contexts, unverified_context
from lifl.tls.description import described
from lifl.tls.faults import TlsFault
from lifl.tls.folder import VARIABLE, load, sole_folder, user_folder, user_folders
from lifl.tls.polling import readable, writable
from lifl.tls.proxy import Opened, connected
from lifl.tls.renewing import renew_when_due
from lifl.tls.tls_socket import Stream, TlsSocket
from lifl.tls.token_file import VARIABLE as TOKEN_VARIABLE

KEEPALIVE_IDLE_S = 30
UNACKNOWLEDGED_S = 60
DIAGNOSIS_S = 3.0
"""How long is looked for what a certificate that was refused says."""
NODE: tuple[Role, ...] = ("node",)


class Sockets:
    """All sockets that a client's threads may wait on, so that another thread can wake who waits."""

    def __init__(self) -> None:
        self._known: list[weakref.ref[socket.socket]] = []  # never changed in place

    def note(self, sock: socket.socket) -> None:
        """Note one, before anybody waits on it."""
        self._known = [*(known for known in self._known if known() is not None), weakref.ref(sock)]

    def cut(self) -> None:
        """End all of them, from whatever thread."""
        for sock in [known() for known in self._known]:
            if sock is not None:
                with suppress(OSError):  # not connected, or closed
                    sock.shutdown(socket.SHUT_RDWR)


class Dialler:
    """Makes a client's connections to any of a cluster's gateways; `nodes` are those that were given.

    `opened` is told each socket before it is connected.  `identity` is an identity folder; else it is looked for
    (`tls/folder.py`).  `insecure`: nodes are spoken to in plain, and nobody knows who they are.  `token_file` has a
    bearer token, or ``$LIFL_TOKEN_FILE`` does; `access` is what it comes with in their place.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        identity: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        opened: Opened = lambda _sock: None,
        token_file: str | os.PathLike[str] | None = None,
        access: Access | None = None,
        streams: int = 0,
    ) -> None:
        self.streams = streams
        """Over how many connections a large body may go; 0: as the cores say (`body_ranges.streams_for`)."""
        self.splits = True
        """Whether the next large body may go over several connections: not when the last one failed, or lacked some."""
        if token_file is not None and (identity is not None or insecure):
            other = "identity" if identity is not None else "insecure"
            raise LocalFault(f"token_file and {other} are given: a client comes by one of them")
        if token_file is None and identity is None and not insecure and access is None:
            token_file = os.environ.get(TOKEN_VARIABLE)
        self._nodes = tuple(nodes)
        self.access = access or (BearerAccess(token_file) if token_file else None)
        """What it comes with to TCP ports, in the place of an identity, if anything."""
        self._given = identity or os.environ.get(VARIABLE)
        self._insecure = insecure
        self._opened = opened
        self._contexts: Contexts | None = None

    def connect(self, address: str, patience_s: float) -> Stream:
        """Return a connection to ``HOST:PORT``, ``unix:PATH`` or a node's state folder, secured.

        Raise `OSError` (`TlsFault` is one), `LocalFault`, `ResourceFault`, and `Refused` where there is no identity.
        """
        where = target(address)
        if isinstance(where, str):
            return self._unix(where, patience_s)
        if self.access is not None:
            return self.access.connect(address, self._secure(where, patience_s))
        contexts = self._contexts_for(address, where[0])
        self.renew()
        raw = self._tcp(*where, patience_s)
        try:
            _tune(raw)
            return raw if contexts is None else self._secured(raw, contexts, where, patience_s)
        except BaseException:
            raw.close()
            raise

    def authority(self, address: str, patience_s: float) -> str:
        """Return the digest of the authority of the node at ``HOST:PORT``, which is known to be there.

        Raise `OSError`, and `Refused` where there is none.
        """
        where = target(address)
        assert not isinstance(where, str)
        try:
            return authority_of(address, self._secure(where, patience_s))
        except TlsFault as fault:
            text = f"the node at {address} asks nobody for a certificate: leave `bearer` out ({fault})"
            raise Refused("no-token-wanted", "bearer", text) from fault

    def _secure(self, where: tuple[str, int], patience_s: float) -> Secure:
        return lambda context: self._shaken(context, where, patience_s)

    def _shaken(self, context: ssl.SSLContext, where: tuple[str, int], patience_s: float) -> TlsSocket:
        """Return a new connection that is secured with a context."""
        raw = self._tcp(*where, patience_s)
        try:
            _tune(raw)
            sock = TlsSocket(raw, context, host=where[0])
            _shake(sock, patience_s)
        except TlsFault as fault:
            raw.close()
            raise TlsFault(f"{joined_address(*where)}: {fault}", fault.lasting) from fault
        except BaseException:
            raw.close()
            raise
        return sock

    def renew(self) -> None:
        """Begin to renew the identity, if it is used and that is due; nothing waits for it."""
        if self._contexts is not None:
            renew_when_due(self._contexts)

    def _unix(self, path: str, patience_s: float) -> socket.socket:
        if not hasattr(socket, "AF_UNIX"):
            raise LocalFault(f"{path} is a path, and this system has no AF_UNIX sockets for it: give HOST:PORT")
        if os.path.isdir(path):
            path = os.path.join(path, "gateway.sock")
            target(f"unix:{path}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(patience_s)
            self._opened(sock)
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock

    def _tcp(self, host: str, port: int, patience_s: float) -> socket.socket:
        return connected(host, port, patience_s, self._opened)

    # ---- as whom ---------------------------------------------------------------------------------------------------

    def _contexts_for(self, address: str, host: str) -> Contexts | None:
        """Return what a connection is secured with; None: with nothing."""
        if self._insecure:
            return None
        if self._contexts is None:
            self._contexts = self._found(address, host)
        if self._contexts is None and not is_loopback(host):
            raise Refused(
                "no-identity",
                "identity",
                f"{address} is on another machine, and there is no identity for it in {user_folder(address)}: "
                "lifl enroll HOST:PORT --token-file F, at the control address of a node of its cluster (or name the "
                f"identity's folder by identity= or ${VARIABLE}); "
                "insecure=True is for a node that was started with --insecure",
            )
        return self._contexts

    def _found(self, address: str, host: str) -> Contexts | None:
        """Return the identity that was given, or the first that lies where it is looked for."""
        if self._given:
            folder = user_folder(address, self._given)
            if (files := load(folder)) is None:
                raise LocalFault(f"identity={os.fspath(self._given)!r}: there is no identity in {folder}")
            return Contexts(files)
        for each in dict.fromkeys((address, *self._nodes)):
            if isinstance(target(each), str):
                continue
            for folder in user_folders(each):
                if (files := load(folder)) is not None:
                    return Contexts(files)
        sole = sole_folder() if not is_loopback(host) else None  # a node there may be one without TLS
        files = load(sole) if sole is not None else None
        return Contexts(files) if files is not None else None

    def _secured(self, raw: socket.socket, contexts: Contexts, where: tuple[str, int], patience_s: float) -> TlsSocket:
        host, port = where
        sock = TlsSocket(raw, contexts.client(), host=host)
        try:
            _shake(sock, patience_s)
            contexts.check_peer(sock, NODE)
        except TlsFault as fault:
            raise TlsFault(f"{host}:{port}: {fault}{self._said(fault, where)}", fault.lasting) from fault
        return sock

    def _said(self, fault: TlsFault, where: tuple[str, int]) -> str:
        """Return what the certificate of a node that was not believed says, if it tells once more."""
        if not fault.verify_code:
            return ""
        try:
            with self._tcp(*where, DIAGNOSIS_S) as raw:
                shown = TlsSocket(raw, unverified_context())
                _shake(shown, DIAGNOSIS_S)
                return f"; it is {described(shown.peer_certificate)}"
        except OSError:
            return ""


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_S * 1000)


def _shake(sock: TlsSocket, patience_s: float) -> None:
    """Make the handshake, within the time as a whole: each of its bytes may come alone."""
    deadline_s = time.monotonic() + patience_s
    sock.setblocking(False)
    while True:
        try:
            sock.do_handshake()
            break
        except BlockingIOError:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not (writable(sock, left_s) if sock.wants_write else readable([sock], left_s)):
                raise TimeoutError("the TLS handshake was not complete in time") from None
    sock.settimeout(patience_s)
