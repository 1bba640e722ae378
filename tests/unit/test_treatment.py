"""Which tensors are averaged only, fixed, or one update's; and what cannot be averaged does not exclude a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lifl.core.config.aggregation import AggregationSection
from lifl.core.errors import ConfigError, Refused
from lifl.core.planning.treatment import check_patterns, how_of, treated, treatment_lines
from lifl.core.schema import KEPT, Layout, TensorSpec, Treated
from lifl.rules import load_rule
from lifl.rules.finish import finish_segment

TENSORS = (
    TensorSpec("conv.weight", "float32", (2, 3)),
    TensorSpec("bn.weight", "float32", (4,)),
    TensorSpec("bn.running_mean", "float32", (4,)),
    TensorSpec("bn.running_var", "float32", (4,)),
    TensorSpec("bn.num_batches_tracked", "int64", ()),
    TensorSpec("empty", "float32", (0, 5)),
    TensorSpec("scale", "float32", (3,)),
    TensorSpec("mask", "bool", (7,)),
    TensorSpec("codes", "float8_e4m3fn", (2,)),
    TensorSpec("nothing", "float16", (0,)),
)


def section(**keys: Any) -> AggregationSection:
    return AggregationSection(**keys)


def test_torchs_buffers_are_excluded_and_what_cannot_be_averaged_is_fixed() -> None:
    found = {tensor.name: how_of(tensor, section()) for tensor in TENSORS}
    assert found == {
        "conv.weight": None,
        "bn.weight": None,
        "bn.running_mean": "exclude",
        "bn.running_var": "exclude",
        "bn.num_batches_tracked": "exclude",
        "empty": None,
        "scale": None,
        "mask": "fixed",
        "codes": "fixed",
        "nothing": None,
    }
    assert {how_of(tensor, section(first=("*",))) for tensor in TENSORS} == {"first"}
    assert how_of(TENSORS[2], section(exclude=())) is None


def test_runs_of_the_layout() -> None:
    layout = Layout(TENSORS)
    assert [segment.dtype for segment in layout.segments] == ["float32", "int64", "bool", "float8_e4m3fn"]
    assert treated(layout, section(first=("scale",))) == (
        Treated(0, 10, 8, "exclude"),
        Treated(0, 18, 3, "first"),
        Treated(1, 0, 1, "exclude"),
        Treated(2, 0, 7, "fixed"),
        Treated(3, 0, 2, "fixed"),
    )


def test_patterns_that_cannot_be() -> None:
    check_patterns(TENSORS, section(fixed=("scale",), first=("mask",)))
    with pytest.raises(ConfigError, match="no tensor 'scal'") as caught:
        check_patterns(TENSORS, section(fixed=("scal",)))
    assert caught.value.path == "aggregation.fixed"
    with pytest.raises(ConfigError, match=r"'scale' is in aggregation.fixed, too"):
        check_patterns(TENSORS, section(fixed=("sc*",), first=("*le",)))


def test_what_is_told() -> None:
    assert treatment_lines(TENSORS, section(first=("scale",)), steps=True) == [
        "averaged only: bn.running_mean, bn.running_var, bn.num_batches_tracked",
        "kept as they are: mask, codes",
        "taken from one update: scale",
    ]
    assert treatment_lines(TENSORS, section(), steps=False) == ["kept as they are: mask, codes"]
    assert treatment_lines(TENSORS, section(fixed=("*",)), steps=False)[0].endswith("empty and 4 more")


def test_a_model_without_any_number_is_refused() -> None:
    with pytest.raises(Refused, match="no number at all"):
        Layout([TensorSpec("a", "float32", (0,))])
    with pytest.raises(Refused, match="not be negative"):
        Layout([TensorSpec("a", "float32", (-1,))])
    assert Layout([TensorSpec("a", dtype, (1,)) for dtype in KEPT[:1]]).data_bytes == 64


@pytest.mark.parametrize("rule", ["fedadam", "fedyogi", "fedadagrad", "fedavgm"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_running_variance_is_averaged_not_stepped(rule: str, dtype: str) -> None:
    """Stepped, it would become negative, and the loss NaN."""
    options = {"server_momentum": 0.9} if rule == "fedavgm" else {"eta": 1.0}
    made, states = load_rule(rule, options), {}
    rng = np.random.default_rng(1)
    model, spared = np.full(3000, 0.05, dtype), [slice(10, 20), slice(1500, 2900)]
    for number in range(1, 6):
        made.round = number
        updates = [(rng.uniform(0.0, 0.05, 3000).astype(dtype), 1.0) for _ in range(2)]
        out, new = np.empty_like(model), {n: np.full(3000, np.nan, np.float32) for n in made.states}
        finish_segment(made, model, [], updates, out, states, new, 0, spared)
        plain, others = np.empty_like(model), {n: np.full(3000, np.nan, np.float32) for n in made.states}
        finish_segment(made, model, [], updates, plain, states, others)
        mean = np.mean([u.astype(np.float64) for u, _ in updates], axis=0).astype(dtype)
        apart = np.ones(3000, bool)
        for run in spared:
            np.testing.assert_array_equal(out[run], mean[run])
            assert all(not vector[run].any() for vector in new.values())
            apart[run] = False
        np.testing.assert_array_equal(out[apart], plain[apart])
        model, states = out, new
