"""The decisions of one node: events and the clock in, effects out.

The daemon feeds it what its sockets said and performs what it returns; tests and the simulator do the same on a
virtual clock.  Each public method is one event, handled whole; `take_effects` gives what it led to, in order.

The coordinator (jobs) and the agent (arena, workers) speak by orders and reports alone; each waits in a queue until
the one before it is done with, as it would on a network.
"""

from __future__ import annotations

from collections import deque

import msgspec

from lifl.core import effects as fx
from lifl.core import messages as m
from lifl.core import orders as o
from lifl.core.agent import Agent
from lifl.core.config import JobConfig
from lifl.core.errors import Refused
from lifl.core.ids import Key
from lifl.core.job import OVER, Job
from lifl.core.jobsite import Orphan
from lifl.core.memory import Store
from lifl.core.round import Phase
from lifl.core.schema import Layout

JOBS_MAX = 256
"""Jobs of one node that are not over."""


class Engine:
    """A node that is a whole cluster: its agent, and all jobs."""

    def __init__(self, store: Store, workers_max: int, idle_timeout_s: float, wait_queue_max: int) -> None:
        self.agent = Agent(store, workers_max, idle_timeout_s, wait_queue_max, self.emit, self._report)
        self.jobs: dict[str, Job] = {}
        self.clients: dict[int, dict[str, str]] = {}  # by connection: the client's name in each job that it joined
        self._by_number: dict[int, Job] = {}
        self._effects: list[fx.Effect] = []
        self._queue: deque[o.Order | o.Report] = deque()

    # ---- between coordinator and agent ---------------------------------------------------------------------------

    def emit(self, effect: fx.Effect) -> None:
        """Adds an effect to those of this event."""
        self._effects.append(effect)

    def order(self, order: o.Order) -> None:
        """The coordinator wants something done."""
        self._queue.append(order)

    def _report(self, report: o.Report) -> None:
        self._queue.append(report)

    def tell(self, conn: int, message: m.Message) -> None:
        """A message for a client, behind the orders before it."""
        self._queue.append(o.TellClient(conn, msgspec.to_builtins(message)))

    def take_effects(self) -> list[fx.Effect]:
        """The effects since the last call, in order."""
        taken, self._effects = self._effects, []
        return taken

    def _begin(self, now: float) -> None:
        self.agent.now = now
        for job in self.jobs.values():
            job.now = now

    def _end(self) -> None:
        """Delivers orders and reports until all is quiet."""
        while True:
            while self._queue:
                item = self._queue.popleft()
                if isinstance(item, o.Order):
                    self.agent.obey(item)
                else:
                    self._hear(item)
            self.agent.settle()
            if not self._queue:
                return

    def _hear(self, report: o.Report) -> None:
        job = self._by_number[report.number]
        if job.status in OVER:
            return
        match report:
            case o.JobOpened():
                job.opened()
            case o.JobFailed():
                job.end("failed", report.text)
            case o.BranchAdopted():
                job.adopted(report)
            case o.UpdateSealed():
                job.update_sealed(report)
            case o.UpdateAborted():
                job.update_aborted(report)
            case o.BranchFailed():
                job.branch_failed(report)
            case o.ModelSealed():
                job.model_sealed(report)
            case o.ModelSaved():
                job.saved(report)

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def submit(
        self, number: int, config: JobConfig, layout: Layout, states: tuple[str, ...], folder: str, now: float
    ) -> Job:
        """A new job.  Raises `Refused`: its name is taken, it can never fit the arena, or there are too many jobs."""
        name = config.job.name
        if name in self.jobs:
            raise Refused("job-exists", "job.name", f"a job named {name!r} is here already; choose another name")
        if sum(job.status not in OVER for job in self.jobs.values()) >= JOBS_MAX:
            raise Refused("too-many-jobs", "job", f"{JOBS_MAX} jobs run on this node; wait for one to end")
        job = Job(number, config, layout, states, folder, self)
        need, total = job.bytes_min(), self.agent.memory.total_bytes
        if need > total:
            raise Refused(
                "too-large",
                "model",
                f"a round of job {name!r} needs at least {need} bytes of the arena (model {layout.data_bytes} bytes, "
                f"fan-in {config.aggregation.fan_in}), the node has {total}; start the node with a larger arena "
                "(lifl up --arena-bytes) or lower selection.clients_per_round or aggregation.middle_fan_in",
            )
        self.emit(fx.SaveJob(name, "running", ""))
        self._start(job, now)
        return job

    def resume(self, job: Job, orphans: list[Orphan], now: float) -> None:
        """A job of an earlier daemon, with `committed`, `attempt` and `counted` filled in, and what it had sealed."""
        self.agent.orphans[job.number] = orphans
        job.adopting = bool(orphans)
        self._start(job, now)

    def rest(self, keys: list[Key], now: float) -> None:
        """Updates that an earlier daemon's clients may still be writing."""
        self._begin(now)
        for key in keys:
            self.agent.rest(key)
        self._end()

    def recall(self, job: Job, status: str, reason: str) -> None:
        """A job that was over in an earlier life, with its `committed` and `counted`: its clients may still ask."""
        job.status, job.reason = status, reason
        self.jobs[job.name] = job

    def _start(self, job: Job, now: float) -> None:
        self.jobs[job.name] = job
        self._by_number[job.number] = job
        self._begin(now)
        job.start()
        self._end()

    def cancel(self, name: str, now: float) -> Job:
        """Ends a job.  Raises `Refused` when there is none of that name, or it is over."""
        job = self.find(name)
        if job.status in OVER:
            raise Refused("job-over", "job", f"job {name!r} is {job.status} already")
        self._begin(now)
        job.end("cancelled", "cancelled by the user")
        self._end()
        return job

    def find(self, name: str) -> Job:
        """Raises `Refused` when there is no such job."""
        job = self.jobs.get(name)
        if job is None:
            raise Refused("unknown-job", "job", f"this node has no job {name!r}; `lifl jobs` lists those it has")
        return job

    # ---- clients -------------------------------------------------------------------------------------------------

    def client_joined(self, event: m.ClientJoined, now: float) -> None:
        """A client wants to take part in a job."""
        self._begin(now)
        try:
            job = self.find(event.job)
            self.clients.setdefault(event.conn, {})[event.job] = event.client
            job.join(event.conn, event.client, event.holding)
        except Refused as refused:
            self._refuse(event.conn, refused, event.job, -1)
        self._end()

    def client_left(self, event: m.ClientLeft, now: float) -> None:
        """A client takes part no longer, or its connection has ended."""
        self._begin(now)
        joined = self.clients.get(event.conn, {})
        for name in [event.job] if event.job else list(joined):
            client = joined.pop(name, None)
            if client is not None and name in self.jobs:
                self.jobs[name].leave(client, event.conn)
        if not joined:
            self.clients.pop(event.conn, None)
        self.agent.client_left(event.conn, event.job)
        self._end()

    def admit(self, event: m.Admit, now: float) -> None:
        """A client announces an update: grant a slot, make it wait for room, or answer."""
        self._begin(now)
        try:
            self.find(event.job).admit(event)
        except Refused as refused:
            self._refuse(event.conn, refused, event.job, event.round)
        self._end()

    def _refuse(self, conn: int, refused: Refused, job: str, round_: int) -> None:
        self.tell(conn, m.Refusal(refused.code, refused.field, refused.text, job, round_))

    def sealed(self, event: m.Sealed, now: float) -> None:
        """The gateway has sealed an update."""
        self._begin(now)
        self.agent.sealed(event)
        self._end()

    def aborted(self, event: m.Aborted, now: float) -> None:
        """A granted update will not come."""
        self._begin(now)
        self.agent.aborted(event)
        self._end()

    def want_model(self, event: m.WantModel, now: float) -> None:
        """A client asks for the model that a round starts from."""
        self._begin(now)
        try:
            job = self.find(event.job)
            site = self.agent.sites.get(job.number)
            if site is None or site.model is None or site.round != event.round - 1 or job.status != "running":
                text = f"the model of round {event.round} is not here any more; wait for the next selection"
                raise Refused("round-over", "round", text)
            self.agent.grant_model(event.conn, site, event.round)
        except Refused as refused:
            self._refuse(event.conn, refused, event.job, event.round)
        self._end()

    def model_sent(self, event: m.ModelSent, now: float) -> None:
        """The gateway is through with sending a model."""
        self._begin(now)
        self.agent.model_sent(event)
        self._end()

    def gateway_gone(self, now: float) -> None:
        """The gateway's process has ended: all connections with it, and what was in flight."""
        self._begin(now)
        for conn, joined in list(self.clients.items()):
            for name, client in joined.items():
                if name in self.jobs:
                    self.jobs[name].leave(client, conn)
        self.clients.clear()
        self.agent.gateway_gone()
        self._end()

    def schemas(self) -> list[fx.OpenSchema]:
        """What a new gateway must be told."""
        running = [job for job in self.jobs.values() if job.status == "running"]
        return [fx.OpenSchema(job.name, job.number, job.layout.tensors) for job in running]

    # ---- workers -------------------------------------------------------------------------------------------------

    def worker_ready(self, event: m.WorkerReady, now: float) -> None:
        """A forked worker runs."""
        self._begin(now)
        self.agent.worker_ready(event)
        self._end()

    def task_done(self, worker: int, event: m.TaskDone, now: float) -> None:
        """A task's output is sealed."""
        self._begin(now)
        self.agent.task_done(worker, event)
        self._end()

    def task_failed(self, worker: int, event: m.TaskFailed, now: float) -> None:
        """A worker could not do a task."""
        self._begin(now)
        self.agent.task_failed(worker, event)
        self._end()

    def task_dropped(self, worker: int, event: m.TaskDropped, now: float) -> None:
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
        for job in list(self.jobs.values()):
            job.tick()
        self.agent.tick()
        self._end()

    def next_timer(self) -> float | None:
        """When `tick` is due, or None: then nothing happens until the next event."""
        times = [job.next_timer() for job in self.jobs.values()] + [self.agent.next_timer()]
        return min((t for t in times if t is not None), default=None)

    def busy(self) -> bool:
        """Whether a round whose updates are all in is not committed yet."""
        rounds = (r for job in self.jobs.values() for r in (job.round, *job.saving) if r is not None)
        return any(r.phase in (Phase.AGGREGATING, Phase.SAVING) for r in rounds)

    def stop(self, now: float) -> None:
        """The node goes down: rounds that still collect lose what they have; their clients keep it and are told so."""
        self._begin(now)
        for job in self.jobs.values():
            if job.round is not None:
                for client in job.round.accepted:
                    text = "the node went down before the round was complete; submit again when it is up"
                    job.tell(client, m.RoundOver(job.name, job.round.number, text))
        self._end()
