"""Jobs that come back, in lives that have that: what is over is resumed, or removed and submitted anew under its name.

These jobs have what others lack as well: evaluations by clients and by a user's function, models that go as soon as
they may, and priorities, in arenas that hold a job or two at a time, so that the others stand in line.  All is drawn
from a seed of its own, so that the other lives stay as they are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from sim_checks import must
from sim_clients import SimClient
from sim_jobs import JobPlan, SimJob

from lifl.core import events as ev
from lifl.core.agent.task_table import is_at
from lifl.core.config.edits import edited
from lifl.core.coordinator.job_queue import QUEUED
from lifl.core.engine import hosted_bytes
from lifl.core.errors import Refused
from lifl.core.protocol import worker as wm

if TYPE_CHECKING:
    from simulator import Cluster

ACTS = 0.01
"""The chance of one per step, while not all jobs are over; then the next one comes at once."""
RETURNS_MOST = 3
"""So often a life's jobs come back, all together."""
EVALUATED = 0.6
REMOVED, AGAIN = 0.4, 0.8
"""How many of those that come back are removed first, and how many of these are submitted again."""
ROOMY = 20
ROUNDS_MOST = 6


def with_more(seed: int, plans: Sequence[JobPlan]) -> list[JobPlan]:
    """Return the plans of a life's jobs with what those have that come back."""
    rng, made = random.Random(f"returns {seed}"), []
    for plan in plans:
        config: dict[str, Any] = {name: dict(section) for name, section in plan.config.items()}
        if rng.random() < EVALUATED:
            config["evaluation"] = {"every": rng.choice([1, 1, 2]), "deadline_s": rng.choice([5.0, 60.0])}
            config["evaluation"] |= rng.choice([{}, {"fraction": 0.5}, {"clients": 1}])
            if rng.random() < 0.4:
                config["evaluation"]["server"] = "judge:look"
        keep = {"last": rng.choice([1, 1, 2]), "every": rng.choice([0, 0, 2]), "best": rng.choice(["", "-loss"])}
        config["checkpoint"] = {"keep": keep}
        config["job"]["priority"] = rng.randint(1, 3)
        made.append(plan._replace(config=config))
    return made


def arena_for(seed: int, needs: Sequence[int]) -> int:
    """Return what the arena of each node of such a life has, where jobs need so much: often not for all at once."""
    rng = random.Random(f"returns' arena {seed}")
    return int(rng.choice([ROOMY * sum(needs), max(needs), 1.5 * max(needs), 2 * max(needs)]))


class Returns:
    """Has the jobs of one life come back, and looks at how those begin that stand in line."""

    def __init__(self, cluster: Cluster, acts: bool) -> None:
        self._cluster = cluster
        self._rng = random.Random(f"user of returns {cluster.seed}") if acts else None
        self._left = self._rng.randint(1, RETURNS_MOST) if self._rng is not None else 0
        self._line: tuple[object, frozenset[int]] = (None, frozenset())
        self.done: Counter[str] = Counter()

    @property
    def acts(self) -> bool:
        """True in lives that have it."""
        return self._rng is not None

    @property
    def more(self) -> bool:
        """True while a job is still to come back, and could."""
        faults = self._cluster.faults
        return self._left > 0 and not faults.is_quiet and any(not job.refused for job in self._cluster.jobs.values())

    def act(self) -> bool:
        """Do something to a job that is over (or must be refused that), if that is drawn; return whether it was."""
        cluster, rng = self._cluster, self._rng
        if rng is None or not self.more or not cluster.hears:
            return False
        if not cluster.over and rng.random() >= ACTS:
            return False
        known = [job for job in cluster.jobs.values() if job.row is not None]
        if not known:
            return False
        job = rng.choice([job for job in known if job.over] or known)
        if not job.over:
            must(self._refused(ev.JobRemoved(job.name)), "returns", f"job {job.name!r} runs, and was removed")
            return True
        if self._is_at_work(job):
            return False
        self._left -= 1
        if rng.random() < REMOVED:
            self._remove(job)
        else:
            self._resume(job)
        return True

    def _refused(self, event: Any) -> bool:
        try:
            self._cluster.handle(self._cluster.home, event)
        except Refused:
            return True
        return False

    def _is_at_work(self, job: SimJob) -> bool:
        """Return whether a worker has yet to let go of something of a job, as `lifl resume` and `lifl rm` wait for."""
        cluster = self._cluster
        if is_at(cluster.engine.agent.tasks, job.number):
            return True
        workers = [worker for host in cluster.hosts.values() for worker in host.workers.values()]
        orders = [order for worker in workers for order in (worker.file, *worker.tasks.values(), *worker.control)]
        return any(getattr(order, "job", "") == job.name for order in orders)

    def _restart(self, job: SimJob) -> None:
        """Have the trainers run again that have heard that the job is over."""
        for client in job.clients.values():
            if client.done:
                self._cluster.clients.disconnect(client)
                client.done = False
                client.held.clear()

    # ---- what comes back ---------------------------------------------------------------------------------------------

    def _resume(self, job: SimJob) -> None:
        """Let a job go on that is over, with more rounds where it has had all."""
        rng, committed = self._rng, max(job.committed, 0)
        assert rng is not None
        rounds = min(max(job.config.job.rounds, committed + rng.randint(1, 2)), committed + ROUNDS_MOST)
        config = edited(job.config, [f"job.rounds={rounds}"]).config
        job.config, job.facts = config, msgspec.structs.replace(job.facts, config=config)
        job.cancelled, job.excuse = False, ""
        self._cluster.disk.enters(job)
        self._restart(job)
        event = ev.JobResumed(job.facts, job.history_again(), reason=QUEUED)
        must(not self._refused(event), "returns", f"job {job.name!r} was over, and does not go on")
        self.done["resumed"] += 1

    def _remove(self, job: SimJob) -> None:
        """Forget a job that is over; at most times another one is submitted then that has its name."""
        cluster, rng = self._cluster, self._rng
        assert rng is not None
        for client in job.clients.values():
            cluster.clients.disconnect(client)
            client.done = True
        job.row, job.refused = None, True  # its row goes first
        must(not self._refused(ev.JobRemoved(job.name)), "returns", f"job {job.name!r} is over, and cannot be removed")
        self.done["removed"] += 1
        if rng.random() < AGAIN:
            new = SimJob(max(cluster.by_number) + 1, job.plan, folder=f"/jobs/{job.name}-{len(cluster.by_number)}")
            new.tells_kept = True
            new.clients = {client.name: client for client in (SimClient(new, i) for i in range(job.plan.clients))}
            cluster.by_number[new.number] = cluster.jobs[job.name] = new
            self.done["replaced"] += 1

    # ---- those that stand in line ------------------------------------------------------------------------------------

    def look_at_line(self) -> None:
        """Raise `Broken` when a job begins before one that is ahead of it, or when none does though there is room."""
        coordinator = self._cluster.engine.coordinator if self._rng is not None else None
        if coordinator is None:
            return
        running, total = coordinator.running, self._cluster.home.store.nbytes
        jobs = {number: self._cluster.by_number[number].config.priority for number in running}
        line = sorted((-jobs[number], number) for number, job in running.items() if job.queued and not job.rounds.held)
        of, before = self._line
        self._line = coordinator, frozenset(number for _, number in line)
        if not line:
            return
        self.done["in line"] += not before
        first = line[0]
        began = before & running.keys() - self._line[1] if of is coordinator else frozenset()
        for number in began:
            overtaken = first < (-jobs[number], number) and first[1] in before and not running[number].queued
            must(not overtaken, "in-line", f"job {number} has begun, and {first[1]} stands before it in line")
        promised, home = coordinator.nodes.promised, coordinator.nodes.home
        for node in {node for rooms in promised.values() for node in rooms}:
            given = sum(rooms.get(node, 0) for rooms in promised.values())
            must(given <= total, "in-line", f"{given} bytes of the arena of node {node} are promised, it has {total}")
        free = total - sum(promised.get(number, {}).get(home, 0) for number, job in running.items() if not job.queued)
        free -= hosted_bytes(self._cluster.engine)  # what clients have as loans, which they give back
        wanted = min(running[first[1]].spec.bytes_min(), total)
        must(wanted > free, "in-line", f"job {first[1]} waits for {wanted} bytes, and {free} are free")


def evaluated(cluster: Cluster, host: Any, worker: Any, message: wm.Evaluate) -> None:
    """Have a worker look at a model by the user's function, which may raise, or end its process."""
    rng, key = cluster.rng, message.model
    thing = next((thing for at, thing in host.store.things.items() if at.pack() == key), None)
    dropped = host.engine is None or host.engine.agent.tasks.is_abandoned(message.address)
    must(thing is not None or dropped, "freed-never-read", f"the model of round {message.round} is evaluated")
    must(thing is None or thing.sealed or dropped, "sealed-first", f"the model of round {message.round} is evaluated")
    kind = rng.random()
    if kind < 0.1:
        cluster.workers.kill(host, worker)
    elif kind < 0.2 or thing is None:
        worker.fail(message, "the function raised ValueError", retry=False)
    else:
        found = {"accuracy": 0.5}
        worker.out.append(wm.TaskDone(message.address, message.attempt, 0.0, 0, 0, 0.0, 0.0, metrics=found))
