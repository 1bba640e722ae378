"""A cluster on a virtual clock, with what things cost: the tests' simulated hosts, each step at its time.

`tests/sim/simulator.py` has the node's real decisions (engine, agent, coordinator, planner, allocator) and a fake of
all that does I/O, which it lets happen in random order.  Here each thing that happens waits for its turn at what does
it: the daemon takes its messages one by one, the gateway receives at the rate of ingest, a link carries one partial
after the other, a worker folds at its rate.  Nothing fails, and no time passes but the one that is reckoned.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from measure import ROOT

from lifl.core import events as ev
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.nodes import Node
from lifl.core.ids import Key
from lifl.core.planning.plan import Costs
from lifl.core.protocol import gateway as gm

sys.path.append(str(ROOT / "tests" / "sim"))
import sim_host  # type: ignore[import-not-found]
import simulator  # type: ignore[import-not-found]
from sim_jobs import JobPlan  # type: ignore[import-not-found]

PAGE_BYTES = 4096
NET_S = 0.0002
"""A message from a machine to another."""
DAEMON_S = 0.00005
"""Of a daemon's for one message, beside what its engine takes."""
CORES = 2


class Host(sim_host.Host):  # type: ignore[misc]
    """A machine of `CORES` cores."""

    def node(self) -> Node:
        return Node(self.number, self.gateway, float(CORES), self.arena_bytes, CORES)


class NoChance(random.Random):
    """In the place of what draws the simulator's faults."""

    def random(self) -> float:
        """Return the middle: no fault is so likely."""
        return 0.5


class Timed(simulator.Cluster):  # type: ignore[misc]
    """Runs one round; `completed_s` is when its model is sealed, `moved_bytes` what went between nodes.

    Clients are connected a second before the round's first update comes, and `arrival_s` lies between the first and
    the last.  `home_s` is the processor time that the decisions of the coordinating node really took.
    """

    def __init__(self, model_bytes: int, clients: int, hosts: int, costs: Costs, arrival_s: float) -> None:
        self.costs, self.model_bytes, self.arrival_s = costs, model_bytes, arrival_s
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.busy: set[tuple[Any, ...]] = set()
        self.order = itertools.count()
        self.events = 0
        self.home_s = 0.0
        self.moved_bytes = 0
        self.completed_s = 0.0
        self.received: dict[int, int] = {}
        self.touched: set[int] = set()
        self.admitted = 0
        simulator.Host = Host
        config = {
            "job": {"name": "j", "rounds": 1},
            "model": {"path": "/m"},
            "selection": {"clients_per_round": clients, "deadline_s": 86_000.0},
        }
        arena_bytes = (clients + 64) * 4 * (-(-model_bytes // PAGE_BYTES) * PAGE_BYTES)
        super().__init__(0, [JobPlan(config, model_bytes, clients)], arena_bytes, faults=0.0, hosts=hosts)
        self.rng = NoChance()
        self.numbers = {host.gateway: number for number, host in self.hosts.items()}
        spread = arrival_s / clients
        for place, client in enumerate(self.by_number[1].clients.values()):
            client.direct = False
            self.at(0.0, partial(self._join, client, list(self.hosts.values())[place % hosts]))
            client.pause_until = 1.0 + spread * place

    # ---- the clock --------------------------------------------------------------------------------------------------

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Do it then."""
        heapq.heappush(self.heap, (when_s, next(self.order), what))

    def serve(self, who: tuple[Any, ...], takes_s: float, what: Callable[[], None]) -> None:
        """Do one thing at a time, each lasting so long."""
        if who not in self.busy:
            self.busy.add(who)
            self.at(self.now + takes_s, partial(self._served, who, what))

    def _served(self, who: tuple[Any, ...], what: Callable[[], None]) -> None:
        self.busy.discard(who)
        what()

    def run_round(self, limit_s: float) -> bool:
        """Run to the job's end; return False when it takes longer than `limit_s` of real time."""
        begun = time.monotonic()
        while self.heap and not self.over:
            self.now, _, what = heapq.heappop(self.heap)
            self.touched = set()
            what()
            self.events += 1
            for host in list(self.hosts.values()) if len(self.hosts) < 3 else self._stirred():
                self._look(host)
            if self.events % 1000 == 0 and time.monotonic() - begun > limit_s:
                return False
            if not self.heap:
                self._tick()
        return bool(self.over)

    def _stirred(self) -> list[sim_host.Host]:
        return [self.hosts[number] for number in self.touched]

    def _tick(self) -> None:
        times = [t for host in self.hosts.values() if host.engine and (t := host.engine.next_timer()) is not None]
        if times:
            self.now = max(self.now, min(times))
            for host in self.hosts.values():
                self.handle(host, ev.Tick())
            for host in self.hosts.values():
                self._look(host)

    def check(self) -> None:
        """Do nothing: what it checks takes too long at this size."""

    # ---- who does what, and how long it takes ----------------------------------------------------------------------

    @property
    def job(self) -> Job:
        """The one job, as its coordinator has it."""
        found: Job = self.engine.jobs["j"]
        return found

    def handle(self, host: sim_host.Host, event: Any) -> None:
        """Hand in an event: the host may have something to do now."""
        self.touched.add(host.number)
        super().handle(host, event)

    def _effect(self, host: sim_host.Host, effect: Any) -> None:
        name = type(effect).__name__
        if name == "SendNode":
            self.touched.add(effect.node)
        if name == "SendWorker" and type(effect.message).__name__ == "Checkpoint":
            self.completed_s = self.now - 1.0
        if isinstance(effect, gm.TellClient | gm.ModelGranted):
            self._stir_waiting(effect.conn)
        super()._effect(host, effect)
        client = host.by_conn.get(effect.conn) if isinstance(effect, gm.TellClient) else None
        if client is not None and client.submitting is not None:
            self.at(max(self.now + NET_S, client.pause_until), partial(self._submit_from, client))

    def _join(self, client: Any, host: sim_host.Host) -> None:
        client.host, client.conn = host, self.new_conn()
        host.by_conn[client.conn] = client
        self.touched.add(host.number)
        host.to_daemon.append(gm.ClientJoined(client.conn, client.name, "j", None, client.conn))

    def _stir_waiting(self, conn: int) -> None:
        """Let a node that waits for a transfer's end have something to do."""
        if conn in self.gateways.waiting:
            self.touched.add(self.gateways.waiting[conn][0].number)

    def _submit_from(self, client: Any) -> None:
        if client.submitting is not None:
            _, gateway = client.submitting
            self.clients.submit(client)
            self.touched.update((client.host.number, self.numbers.get(gateway, client.host.number)))

    def _look(self, host: sim_host.Host) -> None:
        """Let every process that has something to do and is not at it begin."""
        number = host.number
        if host.to_daemon:
            self.serve((number, "daemon"), DAEMON_S, partial(self._decide, host, partial(self.gateways.say, host)))
        if host.fallback:
            self.serve((number, "fallback"), DAEMON_S, partial(self._decide, host, partial(self._fall_back, host)))
        if host.orders:
            self.serve((number, "orders"), NET_S, partial(self._decide, host, partial(self._obey, host)))
        if host.reports:
            self.serve((number, "reports"), DAEMON_S, partial(self._decide, self.home, partial(self._hear, host)))
        if host.receiving:
            key = next(iter(host.receiving))
            partial_ = host.receiving[key][0] < 0
            rate = self.costs.link_bytes_per_s if partial_ else self.costs.ingest_bytes_per_s
            self.serve((number, "in"), self.model_bytes / rate, partial(self._on, host, partial(self._in, host, key)))
        for reader in host.readers[:1]:
            sent = partial(self.gateways.sent, host, reader)
            self.serve((number, "model"), NET_S, partial(self._on, host, sent))
        for transfer in host.transfers[:1]:
            self.serve((number, "out"), NET_S, partial(self._carry, host, transfer))
        for worker in list(host.workers.values()):
            who = (number, "worker", worker.number)
            if not worker.ready:
                self.serve(who, self.costs.cold_s, partial(self._on, host, partial(self.workers.start, host, worker)))
            elif worker.control or worker.records or worker.file is not None:
                fold_s = 0.0 if worker.control else self.model_bytes / self.costs.fold_bytes_per_s
                takes_s = max(self.costs.warm_s, fold_s)
                self.serve(who, takes_s, partial(self._on, host, partial(self._at_work, host, worker)))
            if worker.out:
                said = partial(self.workers.say, host, worker)
                self.serve((*who, "out"), DAEMON_S, partial(self._decide, host, said))

    def _on(self, host: sim_host.Host, what: Callable[[], None]) -> None:
        self.touched.add(host.number)
        what()

    def _decide(self, host: sim_host.Host, what: Callable[[], None]) -> None:
        self.touched.add(host.number)
        before = time.thread_time()
        what()
        self.home_s += time.thread_time() - before if host is self.home else 0.0

    def _at_work(self, host: sim_host.Host, worker: Any) -> None:
        if worker.number in host.workers and (worker.control or worker.records or worker.file is not None):
            self.workers.work(host, worker)

    def _fall_back(self, host: sim_host.Host) -> None:
        self.handle(host, ev.Bounced(*host.fallback.popleft()))

    def _obey(self, host: sim_host.Host) -> None:
        self.handle(host, host.orders.popleft())

    def _hear(self, host: sim_host.Host) -> None:
        self.touched.add(host.number)
        self.handle(self.home, ev.FromNode(host.number, host.reports.popleft()))

    def _in(self, host: sim_host.Host, key: Key) -> None:
        if key in host.receiving:
            if host.receiving[key][0] < 0:
                self.moved_bytes += host.store.things[key].nbytes
            else:
                self.received[host.number] = self.received.get(host.number, 0) + 1
            self.gateways.received(host, key)

    def _carry(self, host: sim_host.Host, transfer: Any) -> None:
        self.touched.update((host.number, self.numbers[transfer.address]))
        if transfer in host.transfers:
            self.gateways.transfer(host, transfer)
