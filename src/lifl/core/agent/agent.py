"""The agent of a node: it owns the arena's account, the workers and the tasks, and does what the coordinator orders.

Its events come from the node's gateway, its workers and the clock; what it decides are effects for the node and reports
for the coordinator.

A direct client writes to its slot of the arena itself.  When the gateway (or the whole daemon) dies under it, nothing
can stop it but itself: it looks between pieces whether its connection still stands.  So the slot *rests* for
`DIRECT_GRACE_S` before its bytes may become somebody else's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from lifl.core import effects as fx
from lifl.core.agent.branch import Branch
from lifl.core.agent.job_replica import JobSite, Orphan, told
from lifl.core.agent.pool import Pool
from lifl.core.agent.quota import Memory, Store
from lifl.core.errors import ArenaFull, LocalFault
from lifl.core.fields import Message
from lifl.core.ids import ADDRESSES_MAX, Key, Kind, round_of
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.contribution import Contribution, pack_contribution

BUSY_RETRY_S = 1.0
CARRY_RETRY_S = 1.0
"""How long after a failed transfer between nodes it is tried again."""
DIRECT_GRACE_S = 5.0
"""How long a slot rests that a direct client may still write to: far longer than a piece takes it (milliseconds, see
`FILL_BYTES` in client/tensors.py), also on a busy machine.  A client that is stopped within a piece for longer than
this can still do harm."""

INVENTORY_BYTES_MAX = 4 * 1024 * 1024
"""The records of members in one Inventory: a frame of the control channel holds twice as much."""


class Waiting(msgspec.Struct, frozen=True):
    """A granted update that waits for room in the arena; its sender is slowed until then."""

    order: o.Grant


class Agent:
    """One node's share in all jobs."""

    def __init__(
        self,
        store: Store,
        workers_max: int,
        idle_timeout_s: float,
        wait_queue_max: int,
        emit: Callable[[fx.Effect], None],
        report: Callable[[o.Report], None],
    ) -> None:
        self.memory = Memory(store)
        self.pool = Pool(workers_max, idle_timeout_s)
        self.sites: dict[int, JobSite] = {}
        self.wait_queue_max = wait_queue_max
        self.waiting: deque[Waiting] = deque()
        self.orphans: dict[int, list[Orphan]] = {}
        self.emit = emit
        self.report = report
        self.now = 0.0
        self._addresses = deque(range(1, ADDRESSES_MAX))
        self._tasks: dict[int, tuple[JobSite, Task]] = {}
        self._abandoned: dict[int, list[Key]] = {}  # by address: outputs that a worker may still write to
        self._inflight: dict[Key, tuple[JobSite, Branch, o.Grant]] = {}
        self._arriving: dict[Key, tuple[JobSite, Branch, int]] = {}
        self._fetches: dict[Key, JobSite | None] = {}  # None: nobody wants it any more
        self._retry_at_s = math.inf
        self._resting: deque[tuple[float, Key]] = deque()  # when it ends, in order

    # ---- what jobs need (jobsite.Services) -----------------------------------------------------------------------

    def open_address(self, site: JobSite, task: Task) -> int:
        """An address for the task; the one that has been free the longest.  Raises `ArenaFull` when none is."""
        if not self._addresses:
            raise ArenaFull(f"all {ADDRESSES_MAX - 1} addresses of this node are taken by open tasks")
        address = self._addresses.popleft()
        self._tasks[address] = (site, task)
        return address

    def close_address(self, address: int) -> None:
        """The address is free; records that still come to it find nothing."""
        if self._tasks.pop(address, None) is not None:
            self._addresses.append(address)

    def place(self, site: JobSite, task: Task, served: int) -> None:
        """Gives the task to a worker, which may have to be forked first."""
        worker, how = self.pool.place(task.address, (site.name, served))
        site.aggregation.placed(task, worker.number, how)
        if worker.new:
            self.emit(fx.ForkWorker(self.pool.fork(worker)))
        elif self.pool.running(worker.number):
            site.aggregation.started(task)

    def pid_of(self, worker: int) -> int:
        """The process of a worker that runs."""
        return self.pool.workers[worker].pid

    def abandon(self, site: JobSite, task: Task, outputs: list[Key]) -> None:
        """The task is not wanted any more: free its outputs as soon as no worker can write to them."""
        worker = self.pool.workers.get(task.worker) if task.worker is not None else None
        self.emit(fx.Route(task.address, None))
        if worker is not None and task.address in worker.tasks and task.attempt and self.pool.running(worker.number):
            self._abandoned[task.address] = outputs
            self.emit(fx.SendWorker(worker.number, wm.Drop(task.address, task.attempt)))
            return
        if worker is not None:
            self.pool.release(worker.number, task.address, self.now)
        for key in outputs:
            self.memory.free(key)
        self.close_address(task.address)

    def follow(self, key: Key) -> None:
        """Has the gateway tell how far an update is; of what a client writes itself it knows nothing."""
        _, _, order = self._inflight[key]
        if not order.direct:
            self.emit(gm.FollowUpdate(order.conn, key.pack()))

    def abandon_fetch(self, key: Key) -> None:
        """A model that is being fetched is not wanted: free it when the gateway is through with it."""
        self._fetches[key] = None

    def forget(self) -> None:
        """Drops all jobs: the coordinator held this node dead, and has had done elsewhere what it was to do."""
        for number in list(self.sites):
            self.sites.pop(number).close()

    def rest(self, key: Key) -> None:
        """Frees an object that a direct client may still write to, once it has had the time to notice."""
        self.memory.rest(key)
        self._resting.append((self.now + DIRECT_GRACE_S, key))

    def task_at(self, address: int) -> tuple[JobSite, Task] | None:
        """The task that has an address now."""
        return self._tasks.get(address)

    # ---- orders --------------------------------------------------------------------------------------------------

    def obey(self, order: o.Order) -> None:
        """Does what the coordinator wants; what comes of it is reported."""
        match order:
            case o.OpenJob() if order.number in self.sites:
                pass  # the coordinator has begun anew, this node has not
            case o.OpenJob():
                site = JobSite(order, self)
                site.orphans = self.orphans.pop(order.number, [])
                for key, *_ in site.orphans:
                    self.memory.adopt(key, site.number)
                if not order.adopt:
                    site.free_orphans()
                self.sites[order.number] = site
                if order.path:
                    site.start()
                else:
                    self.emit(gm.JobSchema(site.name, site.number, site.layout.tensors))
            case o.CloseJob():
                self.free_orphans(order.number)
                closed = self.sites.pop(order.number, None)
                if closed is not None:
                    closed.close()
            case o.Grant():
                self._granted(order)
            case gm.TellClient():
                self.emit(order)
            case _:
                site_ = self.sites.get(order.number)
                if site_ is not None:  # else an earlier life of this node had it, as the coordinator will hear
                    self._obey_at(site_, order)

    @staticmethod
    def _obey_at(site: JobSite, order: o.Order) -> None:
        match order:
            case o.ModelAt():
                site.model_at(order)
            case o.ForgetBranch():
                site.forget_branch(order)
            case o.AwaitBranch():
                site.await_branch(order)
            case o.ExpectPartials():
                site.expect_partials(order)
            case o.OpenBranch():
                site.open_branch(order)
            case o.CloseBranch():
                site.close_branch(order)
            case o.DropBranch():
                site.drop_branches(order.epoch, order.branch)
            case o.SaveModel():
                site.save(order)
            case o.CommitBranch():
                site.commit_branches(order.epoch)

    def inventory(self) -> p.Inventory:
        """What this node has, for a coordinator that it is connected to (again).

        What is beyond `INVENTORY_BYTES_MAX` is left out: it counts as lost, and is asked for again.
        """
        held = []
        left = INVENTORY_BYTES_MAX
        for site in self.sites.values():
            for branch in site.branches.values():
                asked = [member for _, member in branch.inflight.values()]
                for order in (waiting.order for waiting in self.waiting):
                    if (order.number, order.epoch, order.branch) == (site.number, branch.epoch, branch.number):
                        asked.append(Contribution(order.client, order.weight, order.metrics))
                left -= sum(len(pack_contribution(member)) for member in (*asked, *branch.accepted.values()))
                at = (site.number, branch.epoch, branch.number)
                if left >= 0:
                    held.append(p.BranchHeld(*at, told(branch.accepted.values()), told(asked), branch.closed))
        return p.Inventory(tuple(self.sites), tuple(held), tuple(self.orphans))

    def free_orphans(self, number: int) -> None:
        """What an earlier life has left of a job is not wanted."""
        for key, *_ in self.orphans.pop(number, ()):
            self.memory.adopt(key, number)
            self.memory.free(key)

    def tree_lines(self, lines_max: int) -> list[dict[str, Any]]:
        """The tasks of all branches here, each with its job's number and its epoch; no more than so many."""
        lines: list[dict[str, Any]] = []
        for site in self.sites.values():
            for branch in site.branches.values():
                at = {"job": site.number, "epoch": branch.epoch}
                lines += [line | at for line in site.aggregation.lines(branch)]
        return lines[:lines_max]

    def _granted(self, order: o.Grant) -> None:
        if not self.waiting and self._admit(order):
            return
        if len(self.waiting) < self.wait_queue_max:
            self.waiting.append(Waiting(order))
        else:
            self._busy(order)

    def _busy(self, order: o.Grant) -> None:
        """Nothing was taken: the client asks again."""
        self._aborted(order)
        self._tell(order.conn, cm.Busy(self.sites[order.number].name, round_of(order.epoch), BUSY_RETRY_S))

    def _aborted(self, order: o.Grant) -> None:
        self.report(o.UpdateAborted(order.number, order.epoch, order.branch, order.client))

    def _admit(self, order: o.Grant) -> bool:
        site = self.sites.get(order.number)
        branch = site.branches.get((order.epoch, order.branch)) if site is not None else None
        if site is None or branch is None or branch.closed:
            self._aborted(order)
            return True
        try:
            key, packed = site.admit(branch, Contribution(order.client, order.weight, order.metrics))
        except ArenaFull:
            return False
        self._inflight[key] = (site, branch, order)
        self.emit(gm.Granted(order.conn, key.pack(), packed))
        if not self.pool.full:
            for worker in self.pool.prepare(branch.takers_unplaced):
                self.emit(fx.ForkWorker(worker))
        return True

    # ---- the gateway ---------------------------------------------------------------------------------------------

    def client_left(self, conn: int, job: str) -> None:
        """A connection (or its part in `job`) has ended: its updates wait for room no longer."""
        if not job:
            for site in self.sites.values():
                site.wanting.pop(conn, None)
        for waiting in list(self.waiting):
            order = waiting.order
            if order.conn == conn and (not job or self.sites[order.number].name == job):
                self.waiting.remove(waiting)
                self._aborted(order)

    def sealed(self, event: gm.Sealed) -> None:
        """The gateway has sealed an update, or another node's partial."""
        arriving = self._arriving.pop(Key.unpack(event.key), None)
        if arriving is not None:
            site, top, number = arriving
            key = Key.unpack(event.key)
            here = site.branches.get((top.epoch, 0)) is top
            if here and site.arrived(top, number, key, event.received_bytes):
                self._tell(event.conn, cm.Accepted(site.name, round_of(top.epoch)))
            else:
                self.memory.free(key)
                self._tell(event.conn, cm.Refusal("round-over", "epoch", "the round goes on without that partial"))
            return
        site, branch, order = self._landed(event.key)
        site.sealed(branch, order.client, event.received_bytes, event.copied_bytes)

    def aborted(self, event: gm.Aborted) -> None:
        """A granted update, or an offered partial, will not come."""
        arriving = self._arriving.pop(Key.unpack(event.key), None)
        if arriving is not None:
            arriving[1].arriving.discard(arriving[2])
            self.memory.free(Key.unpack(event.key))
            return
        site, branch, order = self._landed(event.key)
        site.aborted(branch, order.client, event.writing)

    def progress(self, event: gm.Progress) -> None:
        """A followed update is so far; it may have landed meanwhile."""
        found = self._inflight.get(Key.unpack(event.key))
        if found is not None:
            site, branch, _ = found
            site.aggregation.progress(branch, Key.unpack(event.key), event.received_bytes)

    def _landed(self, packed: bytes) -> tuple[JobSite, Branch, o.Grant]:
        key = Key.unpack(packed)
        found = self._inflight.pop(key, None)
        if found is None:
            raise LocalFault(f"the gateway speaks of {key}, which is not in flight")
        return found

    def want_model(self, event: gm.WantModel) -> None:
        """A client (or another node) asks for the model that a round starts from."""
        site = next((site for site in self.sites.values() if site.name == event.job), None)
        if site is None or not site.open or site.round != event.round - 1:
            text = f"the model of round {event.round} is not here any more; wait for the next selection"
            refusal = cm.Refusal("round-over", "round", text, event.job, event.round)
            self.emit(gm.TellClient(event.conn, cm.packed(refusal)))
            return
        site.wanting[event.conn] = event.round
        self._serve_models(site)

    def _serve_models(self, site: JobSite) -> None:
        model = site.model
        if model is None or not site.ready:
            return
        for conn, round_ in site.wanting.items():
            site.pins[model] += 1
            self.emit(gm.ModelGranted(conn, site.name, round_, model.pack()))
        site.wanting = {}

    # ---- other nodes ---------------------------------------------------------------------------------------------

    def offered(self, event: gm.Offered) -> None:
        """Another node's gateway has a partial for a top of this node."""
        site = self.sites.get(event.number)
        branch = site.branches.get((event.epoch, 0)) if site is not None else None
        if site is not None and branch is not None and event.branch in branch.arrived:
            self._tell(event.conn, cm.Accepted(site.name, round_of(event.epoch)))
        elif site is None or branch is None or event.branch not in branch.awaited:
            text = "no round of this node takes that partial"
            self._tell(event.conn, cm.Refusal("round-over", "epoch", text))
        elif event.branch in branch.arriving or event.data_bytes != site.acc_bytes:
            self._tell(event.conn, cm.Busy(site.name, round_of(event.epoch), BUSY_RETRY_S))
        else:
            try:
                key = self.memory.alloc(
                    Kind.PARTIAL, site.number, event.epoch, event.data_bytes, event.meta_bytes, (site.number, 0)
                )
            except ArenaFull:
                self._tell(event.conn, cm.Busy(site.name, round_of(event.epoch), BUSY_RETRY_S))
                return
            branch.arriving.add(event.branch)
            self._arriving[key] = (site, branch, event.branch)
            self.emit(gm.Granted(event.conn, key.pack(), b""))

    def _tell(self, conn: int, message: Message) -> None:
        self.emit(gm.TellClient(conn, cm.packed(message)))

    def carry_ended(self, event: gm.CarryEnded) -> None:
        """A partial is at the top's node, or must be brought again."""
        key = Key.unpack(event.key)
        for site in self.sites.values():
            for branch in site.branches.values():
                if branch.sealed and not branch.top and branch.tree.root.output == key:
                    branch.carried = not event.error
                    if event.error:
                        self._retry_at_s = self.now + CARRY_RETRY_S

    def fetch_ended(self, event: gm.FetchEnded) -> None:
        """A model is here, or could not be fetched."""
        key = Key.unpack(event.key)
        site = self._fetches.pop(key, None)
        if site is None:
            self.memory.free(key)
            return
        site.fetched(event.error)
        for branch in site.branches.values():
            if not branch.sealed:
                branch.cost.fetched_bytes += event.received_bytes
                break
        self._serve_models(site)
        if site.wants_model:
            self._retry_at_s = self.now + CARRY_RETRY_S

    def model_sent(self, event: gm.ModelSent) -> None:
        """The gateway is through with sending a model."""
        key = Key.unpack(event.key)
        for site in self.sites.values():
            if site.unpin(key):
                for branch in site.branches.values():
                    if not branch.sealed:
                        branch.cost.sent_bytes += event.sent_bytes
                break

    def gateway_gone(self) -> None:
        """The gateway's process has ended: what was in flight will not come."""
        for waiting in self.waiting:
            self._aborted(waiting.order)
        self.waiting.clear()
        for key, (site, branch, order) in list(self._inflight.items()):
            site.aborted(branch, order.client, writing=order.direct and not self.memory.sealed(key))
        self._inflight.clear()
        for key, (_, top, number) in self._arriving.items():
            top.arriving.discard(number)
            self.memory.free(key)
        self._arriving.clear()
        for key, fetcher in list(self._fetches.items()):
            del self._fetches[key]
            if fetcher is None:
                self.memory.free(key)
            else:
                fetcher.fetched("the gateway ended")
        self._retry_at_s = self.now
        for site in self.sites.values():
            site.drop_sending_pins()
            site.wanting = {}

    # ---- workers -------------------------------------------------------------------------------------------------

    def worker_ready(self, event: wm.WorkerReady) -> None:
        """A forked worker runs."""
        if event.worker in self.pool.workers:
            for address in self.pool.ready(event.worker, event.pid, self.now):
                site, task = self._tasks[address]
                site.aggregation.started(task)

    def task_done(self, worker: int, event: wm.TaskDone) -> None:
        """A task's output is sealed."""
        self.pool.release(worker, event.address, self.now)
        if not self._let_go(event.address):
            site, task = self._tasks[event.address]
            if task.attempt == event.attempt and task.state is TaskState.RUNNING:
                site.aggregation.done(task, event)

    def task_failed(self, worker: int, event: wm.TaskFailed) -> None:
        """A worker could not do a task."""
        self.pool.release(worker, event.address, self.now)
        if not self._let_go(event.address):
            site, task = self._tasks[event.address]
            if task.attempt == event.attempt:
                site.aggregation.failed(task, event.text, event.retry)

    def task_dropped(self, worker: int, event: wm.TaskDropped) -> None:
        """A worker has let go of a task."""
        self.pool.release(worker, event.address, self.now)
        self._let_go(event.address)

    def _let_go(self, address: int) -> bool:
        """Frees the outputs of an abandoned task; whether it was one (or is long over)."""
        outputs = self._abandoned.pop(address, None)
        if outputs is not None:
            for key in outputs:
                self.memory.free(key)
            self.close_address(address)
            return True
        return address not in self._tasks

    def worker_gone(self, worker: int) -> None:
        """A worker's process has ended, for whatever reason."""
        for address in self.pool.gone(worker):
            if self._let_go(address):
                continue
            site, task = self._tasks[address]
            site.aggregation.lost(task)

    def fallback(self, address: int, key: Key) -> None:
        """A record came to the daemon because its address had no route: pass it on, or keep it until its task runs."""
        found = self._tasks.get(address)
        if found is None:
            return
        _, task = found
        if task.state is TaskState.RUNNING:
            self.emit(fx.SendKeys(address, task.attempt, (key,)))
        elif task.state in (TaskState.OPEN, TaskState.PLACING):
            task.bounced[key] = None

    # ---- the clock -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """The clock has reached `next_timer`."""
        for worker in self.pool.expired(self.now):
            self.emit(fx.SendWorker(worker, wm.Retire()))
        while self._resting and self._resting[0][0] <= self.now:
            self.memory.free(self._resting.popleft()[1])
        if self.now >= self._retry_at_s:
            self._retry_at_s = math.inf
            for site in self.sites.values():
                for branch in site.branches.values():
                    if branch.sealed and not branch.top and not branch.carried:
                        site.carry(branch)

    def next_timer(self) -> float:
        """When `tick` is due; infinity: not before something happens."""
        return min(self.pool.next_timer(), self._retry_at_s, self._resting[0][0] if self._resting else math.inf)

    def settle(self) -> None:
        """After each event: whoever waits for room gets what there is."""
        for site in list(self.sites.values()):
            if not site.open:
                site.start()
            self._serve_models(site)
            if site.wants_model and site.fetching is None and self._retry_at_s == math.inf:
                site.fetch()
                if site.fetching is not None:
                    self._fetches[site.fetching] = site
            for branch in list(site.branches.values()):
                if branch.unfed:
                    site.aggregation.feed_waiting(branch)
                site.aggregation.follow(branch)
        while self.waiting and self._admit(self.waiting[0].order):
            self.waiting.popleft()
