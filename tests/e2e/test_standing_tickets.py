"""Standing tickets: one client takes part in fold after fold, and the host hears of each update."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
import pytest
from nodes import Node, running

import lifl
from lifl.aggregator import FoldFailed, Part
from lifl.aggregator.tickets import BEGIN, read_ticket
from lifl.core.errors import LocalFault, Refused

MODEL = {"w": np.zeros(6, np.float32), "n": np.zeros(2, np.int64)}
FOLDS = 4


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(tmp_path_factory.mktemp("node") / "state") as found:
        yield found


class Trainer(threading.Thread):
    """Adds 1 in each fold that it is told of, until the host makes no more; `before` is called before each update."""

    def __init__(self, ticket: str, before: Callable[[int, Part], None] = lambda _n, _part: None) -> None:
        super().__init__(daemon=True)
        self.ticket, self.before = ticket, before
        self.seen: list[float] = []
        self.ended: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with lifl.take_part(self.ticket) as part:
                while True:
                    model = part.model
                    self.seen.append(float(model["w"][0]))
                    self.before(len(self.seen), part)
                    part.submit({name: array + 1 for name, array in model.items()}, 2.0, {"loss": self.seen[-1]})
                    part.next()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.ended = error


def rounds(
    aggregator: lifl.Aggregator, names: list[str], between: Callable[[int], None] = lambda _n: None
) -> list[Trainer]:
    """Make folds, each of the result before, by trainers who have a ticket of the first alone."""
    model: Any = MODEL
    trainers: list[Trainer] = []
    for number in range(FOLDS):
        with aggregator.open(model, expected=len(names), shared=True) as fold:
            if not trainers:
                trainers = [Trainer(fold.ticket(name, standing=True)) for name in names]
            between(number)
            assert fold.wait(names, 60.0)
            assert {name: (told.weight, told.metrics) for name, told in fold.brought.items()} == {
                name: (2.0, {"loss": float(number)}) for name in names
            }
            result = fold.result()
            assert sorted(result.clients) == sorted(names)
            model = dict(result)
    assert model["w"].tolist() == [FOLDS] * 6
    return trainers


@pytest.mark.parametrize("rule", ["fedavg", "fedavgm"])
def test_one_ticket_is_good_for_fold_after_fold(node: Node, rule: str) -> None:
    with lifl.Aggregator(node.state_dir, rule=rule) as aggregator:
        trainers = rounds(aggregator, ["a", "b", "c"])
    for trainer in trainers:
        trainer.join(30)
        assert trainer.seen == [float(number) for number in range(FOLDS)]
        assert isinstance(trainer.ended, FoldFailed) and "finished" in str(trainer.ended), trainer.ended


def test_it_goes_on_over_the_death_of_lifld(node: Node) -> None:
    def kill(number: int) -> None:
        if number == 2:
            node.kill()
            node.up()

    with lifl.Aggregator(node.state_dir) as aggregator:
        for trainer in rounds(aggregator, ["a", "b"], kill):
            assert trainer.seen == [float(number) for number in range(FOLDS)]


def test_who_is_late_for_one_fold_is_told_of_the_next(node: Node) -> None:
    is_there, goes_on = threading.Event(), threading.Event()
    missed: list[BaseException] = []

    def late(number: int, part: Part) -> None:
        if number == 1:
            is_there.set()
            goes_on.wait(60)
            with pytest.raises(FoldFailed) as error:
                part.submit(MODEL, 1.0)
            missed.append(error.value)
            part.next()

    with lifl.Aggregator(node.state_dir) as aggregator:
        with aggregator.open(MODEL, expected=2, shared=True) as fold:
            Trainer(fold.ticket("b", standing=True))
            slow = Trainer(fold.ticket("a", standing=True), late)
            assert is_there.wait(60.0) and fold.wait(["b"], 60.0) and not fold.wait(["a"], 0.0)
            assert fold.result().clients == ("b",)
        with aggregator.open(MODEL, expected=2, shared=True) as fold:
            goes_on.set()
            assert fold.wait(["a", "b"], 60.0)
            assert sorted(fold.result().clients) == ["a", "b"]
        assert missed and slow.ended is None


def test_a_fold_without_a_result_is_waited_for_no_more(node: Node) -> None:
    with lifl.Aggregator(node.state_dir) as aggregator:
        with aggregator.open(MODEL, expected=1, shared=True) as fold:
            trainer = Trainer(fold.ticket("a", standing=True))
            assert fold.wait(["a"], 60.0)
        with pytest.raises(FoldFailed):
            fold.wait(["b"])
        with aggregator.open(MODEL, expected=1, shared=True) as fold:
            assert fold.wait(["a"], 60.0)
            assert fold.result().clients == ("a",)
        assert trainer.seen == [0.0, 0.0]


def test_who_has_a_ticket_before_its_fold_is_open_is_in_that_one_alone(node: Node) -> None:
    with lifl.Aggregator(node.state_dir) as aggregator:
        with aggregator.open(MODEL, expected=2, shared=True) as fold:
            first, standing = fold.number, fold.ticket("a", standing=True)
            for wrong in (0, -1, True):
                with pytest.raises(LocalFault, match="behind="):
                    lifl.take_part(standing, behind=wrong)
            with pytest.raises(LocalFault, match="behind="):
                lifl.take_part(fold.ticket("b"), behind=first)
            waiting = Future[Part]()
            threading.Thread(target=lambda: waiting.set_result(lifl.take_part(standing, behind=first))).start()
            fold.add(MODEL, 1.0)
            second = fold.result()
        assert not waiting.done()
        model = {"w": second["w"] + 7, "n": second["n"]}
        with aggregator.open(model, expected=1, shared=True) as fold, waiting.result(60) as part:
            assert part.model["w"][0] == 7
            part.submit(MODEL, 1.0)
            assert fold.wait(["a"], 60.0) and fold.result().clients == ("a",)
        with aggregator.open(MODEL, expected=1, shared=True), pytest.raises(FoldFailed, match=f"behind {first} .*over"):
            lifl.take_part(standing, behind=first)


def test_a_ticket_for_one_fold_is_good_for_no_other_and_a_standing_one_for_no_other_session(node: Node) -> None:
    with lifl.Aggregator(node.state_dir) as aggregator, lifl.Aggregator(node.state_dir) as other:
        with aggregator.open(MODEL, expected=1) as fold, lifl.take_part(fold.ticket("a")) as part:
            with pytest.raises(LocalFault, match="standing=True"):
                part.next()
            standing = fold.ticket("a", standing=True)
        with other.open(MODEL, expected=1) as theirs:
            content = msgspec.structs.replace(read_ticket(standing), job=read_ticket(theirs.ticket("a")).job)
            forged = BEGIN + base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).decode()
            with pytest.raises(Refused, match="no ticket for this fold"):
                lifl.take_part(forged)
