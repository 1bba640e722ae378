"""The agent of a node: it owns the account of the arena, the workers and the tasks, and obeys the coordinator's orders.

Its events come from the coordinator, from the node's gateway, from its workers and from the clock; `handle` is the one
way in, and a literal table says which part takes which.  What it decides are effects for the node, and reports.  What
clients ask of the coordinator (to join, to be granted an update) passes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.inventory import inventory_of
from lifl.core.agent.job_replica import ORDERS, JobReplica, lives, take_options
from lifl.core.agent.journal import Journal
from lifl.core.agent.model_service import ModelService
from lifl.core.agent.newcomers import Newcomers
from lifl.core.agent.outcomes import Outcome
from lifl.core.agent.partial_transfers import PartialTransfers
from lifl.core.agent.pool import Pool
from lifl.core.agent.quota import NO_JOB, Quota
from lifl.core.agent.task_table import TaskTable
from lifl.core.agent.uploads import Uploads
from lifl.core.agent.waiting import Waiting
from lifl.core.agent.worker_watch import WorkerWatch
from lifl.core.config.node import Reached
from lifl.core.errors import LocalFault, RemoteFault
from lifl.core.ids import Key, is_hosted
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.object_store import ObjectStore
from lifl.core.planning.capacity import NodeLoad
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import journal as jm
from lifl.core.protocol import small_models as sm
from lifl.core.protocol import worker as wm
from lifl.core.turn import Turn


class Agent:
    """One node's share in all jobs."""

    def __init__(
        self,
        store: ObjectStore,
        capacity: float,
        workers_max: int,
        idle_timeout_s: float,
        wait_queue_max: int,
        turn: Turn,
        now: float,
    ) -> None:
        self._turn = turn
        self.quota = Quota(store)
        self.pool = Pool(workers_max, idle_timeout_s)
        self.tasks = TaskTable(turn, self.quota, self.pool)
        self.watch = WorkerWatch(turn, self.tasks, self.pool)
        self.replicas: dict[int, JobReplica] = {}  # by the job's number
        self.journal = Journal(turn, self.quota)
        self.uploads = Uploads(self.replicas, turn, self.quota, self.journal, wait_queue_max)
        self.partials = PartialTransfers(self.replicas, turn, self.quota)
        self.models = ModelService(self.replicas, turn, self.quota)
        self.waiting = Waiting(self.replicas, turn, self.quota, self.tasks, self.uploads, self.models)
        self.newcomers = Newcomers(turn)
        self.load = NodeLoad(capacity=capacity, at_s=now, interval_s=now)
        self._arrivals = 0
        self.orphans: dict[int, list[ev.Orphan]] = {}  # by job: what an earlier life has left, until the job is opened
        self._connected = turn.coordinates  # to its coordinator
        self._leaving = False
        self.drains = False  # it takes no clients, until it is told otherwise
        self.labels: Mapping[str, str] = {}  # of the node
        self.reached: Reached = "local"

    def handle(self, event: Any) -> None:
        """Handle one event, whole."""
        handler = HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)
        elif type(event) in ORDERS:
            replica = self.replicas.get(event.number)
            if replica is not None:  # else an earlier life of this node had it, as the coordinator will hear
                with self._turn.share(event.number):
                    replica.obey(event)
        else:
            raise LocalFault(f"an agent does not handle a {type(event).__name__}")

    def settle(self) -> None:
        """End an event: whatever waits goes on as far as it can, and what is to be looked at is looked at soon."""
        self.waiting.settle()
        self.watch.settle(at_stake=any(replica.runners for replica in self.replicas.values()))

    def _act(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            replica = self.replicas.get(outcome.job)
            if replica is not None:
                with self._turn.share(outcome.job):
                    replica.act((outcome,))

    # ---- the coordinator -------------------------------------------------------------------------------------------

    def _open_job(self, order: o.OpenJob) -> None:
        replica = self.replicas.get(order.number)
        if replica is not None:  # the coordinator has begun anew, this node has not; or what trainers get has changed
            take_options(replica, order)
        else:
            found = self.orphans.get(order.number, [])
            parts = (self._turn, self.quota, self.tasks, self.journal)
            self.replicas[order.number] = JobReplica(order, found, *parts)
            self.orphans.pop(order.number, None)

    def _close_job(self, order: o.CloseJob) -> None:
        self._free_orphans(order.number)
        replica = self.replicas.pop(order.number, None)
        if replica is not None:
            self.waiting.forget(order.number)
            self.uploads.close(replica)
            self.models.close(replica)

    def _job_broken(self, event: ev.JobBroken) -> None:
        for number, replica in self.replicas.items():
            if event.job in (number, replica.spec.name):
                self._turn.report(o.JobFailed(number, event.text[:TEXT_CHARS_MAX]))

    def _free_orphans(self, number: int) -> None:
        for key, *_ in self.orphans.pop(number, ()):
            self.quota.free(key)
        if number not in self.replicas:
            self.journal.drop_job(number)

    def _coordinator_up(self, event: ev.CoordinatorUp) -> None:
        """Tell the coordinator what this node has, before it hears anything else, and which branches have failed."""
        for number in dict.fromkeys((*self.orphans, *self.journal.jobs())) if event.stranger else ():
            if not is_hosted(number):
                self._free_orphans(number)
        for replica in cluster_replicas(self).values() if event.moved else ():
            replica.slot.forget()
        self._connected = True
        tell(self)
        self.newcomers.let_in()

    def _coordinator_down(self, _event: ev.CoordinatorDown) -> None:
        """Send the clients to other nodes; what is sealed waits for the coordinator."""
        self._connected = False
        self.newcomers.forget()
        self._turn.emit(gm.HangUp())

    def _life_ended(self, _event: ev.LifeEnded) -> None:
        """Drop all jobs: what this node was to do is done elsewhere."""
        for number in cluster_replicas(self):
            self._close_job(o.CloseJob(number))

    def _leave(self, _event: ev.Leaving) -> None:
        """Send the clients to other nodes; partials still go to the top."""
        if not self._turn.coordinates and self._connected:
            self._turn.report(p.Draining())
            self._leaving = True
            self._turn.emit(gm.HangUp())

    def busy(self) -> bool:
        """Return whether this node has partials that the top lacks."""
        branches = (branch for replica in cluster_replicas(self).values() for branch in replica.branches())
        return self._connected and any(branch.accepted and not branch.carried for branch in branches)

    def _adopt(self, event: ev.ArenaAdopted) -> None:
        """Keep what an earlier life has sealed until its jobs are opened; let the rest rest."""
        for number, orphans in event.orphans.items():
            self.keep(number, list(orphans))
        for number, journals in event.stored.items():
            for epoch, stored in journals:
                self.journal.adopt(number, epoch, stored)
        for key in event.unsealed:
            self.uploads.rest(key)
        for key in event.lent:
            self.models.adopt_lent(key)

    def keep(self, number: int, orphans: list[ev.Orphan]) -> None:
        """Keep what an earlier life has sealed for a job until that is opened."""
        self.orphans[number] = orphans
        for key, *_ in orphans:
            self.quota.adopt(key, NO_JOB)

    # ---- clients ---------------------------------------------------------------------------------------------------

    def _pass_on(self, event: gm.ClientJoined | gm.ClientDeclined | gm.ClientEvaluated | gm.Admit) -> None:
        """Let the coordinator decide; without one who joins waits for it, and is then to try another node."""
        goes = self._leaving or (self.drains and isinstance(event, gm.ClientJoined))
        if self._connected and not goes:
            self._turn.report(event)
        elif isinstance(event, gm.ClientJoined) and not goes:
            self.newcomers.hold(event)
        else:
            self.newcomers.send_away(event.conn)

    def _client_left(self, event: gm.ClientLeft) -> None:
        if not self.newcomers.left(event):
            self._turn.report(event)
        if not event.job:
            self.models.client_left(event.conn)
        self.uploads.client_left(event.conn, event.job)

    # ---- objects on their way --------------------------------------------------------------------------------------

    def _sealed(self, event: gm.Sealed) -> None:
        """Take an update of a client, or another node's partial."""
        key = Key.unpack(event.key)
        if self.models.has_put(key):
            self.models.put(key)
            return
        if not self.partials.has(key) and not self.uploads.has(key):
            raise RemoteFault(f"the gateway has sealed {key}, which was not granted")
        self._arrivals += 1
        self.load = self.load.counted(self._arrivals, int(self._turn.now * 1e9))
        if self.partials.has(key):
            self.partials.sealed(event.conn, key, event.received_bytes)
        else:
            self._act(self.uploads.sealed(key, event))

    def _aborted(self, event: gm.Aborted) -> None:
        key = Key.unpack(event.key)
        if self.models.has_put(key):
            self.models.put_ended(key)
            self.uploads.give_back(key, event.writing)
        elif self.partials.has(key):
            self.partials.aborted(key)
        else:
            self.uploads.aborted(key, event.writing)

    def _gateway_lost(self, event: gm.GatewayLost) -> None:
        """Give up what was on its way: the gateway's process has ended, and all connections with it."""
        self._turn.report(event)
        self.newcomers.forget()
        self.uploads.gateway_lost()
        self.partials.gateway_lost()
        for key in self.models.putting():
            direct = self.models.put_ended(key)
            self.uploads.give_back(key, writing=direct and not self.quota.sealed(key))
        self.models.gateway_lost()

    # ---- workers and the clock -------------------------------------------------------------------------------------

    def _from_worker(self, event: ev.FromWorker) -> None:
        done, load = event.message, self.load
        if isinstance(done, wm.TaskDone) and self.pool.has(event.worker, done.address):
            found = self.tasks.find(done.address)
            if found is not None and found.task.role == "leaf":
                load = load.passed(self._turn.now).done(done.busy_s, done.inputs)
        outcomes = self.tasks.heard(event)  # or it cannot be true, and nothing has changed
        self.load = load
        self._act(outcomes)

    def _calibrated(self, event: ev.Calibrated) -> None:
        self.load = msgspec.structs.replace(self.load, capacity=event.capacity)

    def tick(self) -> None:
        """Do what is due by now."""
        for worker in self.pool.expired(self._turn.now):
            self._turn.emit(fx.SendWorker(worker, wm.Retire()))
        self.tasks.fork_due()
        self._act(self.watch.tick())
        for part in (self.uploads, self.partials, self.models, self.newcomers):
            part.tick()
        for replica in self.replicas.values():
            replica.files.tick()

    def next_timer(self) -> float:
        """Return when `tick` is due; infinity: not before something happens."""
        due_s = min(
            self.pool.next_timer(),
            self.watch.next_timer(),
            self.uploads.next_timer(),
            self.partials.next_timer(),
            self.models.next_timer(),
            self.newcomers.next_timer(),
        )
        for replica in self.replicas.values():
            due_s = min(due_s, replica.files.due_s)
        return due_s

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with this node's books, a sentence each."""
        for found in (self.quota, self.tasks, self.uploads, self.partials, self.models, self.journal):
            yield from found.problems()
        yield from self.newcomers.problems(self._connected)
        for replica in self.replicas.values():
            yield from replica.problems()


def cluster_replicas(agent: Agent) -> dict[int, JobReplica]:
    """Return the replicas of what the cluster's coordinator runs; of sessions that the node hosts it does not know."""
    return {number: replica for number, replica in agent.replicas.items() if not is_hosted(number)}


def tell(agent: Agent) -> None:
    """Tell the coordinator what the node has, and which of its branches have failed."""
    left = {number for number in (*agent.orphans, *agent.journal.jobs()) if not is_hosted(number)}
    replicas = cluster_replicas(agent)
    left -= replicas.keys()
    agent._turn.report(inventory_of(replicas, agent.uploads, sorted(left), agent.drains, agent.labels))
    for replica in replicas.values():
        for branch in replica.branches():
            if branch.failed is not None:
                agent._turn.report(branch.failed)


def drain(agent: Agent, order: o.DrainNode) -> None:
    """Send the clients to other nodes, and let none take part here until that is undone.

    Updates that are under way, or that other nodes' clients bring to the branches that are here, are finished.
    """
    agent.drains = not order.undo
    if agent.drains:
        agent._turn.emit(gm.HangUp(after_updates=True))


def loaded(agent: Agent, event: jm.UpdateLoaded) -> None:
    """Take an update that was read from the disk."""
    key = Key.unpack(event.key)
    runner = agent.journal.reader_of(key)
    with agent._turn.share(runner.job):
        agent._act(agent.journal.loaded(key, event.error, lives(agent.replicas, runner)))


HANDLERS: Mapping[type, Callable[[Agent, Any], object]] = {
    # the coordinator, and the connection to it
    o.OpenJob: Agent._open_job,
    o.LoadJob: Agent._open_job,
    o.FetchJob: Agent._open_job,
    o.CloseJob: Agent._close_job,
    o.DrainNode: drain,
    o.Grant: lambda agent, order: agent.uploads.grant(order),
    o.TakeModel: lambda agent, order: agent.models.take(order),
    gm.TellClient: lambda agent, order: agent._turn.emit(order),
    ev.CoordinatorUp: Agent._coordinator_up,
    ev.CoordinatorDown: Agent._coordinator_down,
    ev.LifeEnded: Agent._life_ended,
    ev.JobBroken: Agent._job_broken,
    ev.Leaving: Agent._leave,
    ev.ArenaAdopted: Agent._adopt,
    # the gateway
    gm.ClientJoined: Agent._pass_on,
    gm.Admit: Agent._pass_on,
    gm.ClientLeft: Agent._client_left,
    gm.ClientDeclined: Agent._pass_on,
    gm.ClientEvaluated: Agent._pass_on,
    gm.WantModel: lambda agent, event: agent.models.want(event),
    gm.ModelSent: lambda agent, event: agent.models.sent(event),
    sm.ModelServed: lambda agent, event: agent.models.served(event),
    gm.Sealed: Agent._sealed,
    gm.Aborted: Agent._aborted,
    gm.Progress: lambda agent, event: agent.uploads.progress(event),
    gm.CarryEnded: lambda agent, event: agent.partials.carry_ended(event),
    gm.FetchEnded: lambda agent, event: agent.models.fetch_ended(event),
    gm.GatewayLost: Agent._gateway_lost,
    # the journal
    jm.UpdateStored: lambda agent, event: agent._act(agent.uploads.stored(Key.unpack(event.key), event.place)),
    jm.UpdateLoaded: loaded,
    # the workers
    ev.FromWorker: Agent._from_worker,
    ev.WorkerGone: lambda agent, event: agent._act(agent.tasks.worker_gone(event)),
    ev.WorkerExited: lambda agent, event: agent.tasks.deaths.exited(event),
    ev.WorkerSeen: lambda agent, event: agent.watch.seen(event),
    ev.Bounced: lambda agent, event: agent.tasks.bounced(event),
    ev.Calibrated: Agent._calibrated,
}
"""Which part of the agent takes which event; orders about an open job go to its replica (`job_replica.ORDERS`)."""
