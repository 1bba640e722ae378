"""Which tensors the inputs of a task have, where updates may lack some: a weight for each tensor of each input.

An update's contribution says what it lacks, and a partial has the contributions of all its members: so what each tensor
of it weighs is a sum over these, exactly.  A tensor that weighs nothing is not read, whatever its bytes are.

Tensors that stand side by side in a segment, and weigh the same in every input, are folded as one *run*: where nobody
lacks anything that is the whole segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

from lifl.core.protocol.contribution import Contribution
from lifl.core.schema import Place
from lifl.rules.kernels import Weight, exact, weight_of

Units = tuple[int, ...]
"""What each tensor of an input weighs, in the order of `places`, in units of 2^-1074; 0: it is not there."""


class Presence:
    """The tensors at `places`."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._tensors = len(places)
        self._by_segment: dict[int, list[tuple[int, Place]]] = {}
        for index, place in sorted(enumerate(places), key=lambda each: each[1].begin):
            if place.count:
                self._by_segment.setdefault(place.segment, []).append((index, place))

    def units_of(self, members: Iterable[Contribution]) -> Units:
        """Return what each tensor of an input weighs whose contributions are `members`."""
        groups: dict[bytes, int] = {}
        for member in members:
            absent = b"" if isinstance(member.absent, msgspec.UnsetType) else member.absent
            groups[absent] = groups.get(absent, 0) + exact(member.weight)
        whole = sum(groups.values())
        lacking = [(_unpacked(absent, self._tensors), units) for absent, units in groups.items() if any(absent)]
        if not lacking:
            return (whole,) * self._tensors
        found: dict[bytes, int] = {}
        units: list[int] = []
        for column in np.ascontiguousarray(np.array([bits for bits, _ in lacking]).T):
            key = column.tobytes()
            if key not in found:
                found[key] = whole - sum(lacking[row][1] for row in np.flatnonzero(column))
            units.append(found[key])
        return tuple(units)

    def runs(self, segment: int, piece: slice, inputs: Sequence[Units]) -> Iterator[tuple[slice, list[Weight]]]:
        """Yield the runs of a piece of a segment, and what each of `inputs` weighs there."""
        begin, before = piece.start, None
        for index, place in self._by_segment.get(segment, ()):
            column = tuple(units[index] for units in inputs)
            start = max(place.begin, piece.start)
            if place.begin + place.count <= piece.start or column == before:
                continue
            if place.begin >= piece.stop:
                break
            if before is not None:
                yield slice(begin, start), [weight_of(units) for units in before]
            begin, before = start, column
        if before is not None:
            yield slice(begin, piece.stop), [weight_of(units) for units in before]


def added(units: Iterable[Units]) -> Units:
    """Return the sums of what each tensor weighs."""
    return tuple(map(sum, zip(*units, strict=True)))


def _unpacked(absent: bytes, tensors: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return 1 for each tensor that is absent; of too short a text the rest is there."""
    return np.unpackbits(np.frombuffer(absent, np.uint8), count=tensors, bitorder="little")
