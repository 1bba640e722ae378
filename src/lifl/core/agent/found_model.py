"""What an earlier life of a node has left of a session of folds: its last result, and the rule's states.

A fold's model is sealed with who is in it, after the states, which are sealed with their names; then what it was made
from is freed, and the model and states before.  So the newest model that is sealed says how far the session is,
whatever else is still there.  A model that its host has put is sealed with nobody in it, under attempt 0 of the round
that it stands behind: it takes the place of that round's result, and the states of that round stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lifl.core.events import Orphan
from lifl.core.ids import Key, Kind, epoch_of, round_of
from lifl.core.protocol.contribution import Contribution


class FoundModel(NamedTuple):
    """The model and the states of `round`; `epoch` and `members` are those of its result, where that is here."""

    round: int
    model: Key | None
    states: dict[str, Key]
    epoch: int
    members: list[Contribution]


NOTHING_FOUND = FoundModel(0, None, {}, 0, [])


def found_model(found: Sequence[Orphan], state_names: Sequence[str]) -> FoundModel:
    """Return what of the sealed objects a session goes on from; all others of models and states are of no use."""
    models = [orphan for orphan in found if orphan[1] is Kind.MODEL]
    if not models:
        return NOTHING_FOUND
    number = max(round_of(epoch) for _, _, epoch, _ in models)
    those = sorted((orphan for orphan in models if round_of(orphan[2]) == number), key=lambda orphan: orphan[2])
    model = those[0] if those[0][2] == epoch_of(number, 0) else those[-1]
    result = those[-1] if those[-1][3] else None
    by_epoch: dict[int, dict[str, Key]] = {}
    for key, kind, epoch, its in found:
        if kind is Kind.STATE and its and round_of(epoch) == number:
            by_epoch.setdefault(epoch, {})[its[0].client] = key
    whole = [epoch for epoch, states in by_epoch.items() if set(states) == set(state_names)]
    epoch = result[2] if result is not None else max(whole, default=0)
    states = {name: by_epoch[epoch][name] for name in state_names} if epoch in whole else {}
    members = result[3] if result is not None else []
    return FoundModel(number, model[0], states, result[2] if result is not None else 0, members)
