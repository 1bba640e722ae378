"""What a user's function may return of a model, and what it is given."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lifl.core.errors import LiflError
from lifl.core.schema import Layout, TensorSpec
from lifl.worker.evaluate import checked, model_of


def test_numbers_of_any_kind_are_metrics() -> None:
    found = {"a": np.float32(0.5), "b": 2, "c": np.array(3), "d": True, "e": ml_dtypes.bfloat16(1)}
    assert checked("m:f", found) == {"a": 0.5, "b": 2.0, "c": 3.0, "d": 1.0, "e": 1.0}
    assert checked("m:f", {}) == {}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, "m:f returned a NoneType"),
        ([("a", 1)], "m:f returned a list"),
        ({"a": "much"}, "m:f returned 'much' as 'a', which is no number"),
        *(({"a": each}, "which is no number") for each in ("1", b"1", np.str_("1"), np.timedelta64(1, "s"))),
        ({"a": np.zeros(2)}, "which is no number"),
        ({"a": 1 << 2000}, "which is no number"),
        ({"a": float("nan")}, "the metric 'a' is nan"),
        ({"a": float("inf")}, "the metric 'a' is inf"),
        ({"": 1}, "a metric is named ''"),
        ({"a" * 33: 1}, "a metric is named"),
        ({"\x1b[2J": 1}, "a metric is named"),
        ({str(number): 1 for number in range(17)}, "at most 16 metrics"),
    ],
)
def test_what_is_no_dict_of_numbers_is_refused(found: Any, text: str) -> None:
    with pytest.raises(LiflError) as raised:
        checked("m:f", found)
    assert text in str(raised.value)


def test_the_model_is_the_arenas_own_and_cannot_be_written_to() -> None:
    layout = Layout(
        (TensorSpec("b", "bfloat16", (2,)), TensorSpec("w", "float32", (2, 1)), TensorSpec("n", "int64", ()))
    )
    data = bytearray(layout.data_bytes)
    model = model_of(layout, memoryview(data))
    data[layout.offsets[2]] = 7
    assert {name: (str(array.dtype), array.shape) for name, array in model.items()} == {
        "b": ("bfloat16", (2,)),
        "w": ("float32", (2, 1)),
        "n": ("int64", ()),
    }
    assert model["n"] == 7
    for array in model.values():
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
            array.flags.writeable = True
