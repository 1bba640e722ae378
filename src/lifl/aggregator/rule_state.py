"""What a rule remembers from fold to fold: FedAdam's moments, say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from lifl.client.packing import numpy_dtype
from lifl.client.tensors import Array
from lifl.core.errors import Refused
from lifl.core.schema import DTYPE_BYTES, STATE, Layout

Vectors = Mapping[str, Array]
"""A tensor's name → its numbers in one state: of the tensor's shape, float32 or, of float64, float64."""


class RuleState(Mapping[str, Vectors]):
    """The state of rule `rule` after `rounds` folds with a result: the name of a state → tensor → array.

    `Aggregator.state` returns one, and an `Aggregator` of the same rule that is made with it goes on from there.  To
    keep it in a file, write `rule`, `rounds` and the arrays; make it anew from these.  Raise `Refused` for `states`
    that are no dicts.
    """

    def __init__(self, rule: str, rounds: int, states: Mapping[str, Vectors]) -> None:
        self.rule = rule
        self.rounds = rounds
        if not isinstance(states, Mapping) or not all(isinstance(vectors, Mapping) for vectors in states.values()):
            raise Refused("wrong-state", "states", "states are a dict of the names of states and dicts of arrays")
        self._states = {name: dict(vectors) for name, vectors in states.items()}

    def __getitem__(self, name: str) -> Vectors:
        return self._states[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def __repr__(self) -> str:
        return f"<RuleState of {self.rule} after {self.rounds} folds: {', '.join(self._states) or 'none'}>"


def check_state(state: RuleState, rule: str, names: tuple[str, ...], rounds_max: int) -> None:
    """Raise `Refused` when it is not that of a rule with states of these names."""
    if not isinstance(state, RuleState) or state.rule != rule:
        of = repr(state) if isinstance(state, RuleState) else f"a {type(state).__name__}"
        raise Refused("wrong-state", "state", f"state is {of}, not the RuleState of rule {rule}")
    if set(state) != set(names):
        has, keeps = ", ".join(sorted(map(str, state))) or "none", ", ".join(names) or "none"
        raise Refused("wrong-state", "state", f"state has {has}; rule {rule} keeps {keeps}")
    good = isinstance(state.rounds, int) and not isinstance(state.rounds, bool) and 1 <= state.rounds <= rounds_max
    if not good:
        raise Refused("wrong-state", "state", f"state.rounds is {state.rounds!r}: a number of folds, 1 to {rounds_max}")


def packed(layout: Layout, name: str, vectors: Vectors) -> NDArray[np.uint8]:
    """Return the bytes of one state, as they lie in the arena.  Raise `Refused`, naming the tensor."""
    data = np.zeros(layout.state_bytes, np.uint8)
    wanted = {tensor.name for tensor in layout.tensors}
    if vectors.keys() != wanted:
        odd = sorted(map(str, vectors.keys() ^ wanted))[:4]
        raise Refused("wrong-state", f"state.{name}", f"state {name!r} is of a model with other tensors: {odd}")
    for tensor, view in _views(layout, data).items():
        given = vectors[tensor]
        if not isinstance(given, np.ndarray):
            text = f"tensor {tensor!r} of state {name!r} is a {type(given).__name__}, and is to be an array"
            raise Refused("wrong-state", f"state.{name}.{tensor}", text)
        if given.shape != view.shape or given.dtype != view.dtype:
            text = f"is {given.dtype} {given.shape}, and is to be {view.dtype} {view.shape}"
            raise Refused("wrong-state", f"state.{name}.{tensor}", f"tensor {tensor!r} of state {name!r} {text}")
        if not np.isfinite(given).all():
            text = f"tensor {tensor!r} of state {name!r} is not finite"
            raise Refused("not-finite", f"state.{name}.{tensor}", text)
        view[...] = given
    return data


def unpacked(layout: Layout, data: NDArray[np.uint8]) -> dict[str, Array]:
    """Return what `packed` has packed, as views of `data`."""
    return _views(layout, data)


def _views(layout: Layout, data: NDArray[np.uint8]) -> dict[str, Array]:
    found = {}
    for tensor, place in zip(layout.tensors, layout.places, strict=True):
        segment = layout.states[place.segment]
        dtype = STATE[tensor.dtype]
        begin = segment.offset + place.begin * DTYPE_BYTES[dtype]
        flat = data[begin : begin + tensor.size * DTYPE_BYTES[dtype]].view(numpy_dtype(dtype))
        found[tensor.name] = flat.reshape(tensor.shape)
    return found
