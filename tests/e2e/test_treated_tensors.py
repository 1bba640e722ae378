"""A model with tensors that are no weights, through a real node: averaged only, fixed, or one update's."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from fleet import Update, fleet, submit
from nodes import Node
from safetensors import safe_open
from safetensors.numpy import load_file

CLIENTS = 6
MODEL = {
    "w": np.full((40, 3), 1.0, np.float32),
    "bn.running_var": np.full(5, 0.01, np.float32),
    "bn.num_batches_tracked": np.array(3, np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "scale": np.full(4, 2.0, np.float32),
    "version": np.array([7, 2**63 - 1], np.int64),
    "chosen": np.full(3, 0.0, np.float16),
    "number": np.array([0, 0], np.uint64),
    "mask": np.array([True, False, True]),
    "one_mask": np.array([False, False, False, False]),
}
CHOSEN = ("chosen", "number", "one_mask")


def update_of(index: int, number: int) -> Update:
    one = {name: np.full_like(array, (index + 1) / 100) for name, array in MODEL.items() if array.dtype.kind == "f"}
    return (
        {
            **one,
            "bn.num_batches_tracked": np.array(10 * number + index, np.int64),
            "version": np.array([index, -index], np.int64),
            "number": np.array([index, 2**64 - 1 - index], np.uint64),
            "mask": np.zeros(3, bool),
            "one_mask": np.array([index & 4, index & 2, index & 1, 1], bool),
        },
        1.0 + index,
        {},
    )


@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
@pytest.mark.parametrize("fan_in", [1, 2])
def test_each_tensor_as_it_is_asked_for(start_node: Callable[..., Node], rule: str, fan_in: int) -> None:
    node = start_node("--redirector", "unix")
    keys = {
        "job__rounds": 2,
        "selection__clients_per_round": CLIENTS,
        "aggregation__rule": rule,
        "aggregation__fan_in": fan_in,
        "aggregation__middle_fan_in": 2,
        "aggregation__fixed": ["scale", "version"],
        "aggregation__first": list(CHOSEN),
    }
    told = submit(node, "j", MODEL, **keys)
    assert "kept as they are: version, scale, mask" in told["treatment"]
    with fleet(node.address, "j", CLIENTS, update_of) as team:
        team.join()
    weights = np.arange(1.0, CLIENTS + 1)
    mean = float(weights @ weights / weights.sum() / 100)
    rounds = node.json("status", "j")["rounds"]
    assert len(rounds) == 2
    for line in rounds:
        committed = load_file(line["path"])
        np.testing.assert_allclose(committed["bn.running_var"], mean, rtol=1e-6)
        counted = sum(w * (10 * line["round"] + i) for i, w in enumerate(weights)) / weights.sum()
        assert committed["bn.num_batches_tracked"] == round(counted)
        for name in ("scale", "version", "mask"):
            np.testing.assert_array_equal(committed[name], MODEL[name])
        assert committed["empty"].shape == (0, 4)
        (by,) = {int(committed["number"][0])}
        update, _, _ = update_of(by, line["round"])
        for name in CHOSEN:
            np.testing.assert_array_equal(committed[name], update[name])
        if rule == "fedavg":
            np.testing.assert_allclose(committed["w"], mean, rtol=1e-6)
        else:
            assert abs(float(committed["w"][0, 0]) - mean) > 0.01


@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
@pytest.mark.parametrize("fan_in", [1, 8])
def test_masks_of_infinities_are_kept_and_all_else_is_averaged(
    start_node: Callable[..., Node], rule: str, fan_in: int
) -> None:
    """Both kinds of a mask lie between numbers that are averaged, in the same vector."""
    infinity = np.float32(np.inf)
    mask = np.array([0, -infinity, infinity], np.float32)
    model = {
        "a": np.zeros(3, np.float32),
        "fixed_mask": mask,
        "b": np.zeros(2, np.float32),
        "first_mask": np.zeros(3, np.float32),
    }
    keys = {"aggregation__fixed": ["fixed_mask"], "aggregation__first": ["first_mask"]}
    tree = {"aggregation__fan_in": fan_in, "aggregation__middle_fan_in": 2}
    node = start_node("--redirector", "unix")
    submit(node, "j", model, job__rounds=2, selection__clients_per_round=4, aggregation__rule=rule, **keys, **tree)

    def update_of(index: int, _number: int) -> Update:
        mean = {"a": np.full(3, index, np.float32), "b": np.full(2, index + 1, np.float32)}
        return mean | {"fixed_mask": -mask, "first_mask": mask[::-1].copy()}, 1.0, {}

    with fleet(node.address, "j", 4, update_of) as team:
        team.join()
    rounds = node.json("status", "j")["rounds"]
    assert len(rounds) == 2
    for line in rounds:
        committed = load_file(line["path"])
        np.testing.assert_array_equal(committed["fixed_mask"], mask)
        np.testing.assert_array_equal(committed["first_mask"], mask[::-1])
        if rule == "fedavg":
            assert (committed["a"] == 1.5).all() and (committed["b"] == 2.5).all()
        assert np.isfinite(committed["a"]).all() and (committed["a"] > 0).all()


def test_what_no_tensor_is_named_is_refused(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    with pytest.raises(AssertionError, match=r"aggregation.first: .*no tensor 'w2'"):
        submit(node, "j", MODEL, aggregation__first=["w2"])


def test_a_model_of_eight_bit_floats_beside_others(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    codes = np.array([0.5, 1.5, -2.0], ml_dtypes.float8_e4m3fn)
    model = {"w": np.zeros(3, np.float32), "codes": codes}
    submit(node, "j", model, job__rounds=1, selection__clients_per_round=1)
    with fleet(node.address, "j", 1, lambda _i, _n: ({"w": np.ones(3, np.float32), "codes": codes}, 1.0, {})) as team:
        team.join()
    (line,) = node.json("status", "j")["rounds"]
    with safe_open(line["path"], "numpy") as file:
        assert (file.get_tensor("w") == 1.0).all()
    assert codes.tobytes() in open(line["path"], "rb").read()  # noqa: SIM115
