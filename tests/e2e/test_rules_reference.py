"""Committed models against a reference in float64, written down here once more from the papers' formulas.

Every rule runs on real nodes with both redirectors, eager and lazy, over several rounds, with trainers' own weights,
on a model with every kind of dtype; metrics are weighted means of those that sent them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fleet import Update, arena_use, ask, fleet, submit, until
from nodes import Node
from safetensors.numpy import load_file

from lifl.core.planning.tree import tail_of
from lifl.core.protocol import cli as om

CLIENTS, ROUNDS = 5, 3
DTYPES = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "i64": np.int64,
    "u8": np.uint8,
}
TOLERANCE = {"f32": 2e-5, "f64": 1e-12, "f16": 2.0**-9, "bf16": 2.0**-6}
OWN_RULE = """
from lifl.core.planning.tree import tail_of
from lifl.rules import Rule, RuleOptions


class Drag(Rule):
    class Options(RuleOptions, frozen=True):
        fraction: float = 0.5

    states = ("before",)

    def finish(self, model, mean, state):
        step = self.options.fraction * (mean - model) + 0.1 * state["before"]
        state["before"][:] = step
        return model + step
"""

State = dict[str, np.ndarray]


def avg(x: np.ndarray, mean: np.ndarray, s: State) -> np.ndarray:
    return mean


def avgm(x: np.ndarray, mean: np.ndarray, s: State) -> np.ndarray:
    s["v"] = 0.9 * s.get("v", 0.0) + (mean - x)
    return x + 0.7 * s["v"]


def adaptive(beta1: float, second: Callable[[Any, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def step(x: np.ndarray, mean: np.ndarray, s: State) -> np.ndarray:
        s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * (mean - x)
        s["v"] = second(s.get("v", np.full_like(x, 0.05**2)), (mean - x) ** 2)
        return x + 0.3 * s["m"] / (np.sqrt(s["v"]) + 0.05)

    return step


def drag(x: np.ndarray, mean: np.ndarray, s: State) -> np.ndarray:
    s["before"] = 0.25 * (mean - x) + 0.1 * s.get("before", 0.0)
    return x + s["before"]


ADAPTIVE = {"eta": 0.3, "tau": 0.05, "second_moment_start": "tau_squared"}
RULES: dict[str, tuple[dict[str, float], Callable[..., np.ndarray]]] = {
    "fedavg": ({}, avg),
    "fedavgm": ({"server_learning_rate": 0.7, "server_momentum": 0.9}, avgm),
    "fedadagrad": (ADAPTIVE, adaptive(0.0, lambda v, square: v + square)),
    "fedadam": (
        ADAPTIVE | {"beta_2": 0.9, "bias_correction": False},
        adaptive(0.9, lambda v, square: 0.9 * v + 0.1 * square),
    ),
    "fedyogi": (
        ADAPTIVE | {"beta_2": 0.9},
        adaptive(0.9, lambda v, square: v - 0.1 * square * np.sign(v - square)),
    ),
    "own:Drag": ({"fraction": 0.25}, drag),
}


def draw_tensors(*seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        name: draw.integers(0, 200, (3, 5)).astype(dtype)
        if np.dtype(dtype).kind in "iu"
        else draw.standard_normal((37, 11)).astype(dtype)
        for name, dtype in DTYPES.items()
    }


def update_of(index: int, number: int) -> Update:
    metrics = {"loss": 1.0 / (1 + index) + number}
    if index % 2:
        metrics["accuracy"] = index / 10
    return draw_tensors(index, number), 0.5 + 3 * index, metrics


def mean_of(updates: list[Update], name: str) -> np.ndarray:
    total = sum(weight for _, weight, _ in updates)
    return sum(np.asarray(tensors[name], np.float64) * weight for tensors, weight, _ in updates) / total


def check(lines: list[dict[str, Any]], start: dict[str, np.ndarray], step: Callable[..., np.ndarray]) -> None:
    """Each committed model is the reference's, from the model before it, with the states of all rounds so far."""
    model = {name: np.asarray(array, np.float64) for name, array in start.items()}
    states: dict[str, State] = {name: {} for name in DTYPES}
    assert len(lines) == ROUNDS
    for line in lines:
        updates = [update_of(index, line["round"]) for index in range(CLIENTS)]
        committed = load_file(line["path"])
        for name, dtype in DTYPES.items():
            mean = mean_of(updates, name)
            assert committed[name].dtype == dtype
            if np.dtype(dtype).kind in "iu":
                assert (committed[name] == np.rint(mean)).all(), f"{name} of round {line['round']}"
                continue
            exact = step(model[name], mean, states[name])
            found = np.asarray(committed[name], np.float64)
            error = np.abs(found - exact).max() / np.abs(exact).max()
            assert error < TOLERANCE[name], f"{name} of round {line['round']} is off by {error:.3g}"
            model[name] = np.asarray(exact.astype(dtype), np.float64)


@pytest.fixture(scope="module", params=["auto", "unix"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    flags = ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--redirector", request.param)
    node = Node(tmp_path_factory.mktemp("n"), flags)
    node.up()
    (node.state_dir / "configs").mkdir()
    (node.state_dir / "configs" / "own.py").write_text(OWN_RULE)
    yield node
    node.down()


@pytest.mark.parametrize("timing", ["eager", "lazy"])
@pytest.mark.parametrize("rule", list(RULES))
def test_committed_models_are_the_references(node: Node, rule: str, timing: str) -> None:
    options, step = RULES[rule]
    job, start = f"{rule.replace(':', '.')}-{timing}", draw_tensors(99)
    keys = {"aggregation__rule": rule, "aggregation__options": options, "aggregation__timing": timing}
    submit(node, job, start, job__rounds=ROUNDS, selection__clients_per_round=CLIENTS, **keys)
    with fleet([node.address, str(node.state_dir)], job, CLIENTS, update_of) as team:
        team.join()
    lines = ask(node, om.JobStatus(job))["rounds"]
    check(lines, start, step)
    for line in lines:
        updates = [update_of(index, line["round"]) for index in range(CLIENTS)]
        for metric in ("loss", "accuracy"):
            senders = [(weight, metrics[metric]) for _, weight, metrics in updates if metric in metrics]
            exact = sum(w * value for w, value in senders) / sum(w for w, _ in senders)
            assert line["metrics"][metric] == pytest.approx(exact, rel=1e-12)
        assert line["receipt"]["weight"] == pytest.approx(sum(weight for _, weight, _ in updates))
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))


def test_fan_in_does_not_change_the_model(node: Node) -> None:
    """Chains, wide leaves, deep trees and one leaf for all."""
    start = draw_tensors(98)
    for fan_in, middle_fan_in in [(1, 2), (2, 2), (3, 2), (16, 8)]:
        job = f"tree-{fan_in}-{middle_fan_in}"
        keys = {"aggregation__fan_in": fan_in, "aggregation__middle_fan_in": middle_fan_in}
        submit(node, job, start, job__rounds=ROUNDS, selection__clients_per_round=CLIENTS, **keys)
        with fleet(node.address, job, CLIENTS, update_of) as team:
            team.join()
        lines = ask(node, om.JobStatus(job))["rounds"]
        check(lines, start, avg)
        roles = [task["role"] for task in lines[0]["receipt"]["tree"]]
        leaves = -(-(CLIENTS - tail_of(CLIENTS, fan_in)) // fan_in)
        assert roles.count("leaf") == leaves and roles.count("top") == 1
        assert roles.count("middle") == {4: 2, 2: 0, 1: 0}[leaves]
