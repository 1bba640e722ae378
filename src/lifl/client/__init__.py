"""What a trainer imports: `Client`, its rounds, and the errors that end a job.

with Client("127.0.0.1:7433", job="digits", client="hospital-3") as client:
    for round in client.rounds():
        tensors, examples, accuracy = train(round.model)
        round.submit(tensors, weight=examples, metrics={"accuracy": accuracy})
"""

from __future__ import annotations

from lifl.client.client import Client
from lifl.client.outcomes import JobCancelled, JobFailed, NodeUnreachable, RoundEnded, Submission
from lifl.client.round import Round
from lifl.core.errors import Refused

__all__ = [
    "Client",
    "JobCancelled",
    "JobFailed",
    "NodeUnreachable",
    "Refused",
    "Round",
    "RoundEnded",
    "Submission",
]
