"""The life of a node or a cluster on a virtual clock: real engines and allocators, a fake of everything that does I/O.

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
from lifl.core import events as ev
from lifl.core.agent.uploads import DIRECT_GRACE_S
from lifl.core.config.job import parse_job
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.nodes import Node
from lifl.core.engine import Engine
from lifl.core.event_log import Recording
from lifl.core.ids import Key, Kind, round_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.contribution import Contribution, unpack_contributions
from lifl.core.schema import Layout, TensorSpec
from lifl.shm.allocator import Allocator

LAYOUT = Layout((TensorSpec("w", "float32", (4 * 1024 * 1024,)),))
"""Large enough for the top to go along with the last updates."""
ALWAYS_VALIDATED = 100
"""Lives (by seed) in which all books are looked at after each step; in the others after every `VALIDATED_EVERY`."""
VALIDATED_EVERY = 5
REPLAYED_EVERY = 4
DISK_FULL = 0.1
"""Of the checkpoints so many cannot be written at their first, second, ... try."""
"""Of so many lives one is replayed at its end."""


class Thing:
    """An object of the arena: its content is who is in it, and how often."""

    def __init__(self, kind: Kind, job: int, epoch: int, offset: int, nbytes: int) -> None:
        self.kind, self.job, self.epoch, self.offset, self.nbytes = kind, job, epoch, offset, nbytes
        self.sealed = False
        self.content: Counter[str] = Counter()
        self.members: list[Contribution] = []


class SimStore:
    """core/object_store.ObjectStore over the real allocator."""

    def __init__(self, nbytes: int, node: int) -> None:
        self.node = node
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
        key = Key(self.generation, 1, self.node)
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

    def epoch_of(self, key: Key) -> int:
        return self.things[key].epoch

    def members(self, key: Key) -> list[Contribution]:
        return list(self.things[key].members)

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
        self.tasks: dict[int, wm.TaskStart] = {}
        self.expect: dict[int, int] = {}
        self.seen: dict[int, list[Key]] = defaultdict(list)


class SimClient:
    def __init__(self, name: str) -> None:
        self.name = name
        self.direct = int(name[1:]) % 2 == 0
        self.pause_until = 0.0
        self.host: Host | None = None
        self.conn = 0
        self.holding: int | None = None
        self.submitting: tuple[int, str] | None = None  # the round, and the gateway where to
        self.fates: dict[int, str] = {}
        self.accepted: set[int] = set()  # rounds of which it was told ACCEPTED, and nothing since
        self.awaiting: int | None = None  # the round whose update is announced or sent, and not answered


class Host:
    """One machine: its arena survives the daemon's death, not its own."""

    def __init__(self, number: int, arena_bytes: int) -> None:
        self.number = number
        self.gateway = f"host{number}:1"
        self.arena_bytes = arena_bytes
        self.store = SimStore(arena_bytes, number)
        self.engine: Engine | None = None  # None: it is down
        self.pending: list[fx.Effect] = []  # what the engine returned, not performed yet
        self.workers: dict[int, SimWorker] = {}
        self.routes: dict[int, int] = {}
        self.to_daemon: deque[Any] = deque()  # the gateway's link
        self.fallback: deque[tuple[int, Key]] = deque()
        self.receiving: dict[Key, tuple[int, str]] = {}
        self.transfers: list[tuple[str, Any]] = []  # what the gateway carries and fetches
        self.by_conn: dict[int, SimClient] = {}
        self.orders: deque[Any] = deque()  # from the coordinator, on the wire
        self.reports: deque[Any] = deque()  # to the coordinator, on the wire
        self.linked = False  # an agent: connected to the coordinator
        self.incarnation = 1
        self.leaving = False
        self.buried = False  # an agent: this life counts as over, and the node has not heard so

    def node(self) -> Node:
        return Node(self.number, self.gateway, 4.0, self.arena_bytes, 4, self.incarnation)

    def begin(self, coordinates: bool, now: float) -> None:
        self.engine = Engine(self.store, self.node(), 5.0, 4, coordinates, now)
        self.pending = []

    def up(self) -> ev.NodeUp:
        node = self.node()
        sizes = (node.load.capacity, node.arena_bytes, node.workers_max)
        return ev.NodeUp(node.number, node.gateway, *sizes, node.incarnation)

    def handle(self, event: Any, now: float) -> None:
        """Hand an event to the engine; what it wants done waits in `pending`."""
        self.pending += self.engine.handle(event, now)

    def check_replay(self) -> None:
        """Assert that the last events lead to the same effects once more, also by way of a file."""
        if self.engine is not None:
            Recording.unpack(self.engine.recording().pack()).replay()

    def stop(self) -> None:
        """All processes are gone."""
        self.engine = None
        self.linked = self.leaving = False
        for queue in (self.to_daemon, self.fallback, self.orders, self.reports):
            queue.clear()
        self.workers.clear()
        self.routes.clear()
        self.receiving.clear()
        self.transfers.clear()
        for client in self.by_conn.values():
            client.host, client.conn, client.submitting = None, 0, None
        self.by_conn.clear()


class Cluster:
    """Simulated hosts with their clients; host 1 coordinates.

    `step` does one random thing; `check` asserts what must always hold.
    """

    def __init__(
        self, seed: int, config: dict[str, Any], clients: int, arena_bytes: int, faults: float, hosts: int = 1
    ) -> None:
        self.seed = seed
        self.steps = 0
        self.rng = random.Random(seed)
        self.config = parse_job(config)
        self.faults = faults
        self.now = 0.0
        self.hosts = {number: Host(number, arena_bytes) for number in range(1, hosts + 1)}
        self.home = self.hosts[1]
        self.rows: dict[tuple[int, int], tuple[str, dict[str, Any]]] = {}
        self.job_row = ("running", "")
        self.files: dict[str, Counter[str]] = {}
        self.conns = 0
        self.announced = 0
        self.clients = {f"c{i}": SimClient(f"c{i}") for i in range(clients)}
        self.commits: dict[int, Counter[str]] = {}
        self.offers: dict[int, tuple[Counter[str], list[Contribution]]] = {}
        self.waiting_nodes: dict[int, tuple[Host, Key]] = {}
        for host in self.hosts.values():
            host.begin(host is self.home, self.now)
        self.facts = ev.JobFacts(1, self.config, LAYOUT.tensors, (), "/jobs/j")
        self.home.handle(ev.JobSubmitted(self.facts), self.now)
        for host in self.others():
            self._link(host)
        self._perform()

    @property
    def engine(self) -> Engine:
        assert self.home.engine is not None
        return self.home.engine

    @property
    def job(self) -> Job:
        return self.engine.jobs["j"]

    @property
    def over(self) -> bool:
        return self.job.status in ("finished", "failed", "cancelled")

    def others(self) -> list[Host]:
        return [host for host in self.hosts.values() if host is not self.home]

    # ---- effects -------------------------------------------------------------------------------------------

    def _perform(self) -> None:
        for host in self.hosts.values():
            while (effects := self._next_effects(host)) is not None:
                # A daemon may be killed between any two of them.
                dies = host is self.home and effects and self.rng.random() < self.faults / 2
                for effect in effects[: self.rng.randrange(len(effects))] if dies else effects:
                    self._effect(host, effect)
                if dies:
                    self._crash()

    def _next_effects(self, host: Host) -> list[fx.Effect] | None:
        """What is to be performed next; None: nothing."""
        if host.engine is None or not (host.pending or host.engine.writing):
            return None
        if not host.pending:
            host.handle(ev.RowsWritten(), self.now)
        effects, host.pending = host.pending, []
        return effects

    def _effect(self, host: Host, effect: fx.Effect) -> None:
        match effect:
            case gm.TellClient():
                self._tell(host, effect.conn, effect.message)
            case gm.Granted():
                key = Key.unpack(effect.key)
                if effect.conn in host.by_conn:
                    thing = host.store.things[key]
                    thing.members = unpack_contributions(effect.member)
                    host.receiving[key] = (effect.conn, thing.members[0].client)
                elif effect.conn in self.offers:
                    host.receiving[key] = (effect.conn, "")
                else:
                    host.to_daemon.append(gm.Aborted(effect.conn, effect.key, "gone"))
            case gm.FollowUpdate():
                waits = Key.unpack(effect.key) in host.receiving
                assert effect.conn in host.by_conn or not waits, "nobody sends that update"
                for received_bytes in range(1, 1 + self.rng.randrange(3)):
                    host.to_daemon.append(gm.Progress(effect.key, received_bytes))
            case gm.ModelGranted():
                if effect.conn < 0:
                    self._fetched(effect.conn, host.store.things[Key.unpack(effect.key)])
                host.to_daemon.append(gm.ModelSent(effect.conn, effect.key, 1))
            case gm.Carry():
                host.transfers.append(("carry", effect))
            case gm.Fetch():
                host.transfers.append(("fetch", effect))
            case fx.SendNode():
                other = self.hosts[effect.node]
                if other.linked:
                    other.orders.append(effect.order)
            case fx.SendCoordinator():
                if host.linked:
                    host.reports.append(effect.report)
            case gm.HangUp():
                for client in list(host.by_conn.values()):
                    if effect.conn == 0 or host.by_conn.get(effect.conn) is client:
                        self._disconnect(client)
            case fx.ForkWorker():
                host.workers[effect.worker] = SimWorker(effect.worker)
            case fx.SendWorker():
                if effect.worker in host.workers:
                    host.workers[effect.worker].control.append(effect.message)
            case fx.Route():
                if effect.worker is None:
                    host.routes.pop(effect.address, None)
                else:
                    host.routes[effect.address] = effect.worker
            case fx.SendKeys():
                for key in effect.keys:
                    self._send_record(host, effect.address, key)
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
            content = self.files[self.job.spec.path_of(effect.round)]
            if effect.round:
                members = set(effect.fields["members"])
                assert content == Counter(dict.fromkeys(members, 1)), f"round {effect.round}: {content} vs {members}"
                self.commits[effect.round] = content
        if effect.status == "failed":  # what was accepted has expired, with a reason
            for client in self.clients.values():
                client.fates[effect.round] = "failed"
                client.accepted.discard(effect.round)
                if client.holding == effect.round:
                    client.holding = None
        self.rows[effect.round, effect.attempt] = (effect.status, effect.fields)

    def _send_record(self, host: Host, address: int, key: Key) -> None:
        worker = host.workers.get(host.routes.get(address, -1))
        if worker is None:
            host.fallback.append((address, key))
        else:
            worker.records.append((address, key))

    def _tell(self, host: Host, conn: int, raw: msgspec.Raw) -> None:
        message = cm.unpacked(raw)
        client = host.by_conn.get(conn)
        if client is None:
            if conn < 0:
                self._tell_node(conn, message)
            return
        if not isinstance(message, cm.Selected | cm.JobOver) and message.round == client.awaiting:
            client.awaiting = None
        match message:
            case cm.Selected():
                client.submitting = (message.round, message.gateway)
            case cm.Accepted():
                client.fates.pop(message.round, None)
                client.holding = message.round
                rounds = self.job.rounds.live()
                if any(r.number == message.round and client.name in r.accepted for r in rounds):
                    client.accepted.add(message.round)  # else it has expired, which is the next that it is told
                client.submitting = None
            case cm.Busy():
                client.submitting = (message.round, host.gateway)
                client.pause_until = self.now + message.retry_after_s
            case cm.Committed() | cm.RoundOver():
                counted = isinstance(message, cm.Committed) and message.counted
                client.fates[message.round] = "counted" if counted else "over"
                client.accepted.discard(message.round)
                if counted and message.round in self.commits:
                    assert self.commits[message.round][client.name] == 1, "told counted, but is not in the model"
                if client.holding == message.round:
                    client.holding = None
            case cm.Refusal():
                client.submitting = (message.round, message.field) if message.code == "use-gateway" else None
            case _:
                pass

    # ---- random events ----------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One random event; False when nothing but time could move anything."""
        choices = [choice for host in self.hosts.values() if host.engine for choice in self._choices(host)]
        for host in self.others():
            if host.leaving and host.engine is not None and not host.engine.busy():
                choices.append(lambda host=host: self._leaves(host))
            if not host.linked and self.rng.random() < 0.3:
                choices.append(lambda host=host: self._link(host))
            if not host.linked and not host.buried and self.rng.random() < 0.1:
                choices.append(lambda host=host: self._bury(host))
        for client in self.clients.values():
            if client.host is None and not self.over:
                choices.append(lambda client=client: self._connect(client))
            elif client.submitting is not None and self.now >= client.pause_until:
                choices.append(lambda client=client: self._submit(client))
        if self.rng.random() < self.faults:
            self._fault()
        elif choices:
            self.rng.choice(choices)()
        elif any(not host.linked for host in self.others()):
            self._link(next(host for host in self.others() if not host.linked))
        else:
            engines = [host.engine for host in self.hosts.values() if host.engine]
            times = [t for e in engines if (t := e.next_timer()) is not None]
            times += [c.pause_until for c in self.clients.values() if c.host is not None and c.submitting is not None]
            if not times:
                return False
            self.now = max(self.now, min(times))
            for host in self.hosts.values():
                host.store.now = self.now
            for host in self.hosts.values():
                if host.engine is not None:
                    host.handle(ev.Tick(), self.now)
        self._perform()
        self.check()
        return True

    def _choices(self, host: Host) -> list[Any]:
        choices: list[Any] = []
        if host.to_daemon:
            choices.append(lambda: self._gateway_message(host))
        if host.fallback:
            choices.append(lambda: host.handle(ev.Bounced(*host.fallback.popleft()), self.now))
        if host.orders:
            choices.append(lambda: host.handle(host.orders.popleft(), self.now))
        if host.reports:
            choices.append(lambda: self.home.handle(ev.FromNode(host.number, host.reports.popleft()), self.now))
        for key in host.receiving:
            choices.append(lambda key=key: self._received(host, key))
        for transfer in host.transfers:
            choices.append(lambda transfer=transfer: self._transfer(host, transfer))
        for worker in list(host.workers.values()):
            if not worker.ready:
                choices.append(lambda worker=worker: self._ready(host, worker))
            elif worker.control or worker.records:
                choices.append(lambda worker=worker: self._work(host, worker))
            if worker.out:
                choices.append(lambda worker=worker: self._from_worker(host, worker))
        return choices

    def _gateway_message(self, host: Host) -> None:
        host.handle(host.to_daemon.popleft(), self.now)

    def _connect(self, client: SimClient) -> None:
        up = [host for host in self.hosts.values() if host.engine is not None]
        self.conns += 1
        client.host, client.conn, client.submitting = self.rng.choice(up), self.conns, None
        client.awaiting = None
        client.host.by_conn[client.conn] = client
        client.host.to_daemon.append(gm.ClientJoined(client.conn, client.name, "j", client.holding, client.conn))

    def _submit(self, client: SimClient) -> None:
        """Over its own connection, or (`gateway`) over a second one that is for this update alone."""
        number, gateway = client.submitting
        client.submitting, client.awaiting = None, number
        host, conn = client.host, client.conn
        other = next((h for h in self.hosts.values() if h.gateway == gateway and h.engine), host)
        if other is not host:
            self.conns += 1
            host, conn = other, self.conns
            host.by_conn[conn] = client
        host.to_daemon.append(gm.Admit(conn, client.name, "j", number, 1.0, direct=client.direct))

    def _received(self, host: Host, key: Key) -> None:
        conn, name = host.receiving.pop(key)
        if conn < 0:  # another node's partial: its content came with the transfer
            host.to_daemon.append(gm.Sealed(conn, key.pack(), 1))
            thing = host.store.things[key]
            source = self.offers.pop(conn)
            thing.sealed, thing.content, thing.members = True, Counter(source[0]), list(source[1])
            return
        if self.rng.random() < 0.05:
            self.clients[name].awaiting = None  # the gateway tells it
            host.to_daemon.append(gm.Aborted(conn, key.pack(), "bad content"))
            return
        thing = host.store.things[key]
        thing.sealed, thing.content = True, Counter([name])
        host.to_daemon.append(gm.Sealed(conn, key.pack(), 1))

    # ---- between gateways: conn < 0 is a transfer's ------------------------------------------------------------

    def _transfer(self, host: Host, transfer: tuple[str, Any]) -> None:
        host.transfers.remove(transfer)
        kind, effect = transfer
        key = Key.unpack(effect.key)
        other = next((h for h in self.hosts.values() if h.gateway == effect.address and h.engine), None)
        lost = other is None or self.rng.random() < 2 * self.faults
        if kind == "carry":
            thing = host.store.things.get(key)
            if lost or thing is None:
                host.to_daemon.append(gm.CarryEnded(effect.key, "lost", 0))
                return
            self.conns += 1
            conn = -self.conns
            self.offers[conn] = (Counter(thing.content), list(thing.members))
            self.waiting_nodes[conn] = (host, key)
            size = len(thing.members) * 1024
            other.to_daemon.append(
                gm.Offered(conn, 1, effect.epoch, effect.branch, len(thing.members), LAYOUT.accumulator_bytes, size)
            )
        elif lost:
            host.to_daemon.append(gm.FetchEnded(effect.key, "lost", 0))
        else:
            self.conns += 1
            self.waiting_nodes[-self.conns] = (host, key)
            other.to_daemon.append(gm.WantModel(-self.conns, "j", effect.round))

    def _tell_node(self, conn: int, message: Any) -> None:
        host, key = self.waiting_nodes.pop(conn, (None, None))
        self.offers.pop(conn, None)
        if host is None or host.engine is None or key not in host.store.things:
            return
        thing = host.store.things[key]
        error = "" if isinstance(message, cm.Accepted) else "refused"
        if thing.kind is Kind.PARTIAL:
            host.to_daemon.append(gm.CarryEnded(key.pack(), error, 1))
        else:
            host.to_daemon.append(gm.FetchEnded(key.pack(), "refused", 0))

    def _fetched(self, conn: int, model: Thing) -> None:
        host, key = self.waiting_nodes.pop(conn, (None, None))
        if host is not None and host.engine is not None and key in host.store.things:
            thing = host.store.things[key]
            thing.sealed, thing.content = True, Counter(model.content)
            host.to_daemon.append(gm.FetchEnded(key.pack(), "", 1))

    # ---- workers -------------------------------------------------------------------------------------------------

    def _ready(self, host: Host, worker: SimWorker) -> None:
        worker.ready = True
        ready = wm.WorkerReady(worker.number, 1000 + worker.number, 0)
        host.handle(ev.FromWorker(worker.number, ready), self.now)

    def _work(self, host: Host, worker: SimWorker) -> None:
        if worker.control:
            message = worker.control.popleft()
            match message:
                case wm.TaskStart():
                    worker.tasks[message.address] = message
                    worker.expect[message.address] = message.expect
                    worker.seen[message.address] = []
                    self._maybe_finish(host, worker, message.address)
                case wm.Expect():
                    if message.address in worker.tasks:
                        worker.expect[message.address] = message.expect
                        self._maybe_finish(host, worker, message.address)
                case wm.Arriving():
                    self._check_arriving(host, worker, message)
                case wm.Drop():
                    worker.tasks.pop(message.address, None)
                    worker.out.append(wm.TaskDropped(message.address, message.attempt))
                case wm.Load():
                    host.store.things[Key.unpack(message.output)].sealed = True
                    worker.out.append(wm.TaskDone(message.address, message.attempt, 0.0, 0, 0, 0.0, 0.0))
                case wm.Checkpoint():
                    model = host.store.things[Key.unpack(message.model)]
                    assert model.sealed, "an unsealed model is checkpointed"
                    if self.rng.random() < DISK_FULL:
                        worker.out.append(wm.TaskFailed(message.address, message.attempt, "no space", retry=True))
                        return
                    self.files[message.path] = Counter(model.content)
                    worker.out.append(wm.TaskDone(message.address, message.attempt, 0.0, 0, 0, 0.0, 0.0))
                case wm.Retire():
                    assert not worker.tasks
                    self._kill(host, worker)
            return
        address, key = worker.records.popleft()
        task = worker.tasks.get(address)
        if task is None or key in worker.seen[address]:
            return
        thing, output = host.store.things.get(key), host.store.things[Key.unpack(task.output)]
        wanted = {"leaf": (Kind.UPDATE,), "top": (Kind.UPDATE, Kind.PARTIAL)}.get(task.role, (Kind.PARTIAL,))
        if thing is None or (thing.job, thing.epoch) != (output.job, output.epoch) or thing.kind not in wanted:
            return
        assert thing.sealed, "a task was sent the key of an unsealed object"
        worker.seen[address].append(key)
        self._maybe_finish(host, worker, address)

    def _check_arriving(self, host: Host, worker: SimWorker, message: wm.Arriving) -> None:
        """Only what a top that runs can still take is announced to it; each may be gone by now, or be there."""
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
        task = worker.tasks[address]
        seen = worker.seen[address]
        if len(seen) < worker.expect[address]:
            return
        assert len(seen) == worker.expect[address], "a task got more inputs than it expects"
        output = host.store.things[Key.unpack(task.output)]
        assert not output.sealed, "an object is sealed twice"
        if any(key not in host.store.things for key in seen):
            dropped = [order.address for order in worker.control if isinstance(order, wm.Drop)]
            assert address in dropped, "an input was freed under a task that is wanted"
            return
        for key in seen:
            output.content += host.store.things[key].content
            output.members += host.store.things[key].members
        output.sealed = True
        del worker.tasks[address]
        if self.rng.random() < self.faults:  # killed between the seal and the record
            self._kill(host, worker)
            return
        if task.parent:
            self._send_record(host, task.parent, Key.unpack(task.output))
        if self.rng.random() < self.faults:  # killed between the record and TaskDone
            self._kill(host, worker)
            return
        worker.out.append(wm.TaskDone(address, task.attempt, 1.0, len(output.members), len(seen), 0.0, 0.0))

    def _from_worker(self, host: Host, worker: SimWorker) -> None:
        host.handle(ev.FromWorker(worker.number, worker.out.popleft()), self.now)

    # ---- faults ---------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        host = self.rng.choice(list(self.hosts.values()))
        if host.engine is None:
            self._link(host)
            return
        kind = self.rng.random()
        if kind < 0.5 and host.workers:
            self._kill(host, self.rng.choice(list(host.workers.values())))
        elif kind < 0.8:
            here = [client for client in self.clients.values() if client.host is host]
            if here:
                self._disconnect(self.rng.choice(here))
        elif kind < 0.9:
            self._kill_gateway(host)
        elif host is self.home:
            self._crash()
        elif host.linked and kind < 0.94:
            self._unlink(host)
        elif host.linked and kind < 0.96:
            host.leaving = True
            host.handle(ev.Leaving(), self.now)
        else:
            self._node_dies(host, keep=self.rng.random() < 0.6)

    def _kill(self, host: Host, worker: SimWorker) -> None:
        """The process is gone; what it had sent on its link is still read before the link ends."""
        del host.workers[worker.number]
        for address, number in list(host.routes.items()):
            if number == worker.number:
                del host.routes[address]
        engine = host.engine
        for message in worker.out if worker.ready else ():
            host.handle(ev.FromWorker(worker.number, message), self.now)
            self._perform()
            if host.engine is not engine:
                return  # the daemon was killed, too
        host.handle(ev.WorkerGone(worker.number), self.now)

    def _disconnect(self, client: SimClient) -> None:
        for host in self.hosts.values():
            mine = [conn for conn, other in host.by_conn.items() if other is client]
            for key, (conn, _) in list(host.receiving.items()):
                if conn in mine:
                    del host.receiving[key]
                    writing = client.direct and self.rng.random() < 0.5  # the gateway has had enough of it
                    if writing:
                        host.store.left_writing(key)
                    host.to_daemon.append(gm.Aborted(conn, key.pack(), "disconnected", writing))
            for conn in mine:
                host.to_daemon.append(gm.ClientLeft(conn))
                del host.by_conn[conn]
        client.host, client.conn, client.submitting = None, 0, None

    def _leave_writing(self, host: Host) -> None:
        """The gateway is dead; direct clients have yet to notice."""
        for key, (_, name) in host.receiving.items():
            if name and self.clients[name].direct:  # (what was sealed is not in `receiving`)
                host.store.left_writing(key)
        host.receiving.clear()

    def _kill_gateway(self, host: Host) -> None:
        host.to_daemon.clear()
        self._leave_writing(host)
        host.transfers.clear()
        for client in host.by_conn.values():  # who is elsewhere at home submits again there
            client.awaiting = None
        for client in self.clients.values():
            if client.host is host:
                client.host, client.conn, client.submitting = None, 0, None
        host.by_conn.clear()
        self._end_transfers(host)
        host.handle(gm.GatewayLost(), self.now)

    def _end_transfers(self, gone: Host) -> None:
        """Transfers with a gateway that is gone end; the other side hears of it."""
        for conn, (host, _) in list(self.waiting_nodes.items()):
            if host is gone:
                del self.waiting_nodes[conn]
            else:
                self._tell_node(conn, None)
        for host in self.hosts.values():
            for key, (conn, _) in list(host.receiving.items()):
                if conn < 0:
                    del host.receiving[key]
                    host.to_daemon.append(gm.Aborted(conn, key.pack(), "gone"))

    def _node_dies(self, host: Host, keep: bool = False) -> None:
        """The daemon is gone, and unless it is to `keep` its arena all of the machine.

        The coordinator may notice before the next life is there, or not.
        """
        if keep:
            self._leave_writing(host)
        self._disconnect_all(host)
        host.stop()
        self._end_transfers(host)
        if keep:
            self._clear(host)
        else:
            host.store = SimStore(host.arena_bytes, host.number)
        self.home.handle(ev.NodeSuspect(host.number, True), self.now)

    def _leaves(self, host: Host) -> None:
        """`lifl down` on an agent, to its end."""
        self._node_dies(host)
        self._bury(host)

    def _bury(self, host: Host) -> None:
        """The coordinator has heard nothing for too long."""
        host.buried = True
        self.home.handle(ev.NodeGone(host.number), self.now)

    def _unlink(self, host: Host) -> None:
        """The connection breaks: what was on its way on it is lost."""
        host.linked = False
        host.orders.clear()
        host.reports.clear()
        host.handle(ev.CoordinatorDown(), self.now)
        self.home.handle(ev.NodeSuspect(host.number, True), self.now)

    def _link(self, host: Host) -> None:
        """An agent connects, as the life that it was or as a new one."""
        if host.engine is None:
            host.begin(coordinates=False, now=self.now)
            host.incarnation += 1
            orphans, unsealed = self._left_in(host)
            host.handle(ev.ArenaAdopted({1: orphans} if orphans else {}, unsealed), self.now)
        elif host.buried:
            host.handle(ev.LifeEnded(), self.now)
            host.incarnation += 1
            self._perform()
        host.linked, host.buried = True, False
        self.home.handle(host.up(), self.now)
        host.handle(ev.CoordinatorUp(stranger=False), self.now)

    def _disconnect_all(self, host: Host) -> None:
        for client in self.clients.values():
            if client.host is host:
                self._disconnect(client)

    def _crash(self) -> None:
        """kill -9 of the coordinating daemon, and the next one: its arena and the rows stay."""
        self._leave_writing(self.home)
        self._disconnect_all(self.home)
        store = self.home.store
        self.home.stop()
        self._end_transfers(self.home)
        for host in self.others():
            if host.linked:
                host.linked = False
                host.orders.clear()
                host.reports.clear()
                host.handle(ev.CoordinatorDown(), self.now)
        for host in self.others():
            if host.engine is not None:
                while (effects := self._next_effects(host)) is not None:
                    for effect in effects:
                        self._effect(host, effect)
        self.home.begin(coordinates=True, now=self.now)
        self._clear(self.home)
        committed = [r for (r, _), (status, _) in self.rows.items() if status == "committed"]
        number = max(committed, default=-1)
        tried = {}
        for (r, attempt), (status, fields) in sorted(self.rows.items()):
            if r > number:
                tried[r] = (attempt, status, fields)
        counted = {r: frozenset(f["members"]) for (r, _), (status, f) in self.rows.items() if status == "committed"}
        history = ev.JobHistory(number, tried, counted)
        orphans, unsealed = self._left_in(self.home)
        status, reason = ("finished", "") if number >= self.config.job.rounds else self.job_row
        if status != "running":
            for key, *_ in orphans:
                store.free(key)
            self.home.handle(ev.JobRecalled(self.facts, history, status, reason), self.now)
        else:
            if len(self.hosts) == 1:
                self._check_accepted(number, orphans)
            self.home.handle(ev.JobResumed(self.facts, history, orphans), self.now)
        self.home.handle(ev.ArenaAdopted({}, unsealed), self.now)
        self._perform()

    def _check_accepted(self, committed: int, orphans: list[Any]) -> None:
        """What was ACCEPTED is committed, or is still there for its round."""
        here = {(member.client, round_of(epoch)) for _, _, epoch, members in orphans for member in members}
        for client in self.clients.values():
            for number in client.accepted:
                found = number <= committed or (client.name, number) in here
                assert found, f"{client.name}'s ACCEPTED update of round {number} is lost"

    @staticmethod
    def _clear(host: Host) -> None:
        """What a new daemon frees at once; the allocator is made anew for the rest."""
        store = host.store
        for key, thing in list(store.things.items()):
            unsealed_update = not thing.sealed and thing.kind is Kind.UPDATE
            if not unsealed_update and (not thing.sealed or thing.kind not in (Kind.UPDATE, Kind.PARTIAL)):
                store.free(key)
        live = [(thing.offset, thing.nbytes) for thing in store.things.values()]
        store.allocator = Allocator(store.allocator.begin, store.allocator.end)
        store.allocator.adopt(live)

    @staticmethod
    def _left_in(host: Host) -> tuple[tuple[Any, ...], tuple[Key, ...]]:
        things = host.store.things.items()
        orphans = tuple((key, t.kind, t.epoch, list(t.members)) for key, t in things if t.sealed)
        return orphans, tuple(key for key, t in things if not t.sealed)

    # ---- what must always hold -----

    def check(self) -> None:
        self.steps += 1
        if self.seed < ALWAYS_VALIDATED or self.steps % VALIDATED_EVERY == 0:
            for host in self.hosts.values():
                if host.engine is not None:
                    host.engine.validate()
        job = self.engine.jobs.get("j")
        for host in self.hosts.values():
            assert host.store.used_bytes <= host.store.allocator.end
        if job is None or job.status != "running" or len(self.hosts) > 1:
            return
        for client in self.clients.values():
            rounds = [r for r in job.rounds.live() if r.number in client.accepted]
            lost = [r.number for r in rounds if client.name not in r.accepted]
            assert not lost, f"{client.name}'s ACCEPTED update of round {lost} is not in the ledger"

    def run(self, steps: int) -> None:
        """Steps through faults, then lets it come to its end without any, and checks what is left."""
        for _ in range(steps):
            if self.over or not self.step():
                break
        self.faults = 0.0
        for _ in range(200_000):
            if not self.step():
                break
        else:
            raise AssertionError("it never comes to rest")
        job = self.job
        assert self.over, f"at rest but {job.status}: {job.round and job.round.phase}"
        for client in self.clients.values():
            waits = client.host is not None and client.awaiting is not None
            assert not waits, f"{client.name} was never told what became of its update of round {client.awaiting}"
        for host in self.hosts.values():
            assert not host.workers, "workers are left"
            left = [(key, thing.kind) for key, thing in host.store.things.items()]
            assert not left, f"objects are left on host {host.number}: {left}"
            if self.seed % REPLAYED_EVERY == 0:
                host.check_replay()
            assert host.engine is None or not host.engine.agent.quota.job_used_bytes(1)
