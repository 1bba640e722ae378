"""Folds of one's own in the simulator: one node, one session, its host and those who bring updates by tickets.

The engine, the allocator and the workers are those of the other lives.  A program opens folds, adds updates, cancels
some and has the others' results made; it loses its connection and comes back, those with a ticket leave, gateway and
daemon die.  Of each result that is told the model is looked at, by the one-hot oracle.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from sim_arena import SimStore
from sim_checks import must
from sim_faults import Faults
from sim_host import Host
from sim_workers import WANTED, SimWorker, Workers

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.config.job import fold_job
from lifl.core.coordinator.session import CANCELLED
from lifl.core.fields import Ticket
from lifl.core.ids import HOSTED_MIN, Key, Kind, epoch_of, round_of
from lifl.core.limits import HOST_GRACE_S
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import unpack_contributions
from lifl.core.schema import TensorSpec
from lifl.core.trust.ticket import credential_of

NAME, SECRET, EXPIRES_UNIX_S = "s", "secret", 1000
ARENA_BYTES = 256 << 20
ELEMENTS = (256, 1 << 20)
QUIET_STEPS_MAX = 20_000
FOLDS_MOST = 4
CLOSES = 0.15
"""How likely the host may close a fold, or cancel it, in each step."""
ANSWERS = (cm.Accepted, cm.Busy, cm.Refusal, cm.RoundOver)
"""What is said of an update."""


class FoldStore(SimStore):
    """An arena in which the models and states of an earlier life are of use: a session has them nowhere else."""

    KEPT = (Kind.UPDATE, Kind.PARTIAL, Kind.MODEL, Kind.STATE)


class FoldLife:
    """The life of a session; `chance` is that of a fault per step.  Half of them are of a node that is a cluster's."""

    strict = True
    excuse = ""

    def __init__(self, seed: int, chance: float) -> None:
        self.seed, self.now, self.steps, self.harsh = seed, 0.0, 0, chance > 0
        self.rng = random.Random(f"folds {seed}")
        self.host = Host(1, ARENA_BYTES)
        self.host.store = FoldStore(ARENA_BYTES, 1)
        self.hosts, self.jobs = {1: self.host}, {NAME: self}
        self.faults, self.workers = Faults(self, chance), Workers(self)  # type: ignore[arg-type]
        self.workers.wanted = WANTED | {"leaf": WANTED["top"]}
        self.coordinates = self.rng.random() < 0.5
        self.number = 1 if self.coordinates else HOSTED_MIN + 1
        self.expected = self.rng.choice([1, 2, 5, 9])
        elements = self.rng.choice(ELEMENTS)
        tensors = (TensorSpec("w", "float32", (elements,)),)
        self.facts = ev.JobFacts(
            self.number, fold_job(NAME, self.expected, "fedavg", {}, update_bytes=4 * elements), tensors, (), ""
        )
        self.conns = 0
        self.conn = 0  # the host's; 0: it is away
        self.comes_back = True
        self.fold = self.tries = self.committed = self.results = 0
        self.is_open = self.closing = self.ending = self.over = False
        self.pause_until = 0.0
        self.asked: dict[int, tuple[str, int]] = {}  # by connection: whose update of which fold waits for an answer
        self.tickets: dict[str, int] = {}  # by client: its connection
        self.brought: set[tuple[int, str]] = set()
        self.accepted: set[tuple[int, str]] = set()
        self.heard: set[str] = set()  # of the fold that is open: of whom its host was told
        self.host.begin(self.coordinates, self.now)
        self.handle(self.host, ev.JobSubmitted(self.facts))

    # ---- the node ------------------------------------------------------------------------------------------------

    def handle(self, host: Host, event: Any) -> None:
        """Hand an event to the engine, and perform what it leads to; the daemon may die meanwhile."""
        engine = host.engine
        assert engine is not None
        effects = host.handle(event, self.now)
        while self._performed(effects) and engine.writing:
            effects = host.handle(ev.RowsWritten(), self.now)

    def _performed(self, effects: list[fx.Effect]) -> bool:
        engine, until = self.host.engine, None
        if effects and self.steps and self.faults.daemon_dies():
            until = self.rng.randrange(len(effects))
        for effect in effects[:until]:
            self._effect(effect)
            if self.host.engine is not engine:
                return False
        if until is not None:
            self.crash()
        return until is None

    def _effect(self, effect: Any) -> None:
        host = self.host
        match effect:
            case fx.ForkWorker():
                host.workers[effect.worker] = SimWorker(effect.worker)
            case fx.LookAtWorker() | fx.KillWorker():
                self.workers.effect(host, effect)
            case fx.SendWorker() if effect.worker in host.workers:
                host.workers[effect.worker].control.append(effect.message)
            case fx.Route(address, None):
                host.routes.pop(address, None)
            case fx.Route(address, worker):
                host.routes[address] = worker
            case fx.SendKeys():
                for key in effect.keys:
                    self.workers.send_record(host, effect.address, key)
            case fx.JobBroke():
                must(False, "books", effect.text)
            case fx.DropJob():
                self.over = True
            case gm.TellClient(conn, raw):
                self._told(conn, cm.unpacked(raw))
            case gm.Granted(conn, packed, member):
                self._granted(conn, Key.unpack(packed), member)
            case gm.HangUp(conn):
                for at in [at for at in self._conns() if conn in (0, at)]:
                    self.leave(at)

    def crash(self) -> None:
        """Kill the daemon, and start the next one on what is in the arena."""
        host, store = self.host, self.host.store
        host.stop()
        self._all_gone()
        store.begin_again()
        host.begin(self.coordinates, self.now)
        things = store.things.items()
        found = tuple((key, t.kind, t.epoch, list(t.members)) for key, t in things if t.sealed)
        if self.over:  # nobody knows the job
            for key, *_ in found:
                store.free(key)
        unsealed = tuple(key for key, thing in things if not thing.sealed)
        self.handle(host, ev.ArenaAdopted({}, unsealed, {}))
        if not self.over:
            here = {(epoch, member.client) for _, kind, epoch, its in found for member in its if kind is not Kind.MODEL}
            lost = {each for each in self.accepted if each[0] == self.fold and round_of(each[0]) > self._last(found)}
            must(lost <= here, "accepted-survives", f"{sorted(lost - here)} are gone with lifld")
            self.handle(host, ev.JobResumed(self.facts, ev.JobHistory(-1, {}, {}), found))

    @staticmethod
    def _last(found: tuple[ev.Orphan, ...]) -> int:
        return max((round_of(epoch) for _, kind, epoch, _ in found if kind is Kind.MODEL), default=0)

    def kill_gateway(self) -> None:
        """End the gateway, and all connections with it."""
        self.host.end_gateway()
        self._all_gone()
        self.handle(self.host, gm.GatewayLost())

    def _all_gone(self) -> None:
        self.conn, self.is_open = 0, False
        self.asked.clear()
        self.tickets.clear()

    # ---- the gateway -----------------------------------------------------------------------------------------------

    def _conns(self) -> list[int]:
        return [conn for conn in (self.conn, *self.tickets.values()) if conn]

    def _granted(self, conn: int, key: Key, member: bytes) -> None:
        if conn not in self.asked:
            self.host.to_daemon.append(gm.Aborted(conn, key.pack(), "gone"))
            return
        self.host.store.things[key].members = unpack_contributions(member)
        client, fold = self.asked[conn]
        self.host.receiving[key] = conn, f"{client}@{fold}"

    def received(self, key: Key) -> None:
        """Have all of an update."""
        conn, title = self.host.receiving.pop(key)
        thing = self.host.store.things[key]
        thing.sealed, thing.content = True, Counter([title])
        self.handle(self.host, gm.Sealed(conn, key.pack(), 1))

    def leave(self, conn: int) -> None:
        """End a connection; what was on its way over it is given up."""
        for key in [key for key, (its, _) in self.host.receiving.items() if its == conn]:
            del self.host.receiving[key]
            self.host.to_daemon.append(gm.Aborted(conn, key.pack(), "disconnected"))
        self.host.to_daemon.append(gm.ClientLeft(conn))
        self.asked.pop(conn, None)
        if conn == self.conn:
            self.conn, self.is_open = 0, False
        self.tickets = {client: its for client, its in self.tickets.items() if its != conn}

    def _told(self, conn: int, message: Any) -> None:
        of_fold = isinstance(message, cm.Refusal) and message.round < 0
        if conn in self.asked and isinstance(message, ANSWERS) and not of_fold:
            client, fold = self.asked.pop(conn)
            if isinstance(message, cm.Accepted):
                self.accepted.add((fold, client))
            return
        if conn != self.conn:
            return
        match message:
            case fm.SessionReady(_, round_):
                self.committed = round_
            case fm.FoldOpen(_, fold) if fold == self.fold:
                self.is_open = True
            case fm.FoldAccepted(_, fold, client) if fold == self.fold:
                self.heard.add(client)
            case fm.FoldDone():
                self._done(message)
            case fm.FoldOver(_, fold, reason) if fold == self.fold:
                may = reason == CANCELLED or (self.harsh and "did not end" not in reason)  # no worker stands still here
                must(may, "begun-ends", f"fold {fold} is over: {reason}")
                self.fold, self.is_open, self.closing = 0, False, False
                self.asked.pop(conn, None)  # it is the answer to that, too
            case cm.Busy():
                self.pause_until, self.closing = self.now + message.retry_after_s, False
            case cm.JobOver():
                self.over = True
            case cm.Refusal():
                must(message.code in ("no-updates", "round-over"), "told", f"the host is told {message}")
                self.closing = False

    def _done(self, done: fm.FoldDone) -> None:
        """Look at a result: each update once, all that was accepted, nothing else, and the host knows of all."""
        if done.fold != self.fold:
            return  # told again
        what, its = f"fold {done.fold}", {client for fold, client in self.accepted if fold == done.fold}
        model = self.host.engine.agent.replicas[self.number].slot.model  # type: ignore[union-attr]
        content = self.host.store.things[model].content
        expected = Counter(f"{client}@{done.fold}" for client in done.clients)
        must(
            content == expected and set(expected.values()) == {1},
            "counted-once",
            f"{what} has {content}, not {expected}",
        )
        must(its <= {*done.clients}, "accepted-survives", f"{what} has {done.clients}, accepted were {sorted(its)}")
        strange = [client for client in done.clients if (done.fold, client) not in self.brought]
        must(not strange, "counted-once", f"{what} has {strange}, who have brought nothing")
        unheard = [client for client in done.clients if client.startswith("t") and client not in self.heard]
        must(not unheard or not self.is_open, "told", f"the host of {what} was not told of {unheard}")
        self.committed, self.results = round_of(done.fold), self.results + 1
        self.fold = self.tries = 0
        self.is_open = self.closing = False

    # ---- the program -------------------------------------------------------------------------------------------------

    def _new_conn(self) -> int:
        self.conns += 1
        return self.conns

    def _come(self) -> None:
        self.conn, self.is_open, self.closing, self.ending = self._new_conn(), False, False, False
        self.handle(self.host, ev.SessionHosted(self.conn, NAME, SECRET))

    def _ask(self, what: str) -> None:
        self.closing = what == "close"
        if what == "cancel":
            self.accepted = {each for each in self.accepted if each[0] != self.fold}
        self.handle(self.host, gm.FoldAsked(self.conn, NAME, self.fold, what, self.expected))

    def _open(self) -> None:
        if not self.fold:
            self.tries, self.heard = self.tries + 1, set()
            self.fold = epoch_of(self.committed + 1, self.tries)
        self._ask("open")

    def _add(self, client: str, conn: int) -> None:
        self.asked[conn] = client, self.fold
        self.brought.add((self.fold, client))
        ticket = {}
        if conn != self.conn:
            ticket["ticket"] = Ticket(credential_of(SECRET, NAME, self.fold, client, EXPIRES_UNIX_S), EXPIRES_UNIX_S)
        admit = gm.Admit(conn, client, NAME, round_of(self.fold), 1.0, {}, fold=self.fold, **ticket)
        self.handle(self.host, admit)

    def _add_by_ticket(self, client: str) -> None:
        self._add(client, self.tickets.setdefault(client, self._new_conn()))

    def _end(self) -> None:
        self.ending = True
        self.handle(self.host, gm.SessionEnded(self.conn, NAME))

    def _program(self, found: list[Callable[[], Any]]) -> None:
        """Add what the host, and those with tickets, could do now; in the end it makes a result, and ends."""
        quiet = self.faults.is_quiet
        if not self.conn:
            if self.comes_back:
                found.append(self._come)
            return
        if self.ending or self.now < self.pause_until:
            return
        if not self.is_open and not self.closing:
            may = self.fold or (self.results < FOLDS_MOST and not quiet)
            found.append(self._open if may else self._end)
            return
        if not self.is_open or self.closing:
            return
        some = any(fold == self.fold for fold, _ in self.accepted)
        if quiet:
            found.append(partial(self._ask, "close" if some else "cancel"))
            return
        if self.conn not in self.asked:
            found += [partial(self._add, f"h{self.rng.randrange(2 * self.expected + 4)}", self.conn)] * 3
        client = f"t{self.rng.randrange(3)}"
        if self.tickets.get(client) not in self.asked:
            found += [partial(self._add_by_ticket, client)] * 2
        if self.rng.random() < CLOSES:
            found.append(partial(self._ask, "cancel" if self.rng.random() < 0.3 else "close"))

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _strike(self) -> bool:
        """Have one thing go wrong, if that is drawn."""
        if self.rng.random() >= self.faults.chance:
            return False
        may: list[Callable[[], Any]] = [self.kill_gateway, self.crash, *(partial(self.leave, c) for c in self._conns())]
        may += [partial(self.workers.kill, self.host, worker) for worker in self.host.workers.values()]
        self.rng.choice(may)()
        self.comes_back = self.comes_back and self.rng.random() >= self.faults.chance
        return True

    def step(self) -> bool:
        """Do one thing; return False when nothing is left to do."""
        self.steps += 1
        if not self._strike():
            found: list[Callable[[], Any]] = []
            host = self.host
            if host.fallback:
                found.append(lambda: self.handle(host, ev.Bounced(*host.fallback.popleft())))
            if host.to_daemon:
                found.append(lambda: self.handle(host, host.to_daemon.popleft()))
            found += [partial(self.received, key) for key in host.receiving]
            if host.due is not None and host.due <= self.now:
                found.append(partial(self.handle, host, ev.Tick()))
            self.workers.choices(host, found)
            if not self.over:
                self._program(found)
            if found:
                self.rng.choice(found)()
            elif not self._wait():
                return False
        if self.steps % 4 == 0:
            self.host.validate()
        return True

    def _wait(self) -> bool:
        times = [self.host.due or 0.0, *([] if self.over else [self.pause_until])]
        due = min((each for each in times if each > self.now), default=None)
        if due is None or due > self.now + 10 * HOST_GRACE_S:
            return False
        self.now = self.host.store.now = due
        self.handle(self.host, ev.Tick())
        return True

    def run(self, steps: int) -> None:
        """Step through faults, then to the end without any; look at what is left."""
        for _ in range(steps):
            if not self.step():
                break
        self.faults.quiet()
        for _ in range(QUIET_STEPS_MAX):
            if not self.step():
                break
        else:
            must(False, "begun-ends", "it never comes to rest")
        self.host.validate()
        must(self.over, "begun-ends", f"at rest the session is open, at fold {self.fold}")
        must(not self.asked, "told", f"{self.asked} have no answer")
        must(not self.host.store.things, "empty-at-rest", f"{[*self.host.store.things.values()]} are left")
        must(not self.host.workers, "no-workers", f"{[*self.host.workers]} are left")
        self.host.check_replay()
