"""What all connections of a gateway use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lifl.core import limits
from lifl.core.errors import Refused
from lifl.core.limits import FRAME_BYTES_MAX
from lifl.node.gateway.body_moves import Movers
from lifl.node.gateway.budgets import LargeFrames, WaitingBytes
from lifl.node.gateway.content import JobLayout
from lifl.node.gateway.pulse import Pulse
from lifl.node.gateway.quotas import Quotas
from lifl.node.gateway.read_waiter import ReadWaiter
from lifl.node.gateway.refusals import Refusals
from lifl.node.gateway.small_models import SmallModels
from lifl.node.gateway.transfers import Transfers
from lifl.node.link import Link
from lifl.node.security import Security
from lifl.shm.arena import Arena


@dataclass
class Shared:
    """What all connections use.  The byte counters are the gateway's totals."""

    link: Link
    arena: Arena
    movers: Movers
    checks: ThreadPoolExecutor
    read_waiter: ReadWaiter
    pulse: Pulse
    refusals: Refusals
    quotas: Quotas
    security: Security
    transfers: Transfers
    small_models: SmallModels
    node: str
    jobs: dict[str, JobLayout] = field(default_factory=dict)
    waiting: WaitingBytes = field(default_factory=WaitingBytes)
    large_frames: LargeFrames = field(default_factory=LargeFrames)
    received_bytes: int = 0
    sent_bytes: int = 0

    def job(self, name: str) -> JobLayout:
        """Return the layout of a job.  Raise `Refused` when no such job runs."""
        job = self.jobs.get(name)
        if job is None:
            raise Refused("unknown-job", "job", f"this node runs no job {name!r}; see `lifl jobs`")
        return job

    def frame_bytes_max(self, hosts: bool) -> int:
        """Return the length of the longest frame that a client can have a reason to send: a Submit with its schema.

        One that `hosts` folds brings schemas of its own.
        """
        if hosts:
            return FRAME_BYTES_MAX
        longest = max((job.schema_bytes for job in self.jobs.values()), default=0)
        return min(FRAME_BYTES_MAX, longest + limits.SMALL_FRAME_BYTES)
