"""What a rule remembers from fold to fold, taken to another aggregator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from nodes import Node, running

import lifl
from lifl.aggregator import RuleState
from lifl.aggregator.session import send_body
from lifl.client.stream import Stream
from lifl.client.tensors import Array
from lifl.core.errors import Refused
from lifl.core.protocol.client import Submit
from lifl.core.protocol.folds import PutModel

OPTIONS = {"fedadam": {"eta": 0.1}, "fedavgm": {"server_momentum": 0.7}}
START = {"w": np.linspace(-1, 1, 300, dtype=np.float32), "d": np.ones((2, 3)), "steps": np.zeros(2, np.int64)}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(tmp_path_factory.mktemp("node") / "state") as found:
        yield found


send_views = Stream.send_views


def step(aggregator: lifl.Aggregator, model: Any, number: int) -> Any:
    """One fold's result, from updates of its number."""
    random = np.random.default_rng(number)
    with aggregator.open(model, expected=2) as fold:
        for weight in (1.0, 3.0):
            update = {name: random.normal(size=array.shape).astype(array.dtype) for name, array in START.items()}
            fold.add(update, weight)
        return fold.result()


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(one[name].view(np.uint8), other[name].view(np.uint8)) for name in START)


@pytest.mark.parametrize("rule", OPTIONS)
@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_a_rule_goes_on_elsewhere_bit_for_bit(node: Node, rule: str, way: str) -> None:
    door = str(node.state_dir) if way == "unix" else node.address
    with lifl.Aggregator(door, rule, OPTIONS[rule]) as first:
        with pytest.raises(Refused, match="before the first result"):
            first.state()
        model: Any = step(first, START, 1)
        model = step(first, model, 2)
        state = first.state()
        assert (state.rule, state.rounds) == (rule, 2)
        kept = RuleState(state.rule, state.rounds, {name: dict(vectors) for name, vectors in state.items()})
        wanted = [step(first, model, 3)]
        wanted.append(step(first, wanted[0], 4))
        last = first.state()
    with lifl.Aggregator(door, rule, OPTIONS[rule], state=kept) as second:
        assert second.state() is kept
        again = step(second, model, 3)
        assert same(again, wanted[0])
        if way == "unix":
            node.kill()
            node.up("--listen", node.address)
        assert same(step(second, again, 4), wanted[1])
        ended = second.state()
        assert ended.rounds == last.rounds == 4
        for name, vectors in last.items():
            assert same(ended[name], vectors)


def test_a_connection_that_breaks_behind_the_state_does_no_harm(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with lifl.Aggregator(node.address, "fedadam", OPTIONS["fedadam"]) as first:
        model = step(first, START, 1)
        state, wanted = first.state(), step(first, model, 2)
    brought = []

    def breaking(line: Any, said: Any, update: Any) -> Any:
        """The node has the last of the state, and the answer is lost."""
        answer = send_body(line, said, update)
        if isinstance(said, PutModel) and isinstance(said.state, str):
            brought.append(said.state)
            if len(brought) == len(state):
                raise ConnectionResetError("cut")
        return answer

    monkeypatch.setattr("lifl.aggregator.session.send_body", breaking)
    with lifl.Aggregator(node.address, "fedadam", OPTIONS["fedadam"], state=state) as second:
        assert same(step(second, model, 2), wanted)
    assert len(brought) == len(state)


def test_an_answer_may_come_before_the_body_has_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    awaited = []

    def looking(stream: Stream, *args: Any) -> None:
        awaited.append(aggregator._line.asked)
        send_views(stream, *args)

    monkeypatch.setattr(Stream, "send_views", looking)
    with lifl.Aggregator(node.address, "fedavg") as aggregator:
        step(aggregator, START, 1)
    assert len(awaited) == 2
    assert all(isinstance(about, Submit) for about in awaited)


def test_a_state_that_is_none_of_the_rule_is_refused_by_its_field(node: Node) -> None:
    def vectors(**other: Array) -> dict[str, Array]:
        good = {name: np.zeros(array.shape, np.float64 if name == "d" else np.float32) for name, array in START.items()}
        return good | other

    def given(states: Any, rounds: Any = 1, rule: str = "fedavgm") -> RuleState:
        return RuleState(rule, rounds, states)

    bad: list[tuple[Any, str]] = [
        ({"momentum": vectors()}, "state"),
        (given({"momentum": vectors()}, rule="fedadam"), "state"),
        (given({}), "state"),
        (given({"momentum": vectors()}, rounds=0), "state"),
        (given({"momentum": vectors()}, rounds="two"), "state"),
    ]
    for state, field in bad:
        with pytest.raises(Refused) as refused:
            lifl.Aggregator(node.state_dir, "fedavgm", state=state)
        assert (refused.value.code, refused.value.field) == ("wrong-state", field)
    for no_states in (None, 3, {"momentum": 5}, {"momentum": None}):
        with pytest.raises(Refused, match="dict of the names"):
            given(no_states)
    late: list[tuple[dict[str, Array], str]] = [
        (vectors(more=np.zeros(1)), "state.momentum"),
        (vectors(w=np.zeros(299, np.float32)), "state.momentum.w"),
        (vectors(w=np.zeros(300)), "state.momentum.w"),
        (vectors(w=[0.0] * 300), "state.momentum.w"),  # type: ignore[arg-type]
        (vectors(w=np.full(300, np.nan, np.float32)), "state.momentum.w"),
    ]
    for momentum, field in late:
        with lifl.Aggregator(node.state_dir, "fedavgm", state=given({"momentum": momentum})) as aggregator:
            with pytest.raises(Refused) as refused:
                aggregator.open(START, expected=1)
            assert refused.value.field == field
    with lifl.Aggregator(node.state_dir) as aggregator, pytest.raises(Refused, match="keeps no state"):
        aggregator.state()
