"""A model's bytes from its tensors, and the way back: small tensors in runs, large ones where they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lifl.client.packing import SMALL_BYTES, packing_of
from lifl.client.tensors import Update, as_model
from lifl.core.errors import Refused
from lifl.core.modelfile import LENGTH_BYTES, encode_header, model_pieces
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.protocol.worker import Checkpoint, ToWorker
from lifl.core.schema import DTYPE_BYTES, Layout, TensorSpec
from lifl.worker import files

FLOATS = SMALL_BYTES // 4
LAYOUT = Layout(
    [
        TensorSpec("a", "float32", (3,)),
        TensorSpec("half", "bfloat16", (2, 2)),
        TensorSpec("scalar", "float32", ()),
        TensorSpec("none", "float32", (0, 4)),
        TensorSpec("at the limit", "float32", (FLOATS,)),
        TensorSpec("beyond it", "float32", (FLOATS + 1,)),
        TensorSpec("mask", "bool", (5,)),
        TensorSpec("b", "float32", (2, 2)),
        TensorSpec("c", "float32", (1,)),
    ]
)


def model(layout: Layout = LAYOUT) -> dict[str, Any]:
    numbers = np.random.default_rng(1)
    found = {}
    for spec in layout.tensors:
        dtype = np.dtype(getattr(ml_dtypes, spec.dtype, spec.dtype))
        found[spec.name] = np.asarray(numbers.random(spec.shape) * 2).astype(dtype)
    return found


def expected(tensors: dict[str, Any], layout: Layout = LAYOUT) -> bytes:
    """Each tensor's bytes at its offset."""
    found = bytearray(layout.data_bytes)
    for spec, offset in zip(layout.tensors, layout.offsets, strict=True):
        data = tensors[spec.name].tobytes()
        found[offset : offset + len(data)] = data
    return bytes(found)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(lambda tensors: tensors, id="with a bool, looked at closely"),
        pytest.param(lambda tensors: dict(reversed(tensors.items())), id="in another order"),
        pytest.param(lambda tensors: {**tensors, "b": np.asfortranarray(tensors["b"])}, id="strided"),
    ],
)
def test_the_bytes_are_the_tensors_at_their_offsets(given: Any) -> None:
    tensors = model()
    update = Update(LAYOUT, given(tensors))
    assert b"".join(update.views) == expected(tensors)
    back = as_model(LAYOUT, np.frombuffer(bytearray(b"".join(update.views)), np.uint8))
    for name, array in tensors.items():
        assert (back[name].dtype, back[name].shape, back[name].flags.writeable) == (array.dtype, array.shape, True)
        np.testing.assert_array_equal(back[name], array)


def test_small_tensors_are_one_piece_and_a_large_one_is_not_copied() -> None:
    layout = Layout([spec for spec in LAYOUT.tensors if spec.dtype == "float32"])
    tensors = model(layout)
    assert packing_of(layout).given(tensors) is not None
    update = Update(layout, tensors)
    assert b"".join(update.views) == expected(tensors, layout)
    assert [len(view) for view in update.views[:3]] == [12 + 4 + SMALL_BYTES, SMALL_BYTES + 4, 20]
    assert np.shares_memory(update._packed[1], tensors["beyond it"])
    update.detach()
    before = expected(tensors, layout)
    for array in tensors.values():
        np.add(array, 1, out=array)
    assert b"".join(update.views) == before


@pytest.mark.parametrize("name", ["a", "scalar", "beyond it", "c", "half"])
def test_a_number_that_is_none_is_named_by_its_tensor(name: str) -> None:
    tensors = model()
    tensors[name][...] = np.nan
    with pytest.raises(Refused, match=f"tensor '{name}' contains NaN"):
        Update(LAYOUT, tensors)
    Update(LAYOUT, tensors, numbers=False)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"c": np.zeros(2, np.float32)}, "wrong-shape"),
        ({"c": np.zeros(1, np.float64)}, "wrong-dtype"),
        ({"other": np.zeros(1, np.float32)}, "unknown-tensor"),
        ({"c": np.ma.masked_array([1.0], [True], dtype=np.float32)}, "bad-tensor"),
    ],
)
def test_what_is_not_the_models_is_looked_at_closely(change: dict[str, Any], code: str) -> None:
    layout = Layout([spec for spec in LAYOUT.tensors if spec.dtype == "float32"])
    with pytest.raises(Refused) as refused:
        Update(layout, model(layout) | change)
    assert refused.value.code == code


def test_every_dtype_goes_there_and_back() -> None:
    layout = Layout([TensorSpec(dtype, dtype, (3,)) for dtype in DTYPE_BYTES])
    tensors = model(layout)
    assert b"".join(Update(layout, tensors).views) == expected(tensors, layout)


def test_a_files_header_is_remembered_without_what_it_says_of_the_round() -> None:
    pieces = model_pieces(LAYOUT)
    headers = [json.loads(encode_header(pieces, about)[0][LENGTH_BYTES:]) for about in ({"round": "1"}, {}, {"é": '"'})]
    assert [header.pop("__metadata__", None) for header in headers] == [{"round": "1"}, None, {"é": '"'}]
    assert headers[0] == headers[1] == headers[2]
    assert headers[0]["b"] == {"dtype": "F32", "shape": [2, 2], "data_offsets": headers[0]["b"]["data_offsets"]}
    assert json.loads(encode_header([], {"round": "1"})[0][LENGTH_BYTES:]) == {"__metadata__": {"round": "1"}}


def test_a_jobs_layout_is_made_once_for_all_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Layout] = []

    class Counted(Layout):
        def __init__(self, tensors: Sequence[TensorSpec]) -> None:
            super().__init__(tensors)
            made.append(self)

    monkeypatch.setattr(files, "Layout", Counted)
    decoder: FrameDecoder[Any] = FrameDecoder(ToWorker)
    packed = Layout([TensorSpec(f"layer {n}", "float32", (3,)) for n in range(50)]).packed
    for round_ in range(1, 4):
        decoder.feed(encode(Checkpoint(0, 1, "j", round_, "/f", packed, bytes(16))))
        assert files.layout_of(decoder.next_message().tensors) is made[0]
    assert (len(made), made[0].packed) == (1, packed)
