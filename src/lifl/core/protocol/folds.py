"""What the host of a session of folds, and who has a ticket for one, say to the gateway, and it to them.

They are a client's messages like any other (`protocol/client.py`), told to a node that knows `FOLDS`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from lifl.core.fields import (
    Address,
    ConfigPath,
    Count,
    Digest,
    FoldSize,
    Message,
    Metrics,
    Name,
    NotNegative,
    RevokedTicketList,
    RoundMetrics,
    RuleName,
    Secret,
    StateNames,
    Tensors,
    Text,
    Ticket,
    TrainablePatterns,
)
from lifl.core.limits import CLIENTS_PER_ROUND_MAX
from lifl.core.protocol.body_ranges import Streams

# ---- client → gateway ------------------------------------------------------------------------------------------


class TakePart(Message, frozen=True):
    """Shows a `ticket` for the session `job`: answered by Selected, with the tensors of the model, or Refusal.

    Who has a standing ticket is told of the next fold behind `fold`, which may be open or still to come, or by
    RoundOver that the session has ended.
    """

    job: Name
    fold: Count
    ticket: Ticket


class HostSession(Message, frozen=True, omit_defaults=True):
    """The client hosts the session of folds `job`, a new one or (again) its own.  Answered by SessionReady or Refusal.

    `states` are those of the rule.  About `expected` updates come to each fold.  `secret` is what tickets for its folds
    are made with (`trust/ticket.py`); empty: there are none.  `trainable` are patterns that name the `tensors`, where
    updates may lack some of these.  With `reproducible` (true, or left out) the same updates give the same bits.
    `revoked` are the tickets that count no more, from the moment on at which others count.
    """

    job: Name
    expected: FoldSize
    tensors: Tensors
    rule: RuleName = "fedavg"
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    rule_folder: ConfigPath = ""
    states: StateNames = ()
    secret: Secret = ""
    trainable: TrainablePatterns = ()
    reproducible: bool = False
    revoked: RevokedTicketList = ()


class OpenFold(Message, frozen=True):
    """Begins a fold of the session: `fold` is the epoch of its round, by which it is named.

    Once more is no harm.  Answered by FoldOpen, FoldDone, Busy or Refusal.
    """

    job: Name
    fold: Count
    expected: FoldSize


class PutModel(Message, frozen=True, tag="PutFoldModel"):
    """Brings the model that the next fold starts from, behind round `round`: answered as Submit is.

    Where `state` names one of the rule's states it is that, as it was after `round` rounds elsewhere, before the first
    fold of a session; its bytes lie as those of a model with the states' dtypes, and Go is never `direct`, nor are they
    split.
    """

    job: Name
    round: Count
    data_bytes: Count
    digest: Digest
    state: Name | msgspec.UnsetType = msgspec.UNSET
    streams: Streams | msgspec.UnsetType = msgspec.UNSET


class CloseFold(Message, frozen=True):
    """Ends a fold with the updates that were accepted.  Answered by FoldClosing or Refusal; FoldDone follows."""

    job: Name
    fold: Count


class CancelFold(Message, frozen=True):
    """Ends a fold without a result.  Answered by FoldOver."""

    job: Name
    fold: Count


class EndSession(Message, frozen=True):
    """Ends the session: nothing of it stays.  Answered by JobOver."""

    job: Name


# ---- gateway → client ------------------------------------------------------------------------------------------


class SessionReady(Message, frozen=True):
    """The session is open; `round` is that of its last result (0: there is none), whose fold was `fold`.

    `gateway` (HOST:PORT) is where the node takes the updates of others.
    """

    job: Name
    round: Count
    fold: Count = 0
    gateway: Address = ""


class FoldOpen(Message, frozen=True):
    """The fold takes updates, `most` of them at most."""

    job: Name
    fold: Count
    most: Count


class FoldAccepted(Message, frozen=True):
    """An update that somebody else than the host brought was accepted into a fold."""

    job: Name
    fold: Count
    client: Name
    weight: NotNegative
    metrics: Metrics


class FoldClosing(Message, frozen=True):
    """The fold takes no more updates; `accepted` are in it."""

    job: Name
    fold: Count
    accepted: Count


class FoldDone(Message, frozen=True):
    """The fold's result is sealed: the model of its round.  `metrics` are means over the `clients`, by `weight`."""

    job: Name
    fold: Count
    weight: NotNegative
    metrics: RoundMetrics
    clients: Annotated[tuple[Name, ...], msgspec.Meta(max_length=CLIENTS_PER_ROUND_MAX)]


class FoldOver(Message, frozen=True):
    """The fold has ended without a result; `reason` says why."""

    job: Name
    fold: Count
    reason: Text
