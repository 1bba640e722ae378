"""A node on loopback takes clients of its own account alone: who has read its cookie, and nobody else by TCP."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_standin import WAIT_S, Peer, StandIn
from test_client import LAYOUT, play, update

from lifl import Client
from lifl.client import Refused
from lifl.core.errors import ResourceFault
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.trust.cookie import COOKIE_BYTES, NAME, is_proof, proof_of
from lifl.tls import cookie_file


@pytest.fixture
def node(tmp_path: Path) -> Iterator[StandIn]:
    standin = StandIn(cookie=cookie_file.made(tmp_path))
    standin.open_job("digits", LAYOUT)
    standin.put_model(bytes(LAYOUT.data_bytes))
    try:
        yield standin
    finally:
        standin.close()


def greeted(node: StandIn, peer: Peer, client: str = "c1") -> cm.Challenge:
    """What is asked of who says Hello."""
    peer.send(cm.Hello(cm.PROTOCOL_VERSION, client, knows=cm.KNOWS))
    asked = peer.receive()
    assert isinstance(asked, cm.Challenge), asked
    assert asked.cookie == str(node.cookie)
    return asked


def right(node: StandIn, asked: cm.Challenge) -> str:
    assert node.cookie is not None
    return proof_of(node.cookie.read_bytes(), asked.nonce, node.tcp)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_client_of_the_account_finds_the_cookie_by_itself(node: StandIn, host: str) -> None:
    node.react = lambda message: play(node, message, 1)
    with Client(f"{host}:{node.address[1]}", job="digits", client="c1") as client:
        for round_ in client.rounds():
            assert round_.submit(update(round_.number), weight=2.0).accepted
    assert node.count(gm.Sealed) == 1


def test_by_the_nodes_socket_nothing_is_asked(node: StandIn) -> None:
    peer = Peer(node, unix=True)
    peer.hello("c1")
    peer.close()


def test_an_earlier_client_is_told_how_to_come(node: StandIn) -> None:
    peer = Peer(node)
    peer.send(cm.Hello(cm.PROTOCOL_VERSION, "c1"))
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal)
    assert (refusal.code, refusal.field) == ("no-cookie", "node")
    assert "state folder" in refusal.text
    assert peer.receive() is None
    peer.close()


WRONG: dict[str, Callable[[StandIn, cm.Challenge, cm.Challenge], str]] = {
    "nothing": lambda node, asked, before: "",
    "another cookie": lambda node, asked, before: proof_of(bytes(COOKIE_BYTES), asked.nonce, node.tcp),
    "an earlier proof": lambda node, asked, before: right(node, before),
    "a proof for another address": lambda node, asked, before: proof_of(
        (node.cookie or Path()).read_bytes(), asked.nonce, "127.0.0.1:1"
    ),
    "no ASCII": lambda node, asked, before: "\xe9" * 64,
}


@pytest.mark.parametrize("how", WRONG)
def test_who_has_not_read_it_gets_nothing(node: StandIn, how: str) -> None:
    first = Peer(node)
    before = greeted(node, first)
    first.send(cm.Prove(right(node, before)))
    assert isinstance(first.receive(), cm.Welcome)
    stranger = Peer(node)
    asked = greeted(node, stranger, "stranger")
    assert asked.nonce != before.nonce
    stranger.send(cm.Prove(WRONG[how](node, asked, before)))
    refusal = stranger.receive()
    assert isinstance(refusal, cm.Refusal)
    assert refusal.code == "wrong-cookie"
    assert stranger.receive() is None
    first.send(cm.Join("digits"))
    assert node.wait_for(gm.ClientJoined).client == "c1", "the other goes on"
    assert node.count(gm.Greeted) == 1, "lifld hears of a stranger nothing but that it was refused"
    for peer in (first, stranger):
        peer.close()


@pytest.mark.parametrize(
    "message",
    [cm.Join("digits"), cm.GetModel("digits", 1), cm.Hello(1, "c1"), cm.Ping()],
    ids=lambda m: type(m).__name__,
)
def test_nothing_else_is_answered_before_the_proof(node: StandIn, message: cm.FromClient) -> None:
    peer = Peer(node)
    greeted(node, peer)
    peer.send(message)
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal)
    assert refusal.code == "protocol"
    assert peer.receive() is None
    assert not node.count(gm.ClientJoined) + node.count(gm.WantModel)
    peer.close()


def test_a_proof_is_due_in_the_time_for_hello(tmp_path: Path) -> None:
    settings = "from lifl.core import limits; limits.HELLO_S = 0.3"
    standin = StandIn(cookie=cookie_file.made(tmp_path), settings=settings)
    try:
        peer = Peer(standin)
        greeted(standin, peer)
        assert peer.receive() is None
        peer.close()
    finally:
        standin.close()


# ---- a client, and who listens in its node's place -------------------------------------------------------------------


@contextlib.contextmanager
def listener_that_names(cookie: str) -> Iterator[tuple[str, list[object]]]:
    """A listener on loopback that names a file as its cookie; its address, and what it has heard."""
    heard: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(WAIT_S)

        def serve() -> None:
            decoder: FrameDecoder[cm.FromClient] = FrameDecoder(cm.FromClient)
            sock, _ = listening.accept()
            with sock:
                sock.settimeout(WAIT_S)
                asked = False
                while data := sock.recv(65_536):
                    decoder.feed(data)
                    while (message := decoder.next_message()) is not None:
                        heard.append(message)
                        if not asked:
                            sock.sendall(encode(cm.Challenge("0" * 64, cookie)))
                            asked = True
                        else:
                            sock.sendall(encode(cm.Refusal("wrong-cookie", "node", "no")))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "{}:{}".format(*listening.getsockname()), heard
        finally:
            thread.join(WAIT_S)


def refused(address: str) -> Refused:
    with (
        Client(address, job="digits", client="c1", give_up_after_s=0.0) as client,
        pytest.raises(Refused) as caught,
    ):
        next(client.rounds())
    return caught.value


def test_who_listens_elsewhere_gets_a_proof_that_is_of_no_use_to_it(node: StandIn) -> None:
    assert node.cookie is not None
    with listener_that_names(str(node.cookie)) as (address, heard):
        assert refused(address).code == "wrong-cookie"
    (proof,) = (each.proof for each in heard if isinstance(each, cm.Prove))
    cookie = node.cookie.read_bytes()
    assert is_proof(proof, cookie, "0" * 64, address)
    assert not is_proof(proof, cookie, "0" * 64, node.tcp)
    assert cookie not in b"".join(encode(each) for each in heard)  # type: ignore[arg-type]


def _other(folder: Path) -> Path:
    (folder / "other").write_bytes(bytes(COOKIE_BYTES))
    return folder / "other"


def _long(folder: Path) -> Path:
    (folder / NAME).write_bytes(bytes(COOKIE_BYTES + 1))
    (folder / NAME).chmod(0o600)
    return folder / NAME


def _open(folder: Path) -> Path:
    path = cookie_file.made(folder)
    path.chmod(0o640)
    return path


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / NAME, 0o600)
    return folder / NAME


def _link(folder: Path) -> Path:
    (folder / "real").mkdir()
    (folder / NAME).symlink_to(cookie_file.made(folder / "real"))
    return folder / NAME


@pytest.mark.parametrize(
    "made",
    [_other, _long, _open, _pipe, _link, lambda folder: folder / NAME, lambda folder: Path(NAME)],
    ids=["another name", "too long", "open to others", "a pipe", "a link", "none", "a relative path"],
)
def test_what_is_no_cookie_of_this_account_is_not_read(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    with listener_that_names(str(made(tmp_path))) as (address, heard):
        fault = refused(address)
    assert fault.code == "no-cookie"
    assert "own account alone" in fault.text and "lifl enroll" in fault.text
    assert [type(each) for each in heard] == [cm.Hello]


# ---- the file -------------------------------------------------------------------------------------------------------


def test_the_file_is_its_owners_alone_and_stays_what_it_is(tmp_path: Path) -> None:
    path = cookie_file.made(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    first = cookie_file.read(path)
    path.chmod(0o644)
    assert cookie_file.read(cookie_file.made(tmp_path)) == first
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("nbytes", [0, COOKIE_BYTES - 1, COOKIE_BYTES + 1])
def test_one_that_is_cut_or_too_long_is_made_again(tmp_path: Path, nbytes: int) -> None:
    (tmp_path / NAME).write_bytes(bytes(nbytes))
    with pytest.raises(ResourceFault):
        cookie_file.read(tmp_path / NAME)
    made = cookie_file.read(cookie_file.made(tmp_path))
    assert len(made) == COOKIE_BYTES and any(made)
