"""Large bodies over several connections: updates, models and partials, and who tries what with them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from certificates import Authority
from gateway_standin import WAIT_S, Peer, StandIn
from test_gateway_peer import BRANCH, EPOCH, META, QUICK, Node

from lifl import Client
from lifl.core.errors import LocalFault
from lifl.core.fields import Message
from lifl.core.ids import Key
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.body_ranges import STREAMS, BodyRange, body_ranges
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.schema import Layout, TensorSpec
from lifl.shm.checksum import checksum

STREAMS_HERE = 3
LAYOUT = Layout((TensorSpec("w", "float32", (2_000_000,)), TensorSpec("v", "float64", (60_001,))))
RANGES = body_ranges(LAYOUT.data_bytes, STREAMS_HERE)
ARENA_BYTES = 64 << 20


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {tensor.name: draw.random(tensor.size, np.dtype(tensor.dtype)) for tensor in LAYOUT.tensors}


def as_bytes(arrays: dict[str, np.ndarray]) -> bytearray:
    data = bytearray(LAYOUT.data_bytes)
    for tensor, offset in zip(LAYOUT.tensors, LAYOUT.offsets, strict=True):
        raw = arrays[tensor.name].tobytes()
        data[offset : offset + len(raw)] = raw
    return data


def play(node: StandIn, message: Message, rounds: int = 1) -> None:
    """The coordinator's part for client c1."""
    if isinstance(message, gm.ClientJoined):
        node.select(message.client, "large", 1 + sum(key[0] == "large" for key in node.accepted))
    if isinstance(message, gm.Sealed):
        done = sum(key[0] == "large" for key in node.accepted)
        node.deliver(message.conn, cm.Committed("large", done, True))
        if done == rounds:
            node.deliver(message.conn, cm.JobOver("large", "finished"))
        else:
            node.select("c1", "large", done + 1)


@contextlib.contextmanager
def running(**how: object) -> Iterator[StandIn]:
    node = StandIn(ARENA_BYTES, **{"streams": STREAMS_HERE, **how})  # type: ignore[arg-type]
    node.open_job("large", LAYOUT)
    try:
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[StandIn]:
    with running() as node:
        yield node


@pytest.fixture
def node(shared: StandIn) -> Iterator[StandIn]:
    """The one of all tests; each leaves no object in its arena."""
    shared.react = lambda message: None
    yield shared
    for key in shared.accepted.values():
        shared.arena.free(key)
    shared.accepted.clear()
    if shared.model is not None:
        shared.arena.free(shared.model)
        shared.model = None
    shared.wait_until_empty()


def train(node: StandIn, address: str, rounds: int = 1, **how: object) -> list[dict[str, np.ndarray]]:
    """Take part as c1; return the models."""
    node.react = lambda message: play(node, message, rounds)
    models = []
    with Client(address, job="large", client="c1", **how) as client:  # type: ignore[arg-type]
        for round_ in client.rounds():
            models.append(round_.model)
            told: list[tuple[int, int]] = []
            done = round_.submit(tensors(round_.number), 2.0, progress=lambda *sent: told.append(sent))  # noqa: B023
            assert done.accepted
            assert told == sorted(told) and told[-1] == (LAYOUT.data_bytes, LAYOUT.data_bytes)
    return models


def greeted(node: StandIn) -> int:
    return node.count(gm.Greeted)


class Asker(Peer):
    """A connection that asks for an update of its own to be taken over several."""

    def __init__(self, node: StandIn, client: str = "c9") -> None:
        super().__init__(node)
        self.send(cm.Hello(cm.PROTOCOL_VERSION, client, knows=(STREAMS,)))
        welcome = self.receive()
        assert isinstance(welcome, cm.Welcome) and welcome.streams == STREAMS_HERE

    def submit(self, number: int = 1, streams: int = STREAMS_HERE) -> str:
        """Return the transfer's id."""
        self.send(cm.Submit("large", number, 1.0, LAYOUT.data_bytes, LAYOUT.tensors, streams=streams))
        go = self.receive()
        assert isinstance(go, cm.Go) and isinstance(go.transfer, str)
        return go.transfer

    def carry(self, transfer: str, number: int, data: bytearray) -> None:
        begin, end = RANGES[number]
        self.send(BodyRange(transfer, number))
        self.raw(data[begin:end])

    def is_cut(self) -> bool:
        """The gateway has closed it, without a word."""
        try:
            return self.receive() is None
        except ConnectionResetError:
            return True


# ---- those who take part ---------------------------------------------------------------------------------------------


def test_a_model_and_an_update_go_over_three_connections(node: StandIn) -> None:
    node.put_model(bytes(as_bytes(tensors(7))))
    before = greeted(node)
    models = train(node, node.tcp, streams=5)
    assert as_bytes(models[0]) == as_bytes(tensors(7))
    key = node.accepted["large", 1, "c1"]
    assert node.arena.data(key) == as_bytes(tensors(1))
    assert node.arena.entry(key).checksum == checksum(as_bytes(tensors(1)))
    assert greeted(node) - before == 1 + 2 + 2
    assert {message.who for message in node.said if isinstance(message, gm.Greeted)} == {"127.0.0.1"}


@pytest.mark.parametrize("how", ["the client has one", "the machine is of the client's socket"])
def test_one_connection_where_nobody_asked_for_more(node: StandIn, how: str) -> None:
    """By itself none is split without TLS, whatever the cores; and what is written in place not at all."""
    node.put_model(bytes(as_bytes(tensors(7))))
    before = greeted(node)
    if how == "the client has one":
        models = train(node, node.tcp)
    else:
        models = train(node, f"unix:{node.unix}", streams=3, direct=False)
    assert as_bytes(models[0]) == as_bytes(tensors(7))
    assert greeted(node) - before == 1


def test_what_is_no_number_of_connections_is_told() -> None:
    for streams in (-1, 9, 1.5):
        with pytest.raises(LocalFault, match="streams="):
            Client("127.0.0.1:1", job="j", client="c", streams=streams)  # type: ignore[arg-type]


def test_where_a_client_may_have_two_connections_it_makes_two_do() -> None:
    """And has the next body go over one, so that it does not ask in vain each time."""
    with running(connections_per_client=2) as node:
        node.put_model(bytes(as_bytes(tensors(7))))
        assert as_bytes(train(node, node.tcp, streams=3)[0]) == as_bytes(tensors(7))
        assert greeted(node) == 1 + 1
        assert node.arena.data(node.accepted["large", 1, "c1"]) == as_bytes(tensors(1))


def test_an_earlier_node_is_told_words_that_it_takes() -> None:
    """The first ones take eight words, none takes a Hello again over the same connection."""
    heard: list[cm.Hello] = []

    def serve(listener: socket.socket) -> None:
        for answer in (cm.Refusal("protocol", "", "Expected `array` of length <= 8 - at `$.knows`"), None):
            with listener.accept()[0] as sock:
                decoder: FrameDecoder[cm.FromClient] = FrameDecoder(cm.FromClient)
                while (message := decoder.next_message()) is None:
                    decoder.feed(sock.recv(1 << 16))
                heard.append(message)
                told = cm.JobOver("large", "finished")
                sock.sendall(encode(answer) if answer else encode(cm.Welcome(1, "n", knows=cm.KNOWS)) + encode(told))
                while sock.recv(1 << 16):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        address = "{}:{}".format(*listener.getsockname())
        with Client(address, job="large", client="c1", streams=3) as client:
            assert list(client.rounds()) == []
        server.join(WAIT_S)
    assert [hello.knows for hello in heard] == [(*cm.KNOWS, STREAMS), cm.KNOWS]


class Cutting:
    """A wire to a node, whose connection `cut` passes `most` bytes forth and ends both ways then."""

    def __init__(self, to: tuple[str, int], cut: int, most: int) -> None:
        self.to, self.cut, self.most = to, cut, most
        self.connections = 0
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.to)
            except OSError:
                return
            self.connections += 1
            most = self.most if self.connections == self.cut else -1
            for source, target, passes in ((near, far, most), (far, near, -1)):
                self.threads.append(threading.Thread(target=self._pump, args=(source, target, passes)))
                self.threads[-1].start()

    def _pump(self, source: socket.socket, target: socket.socket, most: int) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                if 0 <= most < passed:
                    self.reached.set()
                    self.go_on.wait(WAIT_S)
                    break
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(WAIT_S)


@pytest.mark.parametrize("what", ["a side connection is lost", "the first one is lost"])
def test_an_update_whose_connection_is_lost_is_sent_again_over_one(node: StandIn, what: str) -> None:
    """The second round's update is split again."""
    node.model = None
    node.react = lambda message: play(node, message, 2)
    before, aborted = greeted(node), node.count(gm.Aborted)
    wire = Cutting(node.address, 2 if what.startswith("a side") else 1, 1 << 20)
    try:
        with Client(wire.address, job="large", client="c1", streams=3) as client:
            for round_ in client.rounds(models=False):
                assert round_.submit(tensors(round_.number), 2.0).accepted
    finally:
        wire.close()
    assert [node.arena.data(node.accepted["large", n, "c1"]) == as_bytes(tensors(n)) for n in (1, 2)] == [True] * 2
    assert node.count(gm.Aborted) - aborted == 1
    assert greeted(node) - before == 1 + 2 + 1 + 2


def test_a_gateway_that_is_killed_in_the_middle_gets_the_update_again() -> None:
    with running() as node:
        wire = Cutting(node.address, 3, 1 << 20)
        wire.go_on.clear()
        node.react = lambda message: play(node, message)
        done: list[bool] = []

        def take_part() -> None:
            with Client(wire.address, job="large", client="c1", streams=3) as client:
                done.extend(round_.submit(tensors(), 2.0).accepted for round_ in client.rounds(models=False))

        trainer = threading.Thread(target=take_part)
        trainer.start()
        try:
            assert wire.reached.wait(WAIT_S)
            node.kill()
            node.start_again()
            wire.go_on.set()
            trainer.join(WAIT_S)
        finally:
            wire.go_on.set()
            wire.close()
        assert done == [True]
        assert node.arena.data(node.accepted["large", 1, "c1"]) == as_bytes(tensors())
        assert node.live() == 1


# ---- those who try things --------------------------------------------------------------------------------------------


def test_a_range_that_is_not_waited_for_is_cut_and_harms_no_transfer(node: StandIn) -> None:
    data = as_bytes(tensors(3))
    with contextlib.ExitStack() as opened:

        def side(client: str = "c9") -> Asker:
            made = Asker(node, client)
            opened.callback(made.close)
            return made

        first = side()
        transfer = first.submit()
        stranger, guesser, beyond = side("c8"), side(), side()
        stranger.send(BodyRange(transfer, 1))
        guesser.send(BodyRange("0" * len(transfer), 1))
        beyond.send(BodyRange(transfer, STREAMS_HERE))
        assert stranger.is_cut() and guesser.is_cut() and beyond.is_cut()
        right = side()
        right.carry(transfer, 1, data)
        twice = side()
        twice.send(BodyRange(transfer, 1))
        assert twice.is_cut()
        other = side()
        other.carry(transfer, 2, data)
        first.raw(data[: RANGES[0][1]])
        assert first.receive() == cm.Accepted("large", 1)
        assert node.arena.data(node.accepted["large", 1, "c9"]) == data
        late = side()
        late.send(BodyRange(transfer, 2))
        assert late.is_cut()
        told = [message for message in node.said if isinstance(message, gm.ClientRefused)]
        assert {(message.client, message.code) for message in told} >= {
            ("c8", "unknown-transfer"),
            ("c9", "unknown-transfer"),
        }
        transfer = right.submit(2)  # a side connection is like any other: it asks for one of its own
        for number in (1, 2):
            (other if number == 1 else first).carry(transfer, number, data)
        right.raw(data[: RANGES[0][1]])
        assert right.receive() == cm.Accepted("large", 2)


@pytest.mark.parametrize("gone", ["first", "side"])
def test_one_connection_that_ends_ends_all_and_the_slot_is_free(node: StandIn, gone: str) -> None:
    data = as_bytes(tensors(3))
    aborted = node.count(gm.Aborted)
    first, side, silent = Asker(node), Asker(node), Asker(node)
    transfer = first.submit()
    side.send(BodyRange(transfer, 1))
    side.raw(data[:100_000])
    if gone == "first":
        first.raw(data[: RANGES[0][1]])  # all of its own
        first.sock.shutdown(socket.SHUT_RDWR)
        side.sock.shutdown(socket.SHUT_WR)
    else:
        side.sock.shutdown(socket.SHUT_RDWR)
        assert first.is_cut()
    node.wait_for(gm.Aborted, aborted + 1)
    assert not node.keys
    assert silent.is_quiet()  # it carried nothing
    for peer in (first, side, silent):
        peer.close()


def test_a_number_that_is_not_finite_is_found_in_whatever_range_it_comes(node: StandIn) -> None:
    first, sides = Asker(node), [Asker(node) for _ in RANGES[1:]]
    for name, place, at in (("w", 1_999_999, 2), ("w", 3, 0), ("v", 60_000, 0), ("w", 800_000, 1)):
        arrays = tensors(3)
        arrays[name][place] = np.nan
        data = as_bytes(arrays)
        offset = LAYOUT.offsets[[tensor.name for tensor in LAYOUT.tensors].index(name)]
        assert RANGES[at][0] <= offset + place * arrays[name].itemsize < RANGES[at][1]
        transfer = first.submit()
        for number, side in enumerate(sides, 1):
            side.carry(transfer, number, data)
        first.raw(data[: RANGES[0][1]])
        refusal = first.receive()
        assert isinstance(refusal, cm.Refusal)
        assert (refusal.code, refusal.field) == ("not-finite", f"tensors.{name}")
        assert f"element {place} " in refusal.text
    for peer in (first, *sides):
        peer.close()


def test_more_connections_than_the_node_takes_are_none(node: StandIn) -> None:
    peer = Asker(node)
    peer.send(cm.Submit("large", 1, 1.0, LAYOUT.data_bytes, LAYOUT.tensors, streams=STREAMS_HERE + 1))
    assert peer.receive() == cm.Go("large", 1)
    peer.raw(as_bytes(tensors()))
    assert peer.receive() == cm.Accepted("large", 1)
    peer.close()


# ---- nodes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities of the nodes a and b, and of the client c1."""
    made, ca = tmp_path_factory.mktemp("identities"), Authority()
    for name in ("a", "b"):
        ca.enroll(made / name, "node", name, ["127.0.0.1"])
    ca.enroll(made / "c1", "client", "c1")
    return made


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[tuple[Node, Node]]:
    how = {"streams": STREAMS_HERE, "settings": QUICK}
    nodes = [Node(ARENA_BYTES, identity=folder / name, **how) for name in ("a", "b")]  # type: ignore[arg-type]
    for node in nodes:
        node.open_job("digits", LAYOUT)
        node.open_job("large", LAYOUT)
    try:
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.close()


def carried(a: Node, key: Key, address: str) -> gm.CarryEnded:
    before = a.count(gm.CarryEnded)
    a.carry(key, address)
    ended: gm.CarryEnded = a.wait_for(gm.CarryEnded, before + 1)
    return ended


@pytest.mark.parametrize("lost", [False, True], ids=["at once", "when a side connection is lost"])
def test_partials_and_models_travel_between_nodes_over_three_connections(pair: tuple[Node, Node], lost: bool) -> None:
    a, b = pair
    data = bytes(as_bytes(tensors(4)))
    before, branch = greeted(b), a.put_partial(data)
    wire = Cutting(b.address, 3, 1 << 20) if lost else None
    assert carried(a, branch, wire.address if wire else b.tcp).error == ""
    assert bytes(b.arena.data(b.landed)) == data
    assert bytes(b.arena.meta(b.landed)) == META
    assert b.arena.entry(b.landed).checksum == checksum(data)
    assert greeted(b) - before == 3 + lost  # the second try is over one
    b.put_model(data)
    before, fetched = greeted(b), a.count(gm.FetchEnded)
    key = a.fetch(b.tcp, len(data))
    assert a.wait_for(gm.FetchEnded, fetched + 1).error == ""
    assert bytes(a.arena.data(key)) == data
    assert a.arena.entry(key).checksum == checksum(data)
    assert greeted(b) - before == 3
    if wire is not None:
        wire.close()
    b.arena.free(b.accepted.pop(("digits", EPOCH, f"branch-{BRANCH}")))
    for node in pair:
        for held in [key for key, _ in node.arena.live()]:
            node.arena.free(held)


def test_over_tls_a_client_comes_by_its_certificate_each_time(pair: tuple[Node, Node], folder: Path) -> None:
    a, _ = pair
    a.put_model(bytes(as_bytes(tensors(7))))
    before = greeted(a)
    assert as_bytes(train(a, a.tcp, streams=3, identity=folder / "c1")[0]) == as_bytes(tensors(7))
    assert a.arena.data(a.accepted["large", 1, "c1"]) == as_bytes(tensors(1))
    assert [message.who for message in a.said if isinstance(message, gm.Greeted)][before:] == ["client c1"] * 5
