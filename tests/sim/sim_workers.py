"""The aggregators of the simulator: what src/lifl/worker does, in counts."""

from __future__ import annotations

from collections import defaultdict, deque
from functools import partial
from typing import TYPE_CHECKING, Any

from sim_checks import must
from sim_returns import evaluated

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.ids import Key, Kind
from lifl.core.protocol import worker as wm

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim_arena import Thing
    from sim_host import Host
    from simulator import Cluster

WANTED = {"leaf": (Kind.UPDATE,), "top": (Kind.UPDATE, Kind.PARTIAL), "middle": (Kind.PARTIAL,)}
"""What each role takes in a job; in a fold a leaf is a link, and takes the partial of the one before (`chain.py`)."""

SLOW_FILES, SLOW_S = 0.1, 0.5
"""Of so many files all else comes first."""


class SimWorker:
    """One process.  `file`: the load, checkpoint or evaluation that it is at; nothing else happens meanwhile."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready = False
        self.frozen_until = 0.0
        self.stopped = False  # by a signal, while it is frozen: the daemon sees that when it looks
        self.seen_stopped = self.killed = False  # by the daemon, which has yet to hear of it
        self.control: deque[Any] = deque()
        self.records: deque[tuple[int, Key]] = deque()
        self.out: deque[Any] = deque()
        self.tasks: dict[int, wm.TaskStart] = {}
        self.expect: dict[int, int] = {}
        self.seen: dict[int, list[Key]] = defaultdict(list)
        self.file: wm.Load | wm.Checkpoint | wm.Evaluate | None = None

    def fail(self, task: Any, text: str, retry: bool) -> None:
        """Give a task up, and say why."""
        self.tasks.pop(task.address, None)
        self.out.append(wm.TaskFailed(task.address, task.attempt, text, retry))


class Workers:
    """The workers of each host."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.wanted = WANTED
        self.announced = 0  # how often a top was told of updates on their way

    def choices(self, host: Host, found: list[Callable[[], Any]]) -> None:
        """Add what the workers of a host could do, or say, now."""
        for worker in host.workers.values():
            if worker.out and worker.ready:
                found.append(partial(self.say, host, worker))
            if worker.seen_stopped:
                found.append(partial(self.tell_stopped, host, worker))
            if worker.killed:
                found.append(partial(self.kill, host, worker))
                continue
            if worker.frozen_until > self._cluster.now:
                continue
            if not worker.ready:
                found.append(partial(self.start, host, worker))
            elif worker.control or worker.records or worker.file is not None:
                found.append(partial(self.work, host, worker))

    def start(self, host: Host, worker: SimWorker) -> None:
        """Say that the process runs."""
        worker.ready = True
        ready = wm.WorkerReady(worker.number, 1000 + worker.number, 0)
        self._cluster.handle(host, ev.FromWorker(worker.number, ready))

    def effect(self, host: Host, effect: fx.LookAtWorker | fx.KillWorker) -> None:
        """Look at a process, or end it; either is told later."""
        worker = host.workers.get(effect.worker)
        if worker is None:
            return
        if isinstance(effect, fx.KillWorker):
            worker.killed = True
        else:
            worker.seen_stopped = worker.stopped and worker.frozen_until > self._cluster.now

    def tell_stopped(self, host: Host, worker: SimWorker) -> None:
        """Tell the daemon that the process was stopped when it looked."""
        worker.seen_stopped = False
        self._cluster.handle(host, ev.WorkerSeen(worker.number, stopped=True))

    def say(self, host: Host, worker: SimWorker) -> None:
        """Say the next message to the daemon."""
        self._cluster.handle(host, ev.FromWorker(worker.number, worker.out.popleft()))

    def work(self, host: Host, worker: SimWorker) -> None:
        """Do one thing: end what is being read or written, obey, or take an input."""
        if worker.file is not None:
            self._end_file(host, worker)
        elif worker.control:
            self._obey(host, worker, worker.control.popleft())
        else:
            self._take(host, worker, *worker.records.popleft())

    def _obey(self, host: Host, worker: SimWorker, message: Any) -> None:
        match message:
            case wm.TaskStart():
                if self._cluster.faults.task_fails():
                    self._fail(worker, message, "the rule raised ValueError")
                    return
                worker.tasks[message.address] = message
                worker.expect[message.address] = message.expect
                worker.seen[message.address] = []
                self._maybe_finish(host, worker, message.address)
            case wm.Expect():
                task = worker.tasks.get(message.address)
                if task is not None and task.attempt == message.attempt:
                    worker.expect[message.address] = message.expect
                    self._maybe_finish(host, worker, message.address)
            case wm.Arriving():
                self._arriving(host, worker, message)
            case wm.Drop():
                task = worker.tasks.get(message.address)
                if task is not None and task.attempt == message.attempt:
                    del worker.tasks[message.address]
                worker.out.append(wm.TaskDropped(message.address, message.attempt))
            case wm.Load() | wm.Evaluate():
                self._begin_file(worker, message)
            case wm.Checkpoint():
                if self._readable(host, message) is None:
                    worker.fail(message, "an object is gone", retry=True)
                else:
                    self._begin_file(worker, message)
            case wm.Retire():
                assert not worker.tasks
                self.kill(host, worker)

    # ---- files -----------------------------------------------------------------------------------------------------

    def _begin_file(self, worker: SimWorker, message: wm.Load | wm.Checkpoint | wm.Evaluate) -> None:
        worker.file = message
        if self._cluster.rng.random() < SLOW_FILES:
            worker.frozen_until = self._cluster.now + SLOW_S

    def _readable(self, host: Host, message: wm.Checkpoint) -> Thing | None:
        """Return the model of a checkpoint; it may only be gone when the job is."""
        key, cluster = Key.unpack(message.model), self._cluster
        thing = host.store.things.get(key)
        if thing is None:
            tolerated = cluster.jobs[message.job].over and not cluster.strict
            must(tolerated, "freed-never-read", f"model {key} is written to {message.path}")
            return None
        must(thing.sealed, "sealed-first", f"model {key} is written to {message.path}")
        return thing

    def _end_file(self, host: Host, worker: SimWorker) -> None:
        message, cluster = worker.file, self._cluster
        worker.file = None
        assert message is not None
        if isinstance(message, wm.Evaluate):
            evaluated(cluster, host, worker, message)
            return
        job = cluster.jobs[message.job]
        if isinstance(message, wm.Load):
            if cluster.faults.file_fails():
                cluster.disk.damaged.add(message.path)
            if message.path in cluster.disk.removed:
                worker.fail(message, "No such file", retry=False)
                return
            if message.round is not None:
                cluster.disk.look_at_file(job, message.round, message.path)
            if message.path in cluster.disk.damaged:
                job.excuse = job.excuse or "its model could not be read"
                worker.fail(message, "Input/output error", retry=False)
                return
            host.store.things[Key.unpack(message.output)].sealed = True
        else:
            thing = self._readable(host, message)
            if thing is None:
                worker.fail(message, "an object is gone", retry=True)
                return
            if cluster.faults.file_fails():
                worker.fail(message, "No space left on device", retry=True)
                return
            cluster.disk.files[message.path] = thing.content.copy()
            cluster.disk.removed.discard(message.path)
            cluster.disk.damaged.discard(message.path)
        worker.out.append(wm.TaskDone(message.address, message.attempt, 0.0, 0, 0, 0.0, 0.0))

    # ---- aggregation -----------------------------------------------------------------------------------------------

    def _take(self, host: Host, worker: SimWorker, address: int, key: Key) -> None:
        task = worker.tasks.get(address)
        if task is None or key in worker.seen[address]:
            return
        thing, output = host.store.things.get(key), host.store.things[Key.unpack(task.output)]
        if thing is None or thing.job != output.job or thing.kind not in self.wanted[task.role]:
            return
        if thing.epoch != output.epoch:
            must(not self._is_input(host, address, key), "epoch-fence", f"the {task.role} at {address} is given {key}")
            return
        must(thing.sealed, "sealed-first", f"the {task.role} at {address} is given {key}")
        worker.seen[address].append(key)
        self._maybe_finish(host, worker, address)

    @staticmethod
    def _is_input(host: Host, address: int, key: Key) -> bool:
        """Return whether the agent counts the object among the inputs of the task at the address."""
        found = host.engine.agent.tasks.find(address) if host.engine is not None else None
        return found is not None and key in found.task.inputs

    def _arriving(self, host: Host, worker: SimWorker, message: wm.Arriving) -> None:
        """Look at what a running top is told of updates on their way; each may be gone by now, or be there."""
        task = worker.tasks.get(message.address)
        if task is None or task.attempt != message.attempt:
            return
        assert task.role == "top"
        output = host.store.things[Key.unpack(task.output)]
        for packed, weight, received_bytes in message.updates:
            thing = host.store.things.get(Key.unpack(packed))
            assert weight > 0.0 <= received_bytes
            assert thing is None or (thing.kind, thing.epoch) == (Kind.UPDATE, output.epoch)
        self.announced += 1

    def _maybe_finish(self, host: Host, worker: SimWorker, address: int) -> None:
        """Seal the output of a task when all its inputs are there."""
        task, seen, faults = worker.tasks[address], worker.seen[address], self._cluster.faults
        expect = worker.expect[address]
        if len(seen) < expect:
            return
        must(len(seen) == expect, "counted-once", f"the {task.role} at {address} got {len(seen)} inputs of {expect}")
        things = host.store.things
        output = things[Key.unpack(task.output)]
        assert not output.sealed, "an object is sealed twice"
        gone = [key for key in seen if key not in things]
        if gone:
            dropped = [order.address for order in worker.control if isinstance(order, wm.Drop)]
            must(address in dropped, "freed-never-read", f"the {task.role} at {address} reads {gone}")
            worker.fail(task, f"{gone} are gone", retry=True)
            return
        if faults.task_fails():
            self._fail(worker, task, "the rule raised ArithmeticError")
            return
        if task.role == "top":
            partials = [name for key in seen if things[key].kind is Kind.PARTIAL for name in things[key].content]
            twice = len(partials) - len(set(partials))
            must(not twice, "partial-once", f"the top at {address} has partials of {sorted(partials)}")
        for key in seen:
            output.content += things[key].content
            output.members += things[key].members
        output.sealed = True
        del worker.tasks[address]
        if faults.dies():  # between the seal and the record
            self.kill(host, worker)
            return
        if task.parent:
            self.send_record(host, task.parent, Key.unpack(task.output))
        if faults.dies_unheard():  # between the record and TaskDone
            self.kill(host, worker)
            return
        worker.out.append(wm.TaskDone(address, task.attempt, 1.0, len(output.members), len(seen), 0.0, 0.0))

    def _fail(self, worker: SimWorker, task: wm.TaskStart, text: str) -> None:
        retry = self._cluster.rng.random() < 0.7
        job = self._cluster.jobs[task.job]
        job.excuse = job.excuse or ("" if retry else text)
        worker.fail(task, text, retry)

    @staticmethod
    def send_record(host: Host, address: int, key: Key) -> None:
        """Send a key to an address: to the worker that it is routed to, or to the daemon."""
        worker = host.workers.get(host.routes.get(address, -1))
        if worker is None:
            host.fallback.append((address, key))
        else:
            worker.records.append((address, key))

    def kill(self, host: Host, worker: SimWorker) -> None:
        """End the process; what it had sent on its link is still read before the link ends."""
        del host.workers[worker.number]
        for address, number in list(host.routes.items()):
            if number == worker.number:
                del host.routes[address]
        engine = host.engine
        gone = [ev.FromWorker(worker.number, message) for message in worker.out if worker.ready]
        for event in (*gone, ev.WorkerGone(worker.number), ev.WorkerExited(worker.number, "signal SIGKILL")):
            self._cluster.handle(host, event)
            if host.engine is not engine:
                return  # the daemon was killed, too
