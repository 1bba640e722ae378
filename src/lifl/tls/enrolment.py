"""How this machine gets a certificate: by a token, or by the certificate that it has; the key is made here, and stays.

The secret of a token is told to nobody but the authority that the token names: first its roots are asked for over a
connection on which nothing is verified, and compared with the token's digest; then another connection is made, whose
certificate must lead to that root and be that of the authority's own node.  All of it blocks, each step for a bounded
time.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lifl.core.config.values import split_address
from lifl.core.errors import ConfigError, Refused, RemoteFault, ResourceFault
from lifl.core.identity import Role
from lifl.core.limits import CLOCK_SKEW_S, ENROLLED_BYTES_MAX
from lifl.core.protocol import enrolment as e
from lifl.core.protocol.client import Refusal
from lifl.core.protocol.cluster import PEER_VERSION, PeerRedirect, PeerRefusal
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.trust.tokens import Token
from lifl.tls.contexts import Contexts, client_context, unverified_context
from lifl.tls.faults import TlsFault
from lifl.tls.folder import save, unwritten
from lifl.tls.proxy import connected
from lifl.tls.roots import root_named
from lifl.tls.signing_request import new_key
from lifl.tls.tls_socket import TlsSocket

NODES: tuple[Role, ...] = ("node",)
STEP_S = 15.0
"""How long one step may take: to connect, the handshake, the answer."""
REDIRECTS_MAX = 4
GATEWAYS_PORT = "where clients come to a node (lifl up --listen); give its control address (lifl up --control)"


class Obtained(NamedTuple):
    """A new identity: certificate and those up to the root, its key, and the roots to trust (PEM)."""

    chain: bytes
    key: bytes
    roots: bytes
    authority: str
    """The control address of the node that has issued it."""

    def save(self, folder: Path) -> None:
        """Write it to an identity folder.  Raise `ResourceFault`."""
        try:
            save(folder, ca=self.roots, certificate=self.chain, key=self.key, home=self.authority.encode())
        except OSError as error:
            raise unwritten(folder, error) from error


def enrol(address: str, token: Token, name: str = "", node: bool = False, hosts: Sequence[str] = ()) -> Obtained:
    """Get an identity by a token, from the control port of any node of a cluster.

    `name` is asked for where the token leaves it open; `hosts` is how a node is reached.  Who is no node may come by a
    proxy (`proxy.py`).  Raise `Refused` when the name is not given, or the authority is not that of the token;
    `ResourceFault` when nobody is reached.
    """
    address, told, root = _found(address, token, by_proxy=not node)
    made = new_key()
    asked = e.Enrol(PEER_VERSION, token.number, token.secret, made.request, name, node, tuple(hosts))
    context = client_context(root)
    context.check_hostname = False  # it is known better than by its address
    with _clocks_told(told.unix_s):
        dialled = _dialled(address, context, by_proxy=not node)
    with contextlib.closing(dialled) as sock:
        try:
            peer = sock.peer
        except RemoteFault as fault:
            raise _wrong_server(address, str(fault)) from fault
        if peer is None or not peer.is_authority:
            raise _wrong_server(address, "its certificate is not that of the authority's node")
        answer = _asked(sock, address, asked)
    return _obtained(answer, address, made.key)


def renew(address: str, contexts: Contexts, hosts: Sequence[str] = (), by_proxy: bool = False) -> Obtained:
    """Get a certificate like the own one, which is shown.  `address` is the control port of any node of the cluster.

    Raise as `enrol` does.
    """
    for _ in range(REDIRECTS_MAX + 1):
        made = new_key()
        with contextlib.closing(_dialled(address, contexts.node_client(), by_proxy)) as sock:
            contexts.check_peer(sock, NODES)
            answer = _asked(sock, address, e.Renew(PEER_VERSION, made.request, tuple(hosts)))
        if not isinstance(answer, PeerRedirect):
            return _obtained(answer, address, made.key)
        address = answer.control
    raise _sent_on(address)


def authority_at(address: str) -> e.TheAuthority:
    """Return what a control port says of its authority, and of the time there; nothing of it is verified.

    Raise as `enrol` does.
    """
    return _authority_at(address, by_proxy=True)[1]


def _authority_at(address: str, by_proxy: bool) -> tuple[str, e.TheAuthority]:
    """Return where the authority is, and what it says of itself."""
    for _ in range(REDIRECTS_MAX + 1):
        with contextlib.closing(_dialled(address, unverified_context(), by_proxy)) as sock:
            answer = _asked(sock, address, e.AskAuthority(PEER_VERSION))
        if isinstance(answer, e.TheAuthority):
            return address, answer
        if not isinstance(answer, PeerRedirect):
            raise RemoteFault(f"{address} answered with {type(answer).__name__}")
        address = answer.control
    raise _sent_on(address)


def _sent_on(address: str) -> RemoteFault:
    return RemoteFault(f"sent on {REDIRECTS_MAX} times, last to {address}, without finding the cluster's authority")


@contextlib.contextmanager
def _clocks_told(there_unix_s: float) -> Iterator[None]:
    """Say how far this machine's clock is from the one there, where a certificate was refused for its time."""
    ahead_s = time.time() - there_unix_s
    try:
        yield
    except ResourceFault as fault:
        why = fault.__cause__
        if not (isinstance(why, TlsFault) and why.is_of_time) or abs(ahead_s) < CLOCK_SKEW_S:
            raise
        apart = f"this machine's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the one there"
        raise ResourceFault(
            f"{fault}; {apart}: set the one that is wrong (NTP), and come with the same token"
        ) from fault


def _found(address: str, token: Token, by_proxy: bool) -> tuple[str, e.TheAuthority, str]:
    """Return where the authority is, what it says of itself, and of its roots (PEM) the one that the token names."""
    address, told = _authority_at(address, by_proxy)
    if (root := root_named(told.roots.decode(errors="replace"), token.authority)) is not None:
        return address, told, root
    raise _wrong_server(address, "its authority is not the one that the token names")


def _wrong_server(address: str, why: str) -> Refused:
    text = f"{address} is not where the token comes from: {why}; the token's secret was not told"
    return Refused("wrong-authority", "token", f"{text}; compare the address with whoever has made it")


def _obtained(answer: e.Answer, address: str, key: bytes) -> Obtained:
    if not isinstance(answer, e.Enrolled):
        raise RemoteFault(f"{address} answered with {type(answer).__name__}")
    return Obtained(answer.chain, key, answer.roots, address)


def _dialled(address: str, context: ssl.SSLContext, by_proxy: bool) -> TlsSocket:
    """Return a connection to a control port, after the handshake.  Raise `ResourceFault`."""
    try:
        host, port = split_address(address)
    except ConfigError as error:
        raise ResourceFault(f"the control address {error}") from error
    raw: socket.socket | None = None
    try:
        raw = connected(host, port, STEP_S) if by_proxy else socket.create_connection((host, port), STEP_S)
        sock = TlsSocket(raw, context, host=host)
        sock.do_handshake()
        return sock
    except OSError as error:
        if raw is not None:
            raw.close()
        raise _unreachable(address, error) from error


def _asked(sock: TlsSocket, address: str, message: e.Asking) -> e.Answer:
    """Return the answer to a message.  Raise `Refused` when it is a refusal, `ResourceFault` when none comes."""
    decoder: FrameDecoder[e.Answer | Refusal] = FrameDecoder(e.Answer | Refusal, ENROLLED_BYTES_MAX)
    try:
        sock.sendall(encode(message))
        while (answer := decoder.next_message()) is None:
            data = sock.recv(decoder.missing_bytes)
            if not data:
                raise ConnectionResetError("it closed the connection before it answered")
            decoder.feed(data)
    except OSError as error:
        raise _unreachable(address, error) from error
    except RemoteFault as fault:
        raise RemoteFault(f"{address} is not the control port of a node of this version: {fault}") from fault
    if isinstance(answer, PeerRefusal):
        raise Refused("not-enrolled", "", f"{address}: {answer.text}")
    if isinstance(answer, Refusal):
        raise Refused("wrong-port", "", f"{address} is {GATEWAYS_PORT}")
    return answer


def _unreachable(address: str, error: OSError) -> ResourceFault:
    if isinstance(error, TlsFault):
        return ResourceFault(f"{address}: {error}")
    why = f"no answer within {STEP_S:g} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return ResourceFault(f"{address} cannot be reached: {why}; it is the control address of a node (lifl up --control)")
