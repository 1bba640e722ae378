"""A node that begins to coordinate, or ends, begins anew with what is sealed in its arena, as if it had started again.

Nothing sealed is lost: updates and partials stay, as an earlier life's would (`orphans.py`), until the coordinator says
of each job what counts.  All else goes: what is on its way, what is being computed or written, the models.  Clients are
sent away; they come back, here or at another gateway, with the updates that they keep.
"""

from __future__ import annotations

from collections.abc import Collection

from lifl.core.agent.agent import Agent
from lifl.core.agent.branch_runner import BranchRunner
from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.quota import Quota
from lifl.core.errors import RemoteFault
from lifl.core.events import Orphan
from lifl.core.ids import Key, Kind, is_hosted
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import gateway as gm


def begin_anew(agent: Agent, connected: bool, running: Collection[int] | None = None) -> None:
    """Keep of all jobs (of those in `running`, if they are known) what is sealed, and nothing else.

    `connected`: the coordinator is on this node from now on.  Sessions of folds that the node hosts by itself go on.
    """
    agent._connected, agent._leaving = connected, False
    agent.drains = agent.drains and not connected  # who coordinates takes part
    agent.newcomers.forget()
    agent._turn.emit(gm.HangUp())
    for number in [number for number in agent.replicas if not is_hosted(number)]:
        replica = agent.replicas.pop(number)
        with agent._turn.share(number):
            agent.keep(number, _sealed_of(replica, agent.quota))
            agent.waiting.forget(number)
            agent.uploads.close(replica)
            agent.models.close(replica)
    left = dict.fromkeys((*agent.orphans, *agent.journal.jobs())) if running is not None else {}
    for number in [number for number in left if number not in (running or ()) and not is_hosted(number)]:
        agent._free_orphans(number)


def _sealed_of(replica: JobReplica, quota: Quota) -> list[Orphan]:
    """Give up all branches of a job, but for what is sealed of their updates; return that."""
    found = replica.orphans.leave()
    while replica.runners:
        (epoch, _number), runner = replica.runners.popitem()
        for key in _kept_of(runner):
            try:
                members = quota.members(key)
            except RemoteFault:
                quota.free(key)
                continue
            kind = Kind.UPDATE if quota.kind_of(key) is Kind.UPDATE else Kind.PARTIAL
            found.append((key, kind, epoch, members))
    return found


def _kept_of(runner: BranchRunner) -> list[Key]:
    """Give up a branch, but for what is sealed of its updates: return these objects, the caller's from now on.

    Of a task that is done its output has what its inputs had; a top keeps its inputs.
    """
    branch = runner.branch
    kept = [key for key, _ in branch.unfed]
    branch.unfed.clear()
    for task in branch.tree.tasks:
        if task.state is not TaskState.DONE or task.role == "top":
            kept += task.inputs
            task.inputs = []
        elif task.parent is None and task.output is not None:
            kept.append(task.output)
            task.output = None
    runner.discard()
    return kept
