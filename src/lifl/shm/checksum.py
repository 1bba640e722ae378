"""What an object's bytes are worth: a checksum, and whether all of its numbers are finite, while they
arrive.

Both are computed on what has just been received, block by block, while it is still in the cache; so they
cost no second pass over memory.  However the data was cut into reads, only whole blocks of the object are
looked at (the last one at the end), and the result is the same.

The checksum is a polynomial over blocks, as in Rabin-Karp: from h = 1, h ← h·M + s (mod 2⁶⁴), where s is
the sum of the block's little-endian 64-bit words (the last block filled up with zeros), and the length
comes last.  M is odd, so a change of one block always changes h; blocks that change places do too, but
words within one block may swap unseen.  It finds what hardware and bugs do to an object, not what an
attacker does.

Finiteness: the dot product of a vector with itself is finite only if all of its numbers are, and BLAS
computes it at the cache's speed (set OPENBLAS_NUM_THREADS=1, or it starts threads for it).  When it is not
finite, a number is not or the sum overflowed: NumPy then looks at block after block.  Two-byte floats, for
which NumPy converts each element, are compared as integers instead: their bits are ordered like their
magnitudes, so the largest positive and the largest negative pattern tell it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lifl.core.errors import LocalFault
from lifl.core.schema import DTYPE_BYTES, KEPT, Segment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_BYTES = 65_536
FINITE_BLOCK_BYTES = 131_072
_WORD_BYTES = 8
MULTIPLIER = 0x9E37_79B9_7F4A_7C15
MASK = (1 << 64) - 1
_SIGN_16 = 0x8000
_INFINITY_16 = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""The bits of +infinity: the smallest positive pattern that is not finite."""


class Checksum:
    """The checksum of `data` (contiguous bytes that are being filled from the front).

    It holds a view of `data` until `finish`.
    """

    def __init__(self, data: memoryview) -> None:
        import numpy as np

        self._np = np
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(data, np.uint8)
        self._done = 0
        self._value = 1

    def advance(self, end_bytes: int) -> None:
        """Go on: the first `end_bytes` bytes are there now and will not change.  Raise `LocalFault` beyond the data."""
        data = self._open(end_bytes)
        end = end_bytes // BLOCK_BYTES * BLOCK_BYTES
        if end <= self._done:
            return
        words = data[self._done : end].view("<u8").reshape(-1, BLOCK_BYTES // _WORD_BYTES)
        for block_sum in self._np.add.reduce(words, axis=1).tolist():
            self._value = (self._value * MULTIPLIER + block_sum) & MASK
        self._done = end

    def finish(self) -> int:
        """Return the checksum now that all of the data is there: 1 to 2⁶⁴-1 (0 is "none" in the object table)."""
        nbytes = self._open(0).size
        return closed(self.polynomial(), nbytes)

    def polynomial(self) -> int:
        """Return the polynomial's value over all of the data, which is there now: h, before the length."""
        data = self._open(0)
        self.advance(data.size)
        tail = data[self._done :].tobytes()
        if tail:
            words = self._np.frombuffer(tail.ljust(BLOCK_BYTES, b"\0"), "<u8")
            self._value = (self._value * MULTIPLIER + int(self._np.add.reduce(words))) & MASK
        self._bytes = None
        return self._value

    def _open(self, end_bytes: int) -> NDArray[np.uint8]:
        if self._bytes is None:
            raise LocalFault("the checksum is finished")
        if end_bytes > self._bytes.size:
            raise LocalFault(f"{end_bytes} bytes cannot have arrived of {self._bytes.size}")
        return self._bytes


def closed(value: int, nbytes: int) -> int:
    """Return the checksum of so many bytes over which the polynomial has this value."""
    return (value * MULTIPLIER + nbytes) & MASK or 1


def joined(value: int, behind: int, nbytes: int) -> int:
    """Return the polynomial's value over whole blocks and, behind them, `nbytes` bytes that have one of their own."""
    return ((value - 1) * pow(MULTIPLIER, -(-nbytes // BLOCK_BYTES), MASK + 1) + behind) & MASK


def checksum(data: memoryview | bytes | bytearray) -> int:
    """Return the checksum of all of `data`."""
    return Checksum(memoryview(data)).finish()


class StreamChecksum:
    """The checksum of bytes that come in pieces, wherever they lie: the same as of all of them in a row."""

    def __init__(self) -> None:
        import numpy as np

        self._np = np
        self._rest = b""  # of a block that is not whole yet
        self._value = 1
        self._nbytes = 0

    def update(self, data: memoryview | bytes | bytearray) -> None:
        """Go on with these bytes."""
        view = memoryview(data).cast("B")
        self._nbytes += len(view)
        if self._rest:
            head = min(BLOCK_BYTES - len(self._rest), len(view))
            self._rest += bytes(view[:head])
            view = view[head:]
            if len(self._rest) < BLOCK_BYTES:
                return
            self._blocks(self._rest)
        whole = len(view) // BLOCK_BYTES * BLOCK_BYTES
        self._blocks(view[:whole])
        self._rest = bytes(view[whole:])

    def _blocks(self, data: memoryview | bytes) -> None:
        words = self._np.frombuffer(data, "<u8").reshape(-1, BLOCK_BYTES // _WORD_BYTES)
        for block_sum in self._np.add.reduce(words, axis=1).tolist():
            self._value = (self._value * MULTIPLIER + block_sum) & MASK

    def finish(self) -> int:
        """Return the checksum of all that has come."""
        if self._rest:
            self._blocks(self._rest.ljust(BLOCK_BYTES, b"\0"))
            self._rest = b""
        return (self._value * MULTIPLIER + self._nbytes) & MASK or 1


class FiniteCheck:
    """Looks for NaN and infinity in `data`, which holds `segments` and is being filled from the front.

    `found` is None or (index of the segment, index of its element) of the first one in the order of
    arrival. It holds a view of `data` until it is collected.  Raises `LocalFault` when the segments do not
    lie in the data.
    """

    def __init__(self, data: memoryview, segments: Sequence[Segment]) -> None:
        self.found: tuple[int, int] | None = None
        self._parts: list[tuple[int, Segment, NDArray[Any]]] = []
        self._done = [0] * len(segments)
        check_segments(segments, len(data))
        for index, segment in enumerate(segments):
            if "float" in segment.dtype and segment.dtype not in KEPT:
                end = segment.offset + segment.count * DTYPE_BYTES[segment.dtype]
                self._parts.append((index, segment, as_array(data[segment.offset : end], segment.dtype)))

    def advance(self, end_bytes: int) -> bool:
        """Go on: the first `end_bytes` bytes are there now; return True while all numbers seen are finite."""
        for index, segment, array in self._parts:
            begin = self._done[index]
            arrived = (end_bytes - segment.offset) // DTYPE_BYTES[segment.dtype]
            end = min(segment.count, arrived)
            if self.found is None and end > begin:
                place = first_not_finite(array[begin:end])
                self._done[index] = end
                if place is not None:
                    self.found = (index, begin + place)
        return self.found is None


def check_segments(segments: Sequence[Segment], nbytes: int) -> None:
    """Raise `LocalFault` when a segment does not lie in the `nbytes` bytes of the data."""
    for segment in segments:
        end = segment.offset + segment.count * DTYPE_BYTES[segment.dtype]
        if end > nbytes:
            raise LocalFault(f"segment {segment} ends at byte {end}, behind the {nbytes} of the data")


def as_array(data: memoryview, dtype: str) -> NDArray[Any]:
    """Return `data` as a flat array of `dtype`, a name of `core.schema.DTYPE_BYTES`; no copy is made."""
    import numpy as np

    if dtype.startswith(("bfloat", "float8")):
        import ml_dtypes

        return np.frombuffer(data, getattr(ml_dtypes, dtype))
    return np.frombuffer(data, dtype)


def all_finite(array: NDArray[Any]) -> bool:
    """Return whether no element of the flat, contiguous `array` is NaN or infinite; True for integers."""
    return first_not_finite(array) is None


def first_nan(array: NDArray[Any]) -> int | None:
    """Return the index of the first NaN of the flat, contiguous `array`; None when there is none."""
    import numpy as np

    name = array.dtype.name
    if "float" not in name or name in KEPT:
        return None
    step = FINITE_BLOCK_BYTES // array.itemsize
    for begin in range(0, array.size, step):
        nan = np.isnan(array[begin : begin + step])
        if nan.any():
            return begin + int(np.argmax(nan))
    return None


def first_not_finite(array: NDArray[Any]) -> int | None:
    """Return the index of the first NaN or infinity of the flat, contiguous `array`; None when there is none."""
    import numpy as np

    name = array.dtype.name
    if "float" not in name:
        return None
    infinity = _INFINITY_16.get(name)
    if infinity is None:
        with np.errstate(over="ignore", invalid="ignore"):
            square = float(np.dot(array, array))
        if math.isfinite(square):
            return None
    step = FINITE_BLOCK_BYTES // array.itemsize
    for begin in range(0, array.size, step):
        block = array[begin : begin + step]
        if infinity is None:
            finite = np.isfinite(block)
            if not finite.all():
                return begin + int(np.argmin(finite))
        else:
            bits = block.view(np.uint16)
            # A pattern with the sign bit is negative as int16 and the largest as uint16.
            if bits.view(np.int16).max() >= infinity or bits.max() >= infinity + _SIGN_16:
                return begin + int(np.argmax((bits & (_SIGN_16 - 1)) >= infinity))
    return None
