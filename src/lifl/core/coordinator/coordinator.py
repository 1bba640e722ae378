"""The coordinator of a cluster: all jobs, and the nodes that they run on.

It hears clients' events and agents' reports, each with the node that they come from, and answers by orders.  Its own
node, `home`, is one of the nodes; the model is made and saved there.
"""

from __future__ import annotations

import math
from typing import Any

from lifl.core import effects as fx
from lifl.core.config.job import JobConfig
from lifl.core.coordinator.job import OVER, Job, Planned, Where
from lifl.core.coordinator.round import Phase
from lifl.core.errors import Refused
from lifl.core.fields import Message
from lifl.core.planning.capacity import NodeLoad
from lifl.core.planning.plan import NodeFacts, PlanRequest
from lifl.core.planning.planner import make_plan
from lifl.core.planning.request import plan_request
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.schema import Layout
from lifl.core.turn import Turn

JOBS_MAX = 256
"""Jobs of one cluster that are not over."""


class Node:
    """One node of the cluster, as the coordinator knows it."""

    def __init__(
        self, number: int, gateway: str, capacity: float, arena_bytes: int, workers_max: int, incarnation: int = 0
    ) -> None:
        self.number = number
        self.incarnation = incarnation
        self.suspect = False  # silent: it gets nothing new
        self.leaving = False
        self.known = False  # it has said what it has, since its connection was made: the books are right
        self.gateway = gateway
        self.arena_bytes = arena_bytes
        self.workers_max = workers_max
        self.load = NodeLoad(capacity=capacity, at_s=0.0)

    @property
    def name(self) -> str:
        """The node's id as people see it."""
        return f"{self.number:016x}"


class Coordinator:
    """Runs all jobs; `send(node, order)` carries an order to a node's agent."""

    def __init__(self, home: Node, turn: Turn) -> None:
        self.turn = turn
        self.home = home.number
        home.known = True
        self.members: dict[int, Node] = {home.number: home}
        self.jobs: dict[str, Job] = {}
        self.clients: dict[Where, dict[str, str]] = {}  # the client's name in each job that it joined there
        self.running: dict[int, Job] = {}  # by number: those that are not over

    def emit(self, effect: Any) -> None:
        self.turn.emit(effect)

    def order(self, node: int, order: Any) -> None:
        self.turn.order(node, order)

    @property
    def now(self) -> float:
        return self.turn.now

    @property
    def home_name(self) -> str:
        return self.members[self.home].name

    def home_load(self, load: NodeLoad) -> None:
        self.members[self.home].load = load

    def handle(self, node: int, message: Any) -> None:
        match message:
            case gm.ClientJoined():
                self.client_joined(node, message)
            case gm.ClientLeft():
                self.client_left(node, message)
            case gm.Admit():
                self.admit(node, message)
            case gm.GatewayLost():
                self.clients_left(node)
            case p.Draining():
                self.node_leaves(node)
            case p.Inventory():
                self.inventory(node, message)
            case _ if isinstance(message, o.Report):
                self.hear(node, message)

    def _made(self, facts: Any, history: Any) -> Job:
        job = self.make(facts.number, facts.config, Layout(facts.tensors), facts.states, facts.folder)
        job.counted, job.metrics = dict(history.counted), history.metrics
        job.resume(history.committed, dict(history.tried), False)
        return job

    def resume(self, facts: Any, history: Any, adopting: bool) -> None:
        job = self._made(facts, history)
        job.adopting = adopting
        self.start(job)

    def recall(self, event: Any) -> None:
        job = self._made(event.job, event.history)
        job.status, job.reason = event.status, event.reason
        self.jobs[job.name] = job

    def tick(self) -> None:
        for job in list(self.running.values()):
            job.tick()

    def next_timer(self) -> float:
        return min((job.next_timer() for job in self.running.values()), default=math.inf)

    def busy(self) -> bool:
        rounds = (r for job in self.jobs.values() for r in (job.round, *job.saving) if r is not None)
        return any(r.phase in (Phase.AGGREGATING, Phase.SAVING) for r in rounds)

    def stop(self) -> None:
        for job in self.jobs.values():
            if job.round is not None and job.status not in OVER:
                for client in job.round.accepted:
                    text = "the node went down before the round was complete; submit again when it is up"
                    job.tell(client, cm.RoundOver(job.name, job.round.number, text))

    def validate(self) -> None:
        pass

    def node_load(self, event: Any) -> None:
        if event.node in self.members:
            self.members[event.node].load = NodeLoad(event.capacity, self.now, event.rate_per_s, event.execution_s)

    # ---- what jobs need (job.Services) -----------------------------------------------------------------------------

    def tell(self, where: Where, message: Message) -> None:
        """A message for a client, behind the orders before it."""
        self.order(where.node, gm.TellClient(where.conn, cm.packed(message)))

    @property
    def nodes(self) -> list[int]:
        """The nodes that take part now."""
        return list(self.members)

    def gateway_of(self, node: int) -> str:
        """Where a node's gateway listens; empty for one that is gone."""
        member = self.members.get(node)
        return member.gateway if member is not None else ""

    def has_room(self, nbytes: int) -> bool:
        """Whether the arena at home is so large."""
        return nbytes <= self.members[self.home].arena_bytes

    def takes_grants(self, node: int) -> bool:
        """Whether a grant would reach the node, and be in its books when it says what it has."""
        member = self.members.get(node)
        return member is not None and member.known and not member.leaving

    def facts(self) -> tuple[NodeFacts, ...]:
        """The nodes that can take something, as the planner sees them now."""
        return tuple(
            NodeFacts(
                node=member.name,
                residual=member.load.residual(self.now),
                arena_bytes=member.arena_bytes,
                workers_max=member.workers_max,
                execution_s=member.load.execution_s,
            )
            for member in self.members.values()
            if member.known and not member.suspect and not member.leaving
        )

    def plan(self, job: Job, updates: int) -> Planned:
        """Who takes part in a round.  Raises `Refused` when the nodes that are here cannot hold it."""
        request = self.request(job, updates)
        try:
            plan = make_plan(request)
        except Refused:
            if len(self.members) > 1 or not self.has_room(job.bytes_min()):
                raise
            # Alone, a tree that fits is enough; what else the plan would like is not needed.
            return Planned({self.home: updates}, self.home)
        if job.round is not None:
            self.emit(fx.SavePlan(job.name, job.round.number, job.round.attempt, request, plan))
        return Planned({int(node.node, 16): node.updates for node in plan.nodes if node.updates}, int(plan.top, 16))

    def request(self, job: Job, updates: int = 0) -> PlanRequest:
        """What `updates` (0: all) of a round are planned from now; the model and its checkpoints are on this node."""
        home, states = self.members[self.home].name, len(job.state_names)
        return plan_request(job.config, job.layout, states, self.facts(), updates, model_node=home)

    def over(self, job: Job) -> None:
        """The job has ended."""
        del self.running[job.number]

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def node_up(self, event: Any) -> None:
        node = Node(event.node, event.gateway, event.capacity, event.arena_bytes, event.workers_max, event.incarnation)
        node.load = NodeLoad(capacity=event.capacity, at_s=self.now)
        self._node_up(node)

    def _node_up(self, node: Node) -> None:
        """A node is connected; it takes part as soon as it has said what it has (`inventory`)."""
        before = self.members.get(node.number)
        self.clients_left(node.number)  # it has closed their connections
        if before is not None and before.incarnation == node.incarnation:
            node.load = before.load
        elif before is not None:
            for job in self.jobs.values():
                job.parts.node_renewed(node.number)
        self.members[node.number] = node

    def node_suspect(self, number: int, suspect: bool) -> None:
        """A node is silent, or was heard again."""
        if number in self.members:
            self.members[number].suspect = suspect
            if not suspect:
                self._nodes_changed()

    def node_leaves(self, number: int) -> None:
        """A node is about to go: its work moves first."""
        if number in self.members:
            self.members[number].leaving = True
            for job in self.jobs.values():
                job.node_leaves(number)

    def inventory(self, number: int, report: p.Inventory) -> None:
        """A node says what it has, before anything else on its connection: from here both sides go on."""
        if number not in self.members:
            return
        self.members[number].known = True
        for unknown in (other for other in (*report.jobs, *report.orphans) if other not in self.running):
            self.order(number, o.CloseJob(unknown))
        for job in list(self.running.values()):
            job.open_at(number)
            held = [branch for branch in report.branches if branch.number == job.number]
            job.parts.inventory(number, held, job.number not in report.jobs)
        self._nodes_changed()

    def _nodes_changed(self) -> None:
        """A round that waits for nodes may find enough of them now."""
        for job in list(self.jobs.values()):
            job.try_open()

    def node_gone(self, number: int) -> None:
        """A node is dead, or has left."""
        if self.members.pop(number, None) is None:
            return
        for where in [where for where in self.clients if where.node == number]:
            del self.clients[where]
        for job in list(self.jobs.values()):
            job.node_gone(number)

    def hear(self, node: int, report: o.Report) -> None:
        """What an agent has to say."""
        job = self.running.get(report.number)
        if job is None or node not in self.members:
            return
        match report:
            case o.JobOpened():
                job.opened()
            case o.JobFailed():
                job.end("failed", report.text)
            case o.BranchAdopted():
                job.parts.adopted(report)
            case o.UpdateSealed():
                job.update_sealed(report)
            case o.UpdateAborted():
                job.update_aborted(report)
            case o.BranchClosed():
                job.parts.branch_closed(report)
            case o.BranchSealed():
                job.branch_sealed(report)
            case o.PartialArrived():
                job.parts.partial_arrived(report)
            case o.BranchForgotten():
                job.parts.branch_forgotten(report)
            case o.BranchFailed():
                job.branch_failed(report)
            case o.ModelSealed():
                job.model_sealed(report)
            case o.ModelSaved():
                job.saved(report)

    # ---- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, facts: Any, total_bytes: int) -> None:
        """A new job.  Raises `Refused`: its name is taken, it can never fit the arena, or there are too many jobs."""
        job = self.make(facts.number, facts.config, Layout(facts.tensors), facts.states, facts.folder)
        name = job.name
        if name in self.jobs:
            raise Refused("job-exists", "job.name", f"a job named {name!r} is here already; choose another name")
        if len(self.running) >= JOBS_MAX:
            raise Refused("too-many-jobs", "job", f"{JOBS_MAX} jobs run here; wait for one to end")
        need = job.bytes_min()
        if len(self.members) > 1:
            make_plan(self.request(job))  # refuses what they cannot hold together
        elif need > total_bytes:
            raise Refused(
                "too-large",
                "model",
                f"a round of job {name!r} needs at least {need} bytes of the arena (model {job.layout.data_bytes} "
                f"bytes, fan-in {job.config.aggregation.fan_in}), the node has {total_bytes}; start it with a larger "
                "arena (lifl up --arena-bytes) or lower selection.clients_per_round or aggregation.middle_fan_in",
            )
        self.emit(fx.SaveJob(name, "running", ""))
        self.start(job)

    def make(self, number: int, config: JobConfig, layout: Layout, states: tuple[str, ...], folder: str) -> Job:
        """A job of this coordinator that has not started."""
        return Job(number, config, layout, states, folder, self)

    def start(self, job: Job) -> None:
        """The job runs from now on."""
        self.jobs[job.name] = job
        self.running[job.number] = job
        job.start()

    def cancel(self, name: str) -> Job:
        """Ends a job.  Raises `Refused` when there is none of that name, or it is over."""
        job = self.find(name)
        if job.status in OVER:
            raise Refused("job-over", "job", f"job {name!r} is {job.status} already")
        job.end("cancelled", "cancelled by the user")
        return job

    def find(self, name: str) -> Job:
        """Raises `Refused` when there is no such job."""
        job = self.jobs.get(name)
        if job is None:
            raise Refused("unknown-job", "job", f"this node has no job {name!r}; `lifl jobs` lists those it has")
        return job

    # ---- clients -----------------------------------------------------------------------------------------------------

    def client_joined(self, node: int, event: gm.ClientJoined) -> None:
        """A client wants to take part in a job."""
        where = Where(node, event.conn)
        try:
            job = self.find(event.job)
        except Refused as refused:
            self._refuse(where, refused, event.job, -1)
            return
        self.clients.setdefault(where, {})[event.job] = event.client
        job.join(where, event.client, event.holding, event.connected_ns)

    def client_left(self, node: int, event: gm.ClientLeft) -> None:
        """A client takes part no longer, or its connection has ended."""
        where = Where(node, event.conn)
        joined = self.clients.get(where, {})
        for name in [event.job] if event.job else list(joined):
            client = joined.pop(name, None)
            if client is not None and name in self.jobs:
                self.jobs[name].leave(client, where)
        if not joined:
            self.clients.pop(where, None)

    def clients_left(self, node: int) -> None:
        """All connections of a node's gateway have ended."""
        for where in [where for where in self.clients if where.node == node]:
            self.client_left(node, gm.ClientLeft(where.conn))

    def admit(self, node: int, event: gm.Admit) -> None:
        """A client announces an update: grant it, or answer."""
        where = Where(node, event.conn)
        try:
            self.find(event.job).admit(where, event)
        except Refused as refused:
            self._refuse(where, refused, event.job, event.round)

    def _refuse(self, where: Where, refused: Refused, job: str, round_: int) -> None:
        self.tell(where, cm.Refusal(refused.code, refused.field, refused.text, job, round_))
