"""The rounds of several clients in one process."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from lifl.client.books import Books
from lifl.client.client import Round
from lifl.client.home import Home
from lifl.core.protocol import client as cm

WAIT_S = 60.0


def round_of(fetch: Any) -> Round:
    client: Any = SimpleNamespace(_layout_of=lambda _tensors: None, _fetch_model=fetch)
    return Round(client, cm.Selected("j", 1, 1.0, (), 0, {}))


def test_the_model_of_one_clients_round_does_not_wait_for_anothers() -> None:
    """Beside one whose gateway is silent the others train: simulations have many clients in one process."""
    begun, answered = threading.Event(), threading.Event()

    def never(_round: Round) -> dict[str, Any]:
        begun.set()
        assert answered.wait(WAIT_S)
        return {}

    slow, fast = round_of(never), round_of(lambda _round: {"w": 1})
    waits = threading.Thread(target=lambda: slow.model)
    waits.start()
    assert begun.wait(WAIT_S)
    got: list[Any] = []
    other = threading.Thread(target=lambda: got.append(fast.model))
    other.start()
    other.join(WAIT_S / 2)
    came_first = list(got)
    answered.set()
    waits.join()
    other.join()
    assert came_first == [{"w": 1}]


def test_the_model_is_fetched_once() -> None:
    fetched: list[Round] = []

    def fetch(round_: Round) -> dict[str, Any]:
        fetched.append(round_)
        return {}

    round_ = round_of(fetch)
    assert round_.model is round_.model
    assert fetched == [round_]


class Line:
    """A connection on which these messages come; None is the answer to a Ping."""

    def __init__(self, *messages: Any) -> None:
        self.messages = list(messages)
        self.order: list[Line] = []

    def wait_with(self, _other: Line) -> Line:
        return self.order.pop(0)

    def take(self) -> Any:
        assert self.messages, "who waits here misses what has come elsewhere"
        return self.messages.pop(0)


def test_an_answer_to_a_ping_at_home_does_not_keep_from_what_comes_elsewhere() -> None:
    go = cm.Go("j", 1)
    at_home, away = Line(None), Line(go)
    away.order = [at_home, away]
    home = Home(["a:1"], Books("j"), threading.Event(), job="j", client="c", direct=False)
    home.stream = at_home  # type: ignore[assignment]
    assert home._receive(away, 1) is go  # type: ignore[arg-type]
