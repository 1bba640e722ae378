"""A trainer's tensors, as bytes in the model's layout; and the way back.

Taken are a dict of NumPy arrays, a torch module or its `state_dict` (torch itself is never imported here), and the path
of a safetensors file.  They are looked at where they are: `Update.views` are the arrays' own memory in the order in
which the bytes travel, with padding between the vectors of different dtypes.  Small tensors that follow one another are
put together (`packing.py`).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from lifl.client.packing import dtype_name, numpy_dtype, packing_of
from lifl.client.torch_tensors import HasState, is_module, state_of
from lifl.core.errors import LiflError, Refused, ResourceFault
from lifl.core.planning.treatment import is_trainable
from lifl.core.protocol.contribution import absent_bits
from lifl.core.protocol.update_check import is_boolean, is_text
from lifl.core.schema import DTYPE_BYTES, KEPT, Layout, TensorSpec, check_same

Array = NDArray[Any]
Tensors = Mapping[str, Any] | HasState | str | os.PathLike[str]
"""name → array or torch tensor, a torch module, or the path of a safetensors file."""

CHECK_BYTES = 1024 * 1024
FILL_BYTES = 4 * 1024 * 1024
"""A direct client looks after so many bytes (about a millisecond) whether the slot is still its own."""
_EXPONENT_16 = {"float16": 0x7C00, "bfloat16": 0x7F80}


class Update:
    """The tensors of one update, checked against the model's `layout`; keeps the caller's arrays, and of small ones
    copies.

    With the patterns of `trainable` tensors, what these do not name is left out, and of the others some may be missing:
    zeros stand in their place, and `absent` says which they are (`contribution.absent_bits`).

    Raises `Refused`, naming the tensor, when one is missing, unknown, of another dtype or shape, or has NaN.  With
    `numbers` False they are not looked at: the node does that in any case.
    """

    def __init__(self, layout: Layout, tensors: Tensors, numbers: bool = True, trainable: tuple[str, ...] = ()) -> None:
        self.layout = layout
        self.absent: bytes | msgspec.UnsetType = msgspec.UNSET
        packing = packing_of(layout)
        arrays = packing.given(tensors) if type(tensors) is dict else None
        self.arrays = self._checked(tensors, trainable) if arrays is None else arrays
        """Those of all tensors of the layout, until `detach`."""
        self._packed = packing.packed(self.arrays)
        if numbers and any(map(has_nan, self._packed)):
            name = next(name for name, array in zip(packing.names, self.arrays, strict=True) if has_nan(array))
            raise Refused("not-finite", f"tensors.{name}", f"tensor {name!r} contains NaN; did the training diverge?")

    def _checked(self, tensors: Tensors, trainable: tuple[str, ...]) -> list[Array]:
        """Return the arrays in the order of the layout, zeros for those that may be missing, which are `absent` then.

        Raise `Refused`, naming the first that is wrong.
        """
        layout = self.layout
        if is_module(tensors):
            tensors = state_of(tensors, {tensor.name for tensor in layout.tensors})
        arrays = as_arrays(tensors, trainable)
        specs = {name: TensorSpec(name, dtype_name(array.dtype), array.shape) for name, array in arrays.items()}
        ordered = [specs.pop(tensor.name) for tensor in layout.tensors if tensor.name in specs]
        check_same(layout.tensors, (*ordered, *specs.values()), may_lack=bool(trainable))
        if len(arrays) < len(layout.tensors):
            self.absent = absent_bits([tensor.name for tensor in layout.tensors], arrays)
        return [arrays[each.name] if each.name in arrays else _zeros(each) for each in layout.tensors]

    @property
    def views(self) -> list[memoryview]:
        """The update's bytes, `layout.data_bytes` of them, in the order in which they travel."""
        found = []
        for run, array in zip(packing_of(self.layout).runs, self._packed, strict=True):
            found.append(array.reshape(-1).view(np.uint8).data)
            if run.padding_bytes:
                found.append(memoryview(bytes(run.padding_bytes)))
        return found

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of these bytes as they are when it is first asked for."""
        found = hashlib.sha256()
        for view in self.views:
            found.update(view)
        return found.digest()

    def detach(self) -> None:
        """Copy what is still the caller's own, because its owner is about to change it."""
        runs = packing_of(self.layout).runs
        self._packed = [
            array.copy() if len(run.indices) == 1 else array for run, array in zip(runs, self._packed, strict=True)
        ]
        self.arrays = []

    def write_to(self, target: memoryview, before_piece: Callable[[int], None] = lambda position: None) -> int:
        """Copy the update into `target`, of `layout.data_bytes` bytes; return its checksum, or 0 where a float is not
        finite: whether that is allowed the node knows.

        `before_piece(bytes that are there)` is called at the begin and after each `FILL_BYTES`; what it raises ends the
        copy.
        """
        from lifl.shm.ingest_check import ingest_check

        floats = [segment for segment in self.layout.segments if is_float(segment.dtype)]
        check = ingest_check(target, floats)
        position, due = 0, 0
        for view in self.views:
            start = 0
            while start < len(view):
                if position >= due:
                    before_piece(position)
                    due = position + FILL_BYTES
                piece = view[start : start + due - position]
                check.copy(piece, position)
                position += len(piece)
                start += len(piece)
        checksum = check.finish()
        return checksum if check.found is None else 0


def _zeros(tensor: TensorSpec) -> Array:
    return np.zeros(tensor.shape, numpy_dtype(tensor.dtype))


def as_arrays(tensors: Tensors, patterns: tuple[str, ...] = ()) -> dict[str, Array]:
    """Return name → C-contiguous little-endian array, without a copy where it is one already.

    With `patterns` only what they name, and nothing else is read.  Raise `Refused` or `ResourceFault`.
    """
    if isinstance(tensors, str | os.PathLike):
        tensors = _load(os.fsdecode(tensors), patterns)
    if not isinstance(tensors, Mapping):
        text = "an update is a dict of arrays, a torch module or its state_dict, or the path of a safetensors file"
        raise Refused("bad-tensor", "tensors", f"{text}, not a {type(tensors).__name__}")
    return {name: as_array(name, tensor) for name, tensor in _items(tensors, patterns)}


def _items(tensors: Mapping[str, Any], patterns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Give each name with its tensor: a mapping may read a file for each, as NumPy's of a .npz does."""
    name: object = None
    try:
        for name in tensors:
            if not patterns or not isinstance(name, str) or is_trainable(name, patterns):
                yield name, tensors[name]
    except Exception as error:
        where = f"tensor {name!r} of it" if isinstance(name, str) else "it"
        text = f"the update, a {type(tensors).__name__}: {where} cannot be read: {error or type(error).__name__}"
        raise Refused("bad-tensor", f"tensors.{name}" if isinstance(name, str) else "tensors", text) from error


def _load(path: str, patterns: tuple[str, ...]) -> dict[str, Array]:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    try:
        if not patterns:
            tensors: dict[str, Array] = load_file(path)
        else:
            with safe_open(path, "numpy") as file:
                tensors = {name: file.get_tensor(name) for name in list(file.keys()) if is_trainable(name, patterns)}
    except OSError as error:
        if not os.path.isfile(path):
            raise Refused("bad-file", "tensors", f"{path!r}, which is to be the update's file, is none") from error
        raise ResourceFault(f"the update's file {path} cannot be read: {error}") from error
    except Exception as error:  # SafetensorError, and what NumPy makes of a dtype it has not
        text = f"the update's file {path} is no safetensors file that NumPy can hold: {error}"
        raise Refused("bad-file", "tensors", text) from error
    return tensors


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_array(name: str, tensor: Any) -> Array:
    """Return `tensor` as a C-contiguous little-endian array, without a copy where it is one already.

    Raise `Refused`, naming it, when it is none or its dtype cannot be aggregated, and `ResourceFault`.
    """
    if not isinstance(name, str):
        text = f"a tensor is named {name!r}, a {type(name).__name__}; names are those of the model, texts"
        raise Refused("unknown-tensor", "tensors", text)
    if not _is_utf8(name):
        raise Refused("not-utf8", "tensors", f"a tensor is named {name!r:.200}, which cannot be written as UTF-8")
    try:
        return _as_array(name, tensor)
    except LiflError:
        raise
    except MemoryError as error:
        raise ResourceFault(f"tensor {name!r}: there is no memory to lay it out") from error
    except Exception as error:  # of torch, of NumPy, of whatever stands for an array
        text = (
            f"tensor {name!r}, a {type(tensor).__name__}, cannot be taken as an array: {error or type(error).__name__}"
        )
        raise Refused("bad-tensor", f"tensors.{name}", text) from error


def as_number(value: Any, code: str, field: str, what: str) -> float:
    """Return a number that a trainer gave, perhaps as a tensor.  Raise `Refused`, by `code` and `field`."""
    try:
        if is_text(value) or is_boolean(value):
            raise TypeError("text, bytes, times and booleans are no numbers")
        return float(value)
    except Exception as error:  # of torch, too
        text = f"{what} is {value!r:.80}, a {type(value).__name__}; it must be one number ({error})"
        raise Refused(code, field, text) from error


def as_weight(weight: Any) -> float:
    """Return the weight that a trainer gave.  Raise `Refused`."""
    return as_number(weight, "bad-weight", "weight", "the weight")


def as_metrics(metrics: Any) -> dict[str, float]:
    """Return the metrics that a trainer gave.  Raise `Refused`, by the name of the one that is none."""
    if not isinstance(metrics, Mapping):
        text = f"metrics are a dict of name and number, not a {type(metrics).__name__}"
        raise Refused("bad-metric", "metrics", text)
    return {
        str(name): as_number(value, "bad-metric", f"metrics.{name}", f"the metric {name!r}")
        for name, value in metrics.items()
    }


def _as_array(name: str, tensor: Any) -> Array:
    array: Array
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().contiguous()
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind == "bfloat16":  # NumPy has none: hand the bits over
            array = tensor.view(sys.modules["torch"].int16).numpy().view(ml_dtypes.bfloat16)
        elif kind in KEPT and kind != "bool":
            array = tensor.view(sys.modules["torch"].uint8).numpy().view(numpy_dtype(kind))
        else:
            array = tensor.numpy()
    else:
        if np.ma.is_masked(tensor):
            text = f"tensor {name!r} has masked numbers, which have no value: give it as `tensor.filled(value)`"
            raise Refused("bad-tensor", f"tensors.{name}", text)
        array = _from_dlpack(tensor) if _is_dlpack_only(tensor) else np.asarray(tensor)
    if dtype_name(array.dtype) not in DTYPE_BYTES:
        raise Refused(
            "wrong-dtype",
            f"tensors.{name}",
            f"tensor {name!r} has dtype {array.dtype}, which cannot be aggregated; use one of {', '.join(DTYPE_BYTES)}",
        )
    if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        array = array.view(np.uint8) != 0  # any other byte is true for NumPy, and no value of a model
    # np.ascontiguousarray would make a vector of a scalar
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _is_dlpack_only(tensor: Any) -> bool:
    """Return whether it is an array of a library that NumPy knows by the DLPack protocol alone."""
    return not isinstance(tensor, np.ndarray) and not hasattr(tensor, "__array__") and hasattr(tensor, "__dlpack__")


def _from_dlpack(tensor: Any) -> Array:
    """Return it where it lies, when that is the host's memory (kDLCPU, 1); else its library copies it there, once."""
    if tensor.__dlpack_device__()[0] == 1:
        return np.from_dlpack(tensor)
    return np.from_dlpack(tensor, device="cpu")


def is_float(dtype: str) -> bool:
    """Return whether numbers of this dtype may be NaN, and are averaged where they are not."""
    return "float" in dtype and dtype not in KEPT


def has_nan(array: Array) -> bool:
    """Return whether an element is NaN, in blocks that stay in the cache.

    Infinity may be meant, where it is not averaged: the node says where.
    """
    name = dtype_name(array.dtype)
    if not is_float(name):
        return False
    flat = array.reshape(-1)
    step = CHECK_BYTES // array.itemsize
    for begin in range(0, flat.size, step):
        block = flat[begin : begin + step]
        if name in _EXPONENT_16:
            exponent = _EXPONENT_16[name]
            if int((block.view(np.uint16) & np.uint16(0x7FFF)).max()) > exponent:
                return True
        elif np.isnan(block).any():
            return True
    return False


def as_model(layout: Layout, data: NDArray[np.uint8]) -> dict[str, Array]:
    """Return name → array over `data`, the model's bytes; writable where `data` is."""
    return packing_of(layout).unpacked(data)
