"""A client's models in the node's memory: when it asks for one, and when it gives it back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest

from lifl.client import loans
from lifl.client.loans import Loans
from lifl.client.stream import Stream
from lifl.core.errors import RemoteFault, ResourceFault
from lifl.core.protocol import client as cm
from lifl.shm import mapping

NBYTES = loans.LOAN_BYTES_MIN
OFFSET = 3 * 4096


class Line:
    """A connection over which a model has come as a loan."""

    def __init__(self, direct: bool = True, knows: str = cm.LOANS) -> None:
        self.direct, self.knows = direct, {knows}
        self._descriptors: list[int] = []


class Lender:
    """The node's end of one loan."""

    def __init__(self) -> None:
        self._segment = os.memfd_create("lifl-test")
        os.pwrite(self._segment, b"\7" * NBYTES, OFFSET)
        self._end, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.line = Line()
        self.line._descriptors = [os.dup(self._segment), theirs]

    @property
    def is_over(self) -> bool:
        try:
            return not os.read(self._end, 1)
        except BlockingIOError:
            return False

    def take(self, kept: Loans) -> Any:
        return kept.take(cast(Stream, self.line), OFFSET, NBYTES)

    def close(self) -> None:
        for fd in (self._segment, self._end, *self.line._descriptors):
            os.close(fd)


@contextmanager
def lender() -> Iterator[Lender]:
    made = Lender()
    try:
        yield made
    finally:
        made.close()


def asks(kept: Loans, nbytes: int = NBYTES, **of_line: Any) -> bool:
    return kept.asks(cast(Stream, Line(**of_line)), nbytes)


def test_it_asks_a_node_that_lends_for_what_is_large() -> None:
    kept = Loans()
    assert asks(kept)
    assert not asks(kept, NBYTES - 1) and not asks(kept, direct=False) and not asks(kept, knows=cm.PING)


def test_a_loan_ends_when_nothing_refers_to_it() -> None:
    kept = Loans()
    with lender() as node:
        model = node.take(kept)
        assert (model == 7).all() and model.flags.writeable and not node.line._descriptors
        view = model[5:9].reshape(2, 2).T
        del model
        assert kept.held == 1 and not node.is_over
        del view
        assert not kept.held and node.is_over
        assert asks(kept)


def test_two_are_had_at_a_time() -> None:
    kept = Loans()
    with lender() as first, lender() as second:
        models = [first.take(kept)]
        assert asks(kept)
        models.append(second.take(kept))
        assert not asks(kept)
        models.pop()
        assert asks(kept)
        models.clear()


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize(("part", "writes"), [(8, False), (2, True)])
def test_a_trainer_that_writes_to_much_of_a_model_receives_the_next_ones(part: int, writes: bool, lives: bool) -> None:
    kept = Loans()
    with lender() as node:
        model = node.take(kept)
        model[: NBYTES // part] = 1
        held = [model] if lives else []
        del model
        assert asks(kept) is not writes
        held.clear()


def test_what_cannot_be_mapped_is_given_back_and_the_next_ones_are_received(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Loans()

    def no_room(*_arguments: Any) -> None:
        raise ResourceFault("no room")

    monkeypatch.setattr(mapping, "Borrowed", no_room)
    with lender() as node:
        assert node.take(kept) is None
        assert node.is_over and not kept.held and not asks(kept)


def test_a_loan_without_its_descriptors_is_a_fault_of_the_node() -> None:
    with lender() as node:
        os.close(node.line._descriptors.pop())
        with pytest.raises(RemoteFault, match="descriptors"):
            node.take(Loans())


def test_pages_that_the_kernel_tells_nothing_of_are_taken_for_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.ones(NBYTES, np.uint8)
    assert mapping.own_pages(memory.ctypes.data, NBYTES, 8) == 8
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    assert not mapping.own_pages(memory.ctypes.data, NBYTES, 8)
