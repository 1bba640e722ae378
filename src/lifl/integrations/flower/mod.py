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
    DID,
    KEY,
    MODEL_WANTED,
    RECORD,
    SEEN,
    SUBMITTED,
    WEIGHTED_BY,
    WHY,
    as_record,
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
        if reference.digest:
            try:
                message.content[str(said[KEY])] = as_record(taking.model())
            except FoldFailed as error:
                return _failed(message, f"the round is over: {error}")
            except NotReached as error:
                record = ConfigRecord({DID: MODEL_WANTED, WHY: str(error)})
                return Message(RecordDict({RECORD: record}), reply_to=message)
        reply = call_next(message, context)
        if WEIGHTED_BY not in said:
            return _marked(reply, SEEN)
        return _submitted(message, reply, taking, str(said[WEIGHTED_BY]))


def _submitted(message: Any, reply: Any, taking: Taking, weighted_by: str) -> Any:
    """Return the reply without its arrays, which are in LIFL; or with them, and why."""
    if not reply.has_content():
        return reply
    try:
        arrays = sole_arrays(reply.content)
        weight = weight_of(reply.content, weighted_by)
        tensors = views(arrays)
    except Refused as refused:  # the server says what is wrong with it
        return _marked(reply, CARRIED, refused.text)
    if weight == 0:  # it counts for its metrics alone
        return _marked(reply, CARRIED)
    try:
        taking.submit(tensors, weight)
    except UpdateRefused as refused:
        return _failed(message, f"the update is refused: {refused.text}")
    except FoldFailed as error:
        return _failed(message, f"the round is over: {error}")
    except NotReached as error:
        return _marked(reply, CARRIED, str(error))
    (name,) = reply.content.array_records
    del reply.content[name]
    return _marked(reply, SUBMITTED)


def _marked(reply: Any, did: str, why: str = "") -> Any:
    if reply.has_content():
        reply.content[RECORD] = ConfigRecord({DID: did, WHY: why})
    return reply


def _failed(message: Any, why: str) -> Any:
    return Message(Error(code=MOD_FAILED, reason=f"lifl_mod: {why}"), reply_to=message)
