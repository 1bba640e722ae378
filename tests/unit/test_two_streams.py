"""A client that waits for two connections at once looks after both."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from lifl.client.stream import OtherLost, Stream


class Watch:
    """Is due at once; its node is silent, and after so many looks another one answers."""

    def __init__(self, looks: float) -> None:
        self.looks = looks

    def wait_s(self) -> float:
        return 0.0

    def silent(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise ConnectionResetError("10.0.0.1:1 is silent, 10.0.0.2:1 answers")

    heard = moved = silent


class Pair:
    """A stream, and the socket at its other end."""

    def __init__(self, looks: float) -> None:
        near, self.far = socket.socketpair()
        self.stream = Stream.__new__(Stream)
        self.stream._sock, self.stream.watch = near, Watch(looks)  # type: ignore[assignment]

    def close(self) -> None:
        self.stream._sock.close()
        self.far.close()


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made: list[Pair] = []
    yield made
    for pair in made:
        pair.close()


def test_the_other_ones_node_is_silent(pairs: list[Pair]) -> None:
    away, home = pairs[:] = [Pair(float("inf")), Pair(2)]
    with pytest.raises(OtherLost, match="is silent"):
        away.stream.wait_with(home.stream)


def test_its_own_node_is_silent(pairs: list[Pair]) -> None:
    away, home = pairs[:] = [Pair(2), Pair(float("inf"))]
    with pytest.raises(ConnectionResetError) as error:
        away.stream.wait_with(home.stream)
    assert not isinstance(error.value, OtherLost)


@pytest.mark.parametrize("number", [0, 1])
def test_what_has_come_is_returned_and_nobody_is_looked_after(pairs: list[Pair], number: int) -> None:
    away, home = pairs[:] = [Pair(0), Pair(0)]
    pairs[number].far.send(b"x")
    assert away.stream.wait_with(home.stream) is pairs[number].stream
