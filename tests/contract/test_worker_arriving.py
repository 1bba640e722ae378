"""A top that goes along with updates while they arrive: what it makes early is right, or does not count."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_worker import WAIT_S, Handle, Node, start

from lifl.core.ids import Key, Kind
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.core.protocol.worker import Arriving, TaskDone, TaskStart
from lifl.core.schema import Layout, Segment, TensorSpec
from lifl.rules.kernels import vector
from lifl.worker.streaming_model import PIECE_ELEMENTS

SIZE = 2 * PIECE_ELEMENTS + 1000
HALF_BYTES = 4 * (PIECE_ELEMENTS + 77)
"""Of an update: one piece, and less than another."""
LAYOUT = Layout((TensorSpec("w", "float32", (SIZE,)), TensorSpec("steps", "int64", (3,))))
(FLOATS, INTEGERS), SUMS = LAYOUT.segments, LAYOUT.accumulators[0]

USERS_RULES = """
import numpy as np
from lifl.rules import Rule, kernels

class Clipped(Rule):
    def fold(self, acc, updates, weights, keep):
        clipped = [np.clip(u, -0.5 * np.abs(u).max(), 0.5 * np.abs(u).max()) for u in updates]
        kernels.fold(acc, clipped, weights, keep)

class Half(Rule):
    def finish(self, model, mean, state):
        return model + np.float32(0.5) * (mean - model)
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node("unix", tmp_path)
    yield made
    made.close()


class Round:
    """A top that lacks one update; those with the weights of `there` are there."""

    def __init__(
        self,
        node: Node,
        worker: Handle,
        integers: tuple[int, int, int] = (1, 2, 3),
        there: tuple[float, ...] = (3.0,),
        **more: Any,
    ) -> None:
        self.node, self.worker, self.integers = node, worker, integers
        self.rng = np.random.default_rng(4)
        self.values: dict[Key, np.ndarray] = {}
        self.weights: dict[Key, float] = {}
        self.old = self.update(1.0)
        self.model = node.alloc(Kind.MODEL, LAYOUT.data_bytes)
        self.sums, self.has_sums = node.partial(LAYOUT), True
        settings = {"rule": "fedavg", "options": {}, "rule_folder": "", "eager": True, "parent": 0, "attempt": 1} | more
        message = TaskStart(
            address=1,
            role="top",
            job="j",
            round=1,
            expect=len(there) + 1,
            output=self.model.pack(),
            inputs=LAYOUT.accumulators,
            outputs=LAYOUT.segments,
            model_segments=LAYOUT.segments,
            model=self.old.pack(),
            **settings,
        )
        start(node, worker, message)
        self.there = [self.update(weight) for weight in there]
        for key in self.there:
            node.give(1, key)

    def begin(self, weight: float, bad: bool = False) -> Key:
        """An update of which nothing is there yet."""
        key = self.node.arena.alloc(Kind.UPDATE, 1, 1, LAYOUT.data_bytes, 8192, slab=("u",))
        self.node.arena.data(key)[:] = b"\xff" * LAYOUT.data_bytes
        self.values[key] = self.rng.normal(size=SIZE).astype(np.float32)
        if bad:
            self.values[key][5] = np.nan
        self.weights[key] = weight
        return key

    def receive(self, key: Key, nbytes: int) -> None:
        data = self.values[key].tobytes()[:nbytes]
        self.node.arena.data(key)[: len(data)] = data

    def seal(self, key: Key) -> None:
        self.receive(key, LAYOUT.data_bytes)
        vector(self.node.arena.data(key), INTEGERS)[:] = self.integers
        self.node.arena.seal(
            key, self.weights[key], 1, pack_contribution(Contribution(f"c{key.slot}", self.weights[key]))
        )

    def update(self, weight: float) -> Key:
        key = self.begin(weight)
        self.seal(key)
        return key

    def announce(self, key: Key, nbytes: int, attempt: int = 1) -> None:
        self.receive(key, nbytes)
        updates = ((key.pack(), self.weights[key], nbytes),)
        self.worker.channel.send(Arriving(1, attempt, updates, self.sums.pack() if self.has_sums else b""))

    def wait_made(self, count: int) -> None:
        """Waits until so many elements are written."""
        deadline = time.monotonic() + WAIT_S
        while self.made() < count:
            assert time.monotonic() < deadline, f"{self.made()} elements are made"
            time.sleep(0.005)
        assert self.made() == count

    def settle(self) -> None:
        """Returns when the worker has done what it has been told: it waits for more, and waits nowhere else."""
        self.worker.sync()
        deadline = time.monotonic() + WAIT_S
        while Path(f"/proc/{self.worker.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "the worker never rests"
            os.sched_yield()

    def made_in_the_end(self) -> int:
        """How many elements are written."""
        self.settle()
        return self.made()

    def made(self) -> int:
        """How many elements of the output are written."""
        return self.written(self.model, FLOATS)

    def wait_summed(self) -> np.ndarray:
        """Waits until what is there is summed up; returns the sums."""
        deadline = time.monotonic() + WAIT_S
        while self.written(self.sums, SUMS) < SIZE:
            assert time.monotonic() < deadline, "nothing is summed up"
            time.sleep(0.005)
        return vector(self.node.arena.data(self.sums), SUMS).copy()

    def written(self, key: Key, segment: Segment) -> int:
        values = vector(self.node.arena.data(key), segment)
        found = np.flatnonzero(~np.isnan(values))
        count = int(found[-1]) + 1 if found.size else 0
        # Looked at again: what is written while the first look is under way is no gap.
        assert not np.isnan(values[:count]).any(), "it is written from the front"
        return count

    def mean(self, *keys: Key) -> np.ndarray:
        weights = np.array([self.weights[key] for key in keys])
        values = np.array([self.values[key].astype(np.float64) for key in keys])
        mean: np.ndarray = weights @ values / weights.sum()
        return mean

    def finish(self, last: Key) -> np.ndarray:
        self.seal(last)
        self.node.give(1, last)
        done = self.worker.channel.take(TaskDone)
        keys = [*self.there, last]
        assert (done.inputs, done.weight) == (len(keys), sum(self.weights[key] for key in keys))
        data = self.node.arena.data(self.model)
        assert tuple(vector(data, INTEGERS)) == self.integers
        return vector(data, FLOATS).copy()


def test_what_has_come_is_made_before_the_rest_comes(node: Node) -> None:
    it = Round(node, node.fork())
    key = it.begin(5.0)
    it.announce(key, HALF_BYTES)
    it.wait_made(PIECE_ELEMENTS)
    early = vector(node.arena.data(it.model), FLOATS)[:PIECE_ELEMENTS].copy()
    np.testing.assert_allclose(early, it.mean(*it.there, key)[:PIECE_ELEMENTS], rtol=1e-6, atol=1e-7)
    # What is made is not made again: otherwise the whole would be another.
    it.values[key][:PIECE_ELEMENTS] += 1.0
    whole = it.finish(key)
    it.values[key][:PIECE_ELEMENTS] -= 1.0
    np.testing.assert_allclose(whole, it.mean(*it.there, key), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", ["fedavg", "users_rules:Half"])
def test_what_is_whole_is_summed_up_before_the_rest_begins(node: Node, tmp_path: Path, rule: str) -> None:
    (tmp_path / "users_rules.py").write_text(USERS_RULES)
    it = Round(node, node.fork(), there=(3.0, 1.0), rule=rule, rule_folder=str(tmp_path))
    old = it.values[it.old]
    key = it.begin(4.0)
    it.announce(key, 0)
    summed = it.wait_summed()
    np.testing.assert_allclose(summed, it.mean(*it.there), rtol=1e-15, atol=1e-16)
    assert it.made_in_the_end() == 0
    # It is not read again, and the last one is added to it while it arrives.
    for whole in it.there:
        entry = node.arena.entry(whole)
        view = node.arena.segments.view(entry)[entry.offset : entry.offset + LAYOUT.data_bytes]
        vector(view, FLOATS)[:] = np.nan
    it.announce(key, HALF_BYTES)
    assert it.made_in_the_end() == PIECE_ELEMENTS
    made = vector(node.arena.data(it.model), FLOATS).copy()
    mean = it.mean(*it.there, key).astype(np.float32)
    wanted = mean if rule == "fedavg" else old + np.float32(0.5) * (mean - old)
    np.testing.assert_array_equal(made[:PIECE_ELEMENTS], wanted[:PIECE_ELEMENTS])
    np.testing.assert_array_equal(vector(node.arena.data(it.sums), SUMS), summed)
    np.testing.assert_array_equal(it.finish(key), wanted)


def test_a_single_one_is_not_summed_up_alone(node: Node) -> None:
    it = Round(node, node.fork())
    key = it.begin(5.0)
    it.announce(key, 0)
    assert it.made_in_the_end() == 0
    assert it.written(it.sums, SUMS) == 0
    np.testing.assert_allclose(it.finish(key), it.mean(*it.there, key), rtol=1e-6, atol=1e-7)


def test_where_there_is_no_room_for_a_sum_all_is_made_in_the_end(node: Node) -> None:
    it = Round(node, node.fork(), there=(3.0, 1.0))
    key, it.has_sums = it.begin(4.0), False
    it.announce(key, 0)
    assert it.made_in_the_end() == it.written(it.sums, SUMS) == 0
    it.announce(key, HALF_BYTES)
    assert it.made_in_the_end() == PIECE_ELEMENTS
    np.testing.assert_array_equal(it.finish(key), it.mean(*it.there, key).astype(np.float32))


def test_another_update_than_was_expected_begins_the_sum_anew(node: Node) -> None:
    """The weights of all are in each factor."""
    it = Round(node, node.fork(), there=(3.0, 1.0))
    lost, other = it.begin(4.0), it.begin(7.0)
    it.announce(lost, 0)
    it.wait_summed()
    node.arena.free(lost)
    np.testing.assert_allclose(it.finish(other), it.mean(*it.there, other), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
@pytest.mark.parametrize("bad", [False, True])
def test_another_update_in_its_place_begins_the_model_anew(node: Node, rule: str, bad: bool) -> None:
    worker = node.fork()
    models, states = [], []
    for announced in (True, False):
        names = ("momentum", "second_moment") if rule == "fedadam" else ()
        new = {name: node.alloc(Kind.STATE, LAYOUT.state_bytes) for name in names}
        it = Round(node, worker, rule=rule, new_states={name: key.pack() for name, key in new.items()})
        lost, other = it.begin(5.0, bad), it.begin(2.0)
        if announced:
            it.announce(lost, HALF_BYTES)
            if bad:
                it.settle()
            else:
                it.wait_made(PIECE_ELEMENTS)
        node.arena.free(lost)  # its client died
        models.append(it.finish(other))
        states.append([vector(node.arena.data(key), LAYOUT.states[0]).copy() for key in new.values()])
        if rule == "fedavg":
            np.testing.assert_allclose(models[-1], it.mean(*it.there, other), rtol=1e-6, atol=1e-7)
        for key in (*it.values, it.model, *new.values()):
            if key != lost:
                node.arena.free(key)
    np.testing.assert_array_equal(models[0], models[1])
    np.testing.assert_array_equal(states[0], states[1])


def test_an_update_that_went_before_it_was_looked_at_is_left_alone(node: Node) -> None:
    it = Round(node, node.fork())
    gone, key = it.begin(5.0), it.begin(1.0)
    node.arena.free(gone)
    it.worker.channel.send(Arriving(1, 1, ((gone.pack(), 5.0, HALF_BYTES),)))
    assert it.made_in_the_end() == 0
    np.testing.assert_allclose(it.finish(key), it.mean(*it.there, key), rtol=1e-6, atol=1e-7)


def test_what_is_told_another_attempt_changes_nothing(node: Node) -> None:
    it = Round(node, node.fork())
    key = it.begin(5.0)
    it.announce(key, HALF_BYTES, attempt=2)
    assert it.made_in_the_end() == 0
    np.testing.assert_allclose(it.finish(key), it.mean(*it.there, key), rtol=1e-6, atol=1e-7)


def test_a_rule_that_looks_at_whole_vectors_waits_for_them(node: Node, tmp_path: Path) -> None:
    (tmp_path / "users_rules.py").write_text(USERS_RULES)
    it = Round(node, node.fork(), (0, 0, 0), rule="users_rules:Clipped", rule_folder=str(tmp_path))
    key = it.begin(5.0)
    it.announce(key, HALF_BYTES)
    assert it.made_in_the_end() == 0
    made = it.finish(key)
    it.values = {key: np.clip(v, -0.5 * np.abs(v).max(), 0.5 * np.abs(v).max()) for key, v in it.values.items()}
    np.testing.assert_allclose(made, it.mean(*it.there, key), rtol=1e-6, atol=1e-7)
