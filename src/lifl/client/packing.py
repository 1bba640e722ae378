"""How a model's bytes are made of tensors, and tensors of its bytes: worked out once of a layout.

A model of ten thousand small tensors would cost a few operations of NumPy for each of them, and each way, though all
of their numbers are copied and looked at within a few milliseconds.  So small tensors that follow one another are one
*run*: copied together, looked at together and sent as one piece.  A large tensor is a run by itself, and stays where it
is.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lifl.core.schema import DTYPE_BYTES, Layout, align, end_of

SMALL_BYTES = 4096
"""A tensor of so many bytes, or fewer, is copied with its neighbours: to copy a page costs less than a view does."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of a name in `DTYPE_BYTES`."""
    return np.dtype(getattr(ml_dtypes, name, name))


_BOOL = numpy_dtype("bool")
_NAMES = {numpy_dtype(name): name for name in DTYPE_BYTES}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return `dtype.name`, which NumPy works out anew each time."""
    return _NAMES.get(dtype) or dtype.name


class Run(NamedTuple):
    """Tensors whose bytes follow one another: their indices in the layout, and the bytes of padding behind them."""

    indices: tuple[int, ...]
    padding_bytes: int


class Packing:
    """What is worked out of a `layout`: each tensor's name, dtype and shape, and `runs` in the order of their bytes."""

    def __init__(self, layout: Layout) -> None:
        dtypes = {name: numpy_dtype(name) for name in DTYPE_BYTES}
        self.names = [tensor.name for tensor in layout.tensors]
        self.dtypes = [dtypes[tensor.dtype] for tensor in layout.tensors]
        self.shapes = [tensor.shape for tensor in layout.tensors]
        self._offsets = layout.offsets
        self.runs = _runs(layout)

    def given(self, tensors: dict[str, Any]) -> list[NDArray[Any]] | None:
        """Return the arrays in the order of the layout, where all are there as they are to be; None: look closer."""
        if len(tensors) != len(self.names):
            return None
        found: list[NDArray[Any]] = []
        for name, dtype, shape in zip(self.names, self.dtypes, self.shapes, strict=True):
            array = tensors.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape:
                return None
            if not array.flags.c_contiguous or dtype is _BOOL:  # whose bytes may be others than 0 and 1
                return None
            found.append(array)
        return found

    def packed(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return one array for each run: a vector that is a copy of its tensors, or its only tensor itself."""
        found = []
        for run in self.runs:
            if len(run.indices) == 1:
                found.append(arrays[run.indices[0]])
            else:
                found.append(np.concatenate([arrays[index] for index in run.indices], axis=None))
        return found

    def unpacked(self, data: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return name → array over `data`, the model's bytes; writable where `data` is."""
        made: Any = np.ndarray
        arrays = map(made, self.shapes, self.dtypes, repeat(data), self._offsets)
        return dict(zip(self.names, arrays, strict=True))


def _runs(layout: Layout) -> tuple[Run, ...]:
    found: list[Run] = []
    for segment in layout.segments:
        run: list[int] = []
        for index, tensor in enumerate(layout.tensors):
            if tensor.dtype != segment.dtype or not tensor.size:
                continue
            small = tensor.size * DTYPE_BYTES[tensor.dtype] <= SMALL_BYTES
            if run and not small:
                found.append(Run(tuple(run), 0))
                run = []
            run.append(index)
            if not small:
                found.append(Run(tuple(run), 0))
                run = []
        if run:
            found.append(Run(tuple(run), 0))
        end = end_of([segment])
        found[-1] = found[-1]._replace(padding_bytes=align(end) - end)
    return tuple(found)


_packings: WeakKeyDictionary[Layout, Packing] = WeakKeyDictionary()


def packing_of(layout: Layout) -> Packing:
    """Return the packing of a layout, which is made once."""
    found = _packings.get(layout)
    if found is None:
        found = _packings[layout] = Packing(layout)
    return found
