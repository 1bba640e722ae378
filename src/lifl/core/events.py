"""What happens to a node: the events that `engine.py` handles.

Most are messages as they came: those of the gateway (`protocol/gateway.FromGateway`), and the coordinator's orders
(`protocol/commands.Order`).  Here are the others: what workers say, with the worker that says it; other nodes; jobs;
the clock; the node's own start and end.  Each is plain data, so that a log of them can be written out and replayed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lifl.core.config.edits import Edited
from lifl.core.config.evaluation import EvaluationSection
from lifl.core.config.job import JobConfig
from lifl.core.fields import Message, RevokedTicket
from lifl.core.ids import Key, Kind
from lifl.core.protocol.contribution import Contribution
from lifl.core.protocol.journal import Stored
from lifl.core.protocol.worker import TaskDone, TaskDropped, TaskFailed, WorkerReady
from lifl.core.schema import TensorSpec

Orphan = tuple[Key, Kind, int, list[Contribution]]
"""A sealed object of an earlier `lifld`: its key, kind, epoch and contributions."""


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=True):
    """The base of the events that are not messages."""


# ---- workers -----------------------------------------------------------------------------------------------------


class FromWorker(Event, frozen=True):
    """A worker has said something on its link."""

    worker: int
    message: WorkerReady | TaskDone | TaskFailed | TaskDropped


class WorkerGone(Event, frozen=True):
    """A worker's process has ended, for whatever reason."""

    worker: int


class WorkerExited(Event, frozen=True):
    """How a worker's process has ended, before or after it was known that it has; `how` such as ``exit code 3``."""

    worker: int
    how: str


class WorkerSeen(Event, frozen=True):
    """A worker's process was looked at; `stopped`: by a signal, until another one lets it go on."""

    worker: int
    stopped: bool


class Bounced(Event, frozen=True):
    """A record came to `lifld` because its address had no route."""

    address: int
    key: Key


class Calibrated(Event, frozen=True):
    """The node's capacity in updates at a time has been measured."""

    capacity: float


# ---- jobs (at the coordinator) -----------------------------------------------------------------------------------


class JobFacts(msgspec.Struct, frozen=True):
    """What a job is, for all its life; `states` are the names of its rule's vectors, `folder` has its checkpoints.

    `owner` is who has submitted it, "" when that was in an earlier life.
    """

    number: int
    config: JobConfig
    tensors: tuple[TensorSpec, ...]
    states: tuple[str, ...]
    folder: str
    owner: str = ""


class JobSubmitted(Event, frozen=True):
    """A new job.  Handling raises `Refused`, and changes nothing, when it cannot run."""

    job: JobFacts


class JobHistory(msgspec.Struct, frozen=True):
    """What the database knows of a job of an earlier life.

    `committed` is its last committed round (-1: none), `tried` the newest (attempt, status, fields) of each round after
    it, `counted` the clients of the last committed rounds; `models` has the attempt and the digests of each of these,
    `terms` the term under which its files were written, where the coordinator moves, `holders` the nodes that have a
    copy, where there are such; `stopping` is what was seen by then for `job.stop`, and
    `evaluated` whether the last committed round's evaluation is over; `keeps` says which models stay, as was said with
    each.  `losses` has the clients' last ones, the newest last, and `metrics` those of the last rounds by which the job
    may stop, where the job's selection, or a function of the user's, looks at them.
    """

    committed: int
    tried: dict[int, tuple[int, str, dict[str, Any]]]
    counted: dict[int, frozenset[str]]
    models: dict[int, tuple[int, tuple[str, ...]]] = {}
    terms: dict[int, int] = {}
    holders: dict[int, tuple[int, ...]] = {}
    stopping: tuple[tuple[float | None, int], ...] = ()
    evaluated: bool = False
    keeps: dict[int, dict[str, Any]] = {}
    losses: dict[str, float] = {}
    metrics: tuple[tuple[int, dict[str, float]], ...] = ()

    def is_all_of(self, config: JobConfig) -> bool:
        """Return whether the job has done all that it is to do, also evaluated its last model where it does so."""
        evaluates = isinstance(config.evaluation, EvaluationSection) and config.evaluation.has(self.committed)
        return self.committed >= config.job.rounds and (self.evaluated or not evaluates)

    def without_opened(self) -> JobHistory:
        """Return the history of a job that waits in line: its rounds that had opened on nodes ended with the job."""
        tried = {
            number: (attempt, "failed", {}) if status == "open" and "parts" in fields else (attempt, status, fields)
            for number, (attempt, status, fields) in self.tried.items()
        }
        return msgspec.structs.replace(self, tried=tried)


class JobResumed(Event, frozen=True):
    """A job of an earlier life (or of another coordinator) goes on, with what that has left sealed.

    Also one that was over, which the user lets go on.  `reason` is that of its row: whether it is paused.
    """

    job: JobFacts
    history: JobHistory
    orphans: tuple[Orphan, ...] = ()
    reason: str = ""


class JobRecalled(Event, frozen=True):
    """A job was over in an earlier life; its clients may still ask."""

    job: JobFacts
    history: JobHistory
    status: str
    reason: str


class SessionHosted(Event, frozen=True):
    """Who is on the gateway's connection `conn` hosts a session of folds, which is there by now.

    `secret` is what its tickets are made with; those `revoked` do not count.
    """

    conn: int
    job: str
    secret: str = ""
    revoked: tuple[RevokedTicket, ...] = ()


class JobBroken(Event, frozen=True):
    """What is to be said of a job, by its number or name, fits no frame: it cannot go on."""

    job: int | str
    text: str


class JobCancelled(Event, frozen=True):
    """The user ends a job.  Handling raises `Refused` when there is none of that name, or it is over."""

    name: str


class JobPaused(Event, frozen=True):
    """The user lets no further round of a job begin.  Handling raises `Refused` when it is over, or paused."""

    name: str


class JobUnpaused(Event, frozen=True):
    """The user lets a paused job go on.  Handling raises `Refused` when it is over, or not paused."""

    name: str


class JobEdited(Event, frozen=True):
    """The user changes the config of a job.  Handling raises `Refused` when it is over, or cannot become that."""

    name: str
    edit: Edited


class JobRemoved(Event, frozen=True):
    """A job that was over is forgotten.  Handling raises `Refused` when it is not over."""

    name: str


# ---- nodes -------------------------------------------------------------------------------------------------------


class NodeUp(Event, frozen=True):
    """A node is connected to this coordinator, for the first time or again."""

    node: int
    gateway: str
    capacity: float
    arena_bytes: int
    workers_max: int
    incarnation: int
    knows: tuple[str, ...] = ()


class NodeSuspect(Event, frozen=True):
    """A node is silent, or was heard again."""

    node: int
    suspect: bool


class NodeGone(Event, frozen=True):
    """A node was declared dead, or has left."""

    node: int


class NodeLoadTold(Event, frozen=True):
    """A node's heartbeat tells its load."""

    node: int
    capacity: float
    rate_per_s: float
    execution_s: float
    hosted_bytes: int = 0


class FromNode(Event, frozen=True):
    """An agent's report, or an event of a client at its gateway, has come to the coordinator."""

    node: int
    message: Message


class CoordinatorUp(Event, frozen=True):
    """This agent is connected to its coordinator.

    `stranger`: not the one that the node had in an earlier life; `moved`: another node coordinates this cluster now.
    """

    stranger: bool
    moved: bool = False


class CoordinatorDown(Event, frozen=True):
    """This agent has lost its coordinator."""


class Promoted(Event, frozen=True):
    """This node coordinates from now on, under `term`.

    Its jobs, which have the numbers in `running`, follow (`JobResumed`).  `seed` is what the cluster's secrets are made
    from.
    """

    term: int
    seed: bytes
    running: tuple[int, ...]


class Demoted(Event, frozen=True):
    """This node coordinates no longer: what it had decided and not made durable is another's to decide."""


class LifeEnded(Event, frozen=True):
    """This node was declared dead: what it has does not count any more."""


# ---- the node itself ---------------------------------------------------------------------------------------------


class ArenaAdopted(Event, frozen=True):
    """An earlier life has left this in the arena.

    `orphans` are sealed objects by their jobs' numbers, of which the coordinator is to tell what counts; `unsealed` are
    updates that a client of the same machine may still be writing.  `stored` is what is on the disk, by job and epoch.
    `lent` are models that clients have as loans still.
    """

    orphans: dict[int, tuple[Orphan, ...]]
    unsealed: tuple[Key, ...]
    stored: dict[int, tuple[tuple[int, tuple[Stored, ...]], ...]] = {}
    lent: tuple[Key, ...] = ()


class RowsWritten(Event, frozen=True):
    """The rows among the last effects are durable: what waited for that goes on."""


class Tick(Event, frozen=True):
    """The clock has reached `Engine.next_timer`."""


class NodeDrained(Event, frozen=True):
    """The user wants a node to get nothing new, and to finish what it has; or (`undo`) to take part again."""

    node: int
    undo: bool = False


class Leaving(Event, frozen=True):
    """The node goes down as soon as what it has is safe."""


class Stopping(Event, frozen=True):
    """The node goes down now: clients are told what becomes of their updates."""
