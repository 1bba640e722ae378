"""Pages that go from a client's memory into an AF_UNIX socket: all bytes, in order, whatever they lie in."""

from __future__ import annotations

import os
import socket
import threading

import numpy as np
import pytest

from lifl.client.page_sender import PIPE_BYTES, PageSender

WAIT_S = 60.0


def sent(views: list[memoryview], timeout_s: float | None = None) -> bytes:
    """What comes out at the other end."""
    ours, theirs = socket.socketpair()
    ours.settimeout(timeout_s)
    came: list[bytes] = []

    def read() -> None:
        while data := theirs.recv(1 << 16):
            came.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    sender = PageSender()
    while views:
        count = sender.load(views)
        while not sender.unload(ours):
            pass
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
    ours.close()
    reader.join(WAIT_S)
    theirs.close()
    sender.close()
    return b"".join(came)


@pytest.mark.parametrize("timeout_s", [None, WAIT_S])
@pytest.mark.parametrize("nbytes", [1, 4096, PIPE_BYTES - 1, PIPE_BYTES, 3 * PIPE_BYTES + 5])
@pytest.mark.parametrize("offset", [0, 1, 4095])
def test_all_bytes_come_in_order(nbytes: int, offset: int, timeout_s: float | None) -> None:
    data = np.random.default_rng(1).integers(0, 256, nbytes + offset, np.uint8)
    assert sent([memoryview(data)[offset:]], timeout_s) == data[offset:].tobytes()


def test_many_short_views_and_memory_that_cannot_be_written() -> None:
    pieces = [bytes([number % 256]) * (number % 97 + 1) for number in range(700)]
    assert sent([memoryview(piece) for piece in pieces]) == b"".join(pieces)


def test_a_peer_that_reads_nothing_is_a_timeout_without_a_number_as_of_the_socket() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.01)
    sender = PageSender()
    data = memoryview(np.zeros(PIPE_BYTES, np.uint8))

    def send() -> None:
        for _ in range(64):
            sender.load([data])
            while not sender.unload(ours):
                pass

    with pytest.raises(TimeoutError) as caught:
        send()
    assert caught.value.errno is None
    for end in (ours, theirs, sender):
        end.close()


def test_a_peer_that_is_gone_is_an_error_of_the_connection() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    sender = PageSender()
    sender.load([memoryview(b"x" * 4096)])
    with pytest.raises(ConnectionError):
        sender.unload(ours)
    ours.close()
    sender.close()


def test_nothing_is_left_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    PageSender().close()
    assert set(os.listdir("/proc/self/fd")) == before
