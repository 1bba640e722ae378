"""The life of a node or a cluster on a virtual clock: real engines and allocators, a fake of everything that does I/O.

Each life is drawn from one seed: which jobs there are, the order in which messages arrive, when workers, gateways and
daemons die or stand still, when clients come and go.  Tensors are replaced by what they would prove: an object's
content is a count for each client whose update is in it, the one-hot oracle.  What must hold is in `sim_checks.py`.

Where the coordinator `moves`, one host has the lease at a time, and its row alone is taken; another may think that it
coordinates still, for a while, and have agents that think so, too.

A step does one of the things that could happen now; time passes when there is none, and at times while there is.  A
life has two parts: one with faults, then one without any in which all jobs must come to their end and leave nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sim_checks import must
from sim_clients import Clients, SimClient
from sim_faults import Faults
from sim_gateway import Gateways
from sim_host import Host
from sim_jobs import Disk, JobPlan, SimJob
from sim_journal import SimJournals
from sim_lives import Lives
from sim_returns import Returns
from sim_user import User
from sim_workers import SimWorker, Workers

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.coordinator.round import Round
from lifl.core.engine import Engine, hosted_bytes
from lifl.core.errors import Refused
from lifl.core.protocol import commands as o
from lifl.core.protocol import journal as jm
from lifl.core.protocol.gateway import GatewayLost

ALWAYS_VALIDATED = 100
"""Lives (by seed) in which all books are looked at after each step; in the others after every `VALIDATED_EVERY`."""
VALIDATED_EVERY = 8
REPLAYED_EVERY = 4
"""Of so many lives one is replayed at its end."""
LATER, SELDOM = 1000, 4
"""From the first seed on, which only long runs live, both are done so many times more seldom."""
QUIET_STEPS_MAX = 200_000
SUBMITS = 0.03
"""How likely the next job is submitted, in each step."""
TIME_PASSES, MOMENT_S = 0.015, (0.05, 1.5)
"""How likely a moment passes while there is something to do, and how long that is."""


def nothing_new(host: Host, effect: fx.SendNode) -> None:
    """Raise `Broken` when a coordinator gives a new branch to a node that it has drained."""
    coordinator = host.engine.coordinator if host.engine is not None else None
    node = coordinator.nodes.get(effect.node) if coordinator is not None else None
    order = effect.order
    is_new = isinstance(order, o.OpenBranch) and not order.adopt
    must(node is None or not node.drains or not is_new, "drained", f"host {effect.node} gets {order}")


class Cluster:
    """Simulated hosts with jobs and their clients; host 1 coordinates, if it `moves`: at first.

    With `drains` the user drains hosts, and takes that back.  With `stalls` whole hosts stand still for a while, and
    connections are half open: who has left one asks again over another, while the answer to the first is lost.  With
    `changes` the user pauses jobs and changes their config; with `returns` those that are over come back, too
    (`sim_returns.py`).  With `lends` direct clients map the models that they ask for, and keep them for as long as they
    like: in every second life as long as anything else can happen.  With `strict` no known fault is tolerated.
    """

    def __init__(
        self,
        seed: int,
        plans: Sequence[JobPlan],
        arena_bytes: int,
        faults: float,
        hosts: int = 1,
        strict: bool = False,
        moves: bool = False,
        drains: bool = False,
        stalls: bool = False,
        changes: bool = False,
        returns: bool = False,
        lends: bool = False,
    ) -> None:
        self.seed = seed
        self.strict = strict
        self.moves = moves
        self.drains = random.Random(f"drains {seed}") if drains else None
        self.stalls = random.Random(f"stalls {seed}") if stalls else None
        self.lends = lends
        self.keeps_loans = bool(seed % 2)
        self.term = 0
        self.rng = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self._looked_at = (-1, 0)
        self.validates_always = seed < ALWAYS_VALIDATED
        self.seldom = SELDOM if seed >= LATER else 1
        self._conns = 0
        self.hosts = {number: Host(number, arena_bytes) for number in range(1, hosts + 1)}
        self.home = self.hosts[1]
        self.by_number = {number: SimJob(number, plan) for number, plan in enumerate(plans, 1)}
        self.jobs = {job.name: job for job in self.by_number.values()}
        for job, plan in zip(self.jobs.values(), plans, strict=True):
            job.tells_kept = returns
            job.clients = {client.name: client for client in (SimClient(job, index) for index in range(plan.clients))}
        self.faults = Faults(self, faults)
        patient = all(job.config.selection.deadline_s > 10.0 for job in self.jobs.values())
        self.disk = Disk(self.jobs, calm=patient and not faults and not stalls)
        self.gateways, self.workers, self.journals = Gateways(self), Workers(self), SimJournals(self)
        self.clients, self.lives = Clients(self), Lives(self)
        self.user, self.returns = User(self, changes or returns), Returns(self, returns)
        self._acts = self._acting(changes)
        for host in self.hosts.values():
            host.begin(host is self.home and not moves, self.now)
        if moves:
            self.lives.elect(self.home)
        self.submit(self.by_number[1])
        for host in self.others():
            self.lives.link(host)

    @property
    def engine(self) -> Engine:
        """The coordinating engine."""
        assert self.home.engine is not None
        return self.home.engine

    @property
    def over(self) -> bool:
        """True when all jobs are."""
        return all(job.over for job in self.jobs.values())

    def asleep(self, host: Host) -> bool:
        """Return whether all of a host stands still."""
        return host.asleep_until > self.now

    @property
    def hears(self) -> bool:
        """True when the coordinator answers at once: it does not stand still, and nothing waits for it."""
        return not self.asleep(self.home) and not self.home.inbox

    def others(self) -> list[Host]:
        """Return the hosts that do not coordinate."""
        return [host for host in self.hosts.values() if host is not self.home]

    def rounds_of(self, job: SimJob) -> list[Round]:
        """Return the live rounds of a job."""
        found = self.engine.jobs.get(job.name)
        return found.rounds.live() if found is not None else []

    def new_conn(self) -> int:
        """Return a number for a new connection."""
        self._conns += 1
        return self._conns

    # ---- the driver and the performer of each node -----------------------------------------------------------------

    def handle(self, host: Host, event: Any) -> None:
        """Hand an event to a host's engine and perform what it leads to, as `node/driver.py` does."""
        engine = host.engine
        if engine is None:
            return
        if self.asleep(host):
            host.inbox.append(event)
            return
        if isinstance(event, GatewayLost):
            self.gateways.forget(host)
        effects = host.handle(event, self.now)
        while self._performed(host, effects) and engine.writing:
            effects = host.handle(ev.RowsWritten(), self.now)

    def _performed(self, host: Host, effects: list[fx.Effect]) -> bool:
        """Perform effects in order; return False when the daemon was killed meanwhile, or coordinates no longer."""
        engine, mortal = host.engine, host is self.home and effects
        until = self.rng.randrange(len(effects)) if mortal and self.faults.daemon_dies() else None
        for done, effect in enumerate(effects[:until]):
            if isinstance(effect, fx.ROWS):
                if self.moves and self._deposed(host, effect):
                    for rest in fx.without_decisions(effects[done:]):
                        self._effect(host, rest)
                    self.lives.demote(host)
                    return False
                if self.faults.row_fails():
                    until = 0
                    break
            self._effect(host, effect)
            if host.engine is not engine:
                return False
        if until is not None:
            self.lives.crash()
        return until is None

    def _deposed(self, host: Host, row: fx.Effect) -> bool:
        """Return whether the store answers that another node coordinates; the row may have come before that."""
        if host is not self.home:
            return True
        if not self.faults.deposed() or not self.lives.may_elect():
            return False
        if self.rng.random() < 0.5:  # it was written, and the answer was lost
            self._effect(host, row)
        self.lives.depose()
        return True

    def _effect(self, host: Host, effect: fx.Effect) -> None:
        match effect:
            case fx.SendNode():
                nothing_new(host, effect)
                other = self.hosts[effect.node]
                if other.linked and other.leader is host:
                    other.orders.append(effect.order)
            case fx.SendCoordinator():
                if host.linked:
                    host.reports.append(effect.report)
            case fx.ForkWorker():
                host.workers[effect.worker] = SimWorker(effect.worker)
            case fx.LookAtWorker() | fx.KillWorker():
                self.workers.effect(host, effect)
            case fx.LookAtChildren():
                host.gateway_killed = host.frozen_until > self.now
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
                    self.workers.send_record(host, effect.address, key)
            case fx.SaveRound():
                self.disk.save_round(effect, host.store)
            case fx.SaveJob():
                self.disk.save_job(effect)
            case fx.JobBroke():
                must(bool(self.by_number[effect.job].excuse), "books", effect.text)
            case fx.SaveEvaluation():
                self.disk.save_evaluation(effect)
            case fx.SaveConfig():
                self.disk.save_config(effect)
            case fx.SetAside():
                self.disk.set_aside(effect)
            case fx.KeepModels():
                self.disk.keep(effect)
            case fx.Publish():
                self.user.look_at(effect)
            case fx.SavePlan() | fx.TrimRounds():
                pass
            case jm.StoreUpdate() | jm.LoadUpdate() | jm.DropUpdates():
                self.journals.effect(host, effect)
            case _:
                self.gateways.effect(host, effect)

    # ---- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, job: SimJob) -> None:
        """Submit a job; where several nodes together cannot hold it, that may be refused."""
        job.row = None
        if not self.moves:
            self.disk.enters(job)
        try:
            self.handle(self.home, ev.JobSubmitted(job.facts))
        except Refused:
            if len(self.hosts) == 1:
                raise
            job.row, job.refused = None, True

    def _to_submit(self) -> SimJob | None:
        return next((job for job in self.jobs.values() if job.row is None and not job.refused), None)

    # ---- random events -----------------------------------------------------------------------------------------------

    def _acting(self, changes: bool) -> list[Callable[[], bool]]:
        """Return what may happen in each step of this life before anything else, if it is drawn."""
        may = {
            self.faults.drain: self.drains is not None,
            self.faults.stall: self.stalls is not None,
            self.returns.act: self.returns.acts,
            self.user.act: changes or self.returns.acts,
            self.faults.strike: True,
        }
        return [act for act, does in may.items() if does]

    def step(self) -> bool:
        """Do one thing that could happen now; return False when nothing could, and nothing will in time."""
        for act in self._acts:
            if act():
                break
        else:
            happens = self._choice()
            if happens is None:
                return False
            happens()
        self.check()
        return True

    def _choice(self) -> Callable[[], Any] | None:
        rng = self.rng
        if rng.random() < TIME_PASSES:
            return partial(self.pass_time, self.now + rng.uniform(*MOMENT_S))
        waits = self._to_submit() if self.hears else None
        if waits is not None and rng.random() < SUBMITS:
            return partial(self.submit, waits)
        choices: list[Callable[[], Any]] = []
        for host in self.hosts.values():
            if host.engine is not None and host.asleep_until <= self.now:
                self._choices(host, choices)
        if len(self.hosts) > 1:
            for host in self.others():
                choices += self._agent_choices(host)
        self.clients.choices(choices)
        if choices:
            return rng.choice(choices)
        if waits is not None:
            return partial(self.submit, waits)
        unlinked = next((host for host in self.others() if not host.linked or host.leader is not self.home), None)
        if unlinked is not None and self.hears and not self.asleep(unlinked):
            return partial(self.lives.settle, unlinked)
        due = self._next_time()
        if due is not None:
            return partial(self._wait, due)
        return next((partial(self.gateways.give_back, *each) for each in self.gateways.loans()), None)

    def _choices(self, host: Host, found: list[Callable[[], Any]]) -> None:
        """Add what could happen on a host that is up and does not stand still."""
        if host.inbox:
            found.append(lambda: self.handle(host, host.inbox.popleft()))
            return
        if host.fallback:
            found.append(lambda: self.handle(host, ev.Bounced(*host.fallback.popleft())))
        if host.orders:
            found.append(lambda: self.handle(host, host.orders.popleft()))
        if host.reports:
            found.append(lambda: self.handle(host.leader, ev.FromNode(host.number, host.reports.popleft())))
        if host.due is not None and host.due <= self.now:
            found.append(lambda: self.handle(host, ev.Tick()))
        self.gateways.choices(host, found)
        if self.lends and self.hears and host.leader is self.home and hosted_bytes(host.engine) != host.beat:
            found.append(partial(self._beat, host))
        if host.to_journal or host.from_journal:
            self.journals.choices(host, found)
        if host.workers:
            self.workers.choices(host, found)

    def _beat(self, host: Host) -> None:
        """Tell the coordinator what a node's clients have as loans, as a heartbeat does."""
        assert host.engine is not None
        load, host.beat = host.engine.agent.load, hosted_bytes(host.engine)
        told = (load.capacity, load.rate_at(self.now), load.execution_s)
        self.handle(self.home, ev.NodeLoadTold(host.number, *told, host.beat))

    def _agent_choices(self, host: Host) -> list[Callable[[], Any]]:
        found: list[Callable[[], Any]] = []
        if self.asleep(host) or host.inbox or not self.hears:
            return self._silent_choices(host)
        if host.engine is not None and host.engine.coordinator is not None:
            return [partial(self.lives.demote, host)] if self.rng.random() < 0.1 else []
        if host.linked and host.leader is not self.home and self.rng.random() < 0.3:
            found.append(partial(self.lives.cut, host))
        if host.leaving and host.engine is not None and not host.engine.busy():
            found.append(partial(self.lives.leaves, host))
        if not host.linked and self.rng.random() < 0.3:
            found.append(partial(self.lives.link, host))
        if not host.linked and not host.buried and self.rng.random() < 0.1:
            found.append(partial(self.lives.bury, host))
        return found

    def _silent_choices(self, host: Host) -> list[Callable[[], Any]]:
        """Return what becomes of a host that stands still, or whose coordinator does."""
        if self.moves and self.asleep(self.home):
            return [self.lives.depose] if self.rng.random() < 0.1 else []
        if not self.hears or not self.asleep(host) or self.rng.random() < 0.8:
            return []
        if host.linked:
            return [partial(self.lives.cut, host)]
        return [] if host.buried else [partial(self.lives.bury, host)]

    # ---- time --------------------------------------------------------------------------------------------------------

    def _next_time(self) -> float | None:
        """Return when something could happen that cannot now."""
        times = self.clients.wake_times()
        for host in self.hosts.values():
            if host.engine is not None:
                times.append(host.due or self.now)
            times += [host.frozen_until, host.asleep_until]
            times += [worker.frozen_until for worker in host.workers.values()]
        return min((due for due in times if due > self.now), default=None)

    def _wait(self, until: float) -> None:
        self.pass_time(until)
        self.tick()

    def pass_time(self, now: float) -> None:
        """Let time pass, and nothing happen."""
        self.now = now
        for host in self.hosts.values():
            host.store.now = now

    def tick(self) -> None:
        """Let each node do what is due."""
        for host in self.hosts.values():
            if not self.asleep(host):
                self.handle(host, ev.Tick())

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Look at what must hold after each step."""
        self.steps += 1
        if self.validates_always or self.steps % (VALIDATED_EVERY * self.seldom) == 0:
            for host in self.hosts.values():
                host.validate()
        stand = (self.home.number, self.home.handled)
        if stand == self._looked_at:
            return  # nothing has happened since to what is looked at here
        self._looked_at = stand
        self.returns.look_at_line()
        if len(self.hosts) > 1:
            return
        for job in self.jobs.values():
            found = self.engine.jobs.get(job.name)
            if found is None or found.status != "running":
                continue
            for client in job.clients.values():
                if client.accepted:
                    rounds = [r for r in found.rounds.live() if r.number in client.accepted]
                    lost = [r.number for r in rounds if client.name not in r.accepted]
                    must(not lost, "accepted-survives", f"{client.title}'s update of round {lost} is not in the ledger")

    def run(self, steps: int) -> None:
        """Step through faults, then let it come to its end without any, and look at what is left."""
        for _ in range(steps):
            if (self.over and not self.returns.more) or not self.step():
                break
        self.faults.quiet()
        for _ in range(QUIET_STEPS_MAX):
            if not self.step():
                break
        else:
            raise AssertionError("it never comes to rest")
        self._check_end()

    def _check_end(self) -> None:
        for job in self.jobs.values():
            phases = [round_.phase.value for round_ in self.rounds_of(job)]
            must(job.over, "begun-ends", f"at rest, job {job.name!r} is {job.row}, its rounds {phases}")
            left = self.disk.not_to_stay(job) if job.tells_kept else []
            must(not left, "kept", f"{left} of job {job.name!r} are there")
            for (number, _attempt), (status, fields) in job.rounds.items():
                if status == "committed" and fields["path"] not in self.disk.removed:
                    self.disk.look_at_file(job, number, fields["path"])
            for client in job.clients.values():
                told = job.row is None or (client.done and client.awaiting is None)
                must(told, "told", f"{client.title} waits for what becomes of round {client.awaiting}, or of its job")
        for host in self.hosts.values():
            self._check_left(host)
            if self.seed % (REPLAYED_EVERY * self.seldom) == 0:
                host.check_replay()

    def _check_left(self, host: Host) -> None:
        """Look at what is left on a host when all jobs are over."""
        host.validate()
        must(not host.questions, "told", f"the gateway of host {host.number} has no answer for {host.questions}")
        must(not host.workers, "no-workers", f"host {host.number} has {len(host.workers)}")
        left = {(self.by_number[thing.job].name, thing.kind.name) for thing in host.store.things.values()}
        of_cancelled = [name for name, _ in left if self.jobs[name].cancelled]
        must(not of_cancelled, "cancel-frees", f"host {host.number} has {left}")
        must(not left, "empty-at-rest", f"host {host.number} has {left}")
        must(not host.journal, "empty-at-rest", f"host {host.number} has journals {list(host.journal)}")
        if host.engine is not None:
            used = {number: host.engine.agent.quota.job_used_bytes(number) for number in self.by_number}
            must(not any(used.values()), "empty-at-rest", f"the accounts of host {host.number} are {used}")
