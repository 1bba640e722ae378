"""Each TCP door of a secured node, and whoever comes there with a certificate that is wrong in one way: nobody gets in.

The certificates are of a PKI of the test's own, which the node was given; what comes is said in bytes, as by somebody
whose own software checks nothing.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from certificates import CLUSTER, Authority
from nodes import Node

from lifl.core.config.values import split_address
from lifl.core.errors import RemoteFault
from lifl.core.fields import Message
from lifl.core.identity import Identity, Role, identity_uri
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import enrolment as e
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.tls.contexts import client_context
from lifl.tls.folder import load, node_folder, save
from lifl.tls.signing_request import new_key
from lifl.tls.tls_socket import TlsSocket

WAIT_S = 60.0
NAME = "x"


class Door(NamedTuple):
    """Where one comes in, what is said there, and what who gets in hears; `roles` are those that do not."""

    address: str
    frames: tuple[Message, ...]
    welcome: type[Message]
    kinds: Any
    role: Role
    others: tuple[Role, ...]


HELLO = cm.Hello(cm.PROTOCOL_VERSION, NAME)
JOINS = p.PeerHello(p.PEER_VERSION, 9, 1, "127.0.0.1:9", "127.0.0.1:9", 1.0, 1 << 30, 1)
COMMAND = (p.CommandHello(p.PEER_VERSION), om.ListJobs())
DOORS = {
    # An operator may come in, to host folds; that it takes no part is in tests/contract/test_gateway_tls.py.
    "client": Door("listen", (HELLO,), cm.Welcome, cm.ToClient, "client", ("reader",)),
    "command": Door("control", COMMAND, om.Answer, om.ToCli | p.PeerRefusal, "operator", ("client", "node")),
    "node": Door("control", (JOINS,), p.PeerWelcome, p.Greeting, "node", ("client", "operator", "reader")),
}
Issue = Callable[[Authority, Role], tuple[bytes, bytes]]
WRONG: dict[str, Issue] = {
    "expired": lambda ca, role: ca.issue(role, NAME, since_days=40, days=-1),
    "not valid yet": lambda ca, role: ca.issue(role, NAME, since_days=-1),
    "another CA's": lambda ca, role: Authority().issue(role, NAME),
    "another cluster's": lambda ca, role: ca.issue(role, NAME, uris=[identity_uri("other", Identity(role, NAME))]),
    "nobody's": lambda ca, role: ca.issue(role, NAME, uris=[]),
    "of two roles": lambda ca, role: ca.issue(
        role, NAME, uris=[identity_uri(CLUSTER, Identity(each, NAME)) for each in ("node", "operator")]
    ),
    "revoked": lambda ca, role: ca.issue(role, "revoked"),
}


@pytest.fixture
def ca() -> Authority:
    return Authority()


@pytest.fixture
def node(ca: Authority, state_dir: Path, start_node: Callable[..., Node]) -> Node:
    ca.enroll(node_folder(state_dir), "node", "first", ["127.0.0.1"])
    found = start_node("--listen", "0.0.0.0:0", "--control", "0.0.0.0:0", "--redirector", "unix")
    for role in ("client", "operator", "node"):
        found.lifl("cert", "revoke", f"{role}/revoked")
    return found


def context(ca: Authority, folder: Path, issued: tuple[bytes, bytes] | None) -> ssl.SSLContext:
    """What somebody with that certificate, or none, dials with."""
    roots = folder / "ca.pem"
    save(folder, ca=ca.pem)
    if issued is None:
        return client_context(roots.read_text())
    save(folder, certificate=issued[0], key=issued[1])
    return client_context(roots, load(folder))


@contextlib.contextmanager
def dialled(node: Node, key: str, made: ssl.SSLContext | None) -> Iterator[socket.socket | TlsSocket]:
    """A connection to a door; with no context in plain."""
    where = node.address if key == "listen" else node.info["control"]
    _, port = split_address(where)
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as raw:
        if made is None:
            yield raw
            return
        made.check_hostname = False
        sock = TlsSocket(raw, made, host="127.0.0.1")
        sock.do_handshake()
        yield sock


def heard(node: Node, door: Door, made: ssl.SSLContext | None) -> Message | None:
    """The first word at a door; None: the connection was ended without one."""
    decoder: FrameDecoder[Any] = FrameDecoder(door.kinds)
    try:
        with dialled(node, door.address, made) as sock:
            for frame in door.frames:
                sock.sendall(encode(frame))
            while (message := decoder.next_message()) is None:
                data = sock.recv(decoder.missing_bytes)
                if not data:
                    return None
                decoder.feed(data)
            return message  # type: ignore[no-any-return]
    except OSError:  # an alert is one
        return None


def is_no(answer: Message | None) -> bool:
    return answer is None or isinstance(answer, cm.Refusal | p.PeerRefusal)


@pytest.mark.parametrize("name", DOORS)
def test_who_is_wrong_in_one_way_gets_in_at_no_door(node: Node, ca: Authority, tmp_path: Path, name: str) -> None:
    door = DOORS[name]
    for how, issue in WRONG.items():
        answer = heard(node, door, context(ca, tmp_path / how, issue(ca, door.role)))
        assert is_no(answer), (how, answer)
    for role in door.others:
        answer = heard(node, door, context(ca, tmp_path / role, ca.issue(role, NAME)))
        assert is_no(answer), (role, answer)
        assert answer is not None, f"a {role} is told why"
    assert is_no(heard(node, door, context(ca, tmp_path / "none", None)))
    plain = heard(node, door, None)
    assert plain is not None, "who comes in plain is told so"
    assert is_no(plain)
    right = heard(node, door, context(ca, tmp_path / "right", ca.issue(door.role, NAME)))
    assert isinstance(right, door.welcome), right


def test_a_revoked_or_foreign_certificate_is_not_renewed(node: Node, ca: Authority, tmp_path: Path) -> None:
    ask = Door("control", (e.Renew(p.PEER_VERSION, new_key().request, ()),), e.Enrolled, e.Answer, "client", ())
    for how, issue in WRONG.items():
        assert is_no(heard(node, ask, context(ca, tmp_path / how, issue(ca, "client")))), how


def test_a_certificate_for_one_job_or_name_is_none_for_another(node: Node, ca: Authority, tmp_path: Path) -> None:
    made = context(ca, tmp_path / "own", ca.issue("client", NAME))
    other = DOORS["client"]._replace(frames=(cm.Hello(cm.PROTOCOL_VERSION, "somebody-else"),))
    answer = heard(node, other, made)
    assert isinstance(answer, cm.Refusal)
    assert answer.code == "not-own-name"


def test_bytes_that_are_none_of_a_doors_end_that_connection_alone(node: Node, ca: Authority, tmp_path: Path) -> None:
    made = context(ca, tmp_path / "own", ca.issue("client", NAME))
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(60), b"\x00" * 64, b"\xff" * 64):
        for key in ("listen", "control"):
            with dialled(node, key, None) as raw, contextlib.suppress(OSError, RemoteFault):
                raw.sendall(data)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65_536):
                    pass
    assert isinstance(heard(node, DOORS["client"], made), cm.Welcome)
