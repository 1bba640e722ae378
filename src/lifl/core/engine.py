"""The decisions of one node: events and the clock in, effects out.

`handle` is the one way in.  The daemon feeds it what its sockets said and performs what it returns, in order; tests and
the simulator do the same on a virtual clock.

Every node has an agent (arena, workers); the node that coordinates has the coordinator (jobs) too.  They speak by
orders and reports alone; between two nodes these travel, within one each waits in a queue until the one before it
is done with, as it would on a network.

A node that does not coordinate, or not for all its life, has a coordinator of its own for the sessions of folds that it
hosts (`hosting`), and is the only node of that: these are in its arena alone, whoever coordinates the cluster.

What an agent frees is gone at once, but a row is durable only when its effect is performed.  So the queue stops at an
event that wants a row written (`writing`), and goes on with `RowsWritten`: after a kill in between, the next daemon
finds the updates, or the row that says what became of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, get_args

from msgspec.structs import replace

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core import snapshot
from lifl.core.agent.agent import Agent
from lifl.core.agent.begin_anew import begin_anew
from lifl.core.broken_jobs import BrokenJobs
from lifl.core.coordinator import job_life, sessions
from lifl.core.coordinator.coordinator import Coordinator, check_new, forget, note_load, running_job
from lifl.core.coordinator.drains import drain
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.job_queue import PAUSED, QUEUED, SPREAD
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import Node
from lifl.core.coordinator.session import Session, tickets_of
from lifl.core.errors import Impossible, LocalFault, Refused, RemoteFault
from lifl.core.event_log import EventLog, Recording, RecordingStore, Shape, shape
from lifl.core.ids import is_hosted
from lifl.core.object_store import ObjectStore
from lifl.core.planning.capacity import NodeLoad
from lifl.core.planning.plan import NodeFacts
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import tickets as tm
from lifl.core.protocol.commands import CloseJob, Order
from lifl.core.schema import Layout
from lifl.core.turn import Turn

ORDERS = frozenset(get_args(Order))
STEPS_MAX = 4_000_000
"""Orders and reports within one event: some for each client of each job; more is a loop that makes no progress."""


class Engine:
    """One node, from `now` on.  With `coordinates` it runs the jobs; else it obeys the node that does.

    Where any node may coordinate it begins as one that does not, until it is `Promoted`.
    `seed` is what a coordinator's secrets are made from (`coordinator/offer_secrets.py`).
    """

    def __init__(
        self,
        store: ObjectStore,
        node: Node,
        idle_timeout_s: float,
        wait_queue_max: int,
        coordinates: bool = True,
        now: float = 0.0,
        seed: bytes = b"",
    ) -> None:
        self.node = node.number
        self._facts = (node.gateway, node.arena_bytes, node.workers_max)
        self._turn = Turn(node.number, coordinates)
        sizes = (node.load.capacity, node.workers_max)
        self._store = RecordingStore(store)
        self.agent = Agent(self._store, *sizes, idle_timeout_s, wait_queue_max, self._turn, now)
        self.agent.labels, self.agent.reached = node.labels, node.reached
        self.coordinator = Coordinator(node, self._turn, seed) if coordinates else None
        if self.coordinator is not None:
            self.coordinator.queue.total_bytes = self.agent.quota.total_bytes
        self.hosting = None if coordinates else Coordinator(node, self._turn, seed)
        self._broken = BrokenJobs(self._turn, self.agent, self.coordinator)
        self._broken.hosting = self.hosting
        self._log: EventLog | None = EventLog(self._store, self._copy)

    @property
    def jobs(self) -> dict[str, Job]:
        """The jobs that this node coordinates, the sessions that it hosts among them."""
        hosted = self.hosting.jobs if self.hosting is not None else {}
        return {**hosted, **self.coordinator.jobs} if self.coordinator is not None else hosted

    @property
    def writing(self) -> bool:
        """True when `RowsWritten` is to be handled as soon as the effects returned so far are performed."""
        return self._turn.writes

    def handle(self, event: Any, now: float) -> list[fx.Effect]:
        """Handle one event at the time `now` (monotonic, in seconds); return what is to be performed, in order.

        Raise `Refused`, with nothing changed, for a job that cannot be submitted or cancelled, and `RemoteFault`, with
        nothing changed, for a word of a child or a peer that cannot be true: its connection is to end.  Raise
        `Impossible`, with the story of what the event is about, when the books contradict each other: the engine is of
        no use then.
        """
        if self._log is None:
            raise LocalFault("this engine is a replay's; it handles recorded events")
        answers = self._log.begin()
        try:
            effects = self._handled(event, now)
        except (Refused, RemoteFault):
            self._log.end(now, event, answers, [])
            raise
        except LocalFault as fault:
            self._log.end(now, event, answers, self._turn.effects)
            story = "\n  ".join(self._log.story(event))
            raise Impossible(f"{fault}; the story of what {type(event).__name__} names:\n  {story}") from fault
        except Exception:  # whatever it is: without this event the recording would not lead to it
            self._log.end(now, event, answers, self._turn.effects)
            raise
        self._log.end(now, event, answers, effects)
        return effects

    def _handled(self, event: Any, now: float) -> list[fx.Effect]:
        turn = self._turn
        turn.now = now
        handler = HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)
        elif not (self.hosting is not None and heard(self.hosting, event)):
            self.agent.handle(event)
        self._broken.end_found()
        self._deliver()
        if self._broken.is_new and not turn.writes:
            self._broken.is_new = False
            self.validate()  # what is left is right, or the engine is of no use either
        effects, turn.effects = turn.effects, []
        return effects

    def _deliver(self) -> None:
        """Hand over orders and reports until all is quiet, or a row must be written first."""
        turn = self._turn
        steps = 0
        while True:
            while turn.queue and not turn.writes:
                item = turn.queue.popleft()
                if type(item) in ORDERS:
                    self.agent.handle(item)
                elif (taker := _taker(self, item)) is not None:
                    taker.handle(self.node, item)
                self._broken.end_found()
                steps += 1
                if steps > STEPS_MAX:
                    raise LocalFault(f"{steps} orders and reports follow from one event, the last: {item!r}")
            self.agent.settle()
            if not turn.queue and not turn.writes:
                _tell_home(self)
            self._broken.end_found()
            if not turn.queue or turn.writes:
                break

    # ---- the log -----------------------------------------------------------------------------------------------------

    def _copy(self) -> snapshot.Snapshot:
        log, self._log = self._log, None
        try:
            return snapshot.take(self, RecordingStore)
        finally:
            self._log = log

    def recording(self) -> Recording:
        """Return the last events, with the state that the first of them met."""
        if self._log is None:
            raise LocalFault("a replay is not recorded")
        return self._log.recording()

    def replayed(self, event: Any, now: float) -> tuple[Shape, ...]:
        """Handle a recorded event; return the shapes of its effects, also of those before a refusal or a fault."""
        try:
            return tuple(map(shape, self._handled(event, now)))
        except Exception:  # noqa: BLE001 - `handle` has raised the same
            effects, self._turn.effects = self._turn.effects, []
            return tuple(map(shape, effects))

    # ---- what only some nodes have -----------------------------------------------------------------------------------

    def coordinating(self) -> Coordinator:
        """Return the coordinator.  Raise `Refused` on a node that does not coordinate."""
        if self.coordinator is None:
            text = "this node does not coordinate the cluster; ask the one that does (lifl nodes)"
            raise Refused("not-coordinator", "node", text)
        return self.coordinator

    def facts(self, now: float, labels: Mapping[str, str] = MappingProxyType({})) -> tuple[tuple[NodeFacts, ...], str]:
        """Return the nodes as the planner sees them now, and the name of the one that has the models.

        Those without the `labels` take no updates.
        """
        nodes = self.coordinating().nodes
        return nodes.facts(now, labels=labels), nodes.home_name

    def schemas(self) -> list[gm.JobSchema | tm.TicketKey | tm.TicketsAwaited]:
        """Return what a new gateway must be told: what jobs look like, and by what tickets of sessions are known."""
        told = [replica.schema() for replica in self.agent.replicas.values() if replica.slot.open]
        return [*told, *(tickets_of(job) for job in self.jobs.values() if isinstance(job, Session) and not job.over)]

    # ---- the clock ---------------------------------------------------------------------------------------------------

    def _tick(self, _event: ev.Tick) -> None:
        for each in _coordinators(self):
            each.tick()
        self.agent.tick()

    def next_timer(self) -> float | None:
        """Return when `Tick` is due, or None: then nothing happens until the next event."""
        due = self.agent.next_timer()
        for each in _coordinators(self):
            if each.running:
                due = min(due, each.next_timer())
        return due if due < math.inf else None

    # ---- the end -----------------------------------------------------------------------------------------------------

    def busy(self) -> bool:
        """Return whether a round with all its updates is not committed; an agent: whether the top lacks something."""
        return any(each.busy() for each in _coordinators(self)) or (self.coordinator is None and self.agent.busy())

    def _stop(self, _event: ev.Stopping) -> None:
        for each in _coordinators(self):
            each.stop()

    def _submit(self, event: ev.JobSubmitted) -> None:
        spec = _spec(event.job)
        runs(self, spec).submit(spec, self.agent.quota.total_bytes)

    def _resume(self, event: ev.JobResumed) -> None:
        if event.orphans:
            self.agent.keep(event.job.number, list(event.orphans))
        waits = QUEUED in event.reason.split()
        if waits:  # it had no room, so nothing that is left of it counts
            self.agent.handle(CloseJob(event.job.number))
            event = replace(event, history=event.history.without_opened())
        left = event.job.number in self.agent.orphans or self.agent.journal.has(event.job.number)
        job = self._earlier(event, adopting=left)
        for number, (attempt, status, fields) in event.history.tried.items() if waits else ():
            if status == "failed" and not fields:  # it ran when the job ended: whoever coordinates next has to know
                row = {"reason": "the job was over before its model was made"}
                self._turn.emit(fx.SaveRound(job.name, number, attempt, "failed", row))
        job.rounds.held, job.spread = PAUSED in event.reason.split(), SPREAD in event.reason.split()
        runs(self, job.spec).start(job, queue=waits)

    def _recall(self, event: ev.JobRecalled) -> None:
        job = self._earlier(event, adopting=False)
        runs(self, job.spec).recall(job, event.status, event.reason)
        if event.history.committed in event.history.keeps:
            job.keeping.tell(event.history.committed)  # that life may have ended before all was removed

    def _earlier(self, event: ev.JobResumed | ev.JobRecalled, adopting: bool) -> Job:
        """Return a job of an earlier life, as the database knows it."""
        spec, history = _spec(event.job), event.history
        job = runs(self, spec).make(spec)
        what = (dict(history.counted), dict(history.tried), adopting, dict(history.models))
        job.resume(history.committed, *what, dict(history.terms), dict(history.holders))
        job.stopping.begin(history.stopping, history.metrics)
        job.selection.resume(history.losses)
        job.commits.attempt = history.models.get(history.committed, (0, ()))[0]
        job.evaluation.resume(history.committed, history.evaluated)
        job.keeping.begin(history.committed, history.keeps)
        return job

    def _node_up(self, event: ev.NodeUp) -> None:
        sizes = (event.capacity, event.arena_bytes, event.workers_max)
        node = Node(event.node, event.gateway, *sizes, event.incarnation)
        node.load = NodeLoad(capacity=event.capacity, at_s=self._turn.now)
        node.knows = frozenset(event.knows)
        self.coordinating().node_up(node)

    def _offered(self, event: gm.Offered) -> None:
        """Let the agent take another node's partial, unless the coordinator knows better."""
        if self.coordinator is not None and not self.coordinator.authority.takes_offer(event):
            self.agent.partials.refuse(event.conn)
        else:
            self.agent.partials.offered(event)

    def _load_told(self, event: ev.NodeLoadTold) -> None:
        load = NodeLoad(event.capacity, self._turn.now, event.rate_per_s, event.execution_s)
        note_load(self.coordinating(), event.node, load, event.hosted_bytes)

    def _written(self, _event: ev.RowsWritten) -> None:
        self._turn.writes = False

    def validate(self) -> None:
        """Raise `LocalFault` when any book of this node contradicts another."""
        found = list(self.agent.problems())
        if found:
            raise LocalFault("; ".join(found))
        for each in _coordinators(self):
            each.validate()


def _coordinators(engine: Engine) -> tuple[Coordinator, ...]:
    """Return those that there are: the cluster's, and that of the sessions that the node hosts."""
    if engine.coordinator is None:
        return (engine.hosting,) if engine.hosting is not None else ()
    return (engine.coordinator,) if engine.hosting is None else (engine.coordinator, engine.hosting)


def hosted_bytes(engine: Engine) -> int:
    """Return the bytes of the arena that nobody who coordinates can give to jobs.

    That is what the node's own sessions have, and what its clients have as loans.
    """
    hosted, quota = engine.hosting.running if engine.hosting is not None else (), engine.agent.quota
    return sum(map(quota.held_bytes, hosted)) + quota.loans.taken_bytes


def _tell_home(engine: Engine) -> None:
    """Tell each coordinator the load of its own node, and the cluster's what the other one's folds have there."""
    load = engine.agent.load
    if engine.hosting is not None:
        note_load(engine.hosting, engine.node, load)
    if engine.coordinator is not None:
        note_load(engine.coordinator, engine.node, load, hosted_bytes(engine))


def _folds(engine: Engine) -> Coordinator:
    """Return who decides on the sessions of folds that are hosted here."""
    return engine.hosting or engine.coordinating()


def runs(engine: Engine, spec: JobSpec) -> Coordinator:
    """Return who runs a job, or a session.  Raise `Refused` for a job on a node that does not coordinate."""
    return _folds(engine) if spec.is_fold else engine.coordinating()


def _taker(engine: Engine, report: Any) -> Coordinator | None:
    """Return who is to hear an agent's report."""
    hosted = engine.hosting is not None and is_hosted(getattr(report, "number", 0))
    return engine.hosting if hosted else engine.coordinator


def promote(engine: Engine, event: ev.Promoted) -> None:
    """Let the node coordinate from now on: it begins anew with what is sealed, as after a restart."""
    if engine.coordinator is not None:
        raise LocalFault("this node coordinates already")
    begin_anew(engine.agent, connected=True, running=event.running)
    gateway, arena_bytes, workers_max = engine._facts
    home = Node(engine.node, gateway, engine.agent.load.capacity, arena_bytes, workers_max)
    home.load, home.labels, home.reached = engine.agent.load, engine.agent.labels, engine.agent.reached
    engine._turn.coordinates, engine._turn.term = True, event.term
    engine.coordinator = Coordinator(home, engine._turn, event.seed, moves=True)
    engine.coordinator.queue.total_bytes = engine.agent.quota.total_bytes
    engine._broken.coordinator = engine.coordinator


def demote(engine: Engine, _event: ev.Demoted) -> None:
    """Let the node coordinate no longer: what is not durable is forgotten, and it begins anew with what is sealed."""
    engine.coordinator = engine._broken.coordinator = None
    engine._turn.coordinates, engine._turn.term, engine._turn.writes = False, 0, False
    kept = [item for item in engine._turn.queue if is_hosted(getattr(item, "number", 0))]
    engine._turn.queue = deque(kept)
    begin_anew(engine.agent, connected=False)


def from_host(engine: Engine, event: sessions.FromHost) -> None:
    """Let the host of a session be answered."""
    sessions.ask(_folds(engine), event)


def heard(hosting: Coordinator, event: Any) -> bool:
    """Let the sessions that a node hosts hear what its gateway says; return whether that was for them alone."""
    if isinstance(event, gm.ClientLeft | gm.GatewayLost):
        hosting.handle(hosting.nodes.home, event)
    if not isinstance(event, gm.Admit) or event.job not in hosting.jobs:
        return False
    hosting.handle(hosting.nodes.home, event)
    return True


def _spec(facts: ev.JobFacts) -> JobSpec:
    layout = Layout(facts.tensors, facts.config.aggregation.is_reproducible)
    return JobSpec(facts.number, facts.config, layout, facts.states, facts.folder, facts.owner)


def check_submitted(engine: Engine, job: ev.JobFacts, replaces: bool = False) -> None:
    """Raise `Refused` when handling `JobSubmitted` would; nothing is changed.

    `replaces`: a job that has the name is gone by then.
    """
    spec = _spec(job)
    check_new(runs(engine, spec), spec, engine.agent.quota.total_bytes, replaces)


def check_cancelled(engine: Engine, name: str) -> None:
    """Raise `Refused` when handling `JobCancelled` would; nothing is changed."""
    running_job(_having(engine, name), name)


def _having(engine: Engine, name: str) -> Coordinator:
    """Return who has the job, or the session, of this name."""
    hosts = engine.hosting is not None and name in engine.hosting.jobs
    return _folds(engine) if hosts else engine.coordinating()


def check_unpaused(engine: Engine, name: str) -> None:
    """Raise `Refused` when handling `JobUnpaused` would; nothing is changed."""
    job_life.check_pause(running_job(engine.coordinating(), name), paused=False)


HANDLERS: Mapping[type, Callable[[Engine, Any], object]] = {
    ev.Tick: Engine._tick,
    ev.RowsWritten: Engine._written,
    ev.Stopping: Engine._stop,
    ev.JobSubmitted: Engine._submit,
    ev.JobResumed: Engine._resume,
    ev.JobRecalled: Engine._recall,
    ev.Promoted: promote,
    ev.Demoted: demote,
    ev.JobCancelled: lambda engine, event: _having(engine, event.name).cancel(event.name),
    ev.JobPaused: lambda engine, event: job_life.pause(engine.coordinating(), event.name),
    ev.JobUnpaused: lambda engine, event: job_life.unpause(engine.coordinating(), event.name),
    ev.JobEdited: lambda engine, event: job_life.edit(engine.coordinating(), event.name, event.edit),
    ev.JobRemoved: lambda engine, event: forget(engine.coordinating(), event.name),
    ev.NodeUp: Engine._node_up,
    ev.NodeSuspect: lambda engine, event: engine.coordinating().node_suspect(event.node, event.suspect),
    ev.NodeDrained: lambda engine, event: drain(engine.coordinating(), event.node, event.undo),
    ev.NodeGone: lambda engine, event: engine.coordinating().node_gone(event.node),
    ev.NodeLoadTold: Engine._load_told,
    gm.Offered: Engine._offered,
    ev.SessionHosted: from_host,
    gm.FoldAsked: from_host,
    gm.ModelPut: from_host,
    gm.PartTaken: from_host,
    gm.SessionEnded: from_host,
    tm.RevocationAsked: from_host,
    ev.FromNode: lambda engine, event: engine.coordinating().handle(event.node, event.message),
}
"""The events that are not the agent's (`agent.HANDLERS`)."""
