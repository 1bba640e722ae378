"""NVFlare's params as torch has them: of every dtype there and back, over an adapter's round on a real node."""

from __future__ import annotations

import numpy as np
import pytest

import lifl
from lifl.integrations.nvflare.params import TENSOR, as_params, as_tensors
from lifl.integrations.nvflare.round import FULL, Round

torch = pytest.importorskip("torch", reason="NOT TESTED: make test-integrations installs torch")
KINDS = ("float32", "float64", "float16", "bfloat16", "int64", "uint8")


def params(value: float) -> dict[str, object]:
    """Of every dtype, one that is turned, a scalar, and what is no tensor."""
    found = {name: torch.full((3,), value).to(getattr(torch, name)) for name in KINDS}
    turned = torch.full((2, 3), value, requires_grad=True).t()
    return found | {"turned": turned, "scalar": torch.tensor(value), "array": np.full(2, value), "number": value}


def test_every_dtype_goes_there_and_back() -> None:
    given = params(3.0)
    tensors, kinds = as_tensors(given)
    assert {name for name, kind in kinds.items() if kind == TENSOR} == {*KINDS, "turned", "scalar"}
    for name, found in as_params(tensors, kinds).items():
        assert type(found) is type(given[name])
        if isinstance(found, torch.Tensor):
            assert found.dtype == given[name].dtype and torch.equal(found, given[name].detach()), name


def test_their_mean_is_of_the_same_dtypes() -> None:
    with lifl.Aggregator() as aggregator:
        round_ = Round(aggregator, "fedavg", 2)
        round_.prepare(params(0.0))
        for client, value in (("site-1", 1.0), ("site-2", 4.0)):
            round_.add(client, params(value), FULL, 3.0 - value / 2)
        found, _ = round_.result()
    expected = params((1.0 * 2.5 + 4.0 * 1.0) / 3.5)
    for name, value in expected.items():
        whole = name in ("int64", "uint8")
        assert type(found[name]) is type(value) and getattr(found[name], "dtype", None) == getattr(value, "dtype", None)
        near = np.asarray(torch.as_tensor(found[name]).detach().double())
        assert np.abs(near - (1.0 * 2.5 + 4.0 * 1.0) / 3.5).max() < (0.5 if whole else 0.01), name
