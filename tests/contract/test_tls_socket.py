"""A TLS socket does what a socket does: the same bytes, in order, whatever pieces the kernel takes and gives."""

from __future__ import annotations

import _ssl
import ctypes
import os
import random
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from certificates import Authority

from lifl.core.errors import LiflError, ResourceFault
from lifl.core.identity import Identity
from lifl.tls.contexts import Contexts, OutOfTime, client_context, unverified_context
from lifl.tls.faults import TlsFault
from lifl.tls.folder import save
from lifl.tls.tls_socket import OVERHEAD_BYTES_MAX, READ_BYTES, TlsSocket

BUSY_S = 60.0
"""Far longer than any of it takes: only a failing test waits so long."""


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def node(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    return Contexts(ca.enroll(tmp_path_factory.mktemp("node") / "identity", "node", "a", ["127.0.0.1", "node-a"]))


@pytest.fixture(scope="module")
def client(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    return Contexts(ca.enroll(tmp_path_factory.mktemp("client") / "identity", "client", "ward:3"))


def raw_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname())
        taken, _ = listener.accept()
    for sock in (dialled, taken):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return dialled, taken


def wait(sock: TlsSocket, write: bool) -> None:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLOUT if write else select.POLLIN)
    assert poll.poll(BUSY_S * 1000), "nothing comes"


def shake(sock: TlsSocket) -> None:
    while True:
        try:
            sock.do_handshake()
            return
        except BlockingIOError:
            wait(sock, sock.wants_write)


def together(*works: Callable[[], object]) -> list[Exception | None]:
    """Runs all at once; what each raised."""
    raised: list[Exception | None] = [None] * len(works)

    def run(number: int) -> None:
        try:
            works[number]()
        except (OSError, LiflError, AssertionError) as error:
            raised[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BUSY_S)
        assert not thread.is_alive()
    return raised


def greet(dialler: TlsSocket, taker: TlsSocket) -> tuple[Exception | None, Exception | None]:
    """Both sides of a handshake, and a byte back, by which a client learns what the server thinks of it."""

    def serve() -> None:
        shake(taker)
        taker.send(b"!")

    def dial() -> None:
        shake(dialler)
        assert receive(dialler, 1) == b"!"

    first, second = together(dial, serve)
    return first, second


def receive(sock: TlsSocket, nbytes: int) -> bytes:
    """Exactly so many bytes, fewer at the end."""
    got = bytearray()
    while len(got) < nbytes:
        if not sock.pending:
            wait(sock, write=False)
        try:
            data = sock.recv(nbytes - len(got))
        except BlockingIOError:
            continue
        if not data:
            break
        got += data
    return bytes(got)


def send(sock: TlsSocket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[sock.send(left) :]
        except BlockingIOError:
            wait(sock, write=True)


Pair = tuple[TlsSocket, TlsSocket]


@pytest.fixture(params=["TCP"])
def pair(node: Contexts, client: Contexts, request: pytest.FixtureRequest) -> Iterator[Pair]:
    dialled, taken = raw_pair() if request.param == "TCP" else socket.socketpair()
    for raw in (dialled, taken):
        raw.setblocking(False)
    ends = TlsSocket(dialled, client.client(), host="127.0.0.1"), TlsSocket(taken, node.server(), server=True)
    assert greet(*ends) == (None, None)
    yield ends
    for end in ends:
        end.close()


# ---- bytes -----------------------------------------------------------------------------------------------------------


def test_both_know_the_other(pair: Pair, node: Contexts, client: Contexts) -> None:
    dialler, taker = pair
    assert dialler.peer == node.own
    assert taker.peer == client.own
    assert node.own.identity == Identity("node", "a")
    assert client.check_peer(dialler, ["node"]) == node.own
    assert node.check_peer(taker, ["client", "operator"]) == client.own
    with pytest.raises(TlsFault, match="is client ward:3's: it is no node"):
        node.check_peer(taker, ["node"])


@pytest.mark.parametrize("nbytes", [1, 5, 16 * 1024, 16 * 1024 + 1, 5_000_000])
def test_bytes_arrive_as_they_were_sent(pair: Pair, nbytes: int) -> None:
    data = os.urandom(nbytes)
    got: list[bytes] = []
    for sender, receiver in (pair, pair[::-1]):
        works = partial(send, sender, data), partial(lambda r: got.append(receive(r, nbytes)), receiver)
        assert together(*works) == [None, None]
    assert got == [data, data]


@pytest.mark.parametrize("pair", ["AF_UNIX"], indirect=True)  # full or not is known at once, without timers
def test_what_the_kernel_takes_in_any_pieces_is_sent_once(pair: Pair) -> None:
    """The socket is full all the time, and the bytes are offered anew in pieces of other lengths each time."""
    sender, receiver = pair
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    draw = random.Random(7)
    data = draw.randbytes(3_000_000)
    sent, got, full = 0, bytearray(), 0
    while len(got) < len(data) or sent < len(data):  # the last bytes may be there before their sender is told
        if sent < len(data):
            offered = memoryview(data)[sent : sent + draw.choice((1, 100, 20_000, 300_000))]
            try:
                step = sender.send(offered) if draw.random() < 0.5 else sender.sendmsg([offered[:70], offered[70:]])
                assert 0 < step <= len(offered)
                sent += step
            except BlockingIOError:
                full += 1
        try:
            got += receiver.recv(draw.choice((1, 1000, 100_000)))
        except BlockingIOError:
            continue
        assert len(got) <= sent + 300_000
    assert sent == len(data)
    assert bytes(got) == data
    assert full > 10


def test_many_small_buffers_are_one_stream(pair: Pair) -> None:
    sender, receiver = pair
    buffers = [os.urandom(length) for length in (0, 1, 700, 20_000, 3, 70_000, 16_384, 1, 1)]
    data = b"".join(buffers)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(receive(receiver, len(data))))
    thread.start()
    sent = 0
    while sent < len(data):
        left, skip = [], sent
        for buffer in buffers:
            left.append(memoryview(buffer)[min(skip, len(buffer)) :])
            skip -= min(skip, len(buffer))
        try:
            sent += sender.sendmsg(left)
        except BlockingIOError:
            wait(sender, write=True)
    thread.join(BUSY_S)
    assert got == [data]


def test_what_is_decrypted_and_not_asked_for_is_pending(pair: Pair) -> None:
    """The descriptor says nothing any more: who waited for it would wait for ever."""
    sender, receiver = pair
    send(sender, b"0123456789")
    assert receive(receiver, 4) == b"0123"
    assert not select.select([receiver.fileno()], [], [], 0)[0]
    assert receiver.pending
    assert receiver.recv(100) == b"456789"
    with pytest.raises(BlockingIOError):
        receiver.recv(1)
    assert not receiver.pending


def test_it_decrypts_into_the_callers_memory(pair: Pair) -> None:
    sender, receiver = pair
    send(sender, b"x" * 100)
    room = bytearray(300)
    wait(receiver, write=False)
    assert receiver.recv_into(memoryview(room)[50:60]) == 10
    assert receiver.recv_into(memoryview(room)[60:]) == 90
    assert room == bytes(50) + b"x" * 100 + bytes(150)


def test_a_thread_receives_while_another_sends(pair: Pair) -> None:
    """Both ways at once over one connection, from two threads at each end."""
    one, other = pair
    data = os.urandom(4_000_000)
    got: list[bytes] = []
    raised = together(
        lambda: send(one, data),
        lambda: got.append(receive(one, len(data))),
        lambda: send(other, data),
        lambda: got.append(receive(other, len(data))),
    )
    assert raised == [None] * 4
    assert got == [data, data]


def test_with_a_timeout_it_waits_as_a_socket_does(pair: Pair) -> None:
    one, other = pair
    one.settimeout(0.01)
    with pytest.raises(TimeoutError) as raised:
        one.recv(1)
    assert raised.value.errno is None  # not the network's own
    data = os.urandom(30_000_000)
    left = memoryview(data)
    full = False
    while not full:
        try:
            left = left[one.send(left) :]
        except TimeoutError:
            full = True
    one.settimeout(BUSY_S)
    got: list[bytes] = []
    assert together(lambda: one.sendall(left), lambda: got.append(receive(other, len(data)))) == [None, None]
    assert got == [data]
    other.setblocking(True)
    one.settimeout(None)
    assert together(lambda: other.sendall(b"!"), lambda: got.append(one.recv(9))) == [None, None]
    assert got[1] == b"!"


def test_nothing_can_go_along(pair: Pair) -> None:
    rights = struct.pack("i", 0)
    with pytest.raises(TlsFault, match="descriptors"):
        pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_what_was_said_before_the_end_is_read(pair: Pair) -> None:
    one, other = pair
    send(one, b"last words")
    one.shutdown(socket.SHUT_WR)
    assert receive(other, 100) == b"last words"
    assert other.recv(1) == b""
    other.close()
    wait(one, write=False)
    assert one.recv(1) == b""


@pytest.mark.parametrize("how", ["close", "shutdown both ways", "reset"])
def test_an_end_without_a_word_is_an_end(pair: Pair, how: str) -> None:
    one, other = pair
    if how == "reset":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # type: ignore[arg-type]
    if how == "shutdown both ways":
        one.shutdown(socket.SHUT_RDWR)
    else:
        one.close()
    wait(other, write=False)
    if how == "reset":
        with pytest.raises(ConnectionResetError):
            other.recv(1)
    else:
        assert other.recv(1) == b""


def test_a_body_that_is_cut_within_a_record_ends_with_what_was_whole(pair: Pair) -> None:
    one, other = pair
    send(one, b"a" * 100_000)
    whole = receive(other, 50_000)
    one.raw.send(b"\x17\x03\x03\x40\x00" + b"?" * 100)  # a record that is never complete
    one.close()
    assert whole + receive(other, 100_000) == b"a" * 100_000
    assert other.recv(1) == b""


def test_bytes_that_were_changed_on_their_way_are_an_error(pair: Pair) -> None:
    one, other = pair
    send(one, b"good")
    one.raw.send(b"\x17\x03\x03\x00\x20" + b"?" * 32)
    assert receive(other, 4) == b"good"
    with pytest.raises(TlsFault, match="bad record mac"):
        receive(other, 1)


def new_keys(sock: TlsSocket, count: int) -> bytes:
    """Records with which TLS 1.3 asks the other side for a new key, and tells its own: nothing but work."""
    openssl = ctypes.CDLL(_ssl.__file__)
    inner = sock._tls._sslobj  # type: ignore[attr-defined]
    connection = ctypes.c_void_p.from_address(id(inner) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p))
    for _ in range(count):
        assert openssl.SSL_key_update(connection, 1) == 1
        assert openssl.SSL_do_handshake(connection) == 1
    return sock._outgoing.memory.read()


def test_new_keys_now_and_then_are_taken(pair: Pair) -> None:
    one, other = pair
    for number in range(500):
        one.raw.send(new_keys(one, 1))
        send(one, b"%06d" % number)
        assert receive(other, 6) == b"%06d" % number
    send(other, b"answer")
    assert receive(one, 6) == b"answer"


@pytest.mark.parametrize(("keys", "data"), [(500, b""), (500, b"x"), (1, b"x")])
def test_new_keys_without_end_are_an_error_and_keep_nobody_busy(pair: Pair, keys: int, data: bytes) -> None:
    """Whoever sends them as fast as they are read would keep the call, and with it an event loop, for ever; whoever
    sends data between them would have the answers pile up.
    """
    one, other = pair
    flood = bytearray()
    while len(flood) < 150_000:
        flood += new_keys(one, keys)
        if data:
            one._tls.write(data)
            flood += one._outgoing.memory.read()
    for raw, option in ((one.raw, socket.SO_SNDBUF), (other.raw, socket.SO_RCVBUF)):
        raw.setsockopt(socket.SOL_SOCKET, option, 4 * len(flood))
    left = memoryview(flood)[one.raw.send(flood) :]

    def read_on() -> None:
        nonlocal left
        while True:
            receive(other, 1)
            left = left[one.raw.send(left) :] if left else left

    with pytest.raises(TlsFault, match="hardly any data"):
        read_on()
    assert other._outgoing.memory.pending < OVERHEAD_BYTES_MAX + READ_BYTES
    assert other.raw.recv(1), "all of it was worked off"
    with pytest.raises(TlsFault, match="hardly any data"):
        other.recv(1)


def test_shutting_it_down_wakes_who_receives(pair: Pair) -> None:
    one, _other = pair
    one.setblocking(True)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(one.recv(1)))
    thread.start()
    one.shutdown(socket.SHUT_RDWR)
    thread.join(BUSY_S)
    assert got == [b""]


# ---- who is refused --------------------------------------------------------------------------------------------------


def refused(dialler: TlsSocket, taker: TlsSocket) -> tuple[str, str]:
    """What both sides are told."""
    try:
        first, second = greet(dialler, taker)
    finally:
        dialler.close()
        taker.close()
    for error in (first, second):
        assert error is None or isinstance(error, OSError), error
    return str(first or ""), str(second or "")


def meet(dialling: object, taking: object, host: str = "127.0.0.1") -> tuple[str, str]:
    dialled, taken = raw_pair()
    return refused(
        TlsSocket(dialled, dialling, host=host),  # type: ignore[arg-type]
        TlsSocket(taken, taking, server=True),  # type: ignore[arg-type]
    )


def contexts(folder: Path, ca: Authority, role: str, name: str, hosts: tuple[str, ...] = (), **how: float) -> Contexts:
    return Contexts(ca.enroll(folder, role, name, hosts, **how))  # type: ignore[arg-type]


def test_a_client_of_another_ca_is_refused(tmp_path: Path, node: Contexts, ca: Authority) -> None:
    stranger = contexts(tmp_path / "s", Authority(), "client", "ward:3")
    save(tmp_path / "s", ca=ca.pem)  # it trusts the node
    first, second = meet(client_context(tmp_path / "s/ca.pem", stranger.files), node.server())
    assert "does not trust the CA of our certificate" in first
    assert "enroll again" in first
    assert "not of this cluster's CA" in second


def test_a_node_of_another_ca_is_refused(tmp_path: Path, client: Contexts) -> None:
    other = contexts(tmp_path / "n", Authority(), "node", "a", ("127.0.0.1",))
    first, second = meet(client.client(), other.server())
    assert "its certificate is not of this cluster's CA" in first
    assert "does not trust the CA of our certificate" in second


def test_a_node_of_another_host_is_refused(client: Contexts, node: Contexts) -> None:
    assert meet(client.client(), node.server(), host="node-a") == ("", "")
    for host in ("node-b", "127.0.0.2", "a"):
        first, _second = meet(client.client(), node.server(), host=host)
        assert "its certificate is for another host" in first
        assert host in first
    assert meet(client.node_client(), node.server(), host="") == ("", "")


def test_a_client_is_no_server(tmp_path: Path, client: Contexts, ca: Authority) -> None:
    """Else whoever has a client's certificate could be taken for a node."""
    false = contexts(tmp_path / "f", ca, "client", "mallory", ("127.0.0.1",))
    first, _second = meet(client.client(), false.server())
    assert "its certificate cannot be used" in first


def test_who_shows_no_certificate_is_nobody(node: Contexts, ca: Authority) -> None:
    dialled, taken = raw_pair()
    ends = (
        TlsSocket(dialled, client_context(ca.pem.decode()), host="127.0.0.1"),
        TlsSocket(taken, node.server(), server=True),
    )
    assert greet(*ends) == (None, None)
    assert ends[1].peer is None
    assert ends[1].peer_certificate == b""
    with pytest.raises(TlsFault, match="has shown no certificate"):
        node.check_peer(ends[1], ["client"])
    for end in ends:
        end.close()


def test_who_does_not_know_the_ca_yet_sees_the_certificate(node: Contexts) -> None:
    dialled, taken = raw_pair()
    ends = TlsSocket(dialled, unverified_context()), TlsSocket(taken, node.server(), server=True)
    assert greet(*ends) == (None, None)
    assert ends[0].peer_certificate
    for end in ends:
        end.close()


def test_a_node_gives_out_no_session_by_which_somebody_could_come_again_without_a_certificate(
    node: Contexts, client: Contexts
) -> None:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client.client()
    dialler = context.wrap_bio(back, there, server_hostname="127.0.0.1")
    taker = node.server().wrap_bio(there, back, server_side=True)
    for side in (dialler, taker, dialler, taker):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    taker.write(b"!")
    assert dialler.read(1) == b"!", "what a node sends behind the handshake was read"
    assert dialler.session is None or not dialler.session.has_ticket


def test_expired_and_not_yet_valid_ones_are_refused(tmp_path: Path, ca: Authority, node: Contexts) -> None:
    for number, (days, since_days, theirs, remedy, ours) in enumerate(
        [
            (-0.01, 1, "has expired", "enroll again", "has expired"),
            (2, -1, "not valid yet", "set this machine's clock", "not be valid yet: compare the clocks"),
        ]
    ):
        folder = tmp_path / str(number)
        files = ca.enroll(folder, "client", "late", days=days, since_days=since_days)
        first, second = meet(client_context(files.ca, files), node.server())
        assert theirs in second
        assert ours in first
        assert first
        with pytest.raises(OutOfTime, match=f"would be refused by others: .*{theirs}.*{remedy}"):
            Contexts(files)


@pytest.mark.parametrize(
    ("uris", "text"),
    [
        ([], "no identity of LIFL"),
        (["https://x"], "no identity of LIFL"),
        (["lifl://hospitals/client/a", "lifl://hospitals/operator/a"], "2 identities"),
        (["lifl://hospitals/root/a"], "is no identity"),
    ],
)
def test_a_certificate_that_is_no_identity_is_nobodys(
    tmp_path: Path, ca: Authority, node: Contexts, uris: list[str], text: str
) -> None:
    certificate, key = ca.issue("client", "a", uris=uris)
    save(tmp_path / "i", ca=ca.pem, certificate=certificate, key=key)
    files = node.files._replace(folder=tmp_path / "i", certificate=tmp_path / "i/cert.pem", key=tmp_path / "i/key.pem")
    dialled, taken = raw_pair()
    ends = (
        TlsSocket(dialled, client_context(files.ca, files), host="127.0.0.1"),
        TlsSocket(taken, node.server(), server=True),
    )
    assert greet(*ends) == (None, None)
    with pytest.raises(TlsFault, match=text):
        node.check_peer(ends[1], ["client"])
    for end in ends:
        end.close()


def test_an_identity_of_another_cluster_under_one_ca_is_refused(tmp_path: Path, ca: Authority, node: Contexts) -> None:
    certificate, key = ca.issue("client", "a", uris=["lifl://banks/client/a"])
    save(tmp_path / "i", ca=ca.pem, certificate=certificate, key=key)
    files = node.files._replace(certificate=tmp_path / "i/cert.pem", key=tmp_path / "i/key.pem")
    dialled, taken = raw_pair()
    ends = (
        TlsSocket(dialled, client_context(files.ca, files), host="127.0.0.1"),
        TlsSocket(taken, node.server(), server=True),
    )
    assert greet(*ends) == (None, None)
    with pytest.raises(TlsFault, match="is of cluster banks, and this is hospitals"):
        node.check_peer(ends[1], ["client"])
    for end in ends:
        end.close()


# ---- what does not speak TLS -----------------------------------------------------------------------------------------


def test_tls_to_a_plain_port(client: Contexts) -> None:
    dialled, taken = raw_pair()
    with taken:
        taken.send(b"\x20\x00\x00\x00\x81\xa4type")
        with pytest.raises(TlsFault, match="it does not speak TLS"):
            shake(TlsSocket(dialled, client.client(), host="127.0.0.1"))
    dialled.close()


def test_plain_bytes_to_a_tls_port(node: Contexts) -> None:
    dialled, taken = raw_pair()
    with dialled:
        dialled.send(b"\x20\x00\x00\x00\x81\xa4type")
        with pytest.raises(TlsFault, match="it does not speak TLS"):
            shake(TlsSocket(taken, node.server(), server=True))
    taken.close()


@pytest.mark.parametrize("given", [b"", b"\x16\x03\x01\x02"])
def test_a_connection_that_ends_within_the_handshake(node: Contexts, given: bytes) -> None:
    dialled, taken = raw_pair()
    dialled.send(given)
    dialled.close()
    with pytest.raises(ConnectionResetError, match="within the TLS handshake"):
        shake(TlsSocket(taken, node.server(), server=True))
    taken.close()


def test_a_handshake_that_comes_byte_by_byte(node: Contexts, client: Contexts) -> None:
    """Each byte is a step that raises and keeps what there is: nothing is lost, nothing waits within it."""
    dialled, taken = raw_pair()
    relayed, relay = raw_pair()
    dialler = TlsSocket(dialled, client.client(), host="127.0.0.1")
    taker = TlsSocket(relayed, node.server(), server=True)
    done = {"dialler": False, "taker": False}
    steps = 0
    while not all(done.values()):
        for name, end in (("dialler", dialler), ("taker", taker)):
            if not done[name]:
                try:
                    end.do_handshake()
                    done[name] = True
                except BlockingIOError:
                    steps += 1
        for source, sink in ((taken, relay), (relay, taken)):
            try:
                sink.send(source.recv(1))
            except BlockingIOError:
                pass
    assert steps > 1000
    assert taker.peer == client.own
    for sock in (dialler, taker):
        sock.close()
    for raw in (taken, relay):
        raw.close()


# ---- files that change -----------------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_shown_by_new_connections(tmp_path: Path, ca: Authority, client: Contexts) -> None:
    renewing = contexts(tmp_path / "n", ca, "node", "a", ("127.0.0.1",))
    first = renewing.own
    certificate, key = ca.issue("node", "a", ["127.0.0.1"])
    save(tmp_path / "n", key=key)  # in between the pair does not match
    assert renewing.own == first
    assert meet(client.client(), renewing.server()) == ("", "")
    save(tmp_path / "n", certificate=certificate)
    second = renewing.own
    assert second.serial != first.serial
    dialled, taken = raw_pair()
    ends = TlsSocket(dialled, client.client(), host="127.0.0.1"), TlsSocket(taken, renewing.server(), server=True)
    assert greet(*ends) == (None, None)
    assert ends[0].peer == second
    for end in ends:
        end.close()


def test_an_old_and_a_new_ca_are_trusted_side_by_side(tmp_path: Path, ca: Authority, client: Contexts) -> None:
    new = Authority()
    rotating = contexts(tmp_path / "n", new, "node", "a", ("127.0.0.1",))
    save(tmp_path / "n", ca=new.pem + ca.pem)
    both = contexts(tmp_path / "c", new, "client", "b")
    save(tmp_path / "c", ca=new.pem + ca.pem)
    assert meet(both.client(), rotating.server()) == ("", "")
    assert "not of this cluster's CA" in meet(client.client(), rotating.server())[0]
    old = contexts(tmp_path / "o", ca, "node", "b", ("127.0.0.1",))
    save(tmp_path / "o", ca=new.pem + ca.pem)
    assert meet(both.client(), old.server()) == ("", "")
    assert meet(client.client(), old.server()) == ("", "")


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("ca", "has no certificate of a CA"),
        ("certificate", "no certificate and key"),
        ("key", "no certificate and key"),
    ],
)
def test_files_that_are_none_are_named(tmp_path: Path, ca: Authority, part: str, text: str) -> None:
    files = ca.enroll(tmp_path / "i", "client", "a")
    save(tmp_path / "i", **{part: b"no PEM"})
    with pytest.raises(ResourceFault, match=text):
        Contexts(files)


def test_a_key_of_another_certificate_is_said(tmp_path: Path, ca: Authority) -> None:
    files = ca.enroll(tmp_path / "i", "client", "a")
    save(tmp_path / "i", key=ca.issue("client", "a")[1])
    with pytest.raises(ResourceFault, match=r"key\.pem is not its key"):
        Contexts(files)


def test_only_tls_1_3_is_spoken(node: Contexts) -> None:
    import ssl

    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "does not speak TLS 1.3" in meet(old, node.server())[0]
