"""The coordinator of a cluster: all jobs, the nodes that they run on, and the clients that take part.

There is one way in, `handle`: a client's event, a word of a node about itself, or an agent's report, each with the
node that it comes from; `HANDLERS` says who takes which.  What it leads to (orders to agents, effects) is collected
by the `Turn`.  The coordinator's own node, `home`, is one of the nodes; the model is made and saved there.
"""

from __future__ import annotations

import math

from lifl.core.coordinator.authority import ANY, ASKED, HOME, OWNER, Authority
from lifl.core.coordinator.job import (
    Job,
    clients_left,
    copy_heard,
    function_returned,
    next_timer,
    node_gone,
    settle_evaluation,
)
from lifl.core.coordinator.job_queue import JobQueue
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import Node, NodeTable
from lifl.core.coordinator.presence import Connection, Presence
from lifl.core.coordinator.round import Phase
from lifl.core.coordinator.round_planner import RoundPlanner
from lifl.core.coordinator.round_runner import heard
from lifl.core.coordinator.session import Session, host_left
from lifl.core.errors import LocalFault, Refused
from lifl.core.fields import Message
from lifl.core.limits import JOBS_MAX, JOBS_REMEMBERED, SCHEMAS_BYTES_MAX
from lifl.core.planning.capacity import NodeLoad
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.evaluations import ModelEvaluated
from lifl.core.protocol.user_calls import FunctionReturned
from lifl.core.schema import check_fits
from lifl.core.turn import Turn

COORDINATOR, JOB, ROUND, COMMITS = "coordinator", "job", "round", "commits"
COPY, SESSION, EVALUATION, CALLS = "copy", "session", "evaluation", "calls"
HANDLERS: dict[type[Message], tuple[str, str, str]] = {
    # clients' events
    gm.ClientJoined: (COORDINATOR, "_client_joined", ANY),
    gm.ClientLeft: (COORDINATOR, "_client_left", ANY),
    gm.ClientDeclined: (COORDINATOR, "_client_answered", ANY),
    gm.ClientEvaluated: (COORDINATOR, "_client_answered", ANY),
    gm.Admit: (COORDINATOR, "_admit", ANY),
    # a node's word about itself
    gm.GatewayLost: (COORDINATOR, "_gateway_lost", ANY),
    p.Draining: (COORDINATOR, "_draining", ANY),
    p.Inventory: (COORDINATOR, "_inventory", ANY),
    # agents' reports on a job that runs
    o.JobOpened: (JOB, "job_opened", HOME),
    o.FoldAdopted: (SESSION, "fold_adopted", HOME),
    o.JobFailed: (JOB, "job_failed", HOME),
    o.BranchFailed: (JOB, "branch_failed", OWNER),
    o.ModelSealed: (JOB, "model_sealed", HOME),
    o.ModelSaved: (JOB, "model_saved", HOME),
    ModelEvaluated: (EVALUATION, "model_evaluated", HOME),
    FunctionReturned: (CALLS, "answers", HOME),
    o.FilePaused: (COMMITS, "file_paused", HOME),
    o.ModelCopied: (COPY, "heard", ASKED),
    o.CopyServed: (COPY, "heard", ASKED),
    o.CopyFailed: (COPY, "heard", ASKED),
    # agents' reports on its round
    o.UpdateSealed: (ROUND, "update_sealed", OWNER),
    o.UpdateAborted: (ROUND, "update_aborted", OWNER),
    o.BranchAdopted: (ROUND, "branch_adopted", OWNER),
    o.BranchClosed: (ROUND, "branch_closed", OWNER),
    o.BranchSealed: (ROUND, "branch_sealed", OWNER),
    o.PartialArrived: (ROUND, "partial_arrived", HOME),
    o.BranchForgotten: (ROUND, "branch_forgotten", HOME),
}
"""By message: who takes it (this class, the `Job`, its `RoundRunner` or `Commits`), its method, and who may say it.

The top, the model and the files are at home.  What another node says is refused, and told once.
"""

CANCELLED = "cancelled by the user"
STOPPED = "the node went down before the round was complete; submit again when it is up"


class Coordinator:
    """Runs all jobs; the clock is `turn.now`.  With `moves` another node may coordinate after this one."""

    def __init__(self, home: Node, turn: Turn, seed: bytes = b"", moves: bool = False) -> None:
        self.nodes = NodeTable(home, seed, moves)
        self.presence = Presence(turn)
        self.jobs: dict[str, Job] = {}
        self.running: dict[int, Job] = {}  # by number: those that are not over
        self._turn = turn
        self.authority = Authority(self.nodes, self.running, turn)
        self.queue = JobQueue(self.running, home.arena_bytes, turn, self.nodes)

    def handle(self, node: int, message: Message) -> None:
        """Take a message from a node; a report is dropped when its job does not run, or its node takes no part."""
        if type(message) not in HANDLERS:
            raise LocalFault(f"the coordinator has no handler for {type(message).__name__}")
        taker, method, sayer = HANDLERS[type(message)]
        if taker is COORDINATOR:
            getattr(self, method)(node, message)
            return
        job = self.running.get(message.number)  # type: ignore[attr-defined]
        if job is not None and node in self.nodes:
            if not self.authority.may_say(node, sayer, job, message):
                return
            takers = {JOB: job, SESSION: job, ROUND: job.runner, COMMITS: job.commits, EVALUATION: job.evaluation}
            with self._turn.share(job.spec.number):
                if taker is ROUND:
                    heard(job.runner, node, message)
                if isinstance(message, o.ModelCopied | o.CopyServed | o.CopyFailed):
                    copy_heard(job, node, message)
                elif isinstance(message, FunctionReturned):
                    function_returned(job, message)
                else:
                    getattr(takers[taker], method)(message)
                if taker is EVALUATION:
                    settle_evaluation(job)
                self._settle(job)

    # ---- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, total_bytes: int) -> Job:
        """Start a new job.  Raise `Refused` as `check_new` does."""
        check_new(self, spec, total_bytes)
        job = self.make(spec)
        self.start(job, queue=not spec.is_fold)
        return job

    def make(self, spec: JobSpec) -> Job:
        """Return a job that has not started: of an earlier life, to be filled in by `Job.resume`."""
        return (Session if spec.is_fold else Job)(spec, self._turn, self.nodes, self.presence)

    def start(self, job: Job, queue: bool = False) -> None:
        """Run the job from now on; one that is to `queue` begins when there is room."""
        self.jobs[job.name] = job
        self.running[job.spec.number] = job
        if queue:
            self.queue.enter(job)
        elif job.spec.is_fold:
            job.start()
        else:
            self.queue.go_on(job)

    def recall(self, job: Job, status: str, reason: str) -> None:
        """Keep a job that was over in an earlier life: its clients may still ask."""
        job.status, job.reason = status, reason
        remember(self, job)

    def cancel(self, name: str) -> Job:
        """End a job.  Raise `Refused` when there is none of that name, or it is over."""
        job = running_job(self, name)
        job.end("cancelled", CANCELLED)
        self._settle(job)
        return job

    def _find(self, name: str) -> Job:
        """Raise `Refused` when there is no such job."""
        job = self.jobs.get(name)
        if job is None:
            raise Refused("unknown-job", "job", f"this node has no job {name!r}; `lifl jobs` lists those it has")
        return job

    def _settle(self, job: Job) -> None:
        """Let others have the room of a job that is over, or paused."""
        if self.queue.rest(job):
            self._try_open()
        elif job.queued:
            self.queue.advance()
        if job.over:
            ends = self.running.pop(job.spec.number, None) is not None
            if job.spec.is_fold:  # nothing of it stays
                self.jobs.pop(job.name, None)
            elif ends:
                remember(self, job)
            self._try_open()

    # ---- clients -----------------------------------------------------------------------------------------------------

    def _client_joined(self, node: int, event: gm.ClientJoined) -> None:
        """Let a client take part in a job."""
        here = Connection(node, event.conn)
        try:
            job = self._find(event.job)
            with self._turn.share(job.spec.number):
                job.join(here, event)
                self._settle(job)
        except Refused as refused:
            self.presence.refuse(here, refused, event.job, -1)

    def _client_left(self, node: int, event: gm.ClientLeft) -> None:
        """Note that a client takes part no longer, or that its connection has ended."""
        if not event.job:
            host_left(self.running.values(), node, event.conn)
        stays = self.nodes.takes_grants(node) and not self.nodes.goes(node)  # else the node has sent it away
        for name, client in self.presence.remove(Connection(node, event.conn), event.job):
            with self._turn.share(self.jobs[name].spec.number):
                clients_left(self.jobs[name], [client], by_themselves=stays)
                self._settle(self.jobs[name])

    def _client_answered(self, node: int, event: gm.ClientDeclined | gm.ClientEvaluated) -> None:
        """Take what a client has found of a model; or select another in its place, if that is its own word."""
        job, here = self.jobs.get(event.job), Connection(node, event.conn)
        if job is None or job.present.get(event.client) != here:
            if isinstance(event, gm.ClientEvaluated):
                refused = Refused("not-selected", "job", f"client {event.client!r} is not in job {event.job!r} here")
                self.presence.refuse(here, refused, event.job, event.round)
            return
        with self._turn.share(job.spec.number):
            if isinstance(event, gm.ClientEvaluated):
                job.evaluation.take(here, event)
            elif job.selection.decline(job.round, event):
                job.runner.try_open()
            else:
                job.evaluation.decline(event)
            settle_evaluation(job)
            self._settle(job)

    def _gateway_lost(self, node: int, _event: gm.GatewayLost | None = None) -> None:
        """Note that all connections of a node's gateway have ended."""
        host_left(self.running.values(), node)
        gone: dict[str, list[str]] = {}
        for here in self.presence.at(node):
            for name, client in self.presence.remove(here):
                gone.setdefault(name, []).append(client)
        for name, clients in gone.items():
            with self._turn.share(self.jobs[name].spec.number):
                clients_left(self.jobs[name], clients)
                self._settle(self.jobs[name])

    def _admit(self, node: int, event: gm.Admit) -> None:
        """Grant an update that a client announces, or answer."""
        here = Connection(node, event.conn)
        try:
            job = self._find(event.job)
            with self._turn.share(job.spec.number):
                job.answers.admit(here, event, loading=job.status == "loading")
        except Refused as refused:
            self.presence.refuse(here, refused, event.job, event.round)

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def node_up(self, node: Node) -> None:
        """Let a node that is connected take part, as soon as it has said what it has (`Inventory`)."""
        before = self.nodes.get(node.number)
        self._gateway_lost(node.number)  # it has closed their connections
        if before is not None and before.incarnation == node.incarnation:
            node.load, node.drains, node.hosted_bytes = before.load, before.drains, before.hosted_bytes
        elif before is not None:
            for job in list(self.running.values()):
                with self._turn.share(job.spec.number):
                    job.node_renewed(node.number)
        self.nodes.put(node)

    def node_suspect(self, number: int, suspect: bool) -> None:
        """Note that a node is silent, or was heard again."""
        node = self.nodes.get(number)
        if node is not None:
            node.suspect = suspect
            if not suspect:
                self._try_open()

    def node_gone(self, number: int) -> None:
        """Note that a node is dead, or has left."""
        if self.nodes.remove(number):
            for here in self.presence.at(number):
                self.presence.remove(here)
            for job in list(self.running.values()):
                with self._turn.share(job.spec.number):
                    node_gone(job, number)
                    self._settle(job)

    def _draining(self, number: int, _word: p.Draining) -> None:
        """Move the work of a node that is about to go, first."""
        node = self.nodes.get(number)
        if node is not None:
            node.leaving = True
            move_work(self, number)

    def _inventory(self, number: int, report: p.Inventory) -> None:
        """Take a node's word on what it has, its first on a connection: from here both sides go on."""
        node = self.nodes.get(number)
        if node is None:
            return
        node.known, node.labels = True, report.labels
        if node.drains is None:  # before anything could be given to it
            node.drains = report.drains
        elif node.drains != report.drains:
            self._turn.order(number, o.DrainNode(undo=report.drains))
        for unknown in (other for other in (*report.jobs, *report.orphans) if other not in self.running):
            self._turn.order(number, o.CloseJob(unknown))
        for job in list(self.running.values()):
            with self._turn.share(job.spec.number):
                job.inventory(number, report)
                self._settle(job)
        if self.nodes.goes(number):
            move_work(self, number)
        self._try_open()

    def _try_open(self) -> None:
        """Let jobs and rounds that wait for nodes, or room there, begin, or be copied, if there is enough of it now."""
        self.queue.advance()
        for job in list(self.running.values()):
            with self._turn.share(job.spec.number):
                job.copies.ask()
                job.runner.try_open()

    # ---- the clock ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due."""
        for job in list(self.running.values()):
            with self._turn.share(job.spec.number):
                job.tick()
                self._settle(job)

    def next_timer(self) -> float:
        """Return when `tick` must be called at the latest; infinity: not before the next event."""
        return min((next_timer(job) for job in self.running.values()), default=math.inf)

    def busy(self) -> bool:
        """Return True while a round whose updates are all in is not committed."""
        rounds = (round_ for job in self.running.values() for round_ in job.rounds.live())
        return any(round_.phase in (Phase.AGGREGATING, Phase.SAVING) for round_ in rounds)

    def stop(self) -> None:
        """Tell clients that the node goes down: rounds that still run lose what they have, and it is kept there."""
        for job in self.running.values():
            if job.round is not None:
                over = cm.RoundOver(job.name, job.round.number, STOPPED)
                self.presence.tell_all(job.name, job.round.accepted, over)

    def validate(self) -> None:
        """Raise `LocalFault`, naming all that is wrong, unless the books agree with each other."""
        faults = [*self.nodes.faults(), *self.presence.faults(), *self.queue.faults()]
        for job in self.jobs.values():
            faults += job.faults()
        running = {job.spec.number: job for job in self.jobs.values() if not job.over}
        if running != self.running:
            faults.append(f"jobs {sorted(running)} are not over, and those that run are {sorted(self.running)}")
        if faults:
            raise LocalFault("the coordinator's books are wrong: " + "; ".join(faults))


def fail(coordinator: Coordinator, number: int, reason: str) -> None:
    """End a running job whose books are wrong."""
    job = coordinator.running[number]
    job.end("failed", reason)
    coordinator._settle(job)


def move_work(coordinator: Coordinator, number: int) -> None:
    """Have a node finish what it has; what it was still to get goes elsewhere."""
    for job in list(coordinator.running.values()):
        with coordinator._turn.share(job.spec.number):
            job.node_leaves(number)


def running_job(coordinator: Coordinator, name: str) -> Job:
    """Return a job that is not over.  Raise `Refused` when there is none of that name."""
    job = coordinator._find(name)
    if job.over:
        raise Refused("job-over", "job", f"job {name!r} is {job.status} already")
    return job


def note_load(coordinator: Coordinator, number: int, load: NodeLoad, hosted_bytes: int = 0) -> None:
    """Note what a node tells of itself; room that its own folds have given back is there for jobs."""
    if coordinator.nodes.told(number, load, hosted_bytes):
        coordinator._try_open()


def remember(coordinator: Coordinator, job: Job) -> None:
    """Keep a job that is over, whose clients may still ask, as the last of `JOBS_REMEMBERED`."""
    coordinator.jobs.pop(job.name, None)
    coordinator.jobs[job.name] = job
    over = [name for name, other in coordinator.jobs.items() if other.over]
    for name in over[:-JOBS_REMEMBERED]:
        del coordinator.jobs[name]


def forget(coordinator: Coordinator, name: str) -> None:
    """Forget a job that is over, if it is here.  Raise `Refused` when it is not over."""
    job = coordinator.jobs.get(name)
    if job is not None and not job.over:
        raise Refused("job-runs", "job", f"job {name!r} is not over: end it first with `lifl cancel {name}`")
    coordinator.jobs.pop(name, None)


def check_new(coordinator: Coordinator, spec: JobSpec, total_bytes: int, replaces: bool = False) -> None:
    """Raise `Refused`, and change nothing, when a new job cannot run.

    Its name is taken, there are too many jobs, or it can never fit: into what the nodes have, or the arena of
    `total_bytes` of the only one; or its schema, with those of the other jobs, into the frames that carry them.
    `replaces`: the job that has its name now will be gone.
    """
    running = [job for job in coordinator.running.values() if not replaces or job.name != spec.name]
    if spec.name in coordinator.jobs and not replaces:
        text = f"a job named {spec.name!r} is here already; choose another name"
        raise Refused("job-exists", "job.name", text)
    if len(running) >= JOBS_MAX:
        raise Refused("too-many-jobs", "job", f"{JOBS_MAX} jobs run here; wait for one to end")
    check_fits(spec.layout)
    others = sum(job.spec.schema_bytes for job in running)
    if others + spec.schema_bytes > SCHEMAS_BYTES_MAX:
        raise Refused(
            "too-many-tensors",
            "tensors",
            f"the names and shapes of the model's {len(spec.layout.tensors)} tensors take"
            f" {spec.schema_bytes} bytes, those of the jobs that run {others}: together at most"
            f" {SCHEMAS_BYTES_MAX} fit; wait for a job to end, or give the tensors shorter names",
        )
    RoundPlanner(spec, coordinator._turn, coordinator.nodes).check(total_bytes)
