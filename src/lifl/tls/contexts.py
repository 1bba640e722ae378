"""TLS 1.3, mutual: the contexts of one identity, as server and as client.

Both sides show a certificate that the other checks against its CA.  A server takes who shows none, for somebody who
comes with a token has no certificate yet; what that one may say, the caller decides (`TlsSocket.peer` is None).  A
client checks that the server's certificate is for the host that it wanted; a node that dials another one does not, for
nodes move: it checks who the other is (`check_peer`).

The identity's files are looked at before each connection, so a renewed certificate is used from the next one on.
What cannot be used, such as a certificate without its key while both are being replaced, is not: the old ones stay.

There are no session tickets: each connection shows its certificate anew, and nothing but data follows the handshake.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from lifl.core.errors import RemoteFault, ResourceFault
from lifl.core.identity import Role
from lifl.tls.description import described
from lifl.tls.faults import TlsFault, fault_of
from lifl.tls.folder import IdentityFiles
from lifl.tls.peer import Peer, peer_of
from lifl.tls.tls_socket import TlsSocket

log = logging.getLogger("lifl.tls")


class _Loaded(NamedTuple):
    own: Peer
    server: ssl.SSLContext
    client: ssl.SSLContext
    node_client: ssl.SSLContext


class OutOfTime(ResourceFault):
    """An identity cannot be used now and nothing but the time is wrong: it has expired, or is not valid yet."""


class Contexts:
    """The contexts of the identity in `files`.  Raises `ResourceFault` when it cannot be used."""

    def __init__(self, files: IdentityFiles) -> None:
        self.files = files
        self._seen = _stamp(files)
        self._loaded = _load(files)

    def _fresh(self) -> _Loaded:
        """Return what is in the files now, or what was, as long as that cannot be used."""
        try:
            seen = _stamp(self.files)
            if seen != self._seen:
                self._seen = seen
                self._loaded = _load(self.files)
                log.info("identity.renewed serial=%s", self._loaded.own.serial)
        except ResourceFault as fault:
            log.warning("identity.unusable %s; the one of before is used", fault)
        return self._loaded

    @property
    def own(self) -> Peer:
        """Whom the own certificate stands for, and until when."""
        return self._fresh().own

    def server(self) -> ssl.SSLContext:
        """Return the context for a connection that was taken in."""
        return self._fresh().server

    def client(self) -> ssl.SSLContext:
        """Return the context for a connection to a host whose certificate must be for that host."""
        return self._fresh().client

    def node_client(self) -> ssl.SSLContext:
        """Return the context for a connection of a node to a node, whatever its address."""
        return self._fresh().node_client

    def check_peer(self, sock: TlsSocket, roles: Collection[Role]) -> Peer:
        """Return who is at the other end: of the own cluster, in one of the roles.  Raise `TlsFault` else."""
        return check_peer(sock, self._loaded.own.cluster, roles)


def is_usable(files: IdentityFiles) -> bool:
    """Return whether an identity can be used: it is whole, belongs together, and has not expired."""
    try:
        Contexts(files)
    except ResourceFault:
        return False
    return True


def check_peer(sock: TlsSocket, cluster: str, roles: Collection[Role]) -> Peer:
    """Return who is at the other end: of the cluster, in one of the roles.  Raise `TlsFault` else."""
    try:
        peer = sock.peer
    except RemoteFault as fault:
        raise TlsFault(str(fault)) from fault
    if peer is None:
        raise TlsFault("it has shown no certificate")
    if peer.cluster != cluster:
        raise TlsFault(f"its certificate is of cluster {peer.cluster}, and this is {cluster}")
    if peer.identity.role not in roles:
        raise TlsFault(f"its certificate is {peer.identity}'s: it is no {' or '.join(roles)}")
    return peer


def client_context(ca: Path | str, files: IdentityFiles | None = None) -> ssl.SSLContext:
    """Return a context that trusts `ca`, a file or its text (PEM), with an identity or none.  Raise `ResourceFault`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _trust(context, ca)
    if files is not None:
        _show(context, files)
    return context


def unverified_context() -> ssl.SSLContext:
    """Return a context for looking at a server whose CA is not known yet: nothing secret may be said over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _stamp(files: IdentityFiles) -> tuple[tuple[int, int, int], ...]:
    try:
        return files.stamp()
    except OSError as error:
        raise ResourceFault(f"identity folder {files.folder} cannot be read: {error.strerror}") from error


def _load(files: IdentityFiles) -> _Loaded:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_OPTIONAL
    server.num_tickets = 0
    _trust(server, files.ca)
    _show(server, files)
    client = client_context(files.ca, files)
    node_client = client_context(files.ca, files)
    node_client.check_hostname = False
    return _Loaded(_own(files, server), server, client, node_client)


def _trust(context: ssl.SSLContext, ca: Path | str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # What the CA's file has is trusted as it is: it may be one that another CA has signed.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        if isinstance(ca, Path):
            context.load_verify_locations(cafile=ca)
        else:
            context.load_verify_locations(cadata=ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        shown = ca if isinstance(ca, Path) else "what was given as a CA"
        raise ResourceFault(f"{shown} has no certificate of a CA in it (PEM): {_text(error)}") from error


def _show(context: ssl.SSLContext, files: IdentityFiles) -> None:
    def no_password() -> str:
        raise ResourceFault(f"{files.key} is encrypted: a key lies open in a folder of its user's alone (0600)")

    try:
        context.load_cert_chain(files.certificate, files.key, no_password)
    except OSError as error:
        mismatch = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
        why = f"{files.key.name} is not its key" if mismatch else f"no certificate and key (PEM): {_text(error)}"
        raise ResourceFault(f"{files.certificate} cannot be used: {why}; enroll again") from error


def _text(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _own(files: IdentityFiles, server: ssl.SSLContext) -> Peer:
    """Return what the own certificate says, as others will read it: by a handshake with ourselves, in memory."""
    dialler = unverified_context()
    _show(dialler, files)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking, answering = dialler.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    try:
        for side in (asking, answering, asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
        return peer_of(answering.getpeercert() or {})
    except ssl.SSLError as error:
        said = described(files.certificate.read_bytes())
        fault = fault_of(error)
        remedy = "set this machine's clock (NTP)" if fault.is_not_yet else "enroll again"
        text = f"{files.certificate} would be refused by others: {fault}; it is {said}; {remedy}"
        raise (OutOfTime if fault.is_of_time else ResourceFault)(text) from error
    except RemoteFault as fault:
        raise ResourceFault(f"{files.certificate} is of no use here: {fault}") from fault
