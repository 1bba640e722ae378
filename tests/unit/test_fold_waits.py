"""Who waits for a node that is busy, or away, hears at once that what it waits for is closed: by another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lifl.aggregator import Aggregator
from lifl.aggregator.line import Line
from lifl.aggregator.part import Part
from lifl.aggregator.session import RuleSpec, Session, send_body
from lifl.aggregator.tickets import TicketContent
from lifl.client.outcomes import NodeUnreachable
from lifl.client.tensors import Update
from lifl.core.errors import LiflError, LocalFault, Refused
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.schema import Layout, TensorSpec

LONG_S = 1e6
BUSY = cm.Busy("j", 1, LONG_S)
LAYOUT = Layout([TensorSpec("w", "float32", (2,))])
MODEL = {"w": np.zeros(2, np.float32)}
WAIT_S = 60.0


class BusyNode:
    """A connection to a node that has no room, ever."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.ended = False
        self.streams, self.dialler = 1, SimpleNamespace(splits=True)

    def send(self, *_said: Any) -> None:
        pass

    def receive(self) -> cm.Busy:
        self.asked.set()
        return BUSY

    def close(self) -> None:
        self.ended = True


def woken(act: Callable[[], object], asked: threading.Event, close: Callable[[], None]) -> LiflError:
    """What `act` raises in a thread of its own when it has been told to wait, and is closed then."""
    raised: list[LiflError] = []

    def run() -> None:
        try:
            act()
        except LiflError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert asked.wait(WAIT_S)
    close()
    thread.join(WAIT_S)
    assert not thread.is_alive(), "it sleeps on"
    return raised[0]


def line(node: BusyNode, monkeypatch: pytest.MonkeyPatch) -> Line:
    made = Line(lambda: "nowhere:1", "c", None, LONG_S, lambda _message: False, lambda: None)

    def exchange(*_given: Any) -> cm.Busy:
        return node.receive()

    monkeypatch.setattr(made, "exchange", exchange)
    monkeypatch.setattr(made, "_connected", lambda: node)
    return made


@pytest.mark.parametrize("what", ["ask", "put"])
def test_an_aggregator_that_is_closed_waits_for_no_busy_node(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = BusyNode()
    its = line(node, monkeypatch)
    session = Session(its, "j", LAYOUT, RuleSpec("fedavg", {}, "", ()), 1, ())
    put = fm.PutModel("j", 0, LAYOUT.data_bytes, LAYOUT.digest)
    acts: dict[str, Callable[[], object]] = {
        "ask": lambda: session.ask(fm.CloseFold("j", 1), fm.FoldDone),
        "put": lambda: send_body(its, put, Update(LAYOUT, MODEL, numbers=False)),
    }
    fault = woken(acts[what], node.asked, its.close)
    assert isinstance(fault, LocalFault) and "closed" in str(fault)


def test_nor_for_one_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    node = BusyNode()
    its = line(node, monkeypatch)
    monkeypatch.setattr("lifl.aggregator.line.PAUSE_FIRST_S", 1000.0)

    def away() -> None:
        node.asked.set()
        raise ConnectionResetError("it is away")

    assert isinstance(woken(lambda: its.retrying(away), node.asked, its.close), LocalFault)


def part_at(node: BusyNode, monkeypatch: pytest.MonkeyPatch) -> Part:
    def connected(part: Part) -> BusyNode:
        part._stream, part._layout, part._round = node, LAYOUT, 1  # type: ignore[assignment]
        return node

    monkeypatch.setattr(Part, "_connected", connected)
    content = TicketContent(("a:1",), "n", "j", 257, "c", "0" * 64, 1)
    return Part(content, None, LONG_S)


def test_a_part_that_is_closed_waits_for_no_busy_node_and_says_so_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    node = BusyNode()
    part = part_at(node, monkeypatch)
    fault = woken(lambda: part.submit(MODEL, 1.0), node.asked, part.close)
    assert isinstance(fault, LocalFault) and "closed" in str(fault)
    assert node.ended
    part.close()
    with pytest.raises(LocalFault, match="closed"):
        part.submit(MODEL, 1.0)


def test_a_part_that_is_closed_waits_for_no_node_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    node = BusyNode()
    part = part_at(node, monkeypatch)
    monkeypatch.setattr("lifl.aggregator.part.PAUSE_FIRST_S", 1000.0)

    def away(_part: Part) -> BusyNode:
        node.asked.set()
        raise ConnectionResetError("it is away")

    monkeypatch.setattr(Part, "_connected", away)
    fault = woken(lambda: part.submit(MODEL, 1.0), node.asked, part.close)
    assert isinstance(fault, LocalFault) and not isinstance(fault, NodeUnreachable)


def test_a_session_that_is_refused_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that is made for it greets the node with the sessions that there are: it is none yet."""
    asked: list[Any] = []

    def ask(_session: Session, message: Any, _answer: Any) -> Any:
        asked.append(message)
        raise Refused("no-room", "node", "there is none")

    aggregator = Aggregator(node="nowhere:1")
    monkeypatch.setattr(Session, "ask", ask)

    def connected(act: Callable[[], object]) -> object:
        aggregator._line.greet()
        return act()

    monkeypatch.setattr(aggregator._line, "retrying", connected)
    with pytest.raises(Refused, match="there is none"):
        aggregator.open(MODEL, expected=1)
    assert len(asked) == 1
