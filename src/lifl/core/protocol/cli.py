"""What the command line and `lifld` say to each other."""

from __future__ import annotations

from typing import Any

from lifl.core.fields import Integer, Message, Path, StateNames, Word
from lifl.core.protocol.client import Refusal

# ---- CLI ⇄ lifld -----------------------------------------------------------------------------------------------


class SubmitJob(Message, frozen=True):
    """A round config (as `config/job.JobConfig` builtins, paths absolute) to run.

    `states` are the names of the rule's state vectors (`rules.Rule.states`): only the submitter imports the rule.
    """

    config: dict[str, Any]
    states: StateNames = ()
    follow: bool = False


class ListJobs(Message, frozen=True):
    """Asks for all jobs: answered by Answer {"jobs": [...]}."""


class JobStatus(Message, frozen=True):
    """Asks for one job with its rounds and receipts."""

    job: Path


class CancelJob(Message, frozen=True):
    """Ends a job; its running round is dropped, committed models stay."""

    job: Path


class Snapshot(Message, frozen=True):
    """Asks for everything that `lifl top` shows."""


class ListNodes(Message, frozen=True):
    """Asks for the nodes of the cluster: answered by Answer {"nodes": [...]}, the coordinator first.

    Each has node, state (alive, suspect, dead, left), since_s (how long it has been so), incarnation, coordinator, its
    control and gateway addresses, rate_per_s, execution_s, capacity, residual, arena_bytes, arena_used_bytes, workers.
    """


class PlanJob(Message, frozen=True):
    """Asks for the plan that a round of this job (as in SubmitJob) would get now; nothing is run.

    Answered by Answer {"request": ..., "plan": ...}: `planning/plan.PlanRequest` and `Plan` as builtins.
    """

    config: dict[str, Any]
    states: StateNames = ()


class PlansOfRound(Message, frozen=True):
    """Asks how a round was planned.

    Answered by Answer {"decisions": [{"attempt", "decided_unix_s", "request", "plan"}, ...]}, the first one first: a
    round that is tried again is planned again.
    """

    job: Path
    round: Integer


class Follow(Message, frozen=True):
    """Asks for the job's events as they happen (Event frames), until it ends."""

    job: Path


class DebugRecord(Message, frozen=True):
    """Asks for a recording of the engine's last events: answered by Answer {"path": ..., "events": ...}."""


class Shutdown(Message, frozen=True):
    """Drain and exit 0: answered by Answer, then EOF when all is gone."""


FromCli = (
    SubmitJob
    | ListJobs
    | JobStatus
    | CancelJob
    | Snapshot
    | ListNodes
    | PlanJob
    | PlansOfRound
    | Follow
    | DebugRecord
    | Shutdown
)


class Answer(Message, frozen=True):
    """The result of a request."""

    result: dict[str, Any]


class Event(Message, frozen=True):
    """Something happened to a followed job: `name` such as ``round.committed``; `fields` go with it."""

    name: Word
    fields: dict[str, Any]


ToCli = Answer | Event | Refusal
