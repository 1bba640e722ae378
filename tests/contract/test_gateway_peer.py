"""Two gateways: partials carried, models fetched, and clients that are sent from one to the other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from gateway_standin import WAIT_S, Peer, StandIn

from lifl import Client
from lifl.core.errors import ArenaFull
from lifl.core.fields import Message
from lifl.core.ids import Key, Kind
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.core.schema import Layout, TensorSpec
from lifl.shm.checksum import checksum
from lifl.shm.layout import ObjectState

BRANCH = 7
EPOCH = 3 << 8
NODE = f"node-{0xABC:016x}"
QUICK = "import lifl.node.gateway.peer_transfer as k; k.PAUSE_FIRST_S = 0.02"
PATIENT = f"{QUICK}; k.PAUSE_MAX_S = 0.1; k.TRIES_MAX = 10_000"
"""For what must not depend on how long a gateway takes to start again."""
BYTES = 6_000_000
META = b"".join(pack_contribution(Contribution(f"c{n}", 1.0 + n, {"loss": 0.5})) for n in range(50))
LAYOUT = Layout((TensorSpec("w", "float32", (BYTES // 4,)),))


def body(seed: int = 0, nbytes: int = BYTES) -> bytes:
    return np.random.default_rng(seed).standard_normal(nbytes // 4).astype(np.float32).tobytes()


class Node(StandIn):
    """A daemon that takes partials, each (epoch, branch) once."""

    job = "digits"
    meta_room = len(META)
    refusal: cm.Refusal | None = None

    def _answer(self, message: gm.FromGateway) -> None:
        if isinstance(message, gm.Offered):
            self._offered(message)
        else:
            super()._answer(message)

    def _offered(self, offer: gm.Offered) -> None:
        client = f"branch-{offer.branch}"
        if (self.job, offer.epoch, client) in self.accepted:
            self.deliver(offer.conn, cm.Accepted("any", 0))
        elif self.refusal is not None:
            self.deliver(offer.conn, self.refusal)
        elif self.busy:
            self.busy -= 1
            self.deliver(offer.conn, cm.Busy("any", 0, 0.01))
        else:
            try:
                key = self.arena.alloc(Kind.PARTIAL, offer.number, offer.epoch, offer.data_bytes, self.meta_room)
            except ArenaFull:
                self.deliver(offer.conn, cm.Busy("any", 0, 0.01))
                return
            self.keys[key.pack()] = (self.job, offer.epoch, client, offer.conn)
            self.send(gm.Granted(offer.conn, key.pack(), b""))

    def put_partial(self, data: bytes, meta: bytes = META, members: int = 50, seal_with: int = 0) -> Key:
        key = self.arena.alloc(Kind.PARTIAL, 1, EPOCH, len(data), len(meta))
        self.arena.data(key)[:] = data
        self.arena.seal(key, 77.5, members, meta, seal_with)
        return key

    def carry(self, key: Key, address: str) -> None:
        self.send(gm.Carry(key.pack(), address, 1, EPOCH, BRANCH))

    def fetch(self, address: str, nbytes: int = BYTES) -> Key:
        key = self.arena.alloc(Kind.MODEL, 1, EPOCH, nbytes)
        self.send(gm.Fetch(key.pack(), address, "digits", 4))
        return key

    @property
    def landed(self) -> Key:
        return self.accepted[self.job, EPOCH, f"branch-{BRANCH}"]


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    nodes = [Node(settings=QUICK), Node(settings=QUICK)]
    for node in nodes:
        node.open_job("digits", LAYOUT)
    try:
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.close()


class Relay:
    """A wire between two gateways that changes the byte `place` of what goes forth, in its first `bad` connections.

    What comes back it changes when `backwards`.
    """

    def __init__(self, to: tuple[str, int], place: int, bad: int, backwards: bool = False) -> None:
        self.to, self.place, self.bad, self.backwards = to, place, bad, backwards
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(self.to)
            self.connections += 1
            place = self.place if self.connections <= self.bad else -1
            for source, target, forth in ((near, far, True), (far, near, False)):
                spoil = place if forth != self.backwards else -1
                thread = threading.Thread(target=self._pump, args=(source, target, spoil))
                self.threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, spoil: int) -> None:
        passed = 0
        try:
            while data := bytearray(source.recv(1 << 16)):
                if passed <= spoil < passed + len(data):
                    data[spoil - passed] ^= 0x10
                passed += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()


# ---- partials --------------------------------------------------------------------------------------------------------


def check_landed(node: Node, data: bytes) -> None:
    entry = node.arena.entry(node.landed)
    assert (entry.state, entry.kind) == (ObjectState.SEALED, Kind.PARTIAL)
    assert (entry.weight, entry.contributions) == (77.5, 50)
    assert bytes(node.arena.data(node.landed)) == data
    assert bytes(node.arena.meta(node.landed)) == META
    assert entry.checksum == checksum(data)
    assert node.live() == 1


@pytest.mark.parametrize("seal_with_checksum", [False, True])
def test_a_partial_lands_with_its_bytes_members_and_weight(pair: tuple[Node, Node], seal_with_checksum: bool) -> None:
    a, b = pair
    data = body()
    a.carry(a.put_partial(data, seal_with=checksum(data) if seal_with_checksum else 0), b.tcp)
    ended = a.wait_for(gm.CarryEnded)
    assert (ended.error, ended.sent_bytes) == ("", BYTES + len(META))
    offered = b.wait_for(gm.Offered)
    assert offered == gm.Offered(offered.conn, 1, EPOCH, BRANCH, 50, BYTES, len(META))
    assert b.wait_for(gm.Sealed).received_bytes == BYTES + len(META)
    check_landed(b, data)


def test_a_partial_that_is_there_already_is_not_sent_again(pair: tuple[Node, Node]) -> None:
    a, b = pair
    key = a.put_partial(body())
    a.carry(key, b.tcp)
    a.wait_for(gm.CarryEnded)
    a.carry(key, b.tcp)
    assert a.wait_for(gm.CarryEnded, 2) == gm.CarryEnded(key.pack(), "", 0)
    check_landed(b, body())


DIE = (
    "import os\nimport lifl.node.gateway.body_moves as t\n"
    "t.{end}.step = lambda self: self.{move} and os.kill(os.getpid(), 9)"
)
DIE_RECEIVING = DIE.format(end="Receive", move="_check.receive(self.sock, 0, 100_000) or self._check.received_bytes")
DIE_SENDING = DIE.format(end="Send", move="sock.send(self._view[:100_000])")


@pytest.mark.parametrize("restarted", [True, False])
def test_a_receiver_killed_within_the_bytes_gets_them_once_it_is_back(restarted: bool) -> None:
    a = Node(settings=PATIENT if restarted else QUICK)
    b = Node(settings=DIE_RECEIVING)
    data = body()
    a.carry(a.put_partial(data), b.tcp)
    b.process.wait(WAIT_S)
    b.kill()
    assert b.live() == 0
    if restarted:
        b.settings = "pass"
        b.start_again()
        ended = a.wait_for(gm.CarryEnded)
        assert ended.error == ""
        assert ended.sent_bytes > BYTES + len(META)  # what was lost is counted too
        check_landed(b, data)
        b.wait_for(gm.Sealed)
        assert b.count(gm.Sealed) == 1
    else:
        b.listener.close()
        ended = a.wait_for(gm.CarryEnded)
        assert b.tcp in ended.error and "5 times" in ended.error
    a.close()
    b.close(status=0 if restarted else -9)


def test_a_sender_killed_within_the_bytes_leaves_no_trace_and_its_next_life_delivers(pair: tuple[Node, Node]) -> None:
    _, b = pair
    a = Node(settings=DIE_SENDING)
    key = a.put_partial(body())
    a.carry(key, b.tcp)
    a.process.wait(WAIT_S)
    b.wait_for(gm.Aborted)
    assert b.live() == 0
    a.kill()
    a.settings = "pass"
    a.start_again()
    a.carry(key, b.tcp)
    assert a.wait_for(gm.CarryEnded).error == ""
    check_landed(b, body())
    a.close()


@pytest.mark.parametrize("place", [1_000_000, BYTES + len(META) // 2], ids=["data", "members"])
def test_bytes_damaged_on_the_wire_are_sent_again(pair: tuple[Node, Node], place: int) -> None:
    a, b = pair
    relay = Relay(b.address, place, bad=2)
    a.carry(a.put_partial(body()), relay.address)
    ended = a.wait_for(gm.CarryEnded)
    assert (ended.error, ended.sent_bytes) == ("", 3 * (BYTES + len(META)))
    assert b.count(gm.Aborted) == 2 and b.count(gm.Sealed) == 1
    check_landed(b, body())
    relay.close()


def test_a_partial_damaged_in_memory_is_never_taken(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.carry(a.put_partial(body(1), seal_with=checksum(body(2))), b.tcp)
    assert "changed on their way" in a.wait_for(gm.CarryEnded).error
    b.wait_for(gm.Aborted, 5)  # by another link than the refusal, so it may come later
    assert b.count(gm.Aborted) == 5
    assert b.live() == 0


def test_a_busy_node_is_asked_again_up_to_the_limit(pair: tuple[Node, Node]) -> None:
    a, b = pair
    key = a.put_partial(body())
    b.busy = 4
    a.carry(key, b.tcp)
    assert a.wait_for(gm.CarryEnded).error == ""
    check_landed(b, body())
    b.arena.free(b.accepted.popitem()[1])
    b.busy = 5
    a.carry(key, b.tcp)
    ended = a.wait_for(gm.CarryEnded, 2)
    assert "no room" in ended.error and ended.sent_bytes == 0
    assert b.busy == 0 and b.live() == 0


def test_a_refusal_is_final_and_told(pair: tuple[Node, Node]) -> None:
    a, b = pair
    b.refusal = cm.Refusal("round-over", "epoch", "that round is over", "any", 3)
    a.carry(a.put_partial(body()), b.tcp)
    assert a.wait_for(gm.CarryEnded).error == "that round is over"
    assert b.count(gm.Offered) == 1


def test_nobody_there_is_told_after_the_last_try(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = "{}:{}".format(*gone.getsockname())
    a.carry(a.put_partial(body()), address)
    assert address in a.wait_for(gm.CarryEnded).error


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_told(pair: tuple[Node, Node], address: str) -> None:
    a, _ = pair
    a.carry(a.put_partial(body()), address)
    assert "HOST:PORT" in a.wait_for(gm.CarryEnded).error


def test_an_object_that_is_gone_or_unfinished_is_told(pair: tuple[Node, Node]) -> None:
    a, b = pair
    key = a.put_partial(body())
    a.arena.free(key)
    a.carry(key, b.tcp)
    assert "stale" in a.wait_for(gm.CarryEnded).error
    a.carry(a.arena.alloc(Kind.PARTIAL, 1, EPOCH, 64), b.tcp)
    assert "not sealed" in a.wait_for(gm.CarryEnded, 2).error


def test_a_later_order_takes_the_place_of_one_that_hangs(pair: tuple[Node, Node]) -> None:
    """The first node takes nothing and says nothing; the partial is then brought to another."""
    a, b = pair
    key = a.put_partial(body())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        a.carry(key, "{}:{}".format(*silent.getsockname()))
        hung, _ = silent.accept()
        assert hung.recv(4)  # its Hello
        a.carry(key, b.tcp)
        assert a.wait_for(gm.CarryEnded).error == ""
        while hung.recv(4096):
            pass
        hung.close()
    a.send(gm.AskStats())
    a.wait_for(gm.GatewayStats)
    assert a.count(gm.CarryEnded) == 1
    check_landed(b, body())


def test_more_than_the_limit_at_a_time_wait_in_line(pair: tuple[Node, Node]) -> None:
    _, b = pair
    a = Node(settings="import lifl.node.gateway.peer_transfer as k; k.UNDER_WAY_MAX = 2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "{}:{}".format(*silent.getsockname())
        keys = [a.put_partial(body(n, 640)) for n in range(3)]
        for key in keys:
            a.carry(key, address)
        first, second = silent.accept()[0], silent.accept()[0]
        a.carry(keys[0], b.tcp)  # leaves its place to the third, and goes to the end of the line
        third = silent.accept()[0]
        a.send(gm.AskStats())
        a.wait_for(gm.GatewayStats)
        assert b.count(gm.Offered) == 0
        a.carry(keys[1], b.tcp)
        assert a.wait_for(gm.CarryEnded, 2).error == ""
        for sock in (first, second, third):
            sock.close()
    a.close()


def offer(**changes: object) -> cm.Offer:
    fields: dict[str, object] = {"number": 1, "epoch": EPOCH, "branch": BRANCH, "weight": 77.5, "members": 50}
    fields |= {"data_bytes": 6400, "meta_bytes": len(META)}
    return cm.Offer(**(fields | changes))  # type: ignore[arg-type]


def test_what_makes_no_partial_is_refused_by_its_field(pair: tuple[Node, Node]) -> None:
    _, b = pair
    peer = Peer(b)
    peer.hello(NODE)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        peer.send(offer(weight=weight))
        refusal = peer.receive()
        assert isinstance(refusal, cm.Refusal) and (refusal.code, refusal.field) == ("bad-weight", "weight")
    assert b.count(gm.Offered) == 0
    peer.send(offer(meta_bytes=len(META) + 1))  # more than its object has room for
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal) and (refusal.code, refusal.field) == ("wrong-size", "meta_bytes")
    data = body(0, 6400)
    for members, meta in ((49, META), (50, META[:-1])):
        peer.send(offer(members=members, meta_bytes=len(meta)))
        assert isinstance(peer.receive(), cm.Go)
        peer.raw(data + meta)
        peer.send(cm.Checksums(checksum(data), checksum(meta)))
        refusal = peer.receive()
        assert isinstance(refusal, cm.Refusal) and refusal.code == "bad-members"
    b.wait_for(gm.Aborted, 3)
    assert b.live() == 0
    peer.send(offer())  # the stream is in step still
    assert isinstance(peer.receive(), cm.Go)
    peer.raw(data + META)
    peer.send(cm.Leave("digits"))
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal) and refusal.code == "protocol"
    peer.close()
    b.wait_for(gm.Aborted, 4)
    assert b.live() == 0


def test_a_node_that_stalls_within_a_partial_is_ended() -> None:
    node = Node(settings="import lifl.core.limits as c; c.PEER_STALL_S = 0.2")
    for sent in (b"x" * 100, body(0, 6400) + META):  # within the bytes, and before their checksums
        peer = Peer(node)
        peer.hello(NODE)
        peer.send(offer())
        assert isinstance(peer.receive(), cm.Go)
        peer.raw(sent)
        assert peer.receive() is None
        peer.close()
    node.wait_for(gm.Aborted, 2)
    assert node.live() == 0
    node.close()


# ---- models ----------------------------------------------------------------------------------------------------------


def test_a_model_is_fetched_and_sealed(pair: tuple[Node, Node]) -> None:
    a, b = pair
    b.put_model(body())
    key = a.fetch(b.tcp)
    assert a.wait_for(gm.FetchEnded) == gm.FetchEnded(key.pack(), "", BYTES)
    entry = a.arena.entry(key)
    assert entry.state == ObjectState.SEALED and entry.checksum == checksum(body())
    assert bytes(a.arena.data(key)) == body()
    assert b.wait_for(gm.ModelSent).sent_bytes == BYTES
    a.send(gm.Fetch(key.pack(), b.tcp, "digits", 4))  # by a daemon that does not know that it was sealed
    assert a.wait_for(gm.FetchEnded, 2) == gm.FetchEnded(key.pack(), "", 0)


def test_a_model_damaged_on_the_wire_is_fetched_again(pair: tuple[Node, Node]) -> None:
    a, b = pair
    b.put_model(body())
    relay = Relay(b.address, 2_000_000, bad=1, backwards=True)
    key = a.fetch(relay.address)
    assert a.wait_for(gm.FetchEnded) == gm.FetchEnded(key.pack(), "", 2 * BYTES)
    assert bytes(a.arena.data(key)) == body()
    relay.close()


def test_a_model_is_fetched_from_a_gateway_that_was_killed_within_it() -> None:
    a = Node(settings=PATIENT)
    b = Node(settings=DIE_SENDING)
    b.open_job("digits", LAYOUT)
    b.put_model(body())
    key = a.fetch(b.tcp)
    b.process.wait(WAIT_S)
    b.kill()
    b.settings = "pass"
    b.start_again()
    assert a.wait_for(gm.FetchEnded).error == ""
    assert bytes(a.arena.data(key)) == body()
    a.close()
    b.close()


def test_a_model_that_is_not_there_or_another_is_told(pair: tuple[Node, Node]) -> None:
    a, b = pair
    key = a.fetch(b.tcp)
    assert a.wait_for(gm.FetchEnded).error == "there is no model"
    b.put_model(body())
    a.fetch(b.tcp, 6400)
    assert "6400 here" in a.wait_for(gm.FetchEnded, 2).error
    a.send(gm.JobForget("digits"))
    a.open_job("digits", Layout((TensorSpec("v", "float32", (BYTES // 4,)),)))
    a.send(gm.Fetch(key.pack(), b.tcp, "digits", 4))
    assert "others there" in a.wait_for(gm.FetchEnded, 3).error
    assert a.arena.entry(key).state == ObjectState.WRITING


def test_a_fetch_from_a_silent_gateway_is_ended_at_once(pair: tuple[Node, Node]) -> None:
    a, b = pair
    b.put_model(body())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        key = a.fetch("{}:{}".format(*silent.getsockname()))
        hung, _ = silent.accept()
        hung.recv(4)
        a.send(gm.EndFetch(key.pack()))
        a.send(gm.EndFetch(key.pack()))
        assert "not wanted" in a.wait_for(gm.FetchEnded).error
        hung.close()
    other = a.fetch(b.tcp)
    assert a.wait_for(gm.FetchEnded, 2) == gm.FetchEnded(other.pack(), "", BYTES), "and it was said once"
    a.send(gm.EndFetch(other.pack()))  # too late
    assert bytes(a.arena.data(other)) == body()


def test_the_end_of_the_gateway_ends_what_is_under_way(pair: tuple[Node, Node]) -> None:
    a = Node()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        a.carry(a.put_partial(body()), "{}:{}".format(*silent.getsockname()))
        hung, _ = silent.accept()
        hung.recv(4)
        a.close()
        hung.close()


def test_it_also_ends_while_the_daemon_owes_answers(pair: tuple[Node, Node]) -> None:
    node = Node()
    node._offered = lambda offer: None  # type: ignore[method-assign]
    peer = Peer(node)
    peer.hello(NODE)
    peer.send(offer())
    node.wait_for(gm.Offered)
    node.close()
    assert peer.receive() is None
    peer.close()


# ---- clients ---------------------------------------------------------------------------------------------------------


class Cluster:
    """Node a coordinates: it selects its client with b's gateway named, and commits what b has sealed."""

    def __init__(self, a: Node, b: Node, named: str) -> None:
        self.a, self.b, self.named = a, b, named
        self.redirect_to = ""
        self.lock = threading.Lock()
        for node in (a, b):
            node.put_model(body(9))
            node.react = lambda message, node=node: self.react(node, message)  # type: ignore[misc]

    def react(self, node: Node, message: Message) -> None:
        a = self.a
        match message:
            case gm.ClientJoined(conn):
                selected = cm.Selected("digits", 1, 60.0, LAYOUT.tensors, LAYOUT.data_bytes, {}, self.named)
                a.deliver(conn, selected)
            case gm.Sealed():
                for over in (cm.Committed("digits", 1, True), cm.JobOver("digits", "finished")):
                    a.deliver(a.conns["c1"], over)

    def run(self, node: str) -> list[bytes]:
        """One client of the job at `node`; returns the models that it got."""
        models = []
        with Client(node, job="digits", client="c1") as client:
            for round_ in client.rounds():
                models.append(round_.model["w"].tobytes())
                done = round_.submit({"w": np.frombuffer(body(5), np.float32)}, weight=2)
                assert done.accepted
                assert client.wait_committed(round_)
        return models


def check_client(models: list[bytes], at: Node, elsewhere: Node, model_at: Node) -> None:
    assert models == [body(9)]
    assert bytes(at.arena.data(at.accepted["digits", 1, "c1"])) == body(5)
    assert not elsewhere.accepted
    assert model_at.count(gm.WantModel) == 1


def test_a_client_gets_and_submits_where_its_selection_says(pair: tuple[Node, Node]) -> None:
    a, b = pair
    models = Cluster(a, b, b.tcp).run(a.tcp)
    check_client(models, at=b, elsewhere=a, model_at=b)
    assert b.count(gm.ClientJoined) == 0
    b.wait_for(gm.ClientLeft, 2)  # one connection for the model, one for the update; none stays
    assert a.count(gm.Admit) == a.count(gm.WantModel) == 0


def test_its_own_gateway_needs_no_second_connection(pair: tuple[Node, Node]) -> None:
    a, b = pair
    models = Cluster(a, b, a.tcp).run(a.tcp)
    check_client(models, at=a, elsewhere=b, model_at=a)
    a.wait_for(gm.ClientLeft)
    assert {message.conn for message in a.said if isinstance(message, gm.WantModel | gm.Admit)} == {a.conns["c1"]}


@pytest.mark.parametrize("how", ["nobody", "no address", "full", "no job", "killed"])
def test_a_gateway_that_does_not_serve_costs_nothing_but_the_way_home(pair: tuple[Node, Node], how: str) -> None:
    a, _ = pair
    killed = DIE_RECEIVING
    c = Node(connections_max=1 if how == "full" else 8, settings=killed if how == "killed" else "pass")
    cluster = Cluster(a, c, c.tcp)
    hold = Peer(c) if how == "full" else None
    if how == "nobody":
        with socket.create_server(("127.0.0.1", 0)) as gone:
            cluster.named = "{}:{}".format(*gone.getsockname())
    elif how == "no address":
        cluster.named = "somewhere"
    elif how == "killed":
        c.open_job("digits", LAYOUT)
    if hold is not None:
        hold.hello("hold")
    models = cluster.run(a.tcp)
    check_client(models, at=a, elsewhere=c, model_at=c if how == "killed" else a)
    if hold is not None:
        hold.close()
    if how == "killed":
        c.process.wait(WAIT_S)
        c.kill()
    c.close(status=-9 if how == "killed" else 0)


def test_a_redirect_is_followed(pair: tuple[Node, Node]) -> None:
    a, b = pair
    cluster = Cluster(a, b, "")
    a._admit = lambda asked: a.deliver(  # type: ignore[method-assign]
        asked.conn, cm.Refusal(cm.USE_GATEWAY, b.tcp, "that node has room", asked.job, asked.round)
    )
    models = cluster.run(a.tcp)
    check_client(models, at=b, elsewhere=a, model_at=a)
    assert a.count(gm.Admit) == 1


def test_redirects_in_a_circle_end_when_a_node_takes_the_update(pair: tuple[Node, Node]) -> None:
    a, b = pair
    cluster = Cluster(a, b, "")
    admit = a._admit

    def redirect(asked: gm.Admit) -> None:
        if a.count(gm.Admit) >= 2:
            admit(asked)
        else:
            a.deliver(asked.conn, cm.Refusal(cm.USE_GATEWAY, b.tcp, "there", asked.job, asked.round))

    a._admit = redirect  # type: ignore[method-assign]
    b._admit = lambda asked: b.deliver(  # type: ignore[method-assign]
        asked.conn, cm.Refusal(cm.USE_GATEWAY, a.tcp, "there", asked.job, asked.round)
    )
    models = cluster.run(a.tcp)
    check_client(models, at=a, elsewhere=b, model_at=a)


def test_a_round_that_ends_at_home_ends_the_wait_elsewhere(pair: tuple[Node, Node]) -> None:
    """The other node has taken the bytes but never answers: the news of the round's end come from home."""
    a, b = pair
    Cluster(a, b, b.tcp)

    def react(message: Message) -> None:
        if isinstance(message, gm.Sealed):
            for over in (cm.RoundOver("digits", 1, "its time is up"), cm.JobOver("digits", "finished")):
                a.deliver(a.conns["c1"], over)

    b.react = react
    deliver = b.deliver
    b.deliver = lambda conn, message: (  # type: ignore[method-assign]
        None if isinstance(message, cm.Accepted) else deliver(conn, message)
    )
    with Client(a.tcp, job="digits", client="c1") as client:
        for round_ in client.rounds():
            done = round_.submit({"w": np.frombuffer(body(5), np.float32)}, weight=2)
            assert (done.accepted, done.reason) == (False, "its time is up")
            assert client.wait_committed(round_) is False


def test_home_may_break_while_the_client_is_elsewhere(pair: tuple[Node, Node]) -> None:
    """Home is killed while the other node keeps the client waiting; the client takes part again and submits again."""
    a, b = pair
    cluster = Cluster(a, b, b.tcp)
    b.react = lambda message: None
    sealed, deliver = threading.Event(), b.deliver

    def deliver_but_once(conn: int, message: Message) -> None:
        if isinstance(message, cm.Accepted) and not sealed.is_set():
            sealed.set()
            return
        deliver(conn, message)
        if isinstance(message, cm.Accepted):
            cluster.react(b, gm.Sealed(conn, bytes(16), 0))

    b.deliver = deliver_but_once  # type: ignore[method-assign]
    models: list[bytes] = []
    trainer = threading.Thread(target=lambda: models.extend(cluster.run(a.tcp)))
    trainer.start()
    assert sealed.wait(WAIT_S)
    a.kill()
    a.start_again()
    trainer.join(WAIT_S)
    assert not trainer.is_alive()
    check_client(models, at=b, elsewhere=a, model_at=b)
    # How often it asks depends on how long home stays away; its bytes come once.
    assert b.count(gm.Sealed) == 1 and b.count(gm.Admit) >= 2
