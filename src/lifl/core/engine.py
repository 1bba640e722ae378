"""The decisions of one node: events and the clock in, effects out.

The daemon feeds it what its sockets said and performs what it returns; tests and the simulator do the same on a
virtual clock.  Each public method is one event, handled whole; `take_effects` gives what it led to, in order.

Every node has an agent (arena, workers); the node that coordinates has the coordinator (jobs) too.  They speak by
orders and reports alone; between two nodes these travel, within one each waits in a queue until the one before it
is done with, as it would on a network.

What an agent frees is gone at once, but a row is durable only when its effect is performed.  So the queue stops at an
event that wants a row written, and goes on when that is done: whoever kills the daemon in between finds the updates,
or the row that says what became of them.
"""

from __future__ import annotations

import math

from lifl.core import effects as fx
from lifl.core.agent.agent import Agent
from lifl.core.agent.job_replica import Orphan
from lifl.core.agent.quota import Store
from lifl.core.config.job import JobConfig
from lifl.core.coordinator.coordinator import Coordinator
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import Node
from lifl.core.errors import Refused
from lifl.core.fields import Message
from lifl.core.ids import Key
from lifl.core.planning.plan import NodeFacts
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.schema import Layout
from lifl.core.turn import Turn


class Engine:
    """One node.  With `coordinates` it runs the jobs; else it obeys the node that does."""

    def __init__(
        self, store: Store, node: Node, idle_timeout_s: float, wait_queue_max: int, coordinates: bool = True
    ) -> None:
        self.node = node.number
        self.turn = Turn(node.number, coordinates)
        self.agent = Agent(store, node.workers_max, idle_timeout_s, wait_queue_max, self.emit, self.turn.report)
        self.coordinator = Coordinator(node, self.turn) if coordinates else None
        self._joined: dict[tuple[int, str], gm.ClientJoined] = {}  # an agent's clients, by connection and job
        self._connected = coordinates  # an agent: its coordinator is there
        self._leaving = False  # an agent: it goes down

    @property
    def jobs(self) -> dict[str, Job]:
        """The jobs that this node coordinates."""
        return self.coordinator.jobs if self.coordinator is not None else {}

    # ---- between coordinator and agents --------------------------------------------------------------------------

    def emit(self, effect: fx.Effect) -> None:
        """Adds an effect to those of this event."""
        self.turn.emit(effect)

    def take_effects(self) -> list[fx.Effect]:
        """The effects since the last call, in order; who calls again has performed those that it got.

        Call it until nothing is left.
        """
        turn = self.turn
        if not turn.effects:
            turn.writes = False
            if turn.queue:
                self._end()
        taken, turn.effects = turn.effects, []
        return taken

    def _begin(self, now: float) -> None:
        self.agent.now = self.turn.now = now

    def _end(self) -> None:
        """Delivers orders and reports until all is quiet, or a row must be written first."""
        turn = self.turn
        while True:
            while turn.queue and not turn.writes:
                item = turn.queue.popleft()
                if isinstance(item, o.Order):
                    self.agent.obey(item)
                elif self.coordinator is not None:
                    self.coordinator.handle(self.node, item)
            self.agent.settle()
            if not turn.queue or turn.writes:
                return

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def submit(
        self, number: int, config: JobConfig, layout: Layout, states: tuple[str, ...], folder: str, now: float
    ) -> Job:
        """A new job.  Raises `Refused` (see `Coordinator.submit`)."""
        self._begin(now)
        spec = JobSpec(number, config, layout, states, folder)
        job = self._coordinator().submit(spec, self.agent.memory.total_bytes)
        self._end()
        return job

    def make_job(self, number: int, config: JobConfig, layout: Layout, states: tuple[str, ...], folder: str) -> Job:
        """A job of an earlier daemon, to be filled in and resumed."""
        return self._coordinator().make(JobSpec(number, config, layout, states, folder))

    def keep(self, orphans: dict[int, list[Orphan]]) -> None:
        """What an earlier life of an agent has sealed, by its jobs' numbers; what becomes of it is to be told."""
        self.agent.orphans |= orphans

    def rest(self, keys: list[Key], now: float) -> None:
        """Updates that an earlier daemon's clients may still be writing."""
        self._begin(now)
        for key in keys:
            self.agent.rest(key)
        self._end()

    def recall(self, job: Job, status: str, reason: str) -> None:
        """A job that was over in an earlier life, with its `committed` and `counted`: its clients may still ask."""
        self._coordinator().recall(job, status, reason)

    def resume(self, job: Job, orphans: list[Orphan], now: float) -> None:
        """A job of an earlier daemon, after its own `resume`, and what that daemon had sealed."""
        self._begin(now)
        self.agent.orphans[job.spec.number] = orphans
        self._coordinator().start(job)
        self._end()

    def cancel(self, name: str, now: float) -> Job:
        """Ends a job.  Raises `Refused` when there is none of that name, or it is over."""
        self._begin(now)
        job = self._coordinator().cancel(name)
        self._end()
        return job

    def _coordinator(self) -> Coordinator:
        if self.coordinator is None:
            raise Refused(
                "not-coordinator",
                "node",
                "this node does not coordinate the cluster; ask the one that does (lifl nodes)",
            )
        return self.coordinator

    def facts(self, now: float) -> tuple[tuple[NodeFacts, ...], str]:
        """The nodes as the planner sees them now, and the name of the one that has the models."""
        self._begin(now)
        nodes = self._coordinator().nodes
        return nodes.facts(now), nodes.home_name

    # ---- other nodes ---------------------------------------------------------------------------------------------

    def node_up(self, node: Node, now: float) -> None:
        """A node takes part from now on; the coordinator's."""
        self._begin(now)
        self._coordinator().node_up(node)
        self._end()

    def node_suspect(self, node: int, suspect: bool, now: float) -> None:
        """A node is silent, or was heard again; the coordinator's."""
        self._begin(now)
        self._coordinator().node_suspect(node, suspect)
        self._end()

    def node_gone(self, node: int, now: float) -> None:
        """A node is dead, or has left; the coordinator's."""
        self._begin(now)
        self._coordinator().node_gone(node)
        self._end()

    def from_node(self, node: int, message: Message, now: float) -> None:
        """An agent's report, or an event of a client at its gateway; the coordinator's."""
        self._begin(now)
        self._coordinator().handle(node, message)
        self._end()

    def ordered(self, order: o.Order, now: float) -> None:
        """An order of the coordinator at another node."""
        self._begin(now)
        self.agent.obey(order)
        self._end()

    def coordinator_up(self, now: float, stranger: bool = False) -> None:
        """The coordinator is there (again): it must hear what this node has before anything else.

        `stranger`: it is not the one that an earlier life of this node had.
        """
        self._begin(now)
        for number in list(self.agent.orphans) if stranger else ():
            self.agent.free_orphans(number)
        self._connected = True
        self.emit(fx.SendCoordinator(self.agent.inventory()))
        self._end()

    def coordinator_down(self, now: float) -> None:
        """The coordinator is away: what is sealed waits for it; clients are to try the other nodes."""
        self._begin(now)
        self._connected = False
        self._joined.clear()
        self.emit(gm.HangUp())
        self._end()

    def forget(self, now: float) -> None:
        """The coordinator held this node dead: what it has does not count any more."""
        self._begin(now)
        self.agent.forget()
        self._end()

    # ---- clients -------------------------------------------------------------------------------------------------

    def client_joined(self, event: gm.ClientJoined, now: float) -> None:
        """A client wants to take part in a job."""
        self._begin(now)
        if self.coordinator is not None:
            self.coordinator.handle(self.node, event)
        elif not self._connected or self._leaving:
            self.emit(gm.HangUp(event.conn))  # so that it tries another node, and this one again
        else:
            self._joined[event.conn, event.job] = event
            self.emit(fx.SendCoordinator(event))
        self._end()

    def client_left(self, event: gm.ClientLeft, now: float) -> None:
        """A client takes part no longer, or its connection has ended."""
        self._begin(now)
        if self.coordinator is not None:
            self.coordinator.handle(self.node, event)
        else:
            for conn, job in [at for at in self._joined if at[0] == event.conn and event.job in ("", at[1])]:
                del self._joined[conn, job]
            self.emit(fx.SendCoordinator(event))
        self.agent.client_left(event.conn, event.job)
        self._end()

    def admit(self, event: gm.Admit, now: float) -> None:
        """A client announces an update: grant a slot, make it wait for room, or answer."""
        self._begin(now)
        if self.coordinator is not None:
            self.coordinator.handle(self.node, event)
        elif not self._connected or self._leaving:
            self.emit(gm.HangUp(event.conn))
        else:
            self.emit(fx.SendCoordinator(event))
        self._end()

    def sealed(self, event: gm.Sealed, now: float) -> None:
        """The gateway has sealed an update, or another node's partial."""
        self._begin(now)
        self.agent.sealed(event)
        self._end()

    def aborted(self, event: gm.Aborted, now: float) -> None:
        """A granted update, or an offered partial, will not come."""
        self._begin(now)
        self.agent.aborted(event)
        self._end()

    def progress(self, event: gm.Progress, now: float) -> None:
        """So much is there of an update that the top waits for."""
        self._begin(now)
        self.agent.progress(event)
        self._end()

    def offered(self, event: gm.Offered, now: float) -> None:
        """Another node's gateway has a partial for this node."""
        self._begin(now)
        self.agent.offered(event)
        self._end()

    def carry_ended(self, event: gm.CarryEnded, now: float) -> None:
        """A partial was brought to another node, or could not be."""
        self._begin(now)
        self.agent.carry_ended(event)
        self._end()

    def fetch_ended(self, event: gm.FetchEnded, now: float) -> None:
        """A model was fetched from another node, or could not be."""
        self._begin(now)
        self.agent.fetch_ended(event)
        self._end()

    def want_model(self, event: gm.WantModel, now: float) -> None:
        """A client asks for the model that a round starts from."""
        self._begin(now)
        self.agent.want_model(event)
        self._end()

    def model_sent(self, event: gm.ModelSent, now: float) -> None:
        """The gateway is through with sending a model."""
        self._begin(now)
        self.agent.model_sent(event)
        self._end()

    def gateway_gone(self, now: float) -> None:
        """The gateway's process has ended: all connections with it, and what was in flight."""
        self._begin(now)
        if self.coordinator is not None:
            self.coordinator.handle(self.node, gm.GatewayLost())
        else:
            self._joined.clear()
            self.emit(fx.SendCoordinator(gm.GatewayLost()))
        self.agent.gateway_gone()
        self._end()

    def schemas(self) -> list[gm.JobSchema]:
        """What a new gateway must be told."""
        return [
            gm.JobSchema(site.name, site.number, site.layout.tensors) for site in self.agent.sites.values() if site.open
        ]

    # ---- workers -------------------------------------------------------------------------------------------------

    def worker_ready(self, event: wm.WorkerReady, now: float) -> None:
        """A forked worker runs."""
        self._begin(now)
        self.agent.worker_ready(event)
        self._end()

    def task_done(self, worker: int, event: wm.TaskDone, now: float) -> None:
        """A task's output is sealed."""
        self._begin(now)
        self.agent.task_done(worker, event)
        self._end()

    def task_failed(self, worker: int, event: wm.TaskFailed, now: float) -> None:
        """A worker could not do a task."""
        self._begin(now)
        self.agent.task_failed(worker, event)
        self._end()

    def task_dropped(self, worker: int, event: wm.TaskDropped, now: float) -> None:
        """A worker has let go of a task."""
        self._begin(now)
        self.agent.task_dropped(worker, event)
        self._end()

    def worker_gone(self, worker: int, now: float) -> None:
        """A worker's process has ended, for whatever reason."""
        self._begin(now)
        self.agent.worker_gone(worker)
        self._end()

    def fallback(self, address: int, key: Key, now: float) -> None:
        """A record came to the daemon because its address had no route."""
        self._begin(now)
        self.agent.fallback(address, key)
        self._end()

    # ---- the clock -----------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """The clock has reached `next_timer`."""
        self._begin(now)
        if self.coordinator is not None:
            self.coordinator.tick()
        self.agent.tick()
        self._end()

    def next_timer(self) -> float | None:
        """When `tick` is due, or None: then nothing happens until the next event."""
        due = self.agent.next_timer()
        if self.coordinator is not None:
            due = min(due, self.coordinator.next_timer())
        return due if due < math.inf else None

    def leave(self, now: float) -> None:
        """An agent is about to go: clients are to try the other nodes, its partials go to the top."""
        self._begin(now)
        if self.coordinator is None and self._connected:
            self.emit(fx.SendCoordinator(p.Draining()))
            self._joined.clear()
            self._leaving = True
            self.emit(gm.HangUp())
        self._end()

    def busy(self) -> bool:
        """Whether a round whose updates are all in is not committed; an agent: whether it has what the top lacks."""
        if self.coordinator is None:
            branches = (b for site in self.agent.sites.values() for b in site.branches.values())
            return self._connected and any(b.accepted and not b.carried for b in branches)
        return self.coordinator.busy()

    def stop(self, now: float) -> None:
        """The node goes down: rounds that still collect lose what they have; their clients keep it and are told so."""
        self._begin(now)
        if self.coordinator is not None:
            self.coordinator.stop()
        self._end()
