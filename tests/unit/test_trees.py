"""Nested tensors there and back: names by path, the same structure again, refusals by path."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lifl.client.tensors import as_array
from lifl.core.errors import Refused
from lifl.core.limits import TENSOR_NAME_CHARS_MAX
from lifl.trees import flatten, unflatten


class Pair(NamedTuple):
    mu: Any
    nu: Any


@dataclasses.dataclass(frozen=True)
class Layer:
    """Has what Equinox's modules have: an `__init__` of its own, and fields that are no part of the tree."""

    weight: Any
    size: int = dataclasses.field(default=0, metadata={"static": True})
    flax: str = dataclasses.field(default="", metadata={"pytree_node": False})

    def __init__(self, width: int) -> None:
        object.__setattr__(self, "weight", np.full(width, 2.0))
        object.__setattr__(self, "size", width)
        object.__setattr__(self, "flax", "as it is")


def tree() -> dict[Any, Any]:
    numbers = np.arange(6, dtype=np.float32)
    return {
        "blocks": [{"kernel": numbers.reshape(2, 3)}, {"kernel": numbers.reshape(3, 2).T}],
        "state": Pair(np.ones(2, np.int64), (np.float16(3), None)),
        7: OrderedDict(b=np.zeros((0, 4), ml_dtypes.bfloat16), a=np.array(True)),
        "layer": Layer(4),
        "made": defaultdict(list, x=np.ones(1)),
        "fixed": MappingProxyType({"y": np.ones(1)}),
        "none": {},
    }


def test_the_names_are_the_paths() -> None:
    """They are what files and jobs are made with: they stay as they are."""
    names = ["blocks.0.kernel", "blocks.1.kernel", "state.mu", "state.nu.0", "7.b", "7.a", "layer.weight", "made.x"]
    assert list(flatten(tree())) == [*names, "fixed.y"]


def test_what_is_contiguous_is_not_copied() -> None:
    kernel = np.ones((2, 2))
    assert np.shares_memory(flatten({"a": [kernel]})["a.0"], kernel)


def test_a_tree_comes_back_with_other_numbers() -> None:
    before = tree()
    flat = {name: np.full_like(array, 1) for name, array in flatten(before).items()}
    made = unflatten(flat, before)
    assert {name: array.tolist() for name, array in flatten(made).items()} == {
        name: array.tolist() for name, array in flat.items()
    }
    assert [type(made[key]) for key in before] == [type(before[key]) for key in before]
    assert made["layer"].size == 4 and made["layer"].flax == "as it is" and made["layer"] is not before["layer"]
    assert made["made"].default_factory is list and list(made[7]) == ["b", "a"]
    assert made["state"].nu[1] is None and made["none"] == {}
    assert before["layer"].weight[0] == 2  # `like` is not changed


NAMES = st.text(st.characters(exclude_characters="."), min_size=1, max_size=4)
TREES = st.recursive(
    st.builds(np.float64, st.integers(0, 9)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
).map(lambda inner: {"tree": inner})


@given(TREES)
def test_any_tree_comes_back_as_it_was(before: Any) -> None:
    assert unflatten(flatten(before), before) == before


def itself() -> dict[str, Any]:
    around: dict[str, Any] = {}
    around["a"] = [around]
    return around


@pytest.mark.parametrize(
    ("wrong", "field", "text"),
    [
        ({"a": {"b": 1.5}}, "tensors.a.b", "is a float, no array"),
        ({"a": [np.ones(2, np.complex64)]}, "tensors.a.0", "dtype complex64"),
        ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, "tensors.a.b", "two leaves"),
        ({1: np.ones(1), "1": np.ones(1)}, "tensors.1", "two leaves"),
        ({"a": {("x", 1): np.ones(1)}}, "tensors.a", r"key \('x', 1\) at 'a'"),
        ({"": np.ones(1)}, "tensors", "the key ''"),
        ({True: np.ones(1)}, "tensors", "the key True"),
        (np.ones(1), "tensors", "put it into a dict"),
        (itself(), f"tensors.{('a.0.' * 65)[:TENSOR_NAME_CHARS_MAX]}", "longer than"),
        ({"n" * (TENSOR_NAME_CHARS_MAX + 1): np.ones(1)}, f"tensors.{'n' * TENSOR_NAME_CHARS_MAX}", "longer than"),
    ],
)
def test_what_has_no_name_or_is_no_array_is_refused_by_its_path(wrong: Any, field: str, text: str) -> None:
    with pytest.raises(Refused, match=text) as refused:
        flatten(wrong)
    assert refused.value.field == field


def test_the_longest_path_is_taken() -> None:
    name = "n" * TENSOR_NAME_CHARS_MAX
    assert list(flatten({name: np.ones(1)})) == [name]


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"blocks.1.kernel": None}, "missing-tensor", "tensors.blocks.1.kernel"),
        ({"blocks.2.kernel": np.ones(1)}, "unknown-tensor", "tensors.blocks.2.kernel"),
        ({"state.mu": np.ones(2)}, "wrong-dtype", "tensors.state.mu"),
        ({"state.mu": np.ones((2, 1), np.int64)}, "wrong-shape", "tensors.state.mu"),
    ],
)
def test_tensors_of_another_tree_are_refused_by_their_path(change: dict[str, Any], code: str, field: str) -> None:
    given = {name: array for name, array in (flatten(tree()) | change).items() if array is not None}
    with pytest.raises(Refused) as refused:
        unflatten(given, tree())
    assert (refused.value.code, refused.value.field) == (code, field)


def test_a_file_is_a_tree_again(tmp_path: Path) -> None:
    before = {"a": [np.arange(3.0), np.ones((), np.int8)]}
    save_file(flatten(before), tmp_path / "tree.safetensors")
    made = unflatten(tmp_path / "tree.safetensors", before)
    assert made["a"][0].tolist() == [0, 1, 2] and made["a"][1] == 1
    with pytest.raises(Refused, match="is none") as refused:
        unflatten(tmp_path / "no.safetensors", before)
    assert (refused.value.code, refused.value.field) == ("bad-file", "tensors")


@pytest.mark.parametrize("wrong", [None, 3, [np.ones(1)], np.ones(1)])
def test_what_is_no_tensors_by_name_is_told(wrong: Any) -> None:
    with pytest.raises(Refused, match="an update is a dict of arrays") as refused:
        unflatten(wrong, {"a": np.ones(1)})
    assert (refused.value.code, refused.value.field) == ("bad-tensor", "tensors")


class Foreign:
    """An array of a library that NumPy knows by DLPack alone, on the host or on a device numbered `device`."""

    def __init__(self, array: np.ndarray[Any, Any], device: int = 1) -> None:
        self.array, self.device = array, device
        self.dtype, self.shape = array.dtype, array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)

    def __dlpack__(self, **wanted: Any) -> Any:
        if self.device != 1:
            assert wanted["dl_device"] == (1, 0), "what is on an accelerator is wanted on the host"
            return self.array.copy().__dlpack__()
        return self.array.__dlpack__(**wanted)


def test_an_array_behind_dlpack_is_taken_where_it_lies() -> None:
    array = np.arange(4.0)
    assert np.shares_memory(as_array("a", Foreign(array)), array)
    assert as_array("a", Foreign(array, device=2)).tolist() == [0, 1, 2, 3]
    assert flatten({"a": Foreign(array)})["a"].tolist() == [0, 1, 2, 3]
