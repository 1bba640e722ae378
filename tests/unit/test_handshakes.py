"""How many TLS handshakes one source gets, at the limit and one beyond."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest

from lifl.core import limits
from lifl.node.handshakes import Handshakes
from lifl.node.security import TLS_HANDSHAKE, Security


def test_so_many_at_once_are_made_at_once_and_the_next_waits_for_its_turn() -> None:
    books = Handshakes()
    for _ in range(limits.HANDSHAKES_AT_ONCE):
        assert books.wait_s("192.0.2.1", 10.0) == pytest.approx(0.0, abs=1e-6)
    assert books.wait_s("192.0.2.1", 10.0) == pytest.approx(1 / limits.HANDSHAKES_PER_S)
    assert books.wait_s("192.0.2.2", 10.0) == 0.0, "another source waits for nobody"


def test_who_would_wait_too_long_is_turned_away_and_takes_no_turn() -> None:
    books = Handshakes()
    for _ in range(limits.HANDSHAKES_AT_ONCE + int(limits.HANDSHAKE_WAIT_S * limits.HANDSHAKES_PER_S) - 1):
        assert books.wait_s("192.0.2.1", 10.0) < limits.HANDSHAKE_WAIT_S
    assert books.wait_s("192.0.2.1", 10.0) == pytest.approx(limits.HANDSHAKE_WAIT_S)
    for _ in range(1000):
        with pytest.raises(ConnectionError, match=r"192\.0\.2\.1 makes more TLS handshakes"):
            books.wait_s("192.0.2.1", 10.0)
    later = 10.0 + 2 / limits.HANDSHAKES_PER_S
    assert books.wait_s("192.0.2.1", later) <= limits.HANDSHAKE_WAIT_S, "those turned away have cost it nothing"


def test_in_the_long_run_it_has_its_rate() -> None:
    books = Handshakes()
    for number in range(5 * limits.HANDSHAKES_AT_ONCE):
        assert books.wait_s("192.0.2.1", number / limits.HANDSHAKES_PER_S) == 0.0


def test_of_so_many_sources_is_counted_and_the_first_makes_place_for_one_beyond() -> None:
    books = Handshakes()
    for _ in range(limits.HANDSHAKES_AT_ONCE):
        books.wait_s("first", 0.0)
    for number in range(limits.HANDSHAKE_SOURCES_MAX - 1):
        books.wait_s(str(number), 0.0)
    assert books.wait_s("first", 0.0) > 0.0, "it is counted still, and has come last now"
    for number in range(limits.HANDSHAKE_SOURCES_MAX):
        books.wait_s(f"other {number}", 0.0)
    assert books.wait_s("first", 0.0) == 0.0, "nobody's books grow without end"


def test_a_door_makes_no_handshake_before_its_turn() -> None:
    """What a handshake costs, a signature, is not spent on who is turned away."""

    async def play() -> None:
        security = Security(SimpleNamespace())  # type: ignore[arg-type]  # whose contexts would be asked for first
        asked: list[str] = []

        def late(source: str, _now: float) -> float:
            asked.append(source)
            raise ConnectionRefusedError("it would wait too long")

        security._handshakes = SimpleNamespace(wait_s=late)  # type: ignore[assignment]
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as here:
            here.connect(listener.getsockname())
            here.sendall(TLS_HANDSHAKE)
            raw, _ = listener.accept()
            raw.setblocking(False)
            with raw, pytest.raises(ConnectionRefusedError, match="wait too long"):
                await security.taken(raw)
        assert asked == ["127.0.0.1"]

    asyncio.run(play())
