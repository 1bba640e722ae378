"""Who began first is received first, whatever the order in which bytes come."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest

from lifl.node.gateway import body_moves as gateway_transfer
from lifl.node.gateway.body_moves import LOW_WATER_BYTES, REPORTS, BodyMove, Movers, Receive
from lifl.shm.ingest_check import IngestCheck, ingest_check

WAIT_S = 60.0


def test_of_those_that_are_ready_the_oldest_has_its_turn() -> None:
    """One thread, held up in a first transfer while bytes come for the others: these are then taken in their order."""
    pairs = [socket.socketpair() for _ in range(4)]
    for ours, _theirs in pairs:
        ours.setblocking(False)
    held, go_on, ended = threading.Event(), threading.Event(), threading.Semaphore(0)
    order: list[int] = []
    movers = Movers(1)

    class Held(IngestCheck):
        """Holds its thread once all is there."""

        def receive(self, sock: socket.socket, begin_bytes: int, end_bytes: int) -> None:
            super().receive(sock, begin_bytes, end_bytes)
            held.set()
            assert go_on.wait(WAIT_S)

    def done(_transfer: BodyMove, error: OSError | None, number: int) -> None:
        assert error is None
        order.append(number)
        ended.release()

    try:
        for number, (ours, _theirs) in enumerate(pairs):
            view = memoryview(bytearray(8))
            transfer = Receive(ours, ingest_check(view) if number else Held(view))
            movers.start(transfer, lambda t, e, number=number: done(t, e, number))  # type: ignore[misc]
        pairs[0][1].sendall(bytes(8))
        assert held.wait(WAIT_S)
        for number in (3, 1, 2):  # the latest is ready first
            pairs[number][1].sendall(bytes(8))
        go_on.set()
        for _ in pairs:
            assert ended.acquire(timeout=WAIT_S)
    finally:
        go_on.set()
        movers.stop()
        for pair in pairs:
            for sock in pair:
                sock.close()
    assert order == [0, 1, 2, 3]


def test_one_that_waits_for_its_turn_is_not_stalled() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transfer = Receive(ours, ingest_check(memoryview(bytearray(4 * LOW_WATER_BYTES))))
    try:
        assert not transfer.waits_for_turn(), "its peer has sent nothing"
        short = Receive(ours, ingest_check(memoryview(bytearray(8))))
        theirs.sendall(bytes(8))
        assert short.waits_for_turn(), "all of it is in the kernel"
        assert not transfer.waits_for_turn(), "the rest is still to come"
    finally:
        ours.close()
        theirs.close()


def test_what_has_come_does_not_shrink_while_a_turn_takes_it() -> None:
    """Bytes that have left the kernel within a turn are not yet counted: a look at that moment takes them for lost."""
    taken, go_on = threading.Event(), threading.Event()

    class Held(IngestCheck):
        """Holds its thread between the bytes' leaving the kernel and the end of the turn."""

        def receive(self, sock: socket.socket, begin_bytes: int, end_bytes: int) -> None:
            super().receive(sock, begin_bytes, end_bytes)
            taken.set()
            assert go_on.wait(WAIT_S)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        transfer = Receive(ours, Held(memoryview(bytearray(4096))))
        theirs.sendall(bytes(4000))
        assert transfer.seen_bytes() == 4000
        turn = threading.Thread(target=transfer.step)
        turn.start()
        assert taken.wait(WAIT_S)
        seen: list[int] = []
        at_the_lock, lock = threading.Event(), transfer._turn

        class Told:
            """The turn's lock, which tells that somebody wants it."""

            def __enter__(self) -> None:
                at_the_lock.set()
                lock.acquire()

            def __exit__(self, *_error: object) -> None:
                lock.release()

        def look() -> None:
            seen.append(transfer.seen_bytes())
            at_the_lock.set()  # were it not to wait, it would have looked by now

        transfer._turn = Told()  # type: ignore[assignment]
        looking = threading.Thread(target=look)
        looking.start()
        assert at_the_lock.wait(WAIT_S)
        go_on.set()
        looking.join()
        turn.join()
        assert seen == [4000]


def in_what_order(go_on: Callable[[socket.socket], None]) -> list[int]:
    """One thread, two transfers of 16 and 8 bytes: 8 of each are there, and after those of the first `go_on(its peer)`
    is called; the numbers of the transfers as they end.
    """
    pairs = [socket.socketpair() for _ in range(2)]
    order: list[int] = []
    ended = threading.Semaphore(0)

    class First(IngestCheck):
        def receive(self, sock: socket.socket, begin_bytes: int, end_bytes: int) -> None:
            super().receive(sock, begin_bytes, end_bytes)
            if begin_bytes == 0:
                go_on(pairs[0][1])

    def done(_transfer: BodyMove, error: OSError | None, number: int) -> None:
        assert error is None
        order.append(number)
        ended.release()

    movers = Movers(1)
    try:
        for ours, theirs in pairs:
            ours.setblocking(False)
            theirs.sendall(bytes(8))
        bodies = [First(memoryview(bytearray(16))), ingest_check(memoryview(bytearray(8)))]
        with movers._picking:  # both have begun before the first is taken
            for number, body in enumerate(bodies):
                transfer = Receive(pairs[number][0], body)
                movers.start(transfer, lambda t, e, number=number: done(t, e, number))  # type: ignore[misc]
        assert ended.acquire(timeout=WAIT_S)
        if order == [1]:
            pairs[0][1].sendall(bytes(8))
        assert ended.acquire(timeout=WAIT_S)
    finally:
        movers.stop()
        for pair in pairs:
            for sock in pair:
                sock.close()
    return order


def test_a_transfer_keeps_its_thread_while_its_peer_keeps_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_transfer, "STAY_MS", 1000 * WAIT_S)
    assert in_what_order(lambda peer: threading.Timer(0.02, peer.sendall, [bytes(8)]).start()) == [0, 1]


def test_a_peer_that_does_not_keep_up_holds_no_thread() -> None:
    assert in_what_order(lambda _peer: None) == [1, 0]


def test_who_does_not_keep_up_is_not_waited_for_at_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        transfer = Receive(ours, ingest_check(memoryview(bytearray(4096))))
        assert not Movers._stays(transfer, 0)
        monkeypatch.setattr(gateway_transfer, "STAY_MS", None)  # it would wait for ever
        theirs.sendall(bytes(100))
        transfer.step()
        assert not Movers._stays(transfer, 0)


def test_how_far_a_followed_body_is_is_told_in_so_many_steps() -> None:
    ours, theirs = socket.socketpair()
    told: list[int] = []
    total = 1_000_003
    with ours, theirs:
        ours.setblocking(False)
        transfer = Receive(ours, ingest_check(memoryview(bytearray(total))))
        theirs.sendall(bytes(100))
        transfer.step()
        transfer.follow(told.append)
        assert told == [100]
        sender = threading.Thread(target=theirs.sendall, args=[bytes(total - 100)])
        sender.start()
        while not transfer.step():
            pass
        sender.join()
    assert 1 <= len(told) <= REPORTS + 1
    assert told == sorted(told) and told[-1] < total
    steps = [after - before for before, after in pairwise(told)]
    assert min(steps, default=total) >= total // REPORTS
