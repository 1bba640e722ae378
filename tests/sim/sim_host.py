"""One machine of the simulated cluster: its engine, and what the processes around that have and are about to say."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple

from sim_arena import SimStore
from sim_checks import Broken, must

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.coordinator.nodes import Node
from lifl.core.engine import Engine
from lifl.core.errors import LocalFault
from lifl.core.event_log import Recording
from lifl.core.ids import Key
from lifl.core.protocol.cluster import KNOWS
from lifl.core.protocol.journal import Stored

if TYPE_CHECKING:
    from sim_clients import SimClient
    from sim_workers import SimWorker

IDLE_TIMEOUT_S = 5.0
WAIT_QUEUE_MAX = 4
WORKERS_MAX = 4
CAPACITY = 4.0


class Reader(NamedTuple):
    """Somebody to whom a gateway sends a model; `stuck`: it reads no further, until its connection ends."""

    conn: int
    key: Key
    stuck: bool


class Host:
    """One machine: its arena survives the daemon's death, not its own."""

    def __init__(self, number: int, arena_bytes: int) -> None:
        self.number = number
        self.gateway = f"host{number}:1"
        self.arena_bytes = arena_bytes
        self.store = SimStore(arena_bytes, number)
        self.engine: Engine | None = None  # None: it is down
        self.due: float | None = None  # the engine's next timer
        self.is_new = True  # the engine has handled something, and nobody has looked at its books since
        self.handled = 0  # events, by all its engines
        self.workers: dict[int, SimWorker] = {}
        self.routes: dict[int, int] = {}
        self.fallback: deque[tuple[int, Key]] = deque()
        # the gateway
        self.to_daemon: deque[Any] = deque()
        self.frozen_until = 0.0
        self.ended: set[int] = set()  # connections that their clients have left, and the gateway has not noticed
        self.gateway_killed = False
        self.by_conn: dict[int, SimClient] = {}
        self.questions: dict[int, tuple[str, int]] = {}  # by connection: the job and round of what it waits for
        self.receiving: dict[Key, tuple[int, str]] = {}  # the connection, and whose it is (empty: another node's)
        self.readers: list[Reader] = []
        self.loans: Counter[Key] = Counter()  # models that clients have mapped, for as long as they like
        self.lent_before: set[Key] = set()  # those of them that an earlier life of the daemon has lent
        self.beat = 0  # what it has told its coordinator of them
        self.copied: dict[str, bytes] = {}  # by job: the model that it may serve from a copy
        self.transfers: list[Any] = []  # what it carries and fetches
        # the journal: its files survive the machine's memory, what is under way does not survive the process
        self.journal: dict[tuple[int, int], dict[int, tuple[Stored, Counter[str]]]] = {}
        self.to_journal: deque[Any] = deque()
        self.from_journal: deque[Any] = deque()
        self.places = 0
        # the control channel between agent and coordinator
        self.orders: deque[Any] = deque()
        self.reports: deque[Any] = deque()
        self.linked = False
        self.leader: Host | None = None  # the host that it is linked to
        self.term = 0  # of the coordinator that it was linked to last
        self.incarnation = 1
        self.asleep_until = 0.0  # until then all of it stands still; what comes waits in its `inbox`
        self.inbox: deque[Any] = deque()
        self.leaving = False
        self.buried = False  # this life counts as over, and the node has not heard so

    def node(self) -> Node:
        """Return the node as its coordinator sees it."""
        return Node(self.number, self.gateway, CAPACITY, self.arena_bytes, WORKERS_MAX, self.incarnation)

    def begin(self, coordinates: bool, now: float) -> None:
        """Start a daemon."""
        self.engine = Engine(self.store, self.node(), IDLE_TIMEOUT_S, WAIT_QUEUE_MAX, coordinates, now)
        self.due, self.is_new = self.engine.next_timer(), True

    def handle(self, event: Any, now: float) -> list[fx.Effect]:
        """Hand an event to the engine; return what is to be performed.  Raise as `Engine.handle`."""
        assert self.engine is not None
        self.is_new = True
        self.handled += 1
        effects = self.engine.handle(event, now)
        self.due = self.engine.next_timer()
        return effects

    def up(self) -> ev.NodeUp:
        """Return what the coordinator hears when the node connects."""
        node = self.node()
        sizes = (node.load.capacity, node.arena_bytes, node.workers_max)
        return ev.NodeUp(node.number, node.gateway, *sizes, node.incarnation, KNOWS)

    def stored(self) -> dict[int, tuple[tuple[int, tuple[Stored, ...]], ...]]:
        """Return what is in the journal, by job and epoch."""
        found: dict[int, list[tuple[int, tuple[Stored, ...]]]] = {}
        for (number, epoch), updates in self.journal.items():
            found.setdefault(number, []).append((epoch, tuple(each for each, _ in updates.values())))
        return {number: tuple(epochs) for number, epochs in found.items()}

    def validate(self) -> None:
        """Raise `Broken` when the books of the engine, or of the arena, are wrong; they change by its events alone."""
        if not self.is_new:
            return
        self.is_new = False
        problem = self.store.problems()
        must(not problem, "arena-bound", f"host {self.number}: {problem}")
        if self.engine is not None:
            try:
                self.engine.validate()
            except LocalFault as fault:
                raise Broken("books", f"host {self.number}: {fault}") from fault

    def check_replay(self) -> None:
        """Raise `Broken` unless the last events lead to the same effects once more, also by way of a file."""
        if self.engine is not None:
            try:
                Recording.unpack(self.engine.recording().pack()).replay()
            except LocalFault as fault:
                raise Broken("same-replay", f"host {self.number}: {fault}") from fault

    def stop(self) -> None:
        """End all processes; what they had on their way is lost."""
        self.engine = None
        self.linked = self.leaving = False
        self.asleep_until = 0.0
        queues = (
            self.inbox,
            self.to_daemon,
            self.fallback,
            self.orders,
            self.reports,
            self.to_journal,
            self.from_journal,
        )
        for queue in queues:
            queue.clear()
        self.workers.clear()
        self.routes.clear()
        self.end_gateway()

    def end_gateway(self) -> None:
        """End the gateway's process: direct clients have yet to notice."""
        for key, (_, title) in self.receiving.items():
            client = next((each for each in self.by_conn.values() if each.title == title), None)
            if client is not None and client.direct:  # (what was sealed is not in `receiving`)
                self.store.left_writing(key)
        for part in (
            self.to_daemon,
            self.receiving,
            self.readers,
            self.copied,
            self.transfers,
            self.by_conn,
            self.questions,
            self.ended,
        ):
            part.clear()
        self.frozen_until, self.gateway_killed = 0.0, False
