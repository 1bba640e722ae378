"""How the work of a node's workers ends, as the parts that run it tell the job replica."""

from __future__ import annotations

from dataclasses import dataclass

from lifl.core.agent.branch import Branch
from lifl.core.ids import Key
from lifl.core.planning.tree import Task
from lifl.core.protocol.commands import CopyModel, ServeCopy


@dataclass(frozen=True, slots=True)
class PartialSealed:
    """A branch's one partial is complete."""

    job: int
    branch: Branch


@dataclass(frozen=True, slots=True)
class ModelSealed:
    """The top has made the round's model, with the rule's `states` by name."""

    job: int
    branch: Branch
    top: Task
    states: dict[str, Key]


@dataclass(frozen=True, slots=True)
class NotFiniteAt:
    """One of the model's numbers of `dtype` is not finite, by what one of `suspects` (none: of any) has sent."""

    dtype: str
    element: int
    suspects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BranchFailed:
    """A branch cannot be finished; `retry`: another attempt of the round may help.

    `suspects` are those whose updates may be why (none: any); None when it is not for an update.
    """

    job: int
    branch: Branch
    text: str
    retry: bool
    suspects: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """The model's file, and the rule state's, are in the arena."""

    job: int


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """The checkpoint of the round with this epoch is durable; its files have these digests."""

    job: int
    epoch: int
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CopyEnded:
    """The copy of an order is durable, with these digests, or is read; else `fault` says why not."""

    job: int
    order: CopyModel | ServeCopy
    digests: tuple[str, ...]
    fault: str


@dataclass(frozen=True, slots=True)
class EvaluationEnded:
    """The user's function has found these metrics of the model of a round; else `fault` says why not."""

    job: int
    round: int
    metrics: dict[str, float]
    fault: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The user's function that the job's `key` names has returned this answer; else `fault` says why not."""

    job: int
    call: int
    key: str
    answer: bytes
    fault: str


@dataclass(frozen=True, slots=True)
class FilePaused:
    """A file cannot be read or written now; it is tried again."""

    job: int
    text: str


@dataclass(frozen=True, slots=True)
class FileFailed:
    """A file cannot be read or written: the job cannot go on here."""

    job: int
    text: str


Outcome = (
    PartialSealed
    | ModelSealed
    | BranchFailed
    | ModelLoaded
    | CheckpointWritten
    | CopyEnded
    | EvaluationEnded
    | CallEnded
    | FilePaused
    | FileFailed
)
