"""The fold of the rivals that we wrote: a weighted sum in NumPy by blocks that stay in the cache.

Of what NumPy offers for one update at a time it is the fastest form that needs no copy of the update.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 14

Floats = NDArray[np.float32]


def fold(target: Floats, numbers: Floats, weight: float, first: bool) -> None:
    """Add `weight` x `numbers` to `target`; the first one of a sum replaces what is there."""
    factor = np.float32(weight)
    scratch = np.empty(min(BLOCK, len(numbers)), np.float32)
    for begin in range(0, len(numbers), BLOCK):
        source, part = numbers[begin : begin + BLOCK], target[begin : begin + BLOCK]
        if first:
            np.multiply(source, factor, out=part)
        else:
            scaled = scratch[: len(source)]
            np.multiply(source, factor, out=scaled)
            np.add(part, scaled, out=part)


def scale(target: Floats, factor: float) -> None:
    """Multiply in place."""
    for begin in range(0, len(target), BLOCK):
        target[begin : begin + BLOCK] *= np.float32(factor)
