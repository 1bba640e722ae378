"""How somebody gets a certificate: what is said as the first frame on a control port, and answered at once.

Who has none yet asks AskAuthority, over a connection on which it has verified nothing, and compares the digest of what
it is told with the one in its token.  Then, over a connection that this authority's certificate vouches for, it says
Enrol with the token's secret.  Who has a certificate says Renew over a connection that shows it.  A node that has no
authority answers PeerRedirect; a "no" is PeerRefusal.
"""

from __future__ import annotations

from typing import Annotated, get_args

import msgspec

from lifl.core.errors import RemoteFault
from lifl.core.fields import Integer, Message, Real
from lifl.core.limits import CHAIN_BYTES_MAX, HOST_CHARS_MAX, HOSTS_MAX, NAME_CHARS_MAX, REQUEST_BYTES_MAX
from lifl.core.protocol.cluster import CommandHello, PeerHello, PeerRedirect, PeerRefusal, check_version, read_hello
from lifl.core.trust.tokens import TokenNumber, TokenSecret

Request = Annotated[bytes, msgspec.Meta(max_length=REQUEST_BYTES_MAX)]
"""A certificate signing request, DER."""
Hosts = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=HOST_CHARS_MAX, pattern=r"\A[A-Za-z0-9._:-]*\Z")], ...],
    msgspec.Meta(max_length=HOSTS_MAX),
]
"""Names and addresses by which a node is reached."""
Certificates = Annotated[bytes, msgspec.Meta(max_length=CHAIN_BYTES_MAX)]
"""PEM."""
WantedName = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX, pattern=r"\A[A-Za-z0-9._:-]*\Z")]
"""A name, or nothing: the token has it."""


class AskAuthority(Message, frozen=True):
    """Asks who the authority of this cluster is: answered by TheAuthority, by anybody, and to be believed by nobody."""

    version: Integer


class TheAuthority(Message, frozen=True):
    """The roots of the authority, the newest first, and what time it is there."""

    roots: Certificates
    unix_s: Real


class Enrol(Message, frozen=True):
    """Asks for a certificate, by a token: answered by Enrolled.  `node`: to be a node, and not to be anything else."""

    version: Integer
    token: TokenNumber
    secret: TokenSecret
    request: Request
    name: WantedName = ""
    node: bool = False
    hosts: Hosts = ()

    def __repr__(self) -> str:
        return f"Enrol({self.token}, name={self.name!r}, node={self.node})"  # its secret is shown nowhere


class Renew(Message, frozen=True):
    """Asks for a certificate like the one that this connection shows: answered by Enrolled."""

    version: Integer
    request: Request
    hosts: Hosts = ()


class Enrolled(Message, frozen=True):
    """The certificate, with those up to the root, and the roots that are to be trusted."""

    chain: Certificates
    roots: Certificates


Asking = AskAuthority | Enrol | Renew
Answer = TheAuthority | Enrolled | PeerRedirect | PeerRefusal
First = PeerHello | CommandHello | Asking
"""What may come first on a control port."""
_SIMPLE = {kind.__name__: kind for kind in (CommandHello, *get_args(Asking))}


class _AnyAsking(msgspec.Struct):
    """What a question of every version has."""

    type: str
    version: int = 0


def read_first(body: msgspec.Raw) -> First:
    """Return what is in the first frame on a control port.  Raise `RemoteFault`, with what is to be told."""
    try:
        found = msgspec.msgpack.decode(body, type=_AnyAsking)
        kind = _SIMPLE.get(found.type)
        if kind is None:
            return read_hello(body)
        check_version(found.version)
        asked: CommandHello | Asking = msgspec.msgpack.decode(body, type=kind)
        return asked
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RemoteFault(f"the first frame on a control port must be a PeerHello: {error}") from error
