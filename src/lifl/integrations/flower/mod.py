"""The ClientApp's side: a mod by which the model comes, and the update goes, past Flower's servers.

    app = ClientApp(mods=[lifl_mod])

The app's own code sees what it always sees, and its selection, configuration and metrics are Flower's.  What the mod
did stands in the reply (`records.DID`), for `LiflStrategy`, which takes it out again.  A message without a reference is
not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from lifl.aggregator import FoldFailed, UpdateRefused
from lifl.core.errors import Refused
from lifl.integrations.flower.records import (
    CARRIED,
    CONFIG_KEY,
    DID,
    KEY,
    LATE,
    MODEL_WANTED,
    RECORD,
    ROUND,
    ROUNDS,
    SEEN,
    SUBMITTED,
    WEIGHTED_BY,
    WHY,
    as_record,
    sent_metrics,
    sole_arrays,
    views,
    weight_of,
)
from lifl.integrations.references import NotReached, Reference, Taking

MOD_FAILED = 6
"""Flower's code of an error: a mod cannot go on."""
CallNext = Callable[[Any, Any], Any]


def lifl_mod(message: Message, context: Context, call_next: CallNext) -> Message:
    """Bring the model that a message refers to, call the app, and bring the update that it returns.

    Give it first: `mods=[lifl_mod, ...]`, so that other mods see the arrays as they always do.
    """
    said = message.content.get(RECORD) if message.has_content() else None
    if not isinstance(said, ConfigRecord):
        return call_next(message, context)
    del message.content[RECORD]
    reference = Reference.read(said)
    if reference is None:
        return _marked(call_next(message, context), SEEN)
    with Taking(reference) as taking:
        reply, rounds = None, int(str(said.get(ROUNDS) or 1))
        for number in range(rounds):
            before, reply = reply, None
            try:
                if number:
                    taking.next()
                if number or reference.digest or reference.behind:
                    message.content[str(said[KEY])] = as_record(taking.model())
            except FoldFailed as error:
                return before or _failed(message, f"the round is over: {error}")
            except NotReached as error:
                return before or _model_wanted(message, error)
            if number:
                _count_on(message, said)
            del before
            reply = call_next(message, context)
            if WEIGHTED_BY not in said:
                return _marked(reply, SEEN)
            reply = _submitted(message, reply, taking, said)
            if rounds == 1 or not _goes_on(reply):
                break
        return reply


def _count_on(message: Any, said: Any) -> None:
    """Say to the app which round it is."""
    config = message.content.get(str(said.get(CONFIG_KEY)))
    if config is not None and isinstance(config.get(ROUND), int):
        config[ROUND] += 1


def _goes_on(reply: Any) -> bool:
    """Return whether the client may take part in the next round, too: its update is in this one, or came too late."""
    return reply.has_content() and reply.content[RECORD][DID] in (SUBMITTED, LATE)


def _submitted(message: Any, reply: Any, taking: Taking, said: Any) -> Any:
    """Return the reply without its arrays, which are in LIFL; or with them, and why."""
    if not reply.has_content():
        return reply
    weighted_by, many = str(said[WEIGHTED_BY]), ROUNDS in said
    try:
        arrays = sole_arrays(reply.content)
        weight = weight_of(reply.content, weighted_by)
        tensors = views(arrays)
    except Refused as refused:  # the server says what is wrong with it
        return _marked(reply, CARRIED, refused.text)
    if weight == 0:  # it counts for its metrics alone
        return _marked(reply, CARRIED)
    did, why = SUBMITTED, ""
    try:
        taking.submit(tensors, weight, sent_metrics(reply.content, weighted_by) if many else None)
    except UpdateRefused as refused:
        return _failed(message, f"the update is refused: {refused.text}")
    except FoldFailed as error:
        if not many:
            return _failed(message, f"the round is over: {error}")
        did, why = LATE, str(error)
    except NotReached as error:
        return _marked(reply, CARRIED, str(error))
    (name,) = reply.content.array_records
    del reply.content[name]
    return _marked(reply, did, why)


def _model_wanted(message: Any, error: NotReached) -> Any:
    record = ConfigRecord({DID: MODEL_WANTED, WHY: str(error)})
    return Message(RecordDict({RECORD: record}), reply_to=message)


def _marked(reply: Any, did: str, why: str = "") -> Any:
    if reply.has_content():
        reply.content[RECORD] = ConfigRecord({DID: did, WHY: why})
    return reply


def _failed(message: Any, why: str) -> Any:
    return Message(Error(code=MOD_FAILED, reason=f"lifl_mod: {why}"), reply_to=message)
