"""How a submission, a round or a job can end for a trainer."""

from __future__ import annotations

from dataclasses import dataclass

from lifl.core.errors import LiflError, ResourceFault
from lifl.core.protocol import client as cm


class JobFailed(LiflError):
    """The job has failed; the text is the node's reason."""


class JobCancelled(LiflError):
    """The job was cancelled."""


class RoundEnded(LiflError):
    """The round ended before its model was fetched; go on with the next one.

    Only who takes rounds without their models (`Client.rounds(models=False)`) meets it.
    """


class NodeUnreachable(ResourceFault):
    """No node could be reached for `give_up_after_s`."""


@dataclass(frozen=True)
class Submission:
    """What became of a `submit`: `accepted`, or not and why (the round had ended without this client).

    Of a round that is tried again the update may count yet: it is kept, and sent again by itself.
    """

    job: str
    round: int
    accepted: bool
    reason: str = ""


class Settled(Exception):
    """The end of the round, or of the job, was told while an answer was waited for.  It never reaches a trainer."""

    def __init__(self, job: str, number: int, over: cm.Committed | cm.RoundOver | cm.JobOver) -> None:
        counted = isinstance(over, cm.Committed) and over.counted
        without = "" if counted else "the round was committed without this update"
        reason = without if isinstance(over, cm.Committed) else over.reason or "the job is over"
        super().__init__(reason or "the round was committed")
        self.submission = Submission(job, number, counted, reason)
