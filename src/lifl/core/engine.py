"""The decisions of one node: events and the clock in, effects out.

The daemon feeds it what its sockets said and performs what it returns; tests and the simulator do the same on a
virtual clock.  Each public method is one event, handled whole; `take_effects` gives what it led to, in order.
"""

from __future__ import annotations

from collections import deque

import msgspec

from lifl.core import effects as fx
from lifl.core import messages as m
from lifl.core.config import JobConfig
from lifl.core.errors import ArenaFull, LocalFault, Refused
from lifl.core.ids import ADDRESSES_MAX, Key
from lifl.core.job import Job
from lifl.core.members import Member
from lifl.core.memory import Memory, Store
from lifl.core.pool import Pool
from lifl.core.round import Round
from lifl.core.schema import Layout
from lifl.core.tree import Task, TaskState

JOBS_MAX = 256
"""Jobs of one node that are not over."""
BUSY_RETRY_S = 1.0
OVER = ("finished", "failed", "cancelled")


class Waiting(msgspec.Struct, frozen=True):
    """An update that waits for room in the arena; its sender is slowed until then."""

    conn: int
    job: str
    round: int
    member: Member


class Engine:
    """All jobs of one node, its workers, and the account of its arena."""

    def __init__(self, store: Store, workers_max: int, idle_timeout_s: float, wait_queue_max: int) -> None:
        self.memory = Memory(store)
        self.pool = Pool(workers_max, idle_timeout_s)
        self.jobs: dict[str, Job] = {}
        self.wait_queue_max = wait_queue_max
        self.waiting: deque[Waiting] = deque()
        self.clients: dict[int, dict[str, str]] = {}  # by connection: the client's name in each job that it joined
        self._effects: list[fx.Effect] = []
        self._addresses = deque(range(1, ADDRESSES_MAX))
        self._tasks: dict[int, tuple[Job, Task]] = {}
        self._abandoned: dict[int, list[Key]] = {}  # by address: outputs that a worker may still write to
        self._inflight: dict[Key, tuple[Job, Round, str]] = {}
        self._now = 0.0

    # ---- what jobs need (job.Services) -------------------------------------------------------------------------------

    def emit(self, effect: fx.Effect) -> None:
        """Adds an effect to those of this event."""
        self._effects.append(effect)

    def take_effects(self) -> list[fx.Effect]:
        """The effects since the last call, in order."""
        taken, self._effects = self._effects, []
        return taken

    def open_address(self, job: Job, task: Task) -> int:
        """An address for the task; the one that has been free the longest.  Raises `ArenaFull` when none is."""
        if not self._addresses:
            raise ArenaFull(f"all {ADDRESSES_MAX - 1} addresses of this node are taken by open tasks")
        address = self._addresses.popleft()
        self._tasks[address] = (job, task)
        return address

    def close_address(self, address: int) -> None:
        """The address is free; records that still come to it find nothing."""
        if self._tasks.pop(address, None) is not None:
            self._addresses.append(address)

    def place(self, job: Job, task: Task, served: int) -> None:
        """Gives the task to a worker, which may have to be forked first."""
        worker, how = self.pool.place(task.address, (job.name, served))
        job.aggregation.placed(task, worker.number, how)
        if how == "cold":
            self.emit(fx.ForkWorker(worker.number))
        elif self.pool.running(worker.number):
            job.aggregation.started(task)

    def pid_of(self, worker: int) -> int:
        """The process of a worker that runs."""
        return self.pool.workers[worker].pid

    def abandon(self, job: Job, task: Task, outputs: list[Key]) -> None:
        """The task is not wanted any more: free its outputs as soon as no worker can write to them."""
        worker = self.pool.workers.get(task.worker) if task.worker is not None else None
        self.emit(fx.Route(task.address, None))
        if worker is not None and task.address in worker.tasks and task.attempt and self.pool.running(worker.number):
            self._abandoned[task.address] = outputs
            self.emit(fx.SendWorker(worker.number, m.Drop(task.address, task.attempt)))
            return
        if worker is not None:
            self.pool.release(worker.number, task.address, self._now)
        for key in outputs:
            self.memory.free(key)
        self.close_address(task.address)

    # ---- jobs --------------------------------------------------------------------------------------------------------

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
        need, total = job.bytes_min(), self.memory.total_bytes
        if need > total:
            raise Refused(
                "too-large",
                "model",
                f"a round of job {name!r} needs at least {need} bytes of the arena (model {layout.data_bytes} bytes, "
                f"fan-in {config.aggregation.fan_in}), the node has {total}; start the node with a larger arena "
                "(lifl up --arena-bytes) or lower selection.clients_per_round or aggregation.middle_fan_in",
            )
        self._begin(now)
        self.jobs[name] = job
        self.emit(fx.SaveJob(name, "running", ""))
        job.start()
        self._end()
        return job

    def resume(self, job: Job, now: float) -> None:
        """A job of an earlier daemon, with `committed`, `attempt`, `counted` and `orphans` filled in."""
        self._begin(now)
        self.jobs[job.name] = job
        for key, *_ in job.orphans:
            self.memory.adopt(key, job.number)
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

    # ---- clients -----------------------------------------------------------------------------------------------------

    def client_joined(self, event: m.ClientJoined, now: float) -> None:
        """A client wants to take part in a job."""
        self._begin(now)
        try:
            job = self.find(event.job)
        except Refused as refused:
            self._refuse(event.conn, refused, event.job, -1)
            return
        self.clients.setdefault(event.conn, {})[event.job] = event.client
        job.join(event.conn, event.client, event.holding, now)
        self._end()

    def client_left(self, event: m.ClientLeft, now: float) -> None:
        """A client takes part no longer, or its connection has ended."""
        self._begin(now)
        joined = self.clients.get(event.conn, {})
        for name in [event.job] if event.job else list(joined):
            client = joined.pop(name, None)
            if client is not None and name in self.jobs:
                self.jobs[name].leave(client, event.conn, now)
        if not joined:
            self.clients.pop(event.conn, None)
        left = (event.conn, event.job)
        self.waiting = deque(w for w in self.waiting if (w.conn, w.job if event.job else "") != left)
        self._end()

    def admit(self, event: m.Admit, now: float) -> None:
        """A client announces an update: grant a slot, make it wait for room, or answer."""
        self._begin(now)
        try:
            job = self.find(event.job)
            if not job.check_admit(event.client, event.round):
                self.emit(fx.Tell(event.conn, m.Accepted(event.job, event.round)))
                return
        except Refused as refused:
            self._refuse(event.conn, refused, event.job, event.round)
            return
        waiting = Waiting(event.conn, event.job, event.round, Member(event.client, event.weight, event.metrics))
        busy = m.Busy(event.job, event.round, BUSY_RETRY_S)
        uploading = job.round is not None and event.client in job.round.inflight
        if uploading or len(self.waiting) >= self.wait_queue_max:
            self.emit(fx.Tell(event.conn, busy))
        elif self.waiting or not self._grant(job, waiting):
            self.waiting.append(waiting)
        self._end()

    def _grant(self, job: Job, waiting: Waiting) -> bool:
        try:
            round_, key, packed = job.admit(waiting.member)
        except ArenaFull:
            return False
        self._inflight[key] = (job, round_, waiting.member.client)
        self.emit(fx.Grant(waiting.conn, key, packed))
        return True

    def _serve_waiting(self) -> None:
        """Grants those that wait for room, in their order, as far as the room goes."""
        while self.waiting:
            head = self.waiting[0]
            try:
                job = self.find(head.job)
                wanted = job.check_admit(head.member.client, head.round)
            except Refused as refused:
                self._refuse(head.conn, refused, head.job, head.round)
                self.waiting.popleft()
                continue
            if wanted and not self._grant(job, head):
                return
            if not wanted:
                self.emit(fx.Tell(head.conn, m.Accepted(head.job, head.round)))
            self.waiting.popleft()

    def _refuse(self, conn: int, refused: Refused, job: str, round_: int) -> None:
        self.emit(fx.Tell(conn, m.Refusal(refused.code, refused.field, refused.text, job, round_)))

    def sealed(self, event: m.Sealed, now: float) -> None:
        """The gateway has sealed an update."""
        self._begin(now)
        job, round_, client = self._landed(event.key)
        job.sealed(round_, client, event.received_bytes, event.copied_bytes)
        self._end()

    def aborted(self, event: m.Aborted, now: float) -> None:
        """An admitted update will not come."""
        self._begin(now)
        job, round_, client = self._landed(event.key)
        job.aborted(round_, client)
        self._end()

    def _landed(self, packed: bytes) -> tuple[Job, Round, str]:
        key = Key.unpack(packed)
        found = self._inflight.pop(key, None)
        if found is None:
            raise LocalFault(f"the gateway speaks of {key}, which is not in flight")
        return found

    def want_model(self, event: m.WantModel, now: float) -> None:
        """A client asks for the model that a round starts from."""
        self._begin(now)
        try:
            job = self.find(event.job)
            if job.model is None or job.model_round != event.round - 1:
                text = f"the model of round {event.round} is not here any more; wait for the next selection"
                raise Refused("round-over", "round", text)
        except Refused as refused:
            self._refuse(event.conn, refused, event.job, event.round)
            return
        job.pins[job.model] += 1
        self.emit(fx.GrantModel(event.conn, event.job, event.round, job.model))

    def model_sent(self, event: m.ModelSent, now: float) -> None:
        """The gateway is through with sending a model."""
        self._begin(now)
        key = Key.unpack(event.key)
        for job in self.jobs.values():
            if job.unpin(key):
                if job.round is not None:
                    job.round.receipt.sent_bytes += event.sent_bytes
                break
        self._end()

    def gateway_gone(self, now: float) -> None:
        """The gateway's process has ended: all connections with it, and what was in flight."""
        self._begin(now)
        self.waiting.clear()
        for conn, joined in list(self.clients.items()):
            for name, client in joined.items():
                if name in self.jobs:
                    self.jobs[name].leave(client, conn, now)
        self.clients.clear()
        for job, round_, client in list(self._inflight.values()):
            job.aborted(round_, client)
        self._inflight.clear()
        for job in self.jobs.values():
            job.drop_sending_pins()
        self._end()

    def schemas(self) -> list[fx.OpenSchema]:
        """What a new gateway must be told."""
        return [
            fx.OpenSchema(job.name, job.number, job.layout.tensors)
            for job in self.jobs.values()
            if job.status == "running"
        ]

    # ---- workers -----------------------------------------------------------------------------------------------------

    def worker_ready(self, event: m.WorkerReady, now: float) -> None:
        """A forked worker runs."""
        self._begin(now)
        if event.worker in self.pool.workers:
            for address in self.pool.ready(event.worker, event.pid, now):
                job, task = self._tasks[address]
                job.aggregation.started(task)
        self._end()

    def task_done(self, worker: int, event: m.TaskDone, now: float) -> None:
        """A task's output is sealed."""
        self._begin(now)
        self.pool.release(worker, event.address, now)
        if not self._let_go(event.address):
            job, task = self._tasks[event.address]
            if task.attempt == event.attempt and task.state is TaskState.RUNNING:
                job.aggregation.done(task, event)
        self._end()

    def task_failed(self, worker: int, event: m.TaskFailed, now: float) -> None:
        """A worker could not do a task."""
        self._begin(now)
        self.pool.release(worker, event.address, now)
        if not self._let_go(event.address):
            job, task = self._tasks[event.address]
            if task.attempt == event.attempt:
                job.aggregation.failed(task, event.text, event.retry)
        self._end()

    def task_dropped(self, worker: int, event: m.TaskDropped, now: float) -> None:
        """A worker has let go of a task."""
        self._begin(now)
        self.pool.release(worker, event.address, now)
        self._let_go(event.address)
        self._end()

    def _let_go(self, address: int) -> bool:
        """Frees the outputs of an abandoned task; whether it was one (or is long over)."""
        outputs = self._abandoned.pop(address, None)
        if outputs is not None:
            for key in outputs:
                self.memory.free(key)
            self.close_address(address)
            return True
        return address not in self._tasks

    def worker_gone(self, worker: int, now: float) -> None:
        """A worker's process has ended, for whatever reason."""
        self._begin(now)
        for address in self.pool.gone(worker):
            if self._let_go(address):
                continue
            job, task = self._tasks[address]
            job.aggregation.lost(task)
        self._end()

    def fallback(self, address: int, key: Key, now: float) -> None:
        """A record came to the daemon because its address had no route: pass it on, or keep it until its task runs."""
        self._begin(now)
        found = self._tasks.get(address)
        if found is None:
            return
        _, task = found
        if task.state is TaskState.RUNNING:
            self.emit(fx.SendKeys(address, task.attempt, (key,)))
        elif task.state in (TaskState.OPEN, TaskState.PLACING):
            task.bounced[key] = None

    def task_at(self, address: int) -> tuple[Job, Task] | None:
        """The task that has an address now."""
        return self._tasks.get(address)

    def stop(self, now: float) -> None:
        """The node goes down: rounds that still collect lose what they have; their clients keep it and are told so."""
        self._begin(now)
        for job in self.jobs.values():
            if job.round is not None:
                for client in job.round.accepted:
                    text = "the node went down before the round was complete; submit again when it is up"
                    job.tell(client, m.RoundOver(job.name, job.round.number, text))

    # ---- the clock ---------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """The clock has reached `next_timer`."""
        self._begin(now)
        for job in list(self.jobs.values()):
            job.tick(now)
        for worker in self.pool.expired(now):
            self.emit(fx.SendWorker(worker, m.Retire()))
        self._end()

    def next_timer(self) -> float | None:
        """When `tick` is due, or None: then nothing happens until the next event."""
        times = [job.next_timer() for job in self.jobs.values()] + [self.pool.next_timer()]
        return min((t for t in times if t is not None), default=None)

    def _begin(self, now: float) -> None:
        self._now = now
        for job in self.jobs.values():
            job.now = now

    def _end(self) -> None:
        for queued in list(self.jobs.values()):
            if queued.status == "queued":
                queued.start()
            elif queued.round is not None and queued.round.unfed:
                queued.aggregation.feed_waiting(queued.round)
        if self.waiting:
            self._serve_waiting()
