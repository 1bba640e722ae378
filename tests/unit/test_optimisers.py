"""Server optimisers step as Flower's do, and on demand as the papers write them down.

Two witnesses: `tests/data/flower-optimizers.json`, what Flower's own strategies answered over ten rounds, and float64
written here from Reddi et al. 2021 (arXiv 2003.00295v5, algorithm 2) and Hsu et al. 2019 (arXiv 1909.06335).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifl.core.errors import ConfigError
from lifl.core.schema import ACCUMULATOR
from lifl.rules import kernels, load_rule
from lifl.rules.finish import finish_segment

TABLE = json.loads((Path(__file__).parents[1] / "data" / "flower-optimizers.json").read_text())
ROUNDS = 10


class Server:
    """Rounds of one rule, from updates that a top takes itself."""

    def __init__(self, name: str, options: dict[str, Any], start: np.ndarray) -> None:
        self.rule = load_rule(name, options)
        self.model = start
        self.states: dict[str, np.ndarray] = {}
        self.round = 0

    def step(self, updates: list[tuple[np.ndarray, float]]) -> np.ndarray:
        self.round += 1
        self.rule.round = self.round
        out = np.empty_like(self.model)
        accumulator = ACCUMULATOR[self.model.dtype.name]
        new = {name: np.full(len(out), np.nan, accumulator) for name in self.rule.states}
        finish_segment(self.rule, self.model, [], updates, out, self.states, new)
        self.model, self.states = out, new
        return out


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: f"{case['rule']}-{len(case['options'])}-options")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ten_rounds_give_flowers_numbers(case: dict[str, Any], dtype: str) -> None:
    assert len(case["models"]) == ROUNDS
    server = Server(case["rule"], case["options"], np.array(TABLE["start"], dtype))
    for updates, expected in zip(TABLE["updates"], case["models"], strict=True):
        pairs = [(np.array(u, dtype), float(w)) for u, w in zip(updates, TABLE["weights"], strict=True)]
        # The distance that rounding makes grows with the steps: some of the updates are 1e-2 apart, tau is 1e-3.
        tolerance = {"float64": 1e-12, "float32": 2e-5}[dtype]
        np.testing.assert_allclose(server.step(pairs), expected, rtol=tolerance, atol=tolerance)


def paper(
    rule: str, o: dict[str, float], x: np.ndarray, deltas: list[Any], start: float, corrected: bool
) -> np.ndarray:
    """Lines 9 to 14 of algorithm 2, with the paper's names; `deltas` are functions of x_t."""
    m, v = np.zeros_like(x), np.full_like(x, start)
    for t, delta_at in enumerate(deltas):
        delta = delta_at(x)
        m = o["beta_1"] * m + (1 - o["beta_1"]) * delta
        if rule == "fedadagrad":
            v = v + delta**2
        elif rule == "fedyogi":
            v = v - (1 - o["beta_2"]) * delta**2 * np.sign(v - delta**2)
        else:
            v = o["beta_2"] * v + (1 - o["beta_2"]) * delta**2
        eta = o["eta"]
        if corrected:
            eta *= np.sqrt(1 - o["beta_2"] ** (t + 2)) / (1 - o["beta_1"] ** (t + 2))
        x = x + eta * m / (np.sqrt(v) + o["tau"])
    return x


OPTIONS = {"eta": 0.2, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.03}


@pytest.mark.parametrize(
    ("rule", "corrected"), [("fedadagrad", False), ("fedyogi", False), ("fedadam", False), ("fedadam", True)]
)
@pytest.mark.parametrize("start", ["zero", "tau_squared"])
def test_the_papers_variants_are_options(rule: str, start: str, corrected: bool) -> None:
    options: dict[str, Any] = {**OPTIONS, "second_moment_start": start}
    if rule == "fedadagrad":
        del options["beta_2"]
    if rule == "fedadam":
        options["bias_correction"] = corrected
    rng = np.random.default_rng(3)
    x, means = rng.normal(size=50), rng.normal(size=(ROUNDS, 50))
    server = Server(rule, options, x)
    for mean in means:
        server.step([(mean, 3.0)])
    expected = paper(
        rule, OPTIONS, x, [lambda x, m=m: m - x for m in means], OPTIONS["tau"] ** 2 * (start != "zero"), corrected
    )
    np.testing.assert_allclose(server.model, expected, rtol=1e-12, atol=1e-12)


def test_momentum_follows_its_paper() -> None:
    rng = np.random.default_rng(4)
    x, means = rng.normal(size=50), rng.normal(size=(ROUNDS, 50))
    server = Server("fedavgm", {"server_learning_rate": 0.5, "server_momentum": 0.8}, x)
    v = np.zeros(50)
    for mean in means:
        v = 0.8 * v + (mean - x)
        x = x + 0.5 * v
        server.step([(mean, 1.0)])
    np.testing.assert_allclose(server.model, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_momentum_without_momentum_is_the_mean_to_the_last_bit(dtype: str) -> None:
    rng = np.random.default_rng(5)
    start, update = (rng.normal(size=999).astype(kernels.numpy_dtype(dtype)) for _ in range(2))
    np.testing.assert_array_equal(Server("fedavgm", {}, start).step([(update, 1.0)]), update)


def test_defaults_are_flowers() -> None:
    defaults = {
        "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.0},
        "fedadagrad": {"eta": 0.1, "eta_l": 0.1, "beta_1": 0.0, "tau": 1e-3},
        "fedadam": {"eta": 0.1, "eta_l": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3, "bias_correction": True},
        "fedyogi": {"eta": 0.01, "eta_l": 0.0316, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    }
    for name, values in defaults.items():
        options = load_rule(name, {}).options
        assert {key: getattr(options, key) for key in values} == values


def test_earlier_names_of_options_are_understood() -> None:
    """Jobs that an earlier version has stored go on."""
    assert load_rule("fedadam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.9}).options == (
        load_rule("fedadam", {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.9}).options
    )
    options = load_rule("fedavgm", {"lr": 0.5, "momentum": 0.8}).options
    assert (options.server_learning_rate, options.server_momentum) == (0.5, 0.8)
    with pytest.raises(ConfigError, match="'lr' is an earlier name of 'eta'; give one of them"):
        load_rule("fedadam", {"lr": 0.05, "eta": 0.05})
