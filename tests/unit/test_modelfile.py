"""Model files against the safetensors package, both ways, and every kind of damaged header."""

from __future__ import annotations

import json
import mmap
import struct
import tempfile
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives NumPy the dtype bfloat16
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.errors import Refused
from lifl.core.limits import MODEL_HEADER_BYTES_MAX
from lifl.core.modelfile import (
    Piece,
    decode_header,
    encode_header,
    file_bytes_max,
    header_bytes,
    model_pieces,
    read_spans,
    state_pieces,
)
from lifl.core.schema import DTYPE_BYTES, Layout, TensorSpec
from lifl.shm.direct import DIRECT_BYTES_MIN
from lifl.worker.files import read_file, write_file

READ = tuple(dtype for dtype in DTYPE_BYTES if not dtype.startswith("float8"))
"""What safetensors' own reader knows in NumPy."""

schemas = st.lists(
    st.tuples(st.sampled_from(READ), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    min_size=1,
    max_size=12,
).map(lambda found: [TensorSpec(f"layer{i}.weight", d, s) for i, (d, s) in enumerate(found)])
schemas = schemas.filter(lambda tensors: any(tensor.size for tensor in tensors))


def tensor_bytes(layout: Layout, data: bytes, index: int) -> bytes:
    tensor = layout.tensors[index]
    return data[layout.offsets[index] :][: tensor.size * DTYPE_BYTES[tensor.dtype]]


@pytest.mark.parametrize("place", ["disk", "tmpfs"])
@pytest.mark.parametrize("shift", [0, 64])
def test_a_long_model_goes_past_the_page_cache_and_arrives_whole(place: str, shift: int, tmp_path: Path) -> None:
    """From a place that a disk can take it from and from one that it cannot, to file systems that can and cannot."""
    tensors = [TensorSpec("w", "float32", (DIRECT_BYTES_MIN // 2 + 77,)), TensorSpec("b", "int8", (3,))]
    layout = Layout(tensors)
    with mmap.mmap(-1, layout.data_bytes + shift) as memory:
        memory[shift:] = data = np.random.default_rng(1).bytes(layout.data_bytes)
        folder = tmp_path if place == "disk" else Path(tempfile.mkdtemp(dir="/dev/shm"))
        path = folder / "model.safetensors"
        try:
            for _ in range(2):  # the second one replaces the first
                with memoryview(memory) as view, view[shift:] as part:
                    write_file(path, model_pieces(layout), {}, [part])
            read = safetensors.numpy.load_file(path)
        finally:
            path.unlink(missing_ok=True)
            if place == "tmpfs":
                folder.rmdir()
        assert read["w"].tobytes() == tensor_bytes(layout, data, 0)
        assert read["b"].tobytes() == tensor_bytes(layout, data, 1)


@pytest.mark.parametrize("shape", [(1,), (1024,), (1025,), (70_000, 3)])
def test_what_a_file_will_take_is_told_with_its_header_and_in_whole_blocks(shape: tuple[int, ...]) -> None:
    layout = Layout([TensorSpec("w" * 64, "float32", shape), TensorSpec("b", "int8", (3,))])
    metadata = {"lifl.job": "j" * 64, "lifl.round": "9" * 19, "lifl.node": "f" * 16, "lifl.release": "1.0.0rc1"}
    for pieces in (model_pieces(layout), state_pieces(layout, ["m" * 64, "v"])):
        head, spans = encode_header(pieces, metadata)
        nbytes, most = len(head) + sum(span.nbytes for span in spans), file_bytes_max(pieces)
        assert most % 4096 == 0 and nbytes <= most < nbytes + 4096 + 1, "the last block is whole"
    assert file_bytes_max(model_pieces(Layout([TensorSpec("w", "float32", (3,))]))) == 2 * 4096


@settings(max_examples=60, deadline=None)
@given(tensors=schemas, seed=st.integers(0, 2**32 - 1))
def test_what_we_write_safetensors_reads_and_the_other_way(
    tensors: list[TensorSpec], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    layout = Layout(tensors)
    data = np.random.default_rng(seed).bytes(layout.data_bytes)
    write_file(path, model_pieces(layout), {"round": "3"}, [memoryview(data)])

    read = safetensors.numpy.load_file(path)
    assert set(read) == {t.name for t in tensors}
    for index, tensor in enumerate(tensors):
        assert str(read[tensor.name].dtype) == tensor.dtype
        assert read[tensor.name].shape == tensor.shape
        assert read[tensor.name].tobytes() == tensor_bytes(layout, data, index)

    path.unlink()
    safetensors.numpy.save_file(read, path)  # in an order of its own
    back = bytearray(layout.data_bytes)
    read_file(path, model_pieces(layout), [memoryview(back)])
    for index in range(len(tensors)):
        assert tensor_bytes(layout, bytes(back), index) == tensor_bytes(layout, data, index)


def test_a_model_has_one_run_for_each_dtype_and_tensors_are_aligned() -> None:
    layout = Layout([TensorSpec(f"t{i}", d, (3,)) for i, d in enumerate(2 * tuple(DTYPE_BYTES))])
    header, runs = encode_header(model_pieces(layout), {})
    assert len(runs) == len(layout.segments)
    assert len(header) % 8 == 0
    body = header[8:]
    found = decode_header(body, len(header) + sum(run.nbytes for run in runs), "f")
    for tensor, offset in zip(found.tensors, found.offsets, strict=True):
        assert offset % DTYPE_BYTES[tensor.dtype] == 0
    assert read_spans(found, model_pieces(layout), "f") == runs


def test_states_are_named_after_the_models_tensors(tmp_path: Path) -> None:
    layout = Layout(
        [
            TensorSpec("a", "float16", (2,)),
            TensorSpec("count", "int64", (1,)),
            TensorSpec("b", "float32", (3,)),
            TensorSpec("c", "float16", (1,)),
        ]
    )
    states = []
    for start in (0.0, 100.0):
        data = bytearray(layout.state_bytes)
        for segment in layout.states:
            view = np.frombuffer(data, segment.dtype, segment.count, segment.offset)
            view[:] = start + segment.offset + np.arange(segment.count)
        states.append(memoryview(data))
    path = tmp_path / "state.safetensors"
    pieces = state_pieces(layout, ["m", "v"])
    write_file(path, pieces, {}, states)
    read = safetensors.numpy.load_file(path)
    assert {name: value.tolist() for name, value in read.items()} == {
        "m/b": [0.0, 1.0, 2.0],
        "m/a": [64.0, 65.0],
        "m/c": [66.0],
        "v/b": [100.0, 101.0, 102.0],
        "v/a": [164.0, 165.0],
        "v/c": [166.0],
    }
    back = [memoryview(bytearray(layout.state_bytes)) for _ in states]
    read_file(path, pieces, back)
    for old, new in zip(states, back, strict=True):
        assert bytes(new[: 67 * 4 + 8]) != bytes(len(new))
        for segment in layout.states[:2]:
            end = segment.offset + segment.count * 4
            assert new[segment.offset : end] == old[segment.offset : end]


def file_of(header: object, data: bytes = b"") -> tuple[bytes, int]:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return body, 8 + len(body) + len(data)


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "nbytes", "problem"),
    [
        (b"{", 0, "not JSON"),
        (b"\xff\xfe{}", 0, "not JSON"),
        (b"[" * 100_000, 0, "not JSON"),
        ([], 0, "no JSON object"),
        ({"__metadata__": {"a": 1}, "t": entry()}, 8, "no map of texts"),
        (b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"t":1}', 4, "stands there twice"),
        ({"t": []}, 8, "must have dtype"),
        ({"t": {**entry(), "more": 1}}, 8, "must have dtype"),
        ({"t": entry(shape=[-2])}, 8, "not whole numbers"),
        ({"t": entry(shape=[2.0])}, 8, "not whole numbers"),
        ({"t": entry(shape=[True, 2])}, 8, "not whole numbers"),
        ({"t": entry(offsets=[0])}, 8, "not whole numbers"),
        ({"t": entry(shape=[2**40, 2**40])}, 8, "cannot take"),
        ({"t": entry(offsets=[0, 7])}, 7, "cannot take"),
        ({"t": entry(offsets=[8, 16])}, 16, "begins at byte 8"),
        ({"t": entry(), "u": entry(offsets=[4, 12])}, 12, "begins at byte 4"),
        ({"t": entry()}, 7, "cut or damaged"),
        ({"t": entry()}, 9, "cut or damaged"),
        (b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4, "no Unicode"),
    ],
)
def test_a_damaged_header_is_refused(header: object, nbytes: int, problem: str) -> None:
    body, size = file_of(header, bytes(nbytes))
    with pytest.raises(Refused, match=problem) as caught:
        decode_header(body, size, "f.safetensors")
    assert caught.value.code == "bad-model-file"
    assert "f.safetensors" in str(caught.value)


@pytest.mark.parametrize(("code", "error"), [("C64", "wrong-dtype"), ("F8_E8M0", "wrong-dtype"), ([], "wrong-dtype")])
def test_a_dtype_that_cannot_be_aggregated(code: object, error: str) -> None:
    with pytest.raises(Refused) as caught:
        decode_header(*file_of({"t": {"dtype": code, "shape": [8], "data_offsets": [0, 8]}}, bytes(8)), "f")
    assert caught.value.code == error


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(Refused, match="1 to"):
        decode_header(*file_of({"__metadata__": {"only": "this"}}), "f")


@pytest.mark.parametrize(
    "start", [b"", b"1234567", struct.pack("<Q", 0), struct.pack("<Q", MODEL_HEADER_BYTES_MAX + 1)]
)
def test_a_length_that_cannot_be(start: bytes) -> None:
    with pytest.raises(Refused, match="no usable safetensors file"):
        header_bytes(start, "f")


def test_the_longest_header_length_is_taken() -> None:
    assert header_bytes(struct.pack("<Q", MODEL_HEADER_BYTES_MAX), "f") == MODEL_HEADER_BYTES_MAX


def test_the_reserved_name_is_refused() -> None:
    with pytest.raises(Refused, match="rename"):
        encode_header([Piece(TensorSpec("__metadata__", "int8", (1,)), 0, 0)], {})


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ([TensorSpec("a", "float32", (2,))], "lacks the tensor 'b'"),
        ([TensorSpec("a", "float32", (2,)), TensorSpec("c", "int8", (2,))], "does not have"),
        ([TensorSpec("a", "float32", (2,)), TensorSpec("b", "uint8", (2,))], "'b' is uint8"),
        ([TensorSpec("a", "float32", (2,)), TensorSpec("b", "int8", (2, 1))], "'b' is int8"),
    ],
)
def test_another_models_file_is_refused(tmp_path: Path, tensors: list[TensorSpec], problem: str) -> None:
    wanted = Layout([TensorSpec("a", "float32", (2,)), TensorSpec("b", "int8", (2,))])
    other = Layout(tensors)
    path = tmp_path / "other.safetensors"
    write_file(path, model_pieces(other), {}, [memoryview(bytes(other.data_bytes))])
    with pytest.raises(Refused, match=problem):
        read_file(path, model_pieces(wanted), [memoryview(bytearray(wanted.data_bytes))])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(body: bytes, size: int) -> None:
    try:
        decode_header(body, size, "f")
    except Refused:
        return
