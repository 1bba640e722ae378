"""Rules: any tree gives the float64 mean; each adaptive rule against plain float64; user rules and bad options."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import level_of, merged, partial_of, summed_ahead

from lifl.core.errors import ConfigError
from lifl.core.schema import ACCUMULATOR, DTYPE_BYTES, KEPT, STATE
from lifl.rules import Rule, RuleFailed, RuleOptions, kernels, load_rule
from lifl.rules.finish import finish_segment, is_mean

FLOATS = ("float64", "float32", "float16", "bfloat16")


def finish(
    rule: Rule, model: np.ndarray, partials: list, states: dict | None = None, updates: list | None = None
) -> tuple[Any, dict]:
    out = np.empty_like(model)
    new_states = {name: np.full(len(model), np.nan, STATE[model.dtype.name]) for name in rule.states}
    finish_segment(rule, model, partials, updates or [], out, states or {}, new_states)
    if is_mean(rule) and updates and len(updates) > 1:  # as a top makes it that sums up what is there
        ahead, made = summed_ahead(rule, partials, updates[:-1]), np.empty_like(model)
        finish_segment(rule, model, [ahead], updates[-1:], made, {}, {})
        one = {"float64": 1e-14, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}.get(model.dtype.name, 0)
        near = 1e-14 * max(float(np.abs(vector.astype(np.float64)).max()) for vector, _ in updates)
        weights = [weight for _, weight in (*partials, *updates)]
        if model.dtype.name not in FLOATS and not (all(map(float.is_integer, weights)) and sum(weights) < 2**53):
            near = 1.0  # each is within 1 of the mean, and one of the two may be another integer
        made, expected = made.astype(np.float64), out.astype(np.float64)
        np.testing.assert_allclose(made, expected, rtol=one, atol=near + 2.0**-24 * (model.dtype == np.float16))
    return out, new_states


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from([dtype for dtype in DTYPE_BYTES if dtype not in KEPT]),
    size=st.integers(1, 60),
    weights=st.lists(st.floats(1e-30, 1e30) | st.integers(1, 10_000).map(float), min_size=1, max_size=30),
    fan_in=st.integers(1, 8),
    middle_fan_in=st.integers(2, 4),
    batches=st.integers(1, 4),
    tail=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_tree_gives_the_weighted_mean(
    dtype: str, size: int, weights: list[float], fan_in: int, middle_fan_in: int, batches: int, tail: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rule = load_rule("fedavg", {})
    if dtype in FLOATS:
        updates = [rng.normal(size=size).astype(kernels.numpy_dtype(dtype)) for _ in weights]
    else:
        info = np.iinfo(dtype)
        low, high = max(info.min, -(2**30)), min(info.max, 2**30)
        updates = [rng.integers(low, high, size, endpoint=True).astype(dtype) for _ in weights]
    order = list(rng.permutation(len(weights)))
    last = [(updates[i], weights[i]) for i in order[len(order) - tail :]] if tail else []
    order = order[: len(order) - tail]
    level = level_of(rule, [(updates[i], weights[i]) for i in order], fan_in, middle_fan_in, batches)
    model, _ = finish(rule, updates[0], level, updates=last)

    wide = np.array([u.astype(np.float64) for u in updates])
    share = np.array(weights) / math.fsum(weights)
    expected = share @ wide
    assert model.dtype == updates[0].dtype
    if dtype in FLOATS:
        unit = float(np.finfo(ACCUMULATOR[dtype]).eps)
        own = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}.get(dtype, unit)
        slack = (len(weights) + 8) * unit * (share @ np.abs(wide)) + own * 1.001 * np.abs(expected)
        slack += 2.0**-25 * (dtype == "float16")  # the least subnormal's half
        assert (np.abs(model.astype(np.float64) - expected) <= slack + 1e-40).all()
    else:
        assert (np.abs(model.astype(np.float64) - expected) <= 0.5 + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(-128, 127), st.integers(1, 1000)), min_size=1, max_size=40),
    cut=st.integers(1, 39),
)
def test_integers_with_whole_weights_are_rounded_exactly(data: list[tuple[int, int]], cut: int) -> None:
    rule = load_rule("fedavg", {})
    parts = [part for part in (data[:cut], data[cut:]) if part]
    partials = [
        partial_of(rule, [np.array([x], np.int8) for x, _ in part], [float(w) for _, w in part], 3) for part in parts
    ]
    model, _ = finish(rule, np.zeros(1, np.int8), partials)
    with_tail, _ = finish(
        rule, np.zeros(1, np.int8), partials[:1], updates=[(np.array([x], np.int8), float(w)) for x, w in data[cut:]]
    )
    assert with_tail[0] == model[0]
    from fractions import Fraction

    exact = Fraction(sum(x * w for x, w in data), sum(w for _, w in data))
    assert model[0] == round(exact)  # Python rounds half to even


def test_one_hot_every_member_stands_as_exactly_one() -> None:
    count = 24
    rule = load_rule("fedavg", {})
    updates = list(np.eye(count, dtype=np.float32))
    level = [partial_of(rule, updates[i : i + 3], [1.0] * 3, 2) for i in range(0, count, 3)]
    level = [merged(rule, level[:5]), merged(rule, level[5:])]
    model, _ = finish(rule, updates[0], level)
    assert (model == np.float32(1 / count)).all()


def test_a_rules_own_fold_sees_the_last_updates_whole_too() -> None:
    class Clipped(Rule):
        """Brings each update to length 1: it must see all of it at once."""

        def fold(self, acc: Any, updates: Any, weights: Any, keep: float) -> None:
            kernels.fold(acc, [u / np.linalg.norm(u).astype(u.dtype) for u in updates], weights, keep)

    rng = np.random.default_rng(1)
    updates = list(rng.normal(size=(5, 1_000_000)).astype(np.float32))
    rule = Clipped(None)
    part = partial_of(rule, updates[:3], [1.0, 2.0, 3.0], 1)
    model, _ = finish(rule, updates[0], [part], updates=[(updates[3], 4.0), (updates[4], 5.0)])
    clipped = [w * u / np.linalg.norm(u) for u, w in zip(updates, (1, 2, 3, 4, 5), strict=True)]
    np.testing.assert_allclose(model, sum(clipped) / 15, atol=1e-8)
    model, _ = finish(rule, updates[0], [], updates=[(updates[3], 4.0), (updates[4], 5.0)])
    np.testing.assert_allclose(model, sum(clipped[3:]) / 9, atol=1e-8)


def test_the_mean_of_the_largest_floats_does_not_overflow() -> None:
    rule = load_rule("fedavg", {})
    big = np.full(3, 3e38, np.float32)
    model, _ = finish(rule, big, [partial_of(rule, [big] * 7, [1e6 * (i + 1) for i in range(7)], 3)])
    np.testing.assert_allclose(model, big, rtol=1e-6)


OPTIONS = {
    "fedavgm": {"server_learning_rate": 0.5, "server_momentum": 0.8},
    "fedadam": {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.95, "tau": 0.01, "bias_correction": False},
    "fedyogi": {"eta": 0.1, "beta_1": 0.8, "beta_2": 0.9, "tau": 0.01},
    "fedadagrad": {"eta": 0.2, "beta_1": 0.0, "tau": 0.05},
}


def reference(name: str, x: np.ndarray, mean: np.ndarray, m: np.ndarray, v: np.ndarray) -> tuple:
    """Reddi et al. 2021, algorithm 2 (FedAvgM: Hsu et al. 2019), element for element in float64."""
    o = OPTIONS[name]
    delta = mean - x
    if name == "fedavgm":
        m = o["server_momentum"] * m + delta
        return x + o["server_learning_rate"] * m, m, v
    m = o["beta_1"] * m + (1 - o["beta_1"]) * delta
    if name == "fedadagrad":
        v = v + delta**2
    elif name == "fedyogi":
        v = v - (1 - o["beta_2"]) * delta**2 * np.sign(v - delta**2)
    else:
        v = o["beta_2"] * v + (1 - o["beta_2"]) * delta**2
    return x + o["eta"] * m / (np.sqrt(v) + o["tau"]), m, v


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", OPTIONS)
def test_adaptive_rules_follow_their_equations(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 1024)  # several blocks and a rest
    rng = np.random.default_rng(5)
    rule = load_rule(name, OPTIONS[name])
    size = 1000
    model = rng.normal(size=size).astype(kernels.numpy_dtype(dtype))
    states: dict[str, np.ndarray] = {}
    m, v = np.zeros(size), np.zeros(size)
    for _round in range(4):
        updates = [(model + 0.3 * rng.normal(size=size).astype(np.float32)).astype(model.dtype) for _ in range(4)]
        weights = [1.0, 2.0, 3.0, 10.0]
        x = model.astype(np.float64)
        mean = np.array(weights) @ np.array([u.astype(np.float64) for u in updates]) / 16
        expected, m, v = reference(name, x, mean, m, v)
        halves = [
            partial_of(rule, updates[:2], weights[:2], 1),
            partial_of(rule, updates[2:], weights[2:], 2),
        ]
        model, states = finish(rule, model, halves, states)
        tolerance = {"float64": 1e-12, "float32": 2e-5, "float16": 1.2e-3, "bfloat16": 8e-3}[dtype]
        np.testing.assert_allclose(model.astype(np.float64), expected, rtol=tolerance, atol=tolerance)
        assert states["momentum"].dtype == STATE[dtype]
        # From here the reference goes on from what was published, so errors do not pile up.
        m, v = states["momentum"].astype(np.float64), states.get("second_moment", v)
        v = np.asarray(v, np.float64)


def test_integer_segments_are_averaged_whatever_the_rule() -> None:
    rule = load_rule("fedadam", {})
    updates = [np.array([1, 200], np.uint8), np.array([2, 255], np.uint8)]
    out, states = finish(rule, np.zeros(2, np.uint8), [partial_of(rule, updates, [1.0, 1.0], 1)])
    assert out.tolist() == [2, 228]
    assert all((vector == 0).all() for vector in states.values())


def test_a_model_that_is_not_finite_is_refused_by_its_place() -> None:
    rule = load_rule("fedavg", {})
    update = np.zeros(200_000, np.float32)
    update[150_000] = np.nan
    with pytest.raises(RuleFailed, match="after FedAvg is not finite: element 150000 of the float32 tensors"):
        finish(rule, update, [partial_of(rule, [update], [1.0], 1)])


def test_a_step_beyond_the_models_dtype_is_refused() -> None:
    rule = load_rule("fedavgm", {"server_learning_rate": 1e9})
    model = np.ones(3, np.float16)
    with pytest.raises(RuleFailed, match="diverges"):
        finish(rule, model, [partial_of(rule, [model * 2], [1.0], 1)])


def test_a_state_that_is_not_finite_is_refused() -> None:
    rule = load_rule("fedadagrad", {})
    model = np.zeros(3, np.float32)
    with pytest.raises(RuleFailed, match="'second_moment' of FedAdagrad"):
        finish(rule, model, [partial_of(rule, [model + np.float32(1e30)], [1.0], 1)])


# ---- options and loading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "options", "path", "problem"),
    [
        ("fedavg", {"lr": 1.0}, "aggregation.options.lr", "known options: none"),
        ("fedadam", {"beta_3": 0.9}, "aggregation.options.beta_3", "did you mean 'beta_"),
        ("fedadam", {"second_moment_start": "one"}, "aggregation.options.second_moment_start", "Invalid enum"),
        ("fedadam", {"beta1": 1.0}, "aggregation.options.beta1", "< 1.0"),
        ("fedadam", {"tau": 0}, "aggregation.options.tau", "> 0.0"),
        ("fedavgm", {"momentum": "much"}, "aggregation.options.momentum", "Expected `?float"),
        ("fedavgm", {"lr": -1.0}, "aggregation.options.lr", "> 0.0"),
        ("fedadagrad", {"beta2": 0.9}, "aggregation.options.beta2", "no such option"),
        ("fedyogy", {}, "aggregation.rule", "did you mean 'fedyogi'"),
        ("median", {}, "aggregation.rule", "use one of fedavg"),
        ("no_such_module:Rule", {}, "aggregation.rule", "cannot import 'no_such_module'"),
        ("json:Decoder", {}, "aggregation.rule", "no class 'Decoder'"),
        ("json:JSONDecoder", {}, "aggregation.rule", "no subclass of lifl.rules.Rule"),
        (":Rule", {}, "aggregation.rule", "there is no rule"),
    ],
)
def test_bad_rules_and_options_are_named(rule: str, options: dict, path: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        load_rule(rule, options)
    assert caught.value.path == path


USERS_RULE = """
from __future__ import annotations
from dataclasses import dataclass
from lifl.rules import Rule, RuleOptions

@dataclass
class Note:
    text: str = ""

class HalfStep(Rule):
    class Options(RuleOptions, frozen=True):
        fraction: float = 0.5
    states = ("rounds",)

    def finish(self, model, mean, state):
        state["rounds"] += 1
        return model + self.options.fraction * (mean - model)
"""


def test_a_users_rule_from_its_folder_always_the_latest(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USERS_RULE)
    rule = load_rule("mine:HalfStep", {"fraction": 0.25}, str(tmp_path))
    model = np.zeros(5, np.float32)
    partials = [partial_of(rule, [model + 4], [3.0], 1)]
    out, states = finish(rule, model, partials)
    out, states = finish(rule, out, partials, states)
    assert out.tolist() == [1.75] * 5
    assert states["rounds"].tolist() == [2.0] * 5
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text(USERS_RULE.replace("HalfStep", "Other"))
    assert load_rule("mine:Other", {}, str(other)).states == ("rounds",)
    with pytest.raises(ConfigError, match="did you mean 'HalfStep'"):
        load_rule("mine:HalfSteps", {}, str(tmp_path))


def test_a_users_file_does_not_shadow_a_module_of_that_name(tmp_path: Path) -> None:
    import random

    (tmp_path / "random.py").write_text(USERS_RULE)
    assert load_rule("random:HalfStep", {}, str(tmp_path)).states == ("rounds",)
    assert sys.modules["random"] is random


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def broken(:", "SyntaxError"),
        ("raise RuntimeError('at import')", "at import"),
        ("import a_package_that_is_not_there", "a_package_that_is_not_there"),
        ("from lifl.rules import Rule\nclass R(Rule):\n def __init__(self, o): raise KeyError('x')", "refused"),
        ("import sys; sys.exit(3)", "importing 'bad' failed: SystemExit: 3"),
        ("class E(BaseException): pass\nraise E('odd')", "E: odd"),
        ("class E(Exception):\n def __str__(self): raise ValueError\nraise E", "its text cannot be had"),
        ("raise ValueError(chr(0xdcff))", r"ValueError: \\udcff"),
        ("def __getattr__(name): raise ValueError(name)", "bad:R cannot be used: ValueError"),
        ("from lifl.rules import Rule\nclass R(Rule):\n def __init__(self, o): raise SystemExit", "refused"),
        ("from lifl.rules import Rule\nclass R(Rule): Options = dict", "Options is no subclass"),
        ("from lifl.rules import Rule\nclass R(Rule): earlier_options = 5", "cannot be used: AttributeError"),
        ("from lifl.rules import Rule\nclass R(Rule): states = property(lambda self: 1 / 0)", "ZeroDivisionError"),
        ("from lifl.rules import Rule\nclass R(Rule): states = 'ab'", "a tuple of at most"),
        ("from lifl.rules import Rule\nclass R(Rule): states = (1,)", "a tuple of at most"),
        ("from lifl.rules import Rule\nclass R(Rule): states = ('a/../b',)", "a tuple of at most"),
        ("from lifl.rules import Rule\nclass R(Rule): states = ('a', 'a')", "there twice"),
        ("from lifl.rules import Rule\nclass R(Rule): states = tuple(map(str, range(65)))", "a tuple of at most"),
    ],
)
def test_a_users_module_that_fails(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load_rule("bad:R", {}, str(tmp_path))


def test_a_users_module_may_change_the_path_that_it_is_imported_from(tmp_path: Path) -> None:
    text = f"import sys\nsys.path.remove({str(tmp_path)!r})\nfrom lifl.rules import Rule as R"
    (tmp_path / "bad.py").write_text(text)
    assert load_rule("bad:R", {}, str(tmp_path)).states == ()


@pytest.mark.parametrize("dtype", [np.complex64, object, "U8"])
def test_a_result_of_another_kind_is_refused(dtype: type) -> None:
    class Other(Rule):
        def finish(self, model, mean, state):
            return mean.astype(dtype)

    rule = Other(RuleOptions())
    with pytest.raises(RuleFailed, match="must return an array of floats"):
        finish(rule, np.zeros(3, np.float32), [partial_of(rule, [np.ones(3, np.float32)], [1.0], 1)])


def test_a_result_of_another_shape_is_refused() -> None:
    class Sum(Rule):
        def finish(self, model, mean, state):
            return mean.sum()

    rule = Sum(RuleOptions())
    with pytest.raises(RuleFailed, match="must return an array of shape"):
        finish(rule, np.zeros(3, np.float32), [partial_of(rule, [np.ones(3, np.float32)], [1.0], 1)])
