"""What the pure core asks the node to do.

`core/engine.py` returns these in order; `node/` performs them in that order.  A message for the gateway
(`protocol/gateway.ToGateway`) is an effect as it is.  Nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lifl.core.config.job import JobConfig
from lifl.core.fields import Message
from lifl.core.ids import Key, is_hosted
from lifl.core.planning.keeping import Kept
from lifl.core.planning.plan import Plan, PlanRequest
from lifl.core.protocol.gateway import ToGateway
from lifl.core.protocol.journal import ToJournal


class SendNode(msgspec.Struct, frozen=True):
    """Send an order to the agent of another node."""

    node: int
    order: Message


class SendCoordinator(msgspec.Struct, frozen=True):
    """Send a report (or a client's event) to the coordinator."""

    report: Message


class ForkWorker(msgspec.Struct, frozen=True):
    """Have the zygote fork worker number `worker`."""

    worker: int


class LookAtWorker(msgspec.Struct, frozen=True):
    """See whether the worker's process is stopped; `events.WorkerSeen` tells."""

    worker: int


class KillWorker(msgspec.Struct, frozen=True):
    """Kill the worker's process, because of `why`; `events.WorkerGone` follows."""

    worker: int
    why: str


class LookAtChildren(msgspec.Struct, frozen=True):
    """Kill the gateway or the zygote if it is stopped: another one is started at its end."""


class SendWorker(msgspec.Struct, frozen=True):
    """Send a `protocol/worker.ToWorker` on the worker's control link."""

    worker: int
    message: Message


class Route(msgspec.Struct, frozen=True):
    """Route the records for `address` to the worker's socket (None: to the daemon)."""

    address: int
    worker: int | None


class SendKeys(msgspec.Struct, frozen=True):
    """Send the keys as records to `address`."""

    address: int
    attempt: int
    keys: tuple[Key, ...]


class JobBroke(msgspec.Struct, frozen=True):
    """Write the engine's last events to a file: they led to books of this job that contradict each other."""

    job: int
    text: str


class SaveJob(msgspec.Struct, frozen=True):
    """Make the job's row durable."""

    job: str
    status: str
    reason: str


class SaveConfig(msgspec.Struct, frozen=True):
    """Make durable what a job's config has become."""

    job: str
    config: JobConfig


class DropJob(msgspec.Struct, frozen=True):
    """Forget the rows of a job and its rounds: it was a session of folds, or the user wants nothing to stay.

    `copies`: note that the copies of its models on other nodes go, too.
    """

    job: str
    number: int
    copies: bool = False


class SaveRound(msgspec.Struct, frozen=True):
    """Make the round's row durable, before any effect that follows; `fields` is its receipt.

    `status` is ``open``, ``committed`` or ``failed``; a second commit of (job, round) is refused by the store, while
    the first one stands (`SetAside`).
    """

    job: str
    round: int
    attempt: int
    status: str
    fields: dict[str, Any]


class SaveEvaluation(msgspec.Struct, frozen=True):
    """Add to the row of a round that is committed what its evaluation has found; `fields` take their places."""

    job: str
    round: int
    attempt: int
    fields: dict[str, Any]


class SetAside(msgspec.Struct, frozen=True):
    """Make durable that the job's rounds after `above` do not stand any more: their status becomes ``damaged``.

    Of those that were committed the models cannot be read; they are run again, under other epochs.
    """

    job: str
    above: int
    reason: str


class KeepModels(msgspec.Struct, frozen=True):
    """Remove the job's files below its `folder` of rounds that do not stay; all that is before is durable.

    `fresh` is the round that was just committed, with its `files` (-1: none; the job goes on from an earlier life).  It
    is brought to `upload`, too, unless that is empty.
    """

    job: str
    number: int
    folder: str
    kept: Kept
    fresh: int = -1
    files: tuple[str, ...] = ()
    upload: str = ""


class TrimRounds(msgspec.Struct, frozen=True):
    """Forget rows of rounds before `rounds` whose models do not stay, and of those before `receipts` what they cost.

    It is said every `TRIM_ROUNDS` commits, and is about twice so many rounds, those before each.
    """

    job: str
    rounds: int
    receipts: int
    kept: Kept


class SavePlan(msgspec.Struct, frozen=True):
    """Keep a decision of the planner with what it was made from, so that it can be made again."""

    job: str
    round: int
    attempt: int
    request: PlanRequest
    plan: Plan


class Publish(msgspec.Struct, frozen=True):
    """Log an event, and tell it to those who follow the job."""

    name: str
    job: str
    fields: dict[str, Any]


ROWS = SaveJob, SaveConfig, DropJob, SaveRound, SaveEvaluation, SetAside
"""Rows: what follows one waits until it is durable."""
DECISIONS = SendNode, *ROWS, KeepModels, TrimRounds, SavePlan, Publish
"""What only a coordinator wants done: none of it counts when it coordinates no longer."""


def without_decisions(effects: Sequence[Effect]) -> list[Effect]:
    """Return what is done all the same of an event's effects, when the node does not coordinate any more.

    The sessions that it hosts by itself go on.
    """
    stays = [is_hosted(getattr(effect, "number", 0)) or not isinstance(effect, DECISIONS) for effect in effects]
    return [effect for effect, stay in zip(effects, stays, strict=True) if stay]


Effect = (
    ToGateway
    | ToJournal
    | SendNode
    | SendCoordinator
    | ForkWorker
    | LookAtWorker
    | KillWorker
    | LookAtChildren
    | SendWorker
    | Route
    | SendKeys
    | JobBroke
    | SaveJob
    | SaveConfig
    | DropJob
    | SaveRound
    | SaveEvaluation
    | SetAside
    | KeepModels
    | TrimRounds
    | SavePlan
    | Publish
)
