"""The compiled way and Python's `ssl` alone are one: each does what the other does, and they understand each other."""

from __future__ import annotations

import os
import random
import select
import socket
from collections.abc import Iterator
from functools import partial

import pytest
import test_tls_socket as base
from test_tls_socket import Pair, client, greet, node, raw_pair, receive, send, together, wait  # noqa: F401

from lifl.tls import records
from lifl.tls.contexts import Contexts
from lifl.tls.faults import TlsFault
from lifl.tls.tls_socket import OVERHEAD_BYTES_MAX, TlsSocket

ca = base.ca
compiled = pytest.mark.skipif(records.COMPILED is None, reason="no C compiler: the compiled TLS records were not built")
WAYS = [
    pytest.param((True, True), id="compiled", marks=compiled),
    pytest.param((True, False), id="compiled-ssl", marks=compiled),
    pytest.param((False, True), id="ssl-compiled", marks=compiled),
    pytest.param((False, False), id="ssl"),
]


@pytest.fixture(params=WAYS)
def pair(
    node: Contexts,  # noqa: F811
    client: Contexts,  # noqa: F811
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Pair]:
    dialled, taken = raw_pair()
    ends = []
    for is_compiled, raw, context, how in zip(
        request.param,
        (dialled, taken),
        (client.client(), node.server()),
        ({"host": "127.0.0.1"}, {"server": True}),
        strict=True,
    ):
        with monkeypatch.context() as patch:
            if not is_compiled:
                patch.setattr(records, "COMPILED", None)
            ends.append(TlsSocket(raw, context, **how))  # type: ignore[arg-type]
    assert greet(ends[0], ends[1]) == (None, None)
    assert tuple(end._way is not None for end in ends) == request.param
    yield ends[0], ends[1]
    for end in ends:
        end.close()


for test in (
    base.test_many_small_buffers_are_one_stream,
    base.test_what_is_decrypted_and_not_asked_for_is_pending,
    base.test_it_decrypts_into_the_callers_memory,
    base.test_a_thread_receives_while_another_sends,
    base.test_with_a_timeout_it_waits_as_a_socket_does,
    base.test_a_body_that_is_cut_within_a_record_ends_with_what_was_whole,
    base.test_bytes_that_were_changed_on_their_way_are_an_error,
    base.test_new_keys_now_and_then_are_taken,
    base.test_new_keys_without_end_are_an_error_and_keep_nobody_busy,
    base.test_shutting_it_down_wakes_who_receives,
):
    globals()[test.__name__] = test


def test_bodies_and_frames_in_any_pieces_are_one_stream(pair: Pair) -> None:
    """What was received ahead of a body's end belongs to what follows, in rooms small and large."""
    draw = random.Random(3)
    data = draw.randbytes(9_000_000)
    for sender, receiver in (pair, pair[::-1]):
        got = bytearray()

        def give(sender: TlsSocket = sender) -> None:
            left = memoryview(data)
            while left:
                send(sender, bytes(left[: (step := draw.choice((1, 30, 17_000, 400_000)))]))
                left = left[step:]

        def take(receiver: TlsSocket = receiver, got: bytearray = got) -> None:
            rooms = random.Random(4)
            while len(got) < len(data):
                room = bytearray(min(rooms.choice((4, 100, 70_000, 2_000_000)), len(data) - len(got)))
                if not receiver.pending:
                    wait(receiver, write=False)
                try:
                    got += room[: receiver.recv_into(room)]
                except BlockingIOError:
                    continue

        assert together(give, take) == [None, None]
        assert bytes(got) == data
        assert not receiver.pending


def test_what_was_received_behind_a_body_is_pending(pair: Pair) -> None:
    sender, receiver = pair
    body, received = os.urandom(300_000), []
    works = partial(send, sender, body + b"frame"), lambda: received.append(receive(receiver, len(body)))
    assert together(*works) == [None, None]
    assert received == [body]
    if not receiver.pending:
        wait(receiver, write=False)
    assert receive(receiver, 5) == b"frame"
    with pytest.raises(BlockingIOError):
        receiver.recv_into(bytearray(100_000))
    assert not receiver.pending


def test_waiting_for_the_rest_of_a_record_keeps_nobody_busy(pair: Pair) -> None:
    """Half a record is nothing to read: who asked for it again and again would never sleep."""
    sender, receiver = pair
    sealed = ssl_only(sender, b"x" * 1000)
    sender.raw.send(sealed[:500])
    wait(receiver, write=False)
    for room in (10, 100_000):
        with pytest.raises(BlockingIOError):
            receiver.recv_into(bytearray(room))
        assert not receiver.pending or receiver._way is None
    sender.raw.send(sealed[500:])
    assert receive(receiver, 1000) == b"x" * 1000


def ssl_only(sock: TlsSocket, data: bytes) -> bytes:
    """The record that `ssl` makes of data, not sent."""
    sock._tls.write(data)
    return sock._outgoing.memory.read()


@pytest.mark.parametrize("room", [1, 200_000])
def test_new_keys_without_end_within_a_body_are_an_error(pair: Pair, room: int) -> None:
    one, other = pair
    flood = bytearray(ssl_only(one, b"begin"))
    while len(flood) < 150_000:
        flood += base.new_keys(one, 50)
    for raw, option in ((one.raw, socket.SO_SNDBUF), (other.raw, socket.SO_RCVBUF)):
        raw.setsockopt(socket.SOL_SOCKET, option, 4 * len(flood))
    assert one.raw.send(flood) == len(flood)
    wait(other, write=False)

    def read_on() -> None:
        while True:
            try:
                other.recv_into(bytearray(room))
            except BlockingIOError:
                select.select([other.fileno()], [], [], base.BUSY_S)

    with pytest.raises(TlsFault, match="hardly any data"):
        read_on()
    assert other._outgoing.memory.pending < OVERHEAD_BYTES_MAX + base.READ_BYTES


@compiled
def test_the_cipher_that_costs_least_is_taken(node: Contexts, client: Contexts) -> None:  # noqa: F811
    dialled, taken = raw_pair()
    ends = TlsSocket(dialled, client.client(), host="127.0.0.1"), TlsSocket(taken, node.server(), server=True)
    assert greet(*ends) == (None, None)
    assert [end.cipher for end in ends] == ["TLS_AES_128_GCM_SHA256"] * 2
    for end in ends:
        end.close()


@compiled
def test_a_python_that_keeps_its_connections_elsewhere_has_ssl_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_HEADER", records._HEADER + 8)
    assert records.load() is None


@compiled
def test_an_openssl_without_a_function_that_is_needed_has_ssl_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FUNCTIONS", (*records.FUNCTIONS[:-1], "SSL_of_another_make"))
    assert records.load() is None
    monkeypatch.setattr(records, "FUNCTIONS", records.FUNCTIONS[:-1])
    assert records.load() is None
