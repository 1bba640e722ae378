"""The model of a round, made again: by what a worker's last task runs (`worker/streaming_model.py`), all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from lifl.core.errors import Refused
from lifl.core.ids import Key, Kind
from lifl.core.planning.treatment import treated
from lifl.core.protocol.contribution import Contribution
from lifl.core.protocol.worker import TaskStart
from lifl.core.schema import Layout, end_of
from lifl.rules.base import RuleFailed
from lifl.rules.load import load_rule
from lifl.verification.receipt_file import RoundReceipt
from lifl.verification.update_files import FoundUpdate, room_for
from lifl.worker.presence import Presence
from lifl.worker.streaming_model import Input, StreamingModel

if TYPE_CHECKING:
    from lifl.shm.arena import Arena


class _Objects:
    """What stands here for an arena: objects that are no arena's."""

    def __init__(self) -> None:
        self._views: list[memoryview] = []

    def add(self, view: memoryview) -> Key:
        self._views.append(view)
        return Key(len(self._views), 1, 0)

    def data(self, key: Key) -> memoryview:
        return self._views[key.slot - 1]

    def entry(self, _key: Key) -> SimpleNamespace:
        return SimpleNamespace(kind=Kind.UPDATE)


def made_again(
    receipt: RoundReceipt,
    layout: Layout,
    before: memoryview,
    states: Mapping[str, memoryview],
    updates: Sequence[FoundUpdate],
) -> memoryview:
    """Return the bytes of the model that these updates make of the one `before`, with the rule's states.

    Raise `Refused` when the rule makes none, `ConfigError` when there is no such rule, `OSError`.
    """
    section, objects = receipt.aggregation, _Objects()
    rule = load_rule(section.rule, section.options)
    rule.round = receipt.round
    places = layout.places if receipt.trainable else ()
    presence = Presence(places) if places else None
    inputs = {}
    for line, view, absent in updates:
        member = Contribution(line.client, line.weight, {}, absent)
        inputs[objects.add(view)] = Input(line.weight, True, presence.units_of([member]) if presence else ())
    made = room_for(layout.data_bytes)
    start = TaskStart(
        address=1,
        attempt=1,
        role="top",
        job=receipt.job,
        round=receipt.round,
        rule=section.rule,
        options=section.options,
        rule_folder="",
        eager=False,
        expect=len(inputs),
        parent=0,
        output=objects.add(made).pack(),
        inputs=layout.accumulators,
        outputs=layout.segments,
        model_segments=layout.segments,
        model=objects.add(before).pack(),
        states={name: objects.add(view).pack() for name, view in states.items()},
        new_states={name: objects.add(room_for(layout.state_bytes)).pack() for name in rule.states},
        treated=treated(layout, section),
        places=places,
    )
    try:
        model = StreamingModel(start, rule, cast("Arena", objects), inputs, None)
        model.advance(inputs, end_of(layout.segments))
    except RuleFailed as error:
        raise Refused("other-model", "model", f"no model can be made of these updates: {error}") from error
    return made
