"""The compiled kernel (`fold.c`), where it could be built.

`setup.py` compiles fold.c when LIFL is installed.  Without a C compiler the installation goes on without it, and
`kernels` folds in NumPy: the same results within rounding, more slowly.

The library includes nothing of Python's, so building it needs no headers of Python; ctypes, which NumPy has loaded
already, calls it and releases the interpreter's lock meanwhile.  `kernels.fold` has checked what it hands over: the
library is given plain addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec

from lifl.core.schema import DTYPE_BYTES

_CODES = {name: code for code, name in enumerate(DTYPE_BYTES)}


class CompiledFold:
    """The library's one function.  Raises `OSError` when the file cannot be loaded, `AttributeError` when it is none
    of ours.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fold = ctypes.CDLL(path).lifl_fold
        self._fold.restype = ctypes.c_int
        self._fold.argtypes = (
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_double,
        )

    def __call__(
        self, dtype: str, acc: int, size: int, vectors: Sequence[int], weights: Sequence[float], keep: float
    ) -> bool:
        """acc = keep · acc + Σ weights[i] · vectors[i] for `size` elements; `acc` and `vectors` are addresses.

        Return whether all results are finite.

        `dtype` is the vectors', a key of `DTYPE_BYTES`; the accumulator is of its type in `ACCUMULATOR`.  With `keep`
        0, `acc` is not read.
        """
        rows = len(vectors)
        addresses = (ctypes.c_void_p * rows)(*vectors)
        return not self._fold(_CODES[dtype], acc, size, addresses, (ctypes.c_double * rows)(*weights), rows, keep)


def load() -> CompiledFold | None:
    """Return the compiled kernel, or None where it has not been built or cannot be loaded."""
    found = find_spec("lifl.rules._fold")
    if found is None or found.origin is None:
        return None
    try:
        return CompiledFold(found.origin)
    except (OSError, AttributeError):
        return None
