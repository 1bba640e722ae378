"""A node's whole life on a virtual clock: the real engine and allocator, a fake of everything that does I/O.

Each run is drawn from one seed: the order in which messages arrive, when workers, the gateway and the daemon die, when
clients come and go.  Tensors are replaced by what they would prove: an object's content is a count for each client
whose update is in it, the one-hot oracle.  A committed model in which any count is not exactly 1 is a bug.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from typing import Any

import msgspec

from lifl.core import effects as fx
from lifl.core import messages as m
from lifl.core.agent import DIRECT_GRACE_S
from lifl.core.config import parse_job
from lifl.core.engine import Engine
from lifl.core.ids import Key, Kind
from lifl.core.job import Job
from lifl.core.members import Member, unpack_members
from lifl.core.schema import Layout, TensorSpec
from lifl.shm.allocator import Allocator

LAYOUT = Layout((TensorSpec("w", "float32", (4096,)),))


class Thing:
    """An object of the arena: its content is who is in it, and how often."""

    def __init__(self, kind: Kind, job: int, epoch: int, offset: int, nbytes: int) -> None:
        self.kind, self.job, self.epoch, self.offset, self.nbytes = kind, job, epoch, offset, nbytes
        self.sealed = False
        self.content: Counter[str] = Counter()
        self.members: list[Member] = []


class SimStore:
    """core/memory.Store over the real allocator."""

    def __init__(self, nbytes: int) -> None:
        self.allocator = Allocator(0, nbytes)
        self.things: dict[Key, Thing] = {}
        self.generation = 0
        self.now = 0.0
        self.writers: list[tuple[float, int, int]] = []  # until, begin, end: where direct clients may still write

    @property
    def free_bytes(self) -> int:
        return self.allocator.free_bytes

    @property
    def used_bytes(self) -> int:
        return self.allocator.used_bytes

    def alloc(self, kind, job, epoch, data_bytes, meta_bytes=0, slab=None) -> Key:
        offset = self.allocator.alloc(data_bytes + meta_bytes, slab)
        self.generation += 1
        key = Key(self.generation, 1, 7)
        size = -(-(data_bytes + meta_bytes) // 4096) * 4096
        self.things[key] = Thing(kind, job, epoch, offset, size)
        for until, begin, end in self.writers:
            assert until <= self.now or end <= offset or offset + size <= begin, "a client still writes to this slot"
        return key

    def left_writing(self, key: Key) -> None:
        """Nobody waits for this object any more, but its direct client will only notice within the grace."""
        thing = self.things[key]
        self.writers = [writer for writer in self.writers if writer[0] > self.now]
        self.writers.append((self.now + DIRECT_GRACE_S, thing.offset, thing.offset + thing.nbytes))

    def free(self, key: Key) -> None:
        self.allocator.free(self.things.pop(key).offset)

    def sealed(self, key: Key) -> bool:
        return self.things[key].sealed

    def extent_bytes(self, key: Key) -> int:
        return self.things[key].nbytes

    def close_slab(self, slab) -> None:
        self.allocator.close_slab(slab)


class SimWorker:
    """What src/lifl/worker does, in counts."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready = False
        self.control: deque[Any] = deque()
        self.records: deque[tuple[int, Key]] = deque()
        self.out: deque[Any] = deque()
        self.tasks: dict[int, m.TaskStart] = {}
        self.expect: dict[int, int] = {}
        self.seen: dict[int, list[Key]] = defaultdict(list)


class SimClient:
    def __init__(self, name: str, conn: int) -> None:
        self.name, self.conn = name, conn
        self.direct = int(name[1:]) % 2 == 0
        self.holding: int | None = None
        self.joined = False
        self.submitting: int | None = None
        self.pause_until = 0.0
        self.fates: dict[int, str] = {}


class Cluster:
    """One simulated node with its clients.  `step` does one random thing; `check` asserts what must always hold."""

    def __init__(self, seed: int, config: dict[str, Any], clients: int, arena_bytes: int, faults: float) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.config = parse_job(config)
        self.faults = faults
        self.now = 0.0
        self.store = SimStore(arena_bytes)
        self.engine = self._engine()
        self.rows: dict[tuple[int, int], tuple[str, dict[str, Any]]] = {}
        self.job_row = ("running", "")
        self.workers: dict[int, SimWorker] = {}
        self.routes: dict[int, int] = {}
        self.to_daemon: deque[Any] = deque()  # the gateway's link
        self.fallback: deque[tuple[int, Key]] = deque()
        self.receiving: dict[Key, tuple[int, str]] = {}
        self.files: dict[str, Counter[str]] = {}
        self.conns = 0
        self.clients = {f"c{i}": SimClient(f"c{i}", 0) for i in range(clients)}
        self.by_conn: dict[int, SimClient] = {}
        self.acked: dict[tuple[int, int], set[str]] = defaultdict(set)  # (round, daemon's life) is not kept: by round
        self.commits: dict[int, Counter[str]] = {}
        self.history: list[str] = []
        self.resume_guard = 0
        self.engine.submit(1, self.config, LAYOUT, (), "/jobs/j", self.now)
        self._perform()

    def _engine(self) -> Engine:
        return Engine(self.store, workers_max=4, idle_timeout_s=5.0, wait_queue_max=4)

    @property
    def job(self) -> Job:
        return self.engine.jobs["j"]

    # ---- effects -------------------------------------------------------------------------------------------

    def _perform(self) -> None:
        for effect in self.engine.take_effects():
            match effect:
                case fx.Tell():
                    self._tell(effect.conn, msgspec.convert(effect.message, m.ToClient))
                case fx.Grant():
                    client = self.by_conn.get(effect.conn)
                    if client is None:
                        self.to_daemon.append(m.Aborted(effect.conn, effect.key.pack(), "gone"))
                    else:
                        thing = self.store.things[effect.key]
                        thing.members = unpack_members(effect.member)
                        self.receiving[effect.key] = (effect.conn, client.name)
                case fx.GrantModel():
                    self.to_daemon.append(m.ModelSent(effect.conn, effect.key.pack(), 1))
                case fx.ForkWorker():
                    self.workers[effect.worker] = SimWorker(effect.worker)
                case fx.SendWorker():
                    if effect.worker in self.workers:
                        self.workers[effect.worker].control.append(effect.message)
                case fx.Route():
                    if effect.worker is None:
                        self.routes.pop(effect.address, None)
                    else:
                        self.routes[effect.address] = effect.worker
                case fx.SendKeys():
                    for key in effect.keys:
                        self._send_record(effect.address, key)
                case fx.SaveRound():
                    self._save(effect)
                case fx.SaveJob():
                    self.job_row = (effect.status, effect.reason)
                case _:
                    pass

    def _save(self, effect: fx.SaveRound) -> None:
        if effect.status == "committed":
            committed = [r for (r, _), (s, _) in self.rows.items() if s == "committed"]
            assert effect.round not in committed, f"round {effect.round} committed twice"
            assert effect.round == max(committed, default=-1) + 1, "commits out of order"
            content = self.files[self.job.path_of(effect.round)]
            if effect.round:
                members = set(effect.fields["members"])
                assert content == Counter(dict.fromkeys(members, 1)), f"round {effect.round}: {content} vs {members}"
                self.commits[effect.round] = content
        if effect.status == "failed":  # what was accepted has expired, with a reason
            for client in self.clients.values():
                client.fates[effect.round] = "failed"
                if client.holding == effect.round:
                    client.holding = None
        self.rows[effect.round, effect.attempt] = (effect.status, effect.fields)

    def _send_record(self, address: int, key: Key) -> None:
        worker = self.workers.get(self.routes.get(address, -1))
        if worker is None:
            self.fallback.append((address, key))
        else:
            worker.records.append((address, key))

    def _tell(self, conn: int, message: Any) -> None:
        client = self.by_conn.get(conn)
        if client is None:
            return
        match message:
            case m.Selected():
                client.submitting = message.round
            case m.Accepted():
                client.fates.pop(message.round, None)
                client.holding = message.round
                client.submitting = None
            case m.Busy():
                client.submitting = message.round
                client.pause_until = self.now + message.retry_after_s
            case m.Committed() | m.RoundOver():
                fate = "counted" if isinstance(message, m.Committed) and message.counted else "over"
                client.fates[message.round] = fate
                if isinstance(message, m.Committed) and message.counted and message.round in self.commits:
                    assert self.commits[message.round][client.name] == 1, "told counted, but is not in the model"
                if client.holding == message.round:
                    client.holding = None
            case m.Refusal():
                client.submitting = None
            case _:
                pass

    # ---- random events ----------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One random event; False when nothing but time could move anything."""
        choices = self._choices()
        if self.rng.random() < self.faults:
            self._fault()
        elif choices:
            self.rng.choice(choices)()
        else:
            pauses = [c.pause_until for c in self.clients.values() if c.conn and c.submitting is not None]
            due = self.engine.next_timer()
            if due is None and not pauses:
                return False
            self.now = self.store.now = max(self.now, min([*pauses, *([] if due is None else [due])]))
            if due is not None and due <= self.now:
                self.engine.tick(self.now)
        self._perform()
        self.check()
        return True

    def _choices(self) -> list[Any]:
        choices: list[Any] = []
        if self.to_daemon:
            choices.append(self._gateway_message)
        if self.fallback:
            choices.append(self._fallback)
        for key in self.receiving:
            choices.append(lambda key=key: self._received(key))
        for client in self.clients.values():
            if not client.conn and self.job.status not in ("finished", "failed", "cancelled"):
                choices.append(lambda client=client: self._connect(client))
            elif client.submitting is not None and self.now >= client.pause_until:
                choices.append(lambda client=client: self._submit(client))
        for worker in list(self.workers.values()):
            if not worker.ready:
                choices.append(lambda worker=worker: self._ready(worker))
            elif worker.control or worker.records:
                choices.append(lambda worker=worker: self._work(worker))
            if worker.out:
                choices.append(lambda worker=worker: self._from_worker(worker))
        return choices

    def _gateway_message(self) -> None:
        message = self.to_daemon.popleft()
        handlers = {
            m.ClientJoined: self.engine.client_joined,
            m.ClientLeft: self.engine.client_left,
            m.Admit: self.engine.admit,
            m.Sealed: self.engine.sealed,
            m.Aborted: self.engine.aborted,
            m.ModelSent: self.engine.model_sent,
        }
        handlers[type(message)](message, self.now)

    def _fallback(self) -> None:
        address, key = self.fallback.popleft()
        self.engine.fallback(address, key, self.now)

    def _connect(self, client: SimClient) -> None:
        self.conns += 1
        client.conn = self.conns
        client.submitting = None
        self.by_conn[client.conn] = client
        self.to_daemon.append(m.ClientJoined(client.conn, client.name, "j", client.holding))

    def _submit(self, client: SimClient) -> None:
        assert client.submitting is not None
        self.to_daemon.append(m.Admit(client.conn, client.name, "j", client.submitting, 1.0, direct=client.direct))
        client.submitting = None

    def _received(self, key: Key) -> None:
        conn, name = self.receiving.pop(key)
        if self.rng.random() < 0.05:
            self.to_daemon.append(m.Aborted(conn, key.pack(), "bad content"))
            return
        thing = self.store.things[key]
        thing.sealed, thing.content = True, Counter([name])
        self.to_daemon.append(m.Sealed(conn, key.pack(), 1))

    def _ready(self, worker: SimWorker) -> None:
        worker.ready = True
        self.engine.worker_ready(m.WorkerReady(worker.number, 1000 + worker.number, 0), self.now)

    def _work(self, worker: SimWorker) -> None:
        if worker.control:
            message = worker.control.popleft()
            match message:
                case m.TaskStart():
                    worker.tasks[message.address] = message
                    worker.expect[message.address] = message.expect
                    worker.seen[message.address] = []
                    self._maybe_finish(worker, message.address)
                case m.Expect():
                    if message.address in worker.tasks:
                        worker.expect[message.address] = message.expect
                        self._maybe_finish(worker, message.address)
                case m.Drop():
                    worker.tasks.pop(message.address, None)
                    worker.out.append(m.TaskDropped(message.address, message.attempt))
                case m.Load():
                    self.store.things[Key.unpack(message.output)].sealed = True
                    worker.out.append(m.TaskDone(message.address, message.attempt, 0.0, 0, 0, 0.0, 0.0))
                case m.Checkpoint():
                    model = self.store.things[Key.unpack(message.model)]
                    assert model.sealed, "an unsealed model is checkpointed"
                    self.files[message.path] = Counter(model.content)
                    worker.out.append(m.TaskDone(message.address, message.attempt, 0.0, 0, 0, 0.0, 0.0))
                case m.Retire():
                    assert not worker.tasks
                    self._kill(worker)
            return
        address, key = worker.records.popleft()
        task = worker.tasks.get(address)
        if task is None or key in worker.seen[address]:
            return
        thing, output = self.store.things.get(key), self.store.things[Key.unpack(task.output)]
        wanted = Kind.UPDATE if task.role == "leaf" else Kind.PARTIAL
        if thing is None or (thing.job, thing.epoch, thing.kind) != (output.job, output.epoch, wanted):
            return
        assert thing.sealed, "a task was sent the key of an unsealed object"
        worker.seen[address].append(key)
        self._maybe_finish(worker, address)

    def _maybe_finish(self, worker: SimWorker, address: int) -> None:
        task = worker.tasks[address]
        seen = worker.seen[address]
        if len(seen) < worker.expect[address]:
            return
        assert len(seen) == worker.expect[address], "a task got more inputs than it expects"
        output = self.store.things[Key.unpack(task.output)]
        assert not output.sealed, "an object is sealed twice"
        for key in seen:
            output.content += self.store.things[key].content
            output.members += self.store.things[key].members
        output.sealed = True
        del worker.tasks[address]
        if self.rng.random() < self.faults:  # killed between the seal and the record
            self._kill(worker)
            return
        if task.parent:
            self._send_record(task.parent, Key.unpack(task.output))
        if self.rng.random() < self.faults:  # killed between the record and TaskDone
            self._kill(worker)
            return
        worker.out.append(m.TaskDone(address, task.attempt, 1.0, len(output.members), len(seen), 0.0, 0.0))

    def _from_worker(self, worker: SimWorker) -> None:
        message = worker.out.popleft()
        handler = self.engine.task_done if isinstance(message, m.TaskDone) else self.engine.task_dropped
        handler(worker.number, message, self.now)

    # ---- faults ---------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        kind = self.rng.random()
        if kind < 0.5 and self.workers:
            self._kill(self.rng.choice(list(self.workers.values())))
        elif kind < 0.8:
            here = [client for client in self.clients.values() if client.conn]
            if here:
                self._disconnect(self.rng.choice(here))
        elif kind < 0.9:
            self._kill_gateway()
        else:
            self._crash()

    def _kill(self, worker: SimWorker) -> None:
        """The process is gone; what it had sent on its link is still read before the link ends."""
        del self.workers[worker.number]
        for address, number in list(self.routes.items()):
            if number == worker.number:
                del self.routes[address]
        if worker.ready:
            for message in worker.out:
                handler = self.engine.task_done if isinstance(message, m.TaskDone) else self.engine.task_dropped
                handler(worker.number, message, self.now)
                self._perform()
        self.engine.worker_gone(worker.number, self.now)

    def _disconnect(self, client: SimClient) -> None:
        for key, (conn, _) in list(self.receiving.items()):
            if conn == client.conn:
                del self.receiving[key]
                writing = client.direct and self.rng.random() < 0.5  # the gateway has had enough of it
                if writing:
                    self.store.left_writing(key)
                self.to_daemon.append(m.Aborted(conn, key.pack(), "disconnected", writing))
        self.to_daemon.append(m.ClientLeft(client.conn))
        del self.by_conn[client.conn]
        client.conn, client.submitting = 0, None

    def _leave_writing(self) -> None:
        """The gateway is dead; direct clients have yet to notice."""
        for key, (_, name) in self.receiving.items():
            if self.clients[name].direct:  # (what was sealed is not in `receiving`)
                self.store.left_writing(key)
        self.receiving.clear()

    def _kill_gateway(self) -> None:
        self.to_daemon.clear()
        self._leave_writing()
        for client in self.clients.values():
            client.conn, client.submitting = 0, None
        self.by_conn.clear()
        self.engine.gateway_gone(self.now)

    def _crash(self) -> None:
        """kill -9 of the daemon, and the next one: all processes are gone, the arena and the rows stay."""
        held = {c.name: c.holding for c in self.clients.values() if c.holding is not None}
        self.workers.clear()
        self.routes.clear()
        self.fallback.clear()
        self.to_daemon.clear()
        self._leave_writing()
        self.by_conn.clear()
        for client in self.clients.values():
            client.conn, client.submitting = 0, None
        if self.job_row[0] != "running":
            return
        for key, thing in list(self.store.things.items()):
            unsealed_update = not thing.sealed and thing.kind is Kind.UPDATE
            if not unsealed_update and (not thing.sealed or thing.kind not in (Kind.UPDATE, Kind.PARTIAL)):
                self.store.free(key)
        live = [(thing.offset, thing.nbytes) for thing in self.store.things.values()]
        peak = self.store.allocator
        self.store.allocator = Allocator(peak.begin, peak.end)
        self.store.allocator.adopt(live)
        self.engine = self._engine()
        job = Job(1, self.config, LAYOUT, (), "/jobs/j", self.engine)
        committed = [r for (r, _), (status, _) in self.rows.items() if status == "committed"]
        job.committed = max(committed, default=-1)
        for (number, _), (status, fields) in self.rows.items():
            if status == "committed":
                job.counted[number] = frozenset(fields["members"])
        tried = [(a, s) for (r, a), (s, _) in self.rows.items() if r == job.committed + 1]
        if tried:
            attempt, status = max(tried)
            job.attempt = attempt + (status == "failed")
        sealed = {k: t for k, t in self.store.things.items() if t.sealed}
        orphans = [(k, t.kind, t.epoch, list(t.members)) for k, t in sealed.items()]
        here = {member.client for t in sealed.values() for member in t.members}
        for name, round_ in held.items():
            decided = self.clients[name].fates.get(round_)
            assert decided or round_ <= job.committed or name in here, f"{name}'s ACCEPTED update of {round_} is lost"
        self.engine.rest([key for key in self.store.things if key not in sealed], self.now)
        self.engine.resume(job, orphans, self.now)
        self._perform()

    # ---- what must always hold -----

    def check(self) -> None:
        assert self.store.used_bytes <= self.store.allocator.end
        job = self.engine.jobs.get("j")
        if job is None:
            return
        for client in self.clients.values():
            rounds = [r for r in (job.round, *job.saving) if r is not None and r.number == client.holding]
            if client.holding is not None and client.holding not in client.fates and rounds and job.status == "running":
                assert client.name in rounds[0].accepted, f"{client.name}'s ACCEPTED update is not in the ledger"

    def run(self, steps: int) -> None:
        """Steps through faults, then lets it come to its end without any, and checks what is left."""
        for _ in range(steps):
            if self.engine.jobs["j"].status in ("finished", "failed", "cancelled") or not self.step():
                break
        self.faults = 0.0
        for _ in range(200_000):
            if not self.step():
                break
        else:
            raise AssertionError("it never comes to rest")
        job = self.engine.jobs["j"]
        assert job.status in ("finished", "failed"), f"at rest but {job.status}: {job.round and job.round.phase}"
        assert not self.workers, "workers are left"
        assert not self.store.things, f"objects are left: {[(k, t.kind) for k, t in self.store.things.items()]}"
        assert not self.engine.agent.memory.job_used_bytes(1)
