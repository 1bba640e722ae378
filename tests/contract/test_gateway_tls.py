"""The gateway over TLS: clients and other nodes come by their certificates, and nobody comes as another."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from certificates import Authority
from gateway_standin import WAIT_S, Peer, StandIn
from test_client import LAYOUT as SMALL
from test_client import play, update
from test_gateway_peer import BRANCH, BYTES, EPOCH, META, QUICK, Node, body
from test_gateway_peer import LAYOUT as LARGE

from lifl import Client
from lifl.client import NodeUnreachable, Refused
from lifl.core.errors import LocalFault, ResourceFault
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import encode
from lifl.shm.layout import ObjectState
from lifl.tls.contexts import client_context
from lifl.tls.faults import TlsFault
from lifl.tls.folder import IdentityFiles, load, save
from lifl.tls.tls_socket import TlsSocket

HOSTS = ["127.0.0.1"]


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def folder(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities: the nodes a and b, the clients c1 and c2, an operator."""
    made = tmp_path_factory.mktemp("identities")
    for name in ("a", "b"):
        ca.enroll(made / name, "node", name, HOSTS)
    for name in ("c1", "c2"):
        ca.enroll(made / name, "client", name)
    ca.enroll(made / "op", "operator", "op")
    return made


def context(folder: Path) -> ssl.SSLContext:
    return client_context(folder / "ca.pem", _files(folder))


def _files(folder: Path) -> IdentityFiles:
    files = load(folder)
    assert files is not None
    return files


@contextlib.contextmanager
def running(identity: Path, **how: object) -> Iterator[StandIn]:
    standin = StandIn(identity=identity, **how)  # type: ignore[arg-type]
    standin.open_job("digits", SMALL)
    try:
        yield standin
    finally:
        standin.close()


@pytest.fixture
def node(folder: Path) -> Iterator[StandIn]:
    with running(folder / "a") as standin:
        yield standin


# ---- clients ---------------------------------------------------------------------------------------------------------


def test_a_client_takes_part_over_tls(folder: Path) -> None:
    with running(folder / "a") as node:
        node.put_model(bytes(SMALL.data_bytes))
        node.react = lambda message: play(node, message, 3)
        with Client(node.tcp, job="digits", client="c1", identity=folder / "c1") as client:
            for round_ in client.rounds():
                assert round_.model["w"].shape == (300, 7)
                assert round_.submit(update(round_.number), weight=2.0).accepted
        assert len(node.accepted) == 3
        entry = node.arena.entry(node.accepted["digits", 1, "c1"])
        assert entry.state == ObjectState.SEALED
        assert [message.who for message in node.said if isinstance(message, gm.Greeted)] == ["client c1"]


def test_a_large_update_and_a_large_model_are_the_same_at_the_other_end(folder: Path) -> None:
    with running(folder / "a") as node:
        node.open_job("large", LARGE)
        node.put_model(body(1))
        sent = np.frombuffer(body(2), np.float32)

        def react(message: object) -> None:
            if isinstance(message, gm.ClientJoined):
                node.select("c1", "large", 1)
            if isinstance(message, gm.Sealed):
                node.deliver(message.conn, cm.Committed("large", 1, True))
                node.deliver(message.conn, cm.JobOver("large", "finished"))

        node.react = react
        told: list[int] = []
        with Client(node.tcp, job="large", client="c1", identity=folder / "c1") as client:
            for round_ in client.rounds():
                assert round_.model["w"].tobytes() == body(1)
                round_.submit({"w": sent}, weight=1.0, progress=lambda done, _all: told.append(done))
        assert bytes(node.arena.data(node.accepted["large", 1, "c1"])) == body(2)
        assert told[-1] == BYTES


def test_a_client_has_its_own_name_alone(node: StandIn, folder: Path) -> None:
    with pytest.raises(Refused, match="may do that in its own name alone, not as 'c2'") as refused:
        next(Client(node.tcp, job="digits", client="c2", identity=folder / "c1").rounds())
    assert refused.value.code == "not-own-name"
    assert not node.count(gm.ClientJoined)


@pytest.mark.parametrize(
    ("who", "message", "code"),
    [
        ("c1", cm.Offer(1, EPOCH, BRANCH, 1.0, 1, 100, 100), "not-allowed"),
        ("c1", cm.GetModel("digits", 3, checked=True), "not-allowed"),
        ("b", cm.Join("digits"), "not-allowed"),
        ("b", cm.Submit("digits", 3, 1.0, SMALL.data_bytes, SMALL.tensors), "not-allowed"),
        ("b", cm.GetModel("digits", 3), "not-allowed"),
    ],
)
def test_each_says_what_its_role_says_and_the_connection_goes_on(
    node: StandIn, folder: Path, who: str, message: cm.FromClient, code: str
) -> None:
    peer = Peer(node, context=context(folder / who))
    peer.hello(who)
    peer.send(message)
    answer = peer.receive()
    assert isinstance(answer, cm.Refusal)
    assert answer.code == code
    peer.send(cm.Ping())
    node.wait_for(gm.AskPulse)
    assert not [each for each in node.said if isinstance(each, gm.Offered | gm.Admit | gm.WantModel | gm.ClientJoined)]
    peer.close()


def test_an_operator_takes_no_part(node: StandIn, folder: Path) -> None:
    """It may come in, to host folds (and to copy a model, as always), and is no client of a job."""
    peer = Peer(node, context=context(folder / "op"))
    peer.send(cm.Hello(cm.PROTOCOL_VERSION, "op"))
    assert isinstance(peer.receive(), cm.Welcome)
    submit = cm.Submit("digits", 1, 1.0, SMALL.data_bytes, SMALL.tensors)
    for message in (cm.Join("digits"), submit):
        peer.send(message)
        answer = peer.receive()
        assert isinstance(answer, cm.Refusal) and answer.code == "not-allowed", message
    peer.close()
    assert not node.count(gm.ClientJoined) and not node.count(gm.Admit)


def test_a_job_that_the_certificate_does_not_name_is_refused(node: StandIn, ca: Authority, tmp_path: Path) -> None:
    uris = ["lifl://hospitals/client/c9", "lifl-job:other"]
    certificate, key = ca.issue("client", "c9", uris=uris)
    save(tmp_path / "c9", ca=ca.pem, certificate=certificate, key=key)
    with pytest.raises(Refused, match="may take part in other alone"):
        next(Client(node.tcp, job="digits", client="c9", identity=tmp_path / "c9").rounds())
    assert not node.count(gm.ClientJoined)


# ---- what is told to those who come wrongly --------------------------------------------------------------------------


def test_without_a_certificate_it_is_told_how_to_get_one(node: StandIn, ca: Authority) -> None:
    peer = Peer(node, context=client_context(ca.pem.decode()))
    peer.send(cm.Hello(cm.PROTOCOL_VERSION, "c1"))
    answer = peer.receive()
    assert isinstance(answer, cm.Refusal)
    assert answer.code == "no-certificate"
    assert "lifl enroll HOST:PORT --token-file F" in answer.text
    assert peer.receive() is None
    peer.close()


def test_a_client_in_plain_is_told_in_plain(node: StandIn) -> None:
    with pytest.raises(Refused, match="this node asks for a certificate: lifl enroll HOST:PORT --token-file F"):
        next(Client(node.tcp, job="digits", client="c1", insecure=True).rounds())
    peer = Peer(node)
    peer.raw(b"GET / HTTP/1.1\r\n\r\n")
    assert isinstance(peer.receive(), cm.Refusal)
    assert peer.receive() is None
    peer.close()


def test_a_secured_client_does_not_speak_to_a_plain_node(folder: Path) -> None:
    standin = StandIn()
    try:
        with pytest.raises(Refused, match="does not speak TLS"):
            next(Client(standin.tcp, job="digits", client="c1", identity=folder / "c1").rounds())
    finally:
        standin.close()


def refusal_of(node: StandIn, identity: Path) -> str:
    with pytest.raises(Refused) as refused:
        next(Client(node.tcp, job="digits", client="c1", identity=identity).rounds())
    assert node.tcp in refused.value.text
    return refused.value.text


def test_a_node_of_another_cluster_is_not_believed(folder: Path, tmp_path: Path) -> None:
    Authority().enroll(tmp_path / "n", "node", "n", HOSTS)
    with running(tmp_path / "n") as node:
        text = refusal_of(node, folder / "c1")
        assert "is not of this cluster's CA" in text
        node.wait_for(gm.GatewayReady)


def test_a_node_of_another_host_says_for_which_it_is(folder: Path, ca: Authority, tmp_path: Path) -> None:
    ca.enroll(tmp_path / "n", "node", "n", ["node-n.example", "10.9.9.9"])
    with running(tmp_path / "n") as node:
        text = refusal_of(node, folder / "c1")
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in text
    assert "lifl://hospitals/node/n's, for node-n.example, 10.9.9.9, valid from" in text


def test_a_client_that_poses_as_a_node_is_not_believed(folder: Path, ca: Authority, tmp_path: Path) -> None:
    ca.enroll(tmp_path / "m", "client", "mallory", HOSTS)
    with running(tmp_path / "m") as node:
        assert "certificate cannot be used" in refusal_of(node, folder / "c1")


def test_a_node_whose_certificate_expires_while_it_runs_is_not_believed(
    folder: Path, ca: Authority, tmp_path: Path
) -> None:
    ca.enroll(tmp_path / "n", "node", "n", HOSTS, days=1 / 24 / 3600 * 6)
    with running(tmp_path / "n") as node:
        text = ""
        deadline = time.monotonic() + WAIT_S
        while "has expired" not in text:
            assert time.monotonic() < deadline
            peer = contexts_peer(node, folder / "c1")
            text = str(peer) if isinstance(peer, TlsFault) else ""
        text = refusal_of(node, folder / "c1")
    assert "its certificate has expired" in text
    assert "valid from" in text


def contexts_peer(node: StandIn, identity: Path) -> object:
    try:
        peer = Peer(node, context=context(identity))
    except TlsFault as fault:
        return fault
    peer.close()
    return peer


def test_an_own_certificate_that_has_expired_is_said_before_anything_is_sent(
    node: StandIn, ca: Authority, tmp_path: Path
) -> None:
    ca.enroll(tmp_path / "c", "client", "c1", days=-0.001)
    with pytest.raises(ResourceFault, match=r"cert\.pem would be refused by others: .*expired.*valid from .* UTC"):
        next(Client(node.tcp, job="digits", client="c1", identity=tmp_path / "c").rounds())


def test_a_folder_without_an_identity_is_named(node: StandIn, tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="there is no identity in"):
        next(Client(node.tcp, job="digits", client="c1", identity=tmp_path / "none").rounds())


@pytest.mark.parametrize("address", ["10.255.255.1:7433", "node-a.example:7433"])
def test_beyond_this_machine_nothing_is_sent_without_an_identity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LIFL_IDENTITY", raising=False)
    with pytest.raises(Refused, match="lifl enroll HOST:PORT --token-file F") as refused:
        next(Client(address, job="digits", client="c1").rounds())
    assert str(tmp_path / f".config/lifl/identities/{address.replace(':', '_')}") in refused.value.text


@pytest.mark.parametrize("how", ["its usual folder", "that of another port", "the variable"])
def test_an_identity_is_found(
    node: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LIFL_IDENTITY", raising=False)
    if how == "the variable":
        monkeypatch.setenv("LIFL_IDENTITY", str(folder / "c1"))
    else:
        port = node.tcp.rpartition(":")[2] if how == "its usual folder" else "1"
        place = tmp_path / ".config/lifl/identities" / f"127.0.0.1_{port}"
        place.parent.mkdir(parents=True)
        (folder / "c1").rename(place)
    try:
        node.put_model(bytes(SMALL.data_bytes))
        node.react = lambda message: play(node, message, 1)
        with Client(node.tcp, job="digits", client="c1") as client:
            for round_ in client.rounds():
                round_.submit(update(), weight=1.0)
        assert len(node.accepted) == 1
    finally:
        if how != "the variable":
            place.rename(folder / "c1")


def test_a_certificate_that_is_wrong_for_a_while_is_waited_for_by_who_was_connected(
    folder: Path, ca: Authority, tmp_path: Path
) -> None:
    """No trainer dies of what an operator mends a moment later; one that was never let in is told at once."""
    ca.enroll(tmp_path / "n", "node", "n", HOSTS)
    with running(tmp_path / "n") as node:
        node.put_model(bytes(SMALL.data_bytes))
        node.react = lambda message: play(node, message, 2)
        client = Client(node.tcp, job="digits", client="c1", identity=folder / "c1", give_up_after_s=WAIT_S)
        with client:
            rounds = client.rounds()
            next(rounds).submit(update(), weight=1.0)
            right = ca.issue("node", "n", HOSTS)
            wrong = ca.issue("node", "n", ["10.9.9.9"])
            save(tmp_path / "n", certificate=wrong[0], key=wrong[1])
            node.kill()
            node.start_again()

            def mend() -> None:
                save(tmp_path / "n", certificate=right[0], key=right[1])

            timer = threading.Timer(1.0, mend)
            timer.start()
            next(rounds).submit(update(1), weight=1.0)
            timer.join()


def test_who_gives_up_is_told_what_was_wrong(folder: Path, ca: Authority, tmp_path: Path) -> None:
    ca.enroll(tmp_path / "n", "node", "n", HOSTS)
    with running(tmp_path / "n") as node:
        node.put_model(bytes(SMALL.data_bytes))
        node.react = lambda message: play(node, message, 2)
        with Client(node.tcp, job="digits", client="c1", identity=folder / "c1", give_up_after_s=0.5) as client:
            rounds = client.rounds()
            next(rounds)
            certificate, key = ca.issue("node", "n", ["10.9.9.9"])
            save(tmp_path / "n", certificate=certificate, key=key)
            node.kill()
            node.start_again()
            with pytest.raises(NodeUnreachable, match="for another host"):
                list(rounds)


# ---- floods ----------------------------------------------------------------------------------------------------------

HALF_OPEN, SPARE = 10_000, 500


def test_ten_thousand_half_open_handshakes_keep_nobody_out(folder: Path) -> None:
    """They take the places that are left, and give way to who says who it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < HALF_OPEN + SPARE:
        pytest.skip(f"the limit of open files is {hard}: {HALF_OPEN} connections need more")
    with running(folder / "a", connections_max=64) as node, contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HALF_OPEN + SPARE), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for number in range(HALF_OPEN):
            half = stack.enter_context(socket.create_connection(node.address))
            half.send(b"\x16\x03\x01\x02"[: number % 5])
        node.put_model(bytes(SMALL.data_bytes))
        node.react = lambda message: play(node, message, 1)
        with Client(node.tcp, job="digits", client="c1", identity=folder / "c1", give_up_after_s=WAIT_S) as client:
            for round_ in client.rounds():
                round_.submit(update(), weight=1.0)
        assert len(node.accepted) == 1


def test_a_handshake_that_stalls_is_cut_in_time(folder: Path) -> None:
    settings = "import lifl.core.limits as k; k.HELLO_S = 0.3"
    with running(folder / "a", settings=settings) as node:
        with socket.create_connection(node.address) as half:
            half.settimeout(WAIT_S)
            half.send(b"\x16\x03\x01")
            assert half.recv(1) == b""
        with socket.create_connection(node.address) as silent:
            silent.settimeout(WAIT_S)
            assert silent.recv(1) == b""


def test_beyond_the_limit_of_connections_it_is_told_so_over_tls(folder: Path) -> None:
    with running(folder / "a", connections_max=1) as node:
        first = Peer(node, context=context(folder / "c1"))
        first.hello()
        second = Peer(node, context=context(folder / "c2"))
        answer = second.receive()
        assert isinstance(answer, cm.Refusal)
        assert answer.code == "too-many-connections"
        first.close()
        second.close()


def test_the_gateway_ends_in_the_middle_of_handshakes(folder: Path) -> None:
    standin = StandIn(identity=folder / "a")
    halves = [socket.create_connection(standin.address) for _ in range(5)]
    for half in halves:
        half.send(b"\x16")
    standin.close()
    for half in halves:
        half.close()


# ---- bodies that are cut ---------------------------------------------------------------------------------------------


def submitted(node: StandIn, folder: Path) -> Peer:
    """A client in the middle of a large body."""
    node.open_job("large", LARGE)
    peer = Peer(node, context=context(folder / "c1"))
    peer.hello()
    peer.send(cm.Submit("large", 3, 1.0, LARGE.data_bytes, LARGE.tensors))
    assert isinstance(peer.receive(), cm.Go)
    peer.raw(body()[: BYTES // 2])
    return peer


@pytest.mark.parametrize("how", ["closed", "said end", "within a record", "changed"])
def test_a_body_that_is_cut_is_given_up_and_harms_nobody(node: StandIn, folder: Path, how: str) -> None:
    peer = submitted(node, folder)
    assert isinstance(peer.sock, TlsSocket)
    if how == "said end":
        peer.sock.shutdown(socket.SHUT_WR)
    elif how == "within a record":
        peer.sock.raw.send(b"\x17\x03\x03\x40\x00" + bytes(100))
        peer.sock.raw.shutdown(socket.SHUT_WR)
    elif how == "changed":
        peer.sock.raw.send(b"\x17\x03\x03\x00\x40" + bytes(64))
        peer.sock.raw.shutdown(socket.SHUT_WR)  # a receiver may wait for a larger piece: this wakes it
    else:
        peer.close()
    reason = node.wait_for(gm.Aborted).reason
    assert (how != "changed" and reason) or "TLS failed" in reason, reason
    node.wait_for(gm.ClientLeft)
    peer.close()
    other = Peer(node, context=context(folder / "c2"))
    other.hello("c2")
    other.send(cm.Submit("large", 3, 1.0, LARGE.data_bytes, LARGE.tensors))
    assert isinstance(other.receive(), cm.Go)
    other.raw(body(5))
    assert other.receive() == cm.Accepted("large", 3)
    assert bytes(node.arena.data(node.accepted["large", 3, "c2"])) == body(5)
    other.close()


def test_messages_come_through_while_a_body_is_received_and_sent(node: StandIn, folder: Path) -> None:
    """A mover's thread and the loop use one connection at the same time."""
    node.put_model(body(1))
    peer = submitted(node, folder)
    conn = node.wait_for(gm.Greeted).conn
    for number in range(200):
        node.deliver(conn, cm.RoundOver("large", number, "x" * 1000))
    rest = threading.Thread(target=peer.raw, args=(body()[BYTES // 2 :],))
    rest.start()
    told = [peer.receive() for _ in range(201)]
    rest.join()
    assert sum(isinstance(each, cm.RoundOver) for each in told) == 200
    assert cm.Accepted("large", 3) in told
    peer.send(cm.GetModel("large", 3))
    for number in range(50):
        node.deliver(conn, cm.RoundOver("large", number, "y"))
    heads = []
    while not isinstance(head := peer.receive(), cm.Model):
        heads.append(head)
    assert peer.read_exactly(BYTES) == body(1)
    rest_of = [peer.receive() for _ in range(50 - len(heads))]
    assert len(heads) + len(rest_of) == 50
    peer.close()


def test_a_body_in_many_small_records_is_the_same(node: StandIn, folder: Path) -> None:
    peer = Peer(node, context=context(folder / "c1"))
    peer.hello()
    peer.send(cm.Submit("digits", 3, 1.0, SMALL.data_bytes, SMALL.tensors))
    assert isinstance(peer.receive(), cm.Go)
    data = bytes(SMALL.data_bytes)
    for start in range(0, len(data), 61):
        peer.raw(data[start : start + 61])
    assert peer.receive() == cm.Accepted("digits", 3)
    peer.close()


def test_what_follows_a_body_in_the_same_record_is_read(node: StandIn, folder: Path) -> None:
    """The body's last bytes and the next frame are decrypted together: nothing of it is waited for in the kernel."""
    peer = Peer(node, context=context(folder / "c1"))
    peer.hello()
    peer.send(cm.Submit("digits", 3, 1.0, SMALL.data_bytes, SMALL.tensors))
    assert isinstance(peer.receive(), cm.Go)
    peer.raw(bytes(SMALL.data_bytes) + encode(cm.Join("digits")) + encode(cm.Leave("digits")))
    assert peer.receive() == cm.Accepted("digits", 3)
    node.wait_for(gm.ClientJoined)
    node.wait_for(gm.ClientLeft)
    peer.close()


# ---- nodes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(folder: Path) -> Iterator[tuple[Node, Node]]:
    nodes = [Node(settings=QUICK, identity=folder / name) for name in ("a", "b")]
    for each in nodes:
        each.open_job("digits", LARGE)
    try:
        yield nodes[0], nodes[1]
    finally:
        for each in nodes:
            each.close()


def test_a_partial_is_carried_and_a_model_fetched_over_tls(pair: tuple[Node, Node]) -> None:
    here, there = pair
    data = body(3)
    here.carry(here.put_partial(data), there.tcp)
    assert here.wait_for(gm.CarryEnded).error == ""
    assert bytes(there.arena.data(there.landed)) == data
    assert bytes(there.arena.meta(there.landed)) == META
    assert [message.who for message in there.said if isinstance(message, gm.Greeted)] == ["node a"]
    there.put_model(body(4))
    key = here.fetch(there.tcp)
    assert here.wait_for(gm.FetchEnded).error == ""
    assert bytes(here.arena.data(key)) == body(4)


def test_a_node_carries_nothing_to_who_is_none(folder: Path, ca: Authority, tmp_path: Path) -> None:
    ca.enroll(tmp_path / "m", "client", "mallory", HOSTS)
    here, false = Node(settings=QUICK, identity=folder / "a"), Node(identity=tmp_path / "m")
    plain = Node()
    try:
        here.open_job("digits", LARGE)
        for other, text in ((false, "certificate cannot be used"), (plain, "does not speak TLS")):
            here.carry(here.put_partial(body(3)), other.tcp)
            ended = here.wait_for(gm.CarryEnded, 1 if other is false else 2)
            assert text in ended.error
            assert not other.count(gm.Offered)
    finally:
        for each in (here, false, plain):
            each.close()


def test_a_renewed_certificate_is_used_by_both_without_a_restart(folder: Path, ca: Authority, tmp_path: Path) -> None:
    ca.enroll(tmp_path / "n", "node", "n", HOSTS)
    with running(tmp_path / "n") as node:
        old = Peer(node, context=context(folder / "c1"))
        old.hello()
        before = old.sock.peer  # type: ignore[union-attr]
        certificate, key = ca.issue("node", "n", HOSTS)
        save(tmp_path / "n", certificate=certificate, key=key)
        new = Peer(node, context=context(folder / "c2"))
        new.hello("c2")
        after = new.sock.peer  # type: ignore[union-attr]
        assert before.serial != after.serial
        old.send(cm.Ping())
        node.wait_for(gm.AskPulse)
        old.close()
        new.close()
