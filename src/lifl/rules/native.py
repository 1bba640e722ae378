"""The compiled kernels (`fold.c`, `fold_integers.c`), where they could be built.

`setup.py` compiles them when LIFL is installed.  Without a C compiler the installation goes on without them, and
`kernels` and `integers` compute in NumPy: the same results within rounding (integers: the same), more slowly.

The library includes nothing of Python's, so building it needs no headers of Python; ctypes, which NumPy has loaded
already, calls it and releases the interpreter's lock meanwhile.  The callers have checked what they hand over: the
library is given plain addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec

from lifl.core.schema import DTYPE_BYTES

_CODES = {name: code for code, name in enumerate(DTYPE_BYTES)}
_FIRST_INTEGER = _CODES["int64"]


class CompiledFold:
    """The library's functions.  Raises `OSError` when the file cannot be loaded or the processor lacks what it needs,
    `AttributeError` when it is none of ours.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        library = ctypes.CDLL(path)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        if not library.lifl_can_fold():
            raise OSError(f"{path} needs a processor with AVX2 and FMA")
        self._fold = library.lifl_fold
        self._fold.restype = ctypes.c_int
        flags = (ctypes.c_int, ctypes.c_int)
        self._fold.argtypes = (*flags, pointer, size, pointer, pointer, size, pointer, pointer, size)
        self._fold_integers = library.lifl_fold_integers
        self._fold_integers.restype = None
        self._fold_integers.argtypes = (ctypes.c_int, pointer, size, pointer, pointer, size, ctypes.c_int)
        self._merge_integers = {name: getattr(library, f"lifl_merge_{name}") for name in ("int64", "int128", "int192")}
        for merge in self._merge_integers.values():
            merge.restype = None
            merge.argtypes = (pointer, size, pointer, pointer, size, ctypes.c_int)
        self._finish_integers = library.lifl_finish_integers
        self._finish_integers.restype = None
        self._finish_integers.argtypes = (ctypes.c_int, pointer, pointer, size, size)
        self._fold_bins, self._mean_bins = library.lifl_fold_bins, library.lifl_mean_bins
        self._fold_bins.restype = self._mean_bins.restype = ctypes.c_int
        self._fold_bins.argtypes = (*flags[:1], pointer, size, *flags[:1], pointer, size, pointer, pointer, size)
        self._mean_bins.argtypes = (pointer, *flags[:1], pointer, size, ctypes.c_double)
        half = ctypes.c_uint64
        self._fold_int192, self._finish_int192 = library.lifl_fold_int192, library.lifl_finish_int192
        self._fold_int192.restype = self._finish_int192.restype = None
        self._fold_int192.argtypes = (ctypes.c_int, pointer, size, pointer, pointer, size, ctypes.c_int)
        self._finish_int192.argtypes = (ctypes.c_int, pointer, pointer, size, half, half)

    def __call__(
        self,
        dtype: str,
        out: int,
        size: int,
        wide: Sequence[int],
        scales: Sequence[float],
        vectors: Sequence[int],
        weights: Sequence[float],
        *,
        narrow: bool = False,
    ) -> bool:
        """Out = Σ scales[i] · wide[i] + Σ weights[i] · vectors[i] for `size` elements; all are given by addresses.

        Return whether all results are finite, as far as they are looked at: those of float64 vectors and narrow ones.

        `dtype` is the vectors', a float's.  `out` and `wide` are float64; `narrow`: `out` is float32.  With float64
        vectors `wide` is at most `out` itself, and scales and weights add up to 1.
        """
        partials, rows = len(wide), len(vectors)
        return not self._fold(
            _CODES[dtype],
            narrow,
            out,
            size,
            (ctypes.c_void_p * partials)(*wide),
            (ctypes.c_double * partials)(*scales),
            partials,
            (ctypes.c_void_p * rows)(*vectors),
            (ctypes.c_double * rows)(*weights),
            rows,
        )

    def fold_integers(
        self, dtype: str, acc: int, size: int, vectors: Sequence[int], weights: Sequence[int], shift: int
    ) -> None:
        """acc = acc · 2^-shift + Σ weights[i] · vectors[i]; with a negative `shift`, `acc` is not read."""
        rows = len(vectors)
        addresses = (ctypes.c_void_p * rows)(*vectors)
        if DTYPE_BYTES[dtype] == 8:
            halves = [half for weight in weights for half in _halves(weight)]
            self._fold_int192(
                dtype == "int64", acc, size, addresses, (ctypes.c_uint64 * len(halves))(*halves), rows, shift
            )
            return
        code = _CODES[dtype] - _FIRST_INTEGER
        self._fold_integers(code, acc, size, addresses, (ctypes.c_int64 * rows)(*weights), rows, shift)

    def merge_integers(
        self, accumulator: str, acc: int, size: int, partials: Sequence[int], shifts: Sequence[int], shift: int
    ) -> None:
        """acc = acc · 2^-shift + Σ partials[i] · 2^-shifts[i]; with a negative `shift`, `acc` is not read."""
        rows = len(partials)
        addresses = (ctypes.c_void_p * rows)(*partials)
        self._merge_integers[accumulator](acc, size, addresses, (ctypes.c_int64 * rows)(*shifts), rows, shift)

    def fold_bins(
        self,
        dtype: str,
        acc: int,
        size: int,
        partials: Sequence[int],
        vectors: Sequence[int],
        weights: Sequence[float],
        *,
        keep: bool,
    ) -> None:
        """Acc += Σ weights[i] · vectors[i] + Σ partials[i], in bins (`binned`); without `keep`, `acc` is not read."""
        others, rows = len(partials), len(vectors)
        theirs, addresses = (ctypes.c_void_p * others)(*partials), (ctypes.c_void_p * rows)(*vectors)
        self._fold_bins(
            _CODES[dtype], acc, size, keep, theirs, others, addresses, (ctypes.c_double * rows)(*weights), rows
        )

    def mean_bins(self, dtype: str, out: int, acc: int, size: int, weight: float) -> bool:
        """Out = acc / weight, of float32 or float64; return whether all of it is finite."""
        return not self._mean_bins(out, dtype == "float32", acc, size, weight)

    def finish_integers(self, dtype: str, out: int, acc: int, size: int, divisor: int) -> None:
        """out = acc / divisor, rounded half to even."""
        if DTYPE_BYTES[dtype] == 8:
            self._finish_int192(dtype == "int64", out, acc, size, *_halves(divisor))
            return
        self._finish_integers(_CODES[dtype] - _FIRST_INTEGER, out, acc, size, divisor)


def _halves(number: int) -> tuple[int, int]:
    """Return a number of 128 bits as two, the low half first."""
    return number & 0xFFFF_FFFF_FFFF_FFFF, number >> 64


def load() -> CompiledFold | None:
    """Return the compiled kernels, or None where they have not been built or cannot be loaded."""
    found = find_spec("lifl.rules._fold")
    if found is None or found.origin is None:
        return None
    try:
        return CompiledFold(found.origin)
    except (OSError, AttributeError):
        return None
