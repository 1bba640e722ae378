"""A node that is silent is left for another one that answers, and no node is left for being busy.

The gateways are real, their daemons stand-ins: what gives no sign here is a `lifld` that is stopped, or cut off.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from gateway_standin import WAIT_S, Peer, StandIn
from test_client import LAYOUT, as_bytes, update

from lifl import Client
from lifl.client import liveness
from lifl.client.dialling import Dialler
from lifl.client.stream import greeted
from lifl.core.errors import Refused
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import FrameDecoder, encode


@pytest.fixture
def pair() -> Iterator[tuple[StandIn, StandIn]]:
    """Two nodes, the first of which tells clients of the second."""
    first, second = StandIn(), StandIn()
    try:
        for node, other in ((first, second), (second, first)):
            node.open_job("digits", LAYOUT)
            node.put_model(as_bytes(update(99)))
            node.react = lambda message, node=node, other=other: play(node, message, other.tcp)
        yield first, second
    finally:
        for node in (first, second):
            os.kill(node.process.pid, signal.SIGCONT)
            node.close()


def play(node: StandIn, message: Any, *others: str) -> None:
    """A daemon that lives, and selects who comes for the first round."""
    if isinstance(message, gm.AskPulse):
        node.send(gm.Pulse(others))
    if isinstance(message, gm.ClientJoined):
        node.select(message.client, "digits", 1)


def mute(node: StandIn) -> None:
    """Its daemon stands still: whatever it is told, it does nothing."""
    node.react = lambda message: None
    node._answer = lambda message: None  # type: ignore[method-assign]


class Trainer(threading.Thread):
    """Takes part in one round, and waits for its commit."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.client = Client(address, job="digits", client="c1")
        self.committed: bool | None = None
        self.start()

    def run(self) -> None:
        with self.client as client:
            for round_ in client.rounds():
                assert round_.submit(update(1), 1.0).accepted
                self.committed = client.wait_committed(round_)
                return

    def ends(self) -> None:
        self.join(WAIT_S)
        assert self.committed


def commit(node: StandIn) -> None:
    node.deliver(node.conns["c1"], cm.Committed("digits", 1, True))


# ---- the gateway -----------------------------------------------------------------------------------------------------


def test_a_ping_is_answered_when_the_daemon_gives_a_sign(pair: tuple[StandIn, StandIn]) -> None:
    node, other = pair
    peer = Peer(node)
    assert peer.hello().knows == ()
    peer.send(cm.Ping())
    assert peer.receive() == cm.Pong(2.0, (other.tcp,))
    peer.close()


def test_a_ping_is_not_answered_without_one_and_the_daemon_is_asked_once(pair: tuple[StandIn, StandIn]) -> None:
    node, _ = pair
    node.react = lambda message: None
    peers = [Peer(node) for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.hello(f"c{number}")
        peer.send(cm.Ping())
        peer.send(cm.Join("digits"))
    node.wait_for(gm.ClientJoined, 3)
    assert node.count(gm.AskPulse) == 1
    assert all(peer.is_quiet() for peer in peers)
    node.send(gm.Pulse())
    assert [peer.receive() for peer in peers] == [cm.Pong(2.0)] * 3
    for peer in peers:
        peer.close()


def test_a_client_is_told_what_the_gateway_knows_when_it_knows_something_itself(pair: tuple[StandIn, StandIn]) -> None:
    node, _ = pair
    peer = Peer(node)
    peer.send(cm.Hello(cm.PROTOCOL_VERSION, "c1", knows=("ping", "what-a-later-version-knows")))
    assert peer.receive().knows == cm.KNOWS
    peer.close()


def test_an_earlier_peer_is_sent_nothing_that_it_does_not_know() -> None:
    hello = msgspec.msgpack.decode(msgspec.msgpack.encode(cm.Hello(1, "c1")))
    assert hello == {"type": "Hello", "version": 1, "client": "c1"}
    assert msgspec.msgpack.decode(cm.packed(cm.Welcome(1, "n"))) == {"type": "Welcome", "version": 1, "node": "n"}


# ---- the client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["the gateway is stopped", "the daemon is stopped"])
def test_who_holds_an_update_goes_to_the_next_gateway(pair: tuple[StandIn, StandIn], how: str) -> None:
    node, other = pair
    trainer = Trainer(node.tcp)
    node.wait_for(gm.Sealed)
    node.wait_for(gm.AskPulse)
    if how == "the gateway is stopped":
        os.kill(node.process.pid, signal.SIGSTOP)
    else:
        mute(node)
    assert other.wait_for(gm.ClientJoined).holding == 1
    commit(other)
    trainer.ends()


def test_one_that_says_nothing_from_the_beginning_is_left_soon(
    pair: tuple[StandIn, StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = pair
    for name in ("SILENT_S", "ANSWER_S"):
        monkeypatch.setattr(liveness, name, 2 * WAIT_S)
    mute(node)
    trainer = Trainer(f"{node.tcp},{other.tcp}")
    other.wait_for(gm.Sealed)
    commit(other)
    trainer.ends()


def test_one_that_sends_its_clients_away_is_tried_once_more(pair: tuple[StandIn, StandIn]) -> None:
    """All nodes do when the coordinator changes: the next one may be the one that is lost."""
    node, other = pair
    trainer = Trainer(f"{node.tcp},{other.tcp}")
    node.wait_for(gm.Sealed)
    node.send(gm.HangUp())
    node.wait_for(gm.ClientJoined, 2)
    commit(node)
    trainer.ends()
    assert not other.count(gm.ClientJoined)


def test_one_that_sends_its_clients_away_for_good_is_left(pair: tuple[StandIn, StandIn]) -> None:
    node, other = pair
    trainer = Trainer(f"{node.tcp},{other.tcp}")
    node.wait_for(gm.Sealed)
    node.react = lambda message: node.send(gm.HangUp())
    node.send(gm.HangUp())
    assert other.wait_for(gm.ClientJoined).holding == 1
    commit(other)
    trainer.ends()


def test_who_waits_to_be_granted_goes_to_the_next_gateway(pair: tuple[StandIn, StandIn]) -> None:
    node, other = pair
    node.holding_back = []
    trainer = Trainer(node.tcp)
    node.wait_for(gm.Admit)
    mute(node)
    other.wait_for(gm.Sealed)
    commit(other)
    trainer.ends()


def test_who_waits_elsewhere_for_a_word_of_home_notices_that_home_is_silent(pair: tuple[StandIn, StandIn]) -> None:
    """Its update is at another gateway, which lives; that it is accepted is told over its own."""
    node, other = pair
    selected = cm.Selected("digits", 1, 60.0, (), LAYOUT.data_bytes, gateway=other.tcp)

    def react(message: Any) -> None:
        if isinstance(message, gm.AskPulse):
            node.send(gm.Pulse((other.tcp,)))
        if isinstance(message, gm.ClientJoined):
            node.send(gm.TellClient(node.conns["c1"], cm.packed(selected), "digits"))

    def says_nothing_of_the_first(message: gm.FromGateway) -> None:
        if isinstance(message, gm.Sealed) and not other.count(gm.ClientJoined):
            return
        answer(message)

    answer, other._answer, node.react = other._answer, says_nothing_of_the_first, react  # type: ignore[method-assign]
    trainer = Trainer(node.tcp)
    other.wait_for(gm.Sealed)
    mute(node)
    other.wait_for(gm.ClientJoined)
    other.wait_for(gm.Sealed, 2)
    commit(other)
    trainer.ends()


def test_who_waits_to_be_granted_stays_where_the_node_is_only_busy(pair: tuple[StandIn, StandIn]) -> None:
    node, other = pair
    node.holding_back = []
    trainer = Trainer(node.tcp)
    node.wait_for(gm.Admit)
    node.wait_for(gm.AskPulse, node.count(gm.AskPulse) + 2)
    (grant,) = node.holding_back
    node.send(grant)
    node.wait_for(gm.Sealed)
    commit(node)
    trainer.ends()
    assert not other.count(gm.ClientJoined)


def test_who_is_cut_off_itself_stays_where_it_is(
    pair: tuple[StandIn, StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = pair
    asked: list[str] = []
    tried = threading.Event()

    def probe(address: str, client: str, _opened: Any = None) -> cm.Pong | None:
        asked.append(address)
        answer = None if other.tcp in asked else ask(address, client)
        if len(asked) == 3:
            tried.set()
        return answer

    ask = liveness.probe
    monkeypatch.setattr(liveness, "probe", probe)
    for name in ("SILENT_S", "ANSWER_S"):
        monkeypatch.setattr(liveness, name, 0.5)
    trainer = Trainer(node.tcp)
    node.wait_for(gm.Sealed)
    node.wait_for(gm.AskPulse)
    react, node.react = node.react, lambda message: None
    assert tried.wait(WAIT_S)
    node.react = react
    commit(node)
    trainer.ends()
    assert node.count(gm.ClientJoined) == 1 and not other.count(gm.ClientJoined)


def test_what_a_gateway_is_told_by_addresses_that_are_none_is_not_used() -> None:
    assert sorted(liveness.usable(("a:1", "/etc/passwd", "unix:/x", "b", "b:99999", "[::1]:7"))) == ["[::1]:7", "a:1"]


@pytest.mark.parametrize(("apart", "works"), [(1, True), (2, False)])
def test_a_client_works_with_a_gateway_of_the_next_version_and_no_later_one(apart: int, works: bool) -> None:
    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(4096)
            sock.sendall(encode(cm.Welcome(cm.PROTOCOL_VERSION + apart, "n")))
            sock.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        address = "{}:{}".format(*listener.getsockname())
        if works:
            greeted(address, WAIT_S, "c1", False, Dialler(())).close()
        else:
            with pytest.raises(Refused, match=r"upgrade this client .* on the node"):
                greeted(address, WAIT_S, "c1", False, Dialler(()))
        server.join()


def test_a_gateway_of_an_earlier_version_is_told_no_more_than_it_knows() -> None:
    hellos = []

    def serve(listener: socket.socket) -> None:
        for answer in (cm.Refusal("protocol", "", "an unknown field"), cm.Welcome(cm.PROTOCOL_VERSION, "n")):
            sock, _ = listener.accept()
            with sock:
                decoder: FrameDecoder[cm.FromClient] = FrameDecoder(cm.FromClient)
                while (message := decoder.next_message()) is None:
                    decoder.feed(sock.recv(4096))
                hellos.append(message)
                sock.sendall(encode(answer))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        stream = greeted(
            "{}:{}".format(*listener.getsockname()), WAIT_S, "c1", False, Dialler((), None, False, lambda sock: None)
        )
        server.join()
        assert not stream.knows
        stream.close()
    assert hellos == [cm.Hello(1, "c1", knows=cm.KNOWS), cm.Hello(1, "c1")]
