"""Who may say what: a report counts from the node that it is about, a partial from who knows its branch's secret.

What another node says is refused, and told of once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifl.core import effects as fx
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.ids import round_of
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.cluster import SECRETS
from lifl.core.turn import Turn

ANY, OWNER, HOME = "any node", "the node that has the branch", "the coordinator's own node"
ASKED = "a node that was asked for it"
REFUSALS_TOLD_MAX = 1_024


class Authority:
    """Judges what comes from nodes, by the books of the jobs that run."""

    def __init__(self, nodes: NodeTable, running: Mapping[int, Job], turn: Turn) -> None:
        self._nodes = nodes
        self._running = running
        self._turn = turn
        self._told: dict[str, None] = {}

    def may_say(self, node: int, sayer: str, job: Job, message: Any) -> bool:
        """Return whether this report is the node's to make, being one for the `sayer`."""
        if self._is(node, sayer, job, message):
            return True
        self._refuse(job, "report.refused", node=f"{node:016x}", report=type(message).__name__)
        return False

    def _is(self, node: int, sayer: str, job: Job, message: Any) -> bool:
        if sayer is HOME:
            return node == self._nodes.home
        if sayer is ASKED:
            return True  # the job knows whom it has asked (`copies.py`, `checkpoints.py`)
        round_ = job.rounds.at(message.epoch)
        if round_ is None:
            return True  # it is over: whoever speaks of it, nothing follows
        if isinstance(message, o.BranchFailed):
            return node == self._nodes.home or node in round_.nodes
        record = round_.branches.get(message.branch)
        return record is None or record.node == node

    def takes_offer(self, event: gm.Offered) -> bool:
        """Return whether another node's partial may come: whoever brings it knows the secret of its branch.

        Nodes of an earlier version were told none.
        """
        job = self._running.get(event.number)
        round_ = job.rounds.at(event.epoch) if job is not None else None
        record = round_.branches.get(event.branch) if round_ is not None else None
        if job is None or record is None or record.node == self._nodes.home:
            return False
        if record.node in self._nodes and not self._nodes.knows(record.node, SECRETS):
            return True
        if self._nodes.secrets.fits(event.secret, event.number, event.epoch, event.branch):
            return True
        self._refuse(job, "offer.refused", round=round_of(event.epoch), branch=event.branch)
        return False

    def _refuse(self, job: Job, name: str, **about: Any) -> None:
        told = f"{job.name} {name} {about}"
        if told not in self._told and len(self._told) < REFUSALS_TOLD_MAX:
            self._told[told] = None
            self._turn.emit(fx.Publish(name, job.name, about))
