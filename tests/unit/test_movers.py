"""Who began first is received first, whatever the order in which bytes come."""

from __future__ import annotations

import socket
import threading
import time

from lifl.node.gateway_transfer import LOW_WATER_BYTES, Movers, Receive, Transfer
from lifl.shm.arrival import Arrival, arrival

WAIT_S = 30.0


def test_of_those_that_are_ready_the_oldest_has_its_turn() -> None:
    """One thread, held up in a first transfer while bytes come for the others: these are then taken in their order."""
    pairs = [socket.socketpair() for _ in range(4)]
    for ours, _theirs in pairs:
        ours.setblocking(False)
    held, go_on, ended = threading.Event(), threading.Event(), threading.Semaphore(0)
    order: list[int] = []
    movers = Movers(1)

    class Held(Arrival):
        """Holds its thread once all is there."""

        def receive(self, sock: socket.socket, begin_bytes: int, end_bytes: int) -> None:
            super().receive(sock, begin_bytes, end_bytes)
            held.set()
            assert go_on.wait(WAIT_S)

    def done(_transfer: Transfer, error: OSError | None, number: int) -> None:
        assert error is None
        order.append(number)
        ended.release()

    try:
        for number, (ours, _theirs) in enumerate(pairs):
            view = memoryview(bytearray(8))
            transfer = Receive(ours, arrival(view) if number else Held(view))
            movers.start(transfer, lambda t, e, number=number: done(t, e, number))  # type: ignore[misc]
        pairs[0][1].sendall(bytes(8))
        assert held.wait(WAIT_S)
        for number in (3, 1, 2):  # the latest is ready first
            pairs[number][1].sendall(bytes(8))
            time.sleep(0.01)
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
    transfer = Receive(ours, arrival(memoryview(bytearray(4 * LOW_WATER_BYTES))))
    try:
        assert not transfer.waits_for_turn(), "its peer has sent nothing"
        short = Receive(ours, arrival(memoryview(bytearray(8))))
        theirs.sendall(bytes(8))
        assert short.waits_for_turn(), "all of it is in the kernel"
        assert not transfer.waits_for_turn(), "the rest is still to come"
    finally:
        ours.close()
        theirs.close()


def test_what_has_come_does_not_shrink_while_a_turn_takes_it() -> None:
    """Bytes that have left the kernel within a turn are not yet counted: a look at that moment takes them for lost."""
    taken, go_on = threading.Event(), threading.Event()

    class Held(Arrival):
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
        looking = threading.Thread(target=lambda: seen.append(transfer.seen_bytes()))
        looking.start()
        looking.join(0.05)  # were it not to wait, it would have looked by now
        go_on.set()
        looking.join()
        turn.join()
        assert seen == [4000]
