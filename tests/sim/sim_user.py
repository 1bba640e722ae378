"""What a user does to jobs that run, in lives that have that: pause them, let them go on, change their config.

Drawn from a seed of its own, so that the other lives stay as they are.  At the end all jobs go on.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from sim_checks import must

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.config.edits import edited
from lifl.core.coordinator.job_queue import PAUSED
from lifl.core.errors import Refused

if TYPE_CHECKING:
    from sim_jobs import SimJob
    from simulator import Cluster

ACTS = 0.02
"""The chance of one per step."""
ROUNDS_MOST = 5


class User:
    """Acts on the jobs of one life."""

    def __init__(self, cluster: Cluster, acts: bool) -> None:
        self._cluster = cluster
        self._rng = random.Random(f"user {cluster.seed}") if acts else None

    def act(self) -> bool:
        """Do something, if that is drawn; return whether it was done."""
        cluster, rng = self._cluster, self._rng
        if rng is None or not cluster.hears:
            return False
        runs = [job for job in cluster.jobs.values() if job.row is not None and job.row[0] == "running"]
        if cluster.faults.is_quiet:
            runs = [job for job in runs if PAUSED in (job.row or ("", ""))[1].split()]
        elif rng.random() >= ACTS:
            return False
        if not runs:
            return False
        self._do(rng, rng.choice(runs))
        return True

    def look_at(self, event: fx.Publish) -> None:
        """Raise `Broken` when a round of a paused job opens."""
        row = self._cluster.jobs[event.job].row if event.name == "round.opened" else None
        must(row is None or PAUSED not in row[1].split(), "paused", f"a round of job {event.job!r} opens")
        job = self._cluster.engine.jobs.get(event.job) if event.name == "round.opened" else None
        runs = job.evaluation.current if job is not None else None
        must(runs is None, "evaluated", f"a round of job {event.job!r} opens while another is evaluated")

    def _do(self, rng: random.Random, job: SimJob) -> None:
        """Do to a job that runs what may be done to it; the one thing that must be refused is."""
        held = PAUSED in (job.row or ("", ""))[1].split()
        if rng.random() < 0.6 or self._cluster.faults.is_quiet:
            wrong = rng.random() < 0.2 and not self._cluster.faults.is_quiet
            event: Any = ev.JobUnpaused(job.name) if held != wrong else ev.JobPaused(job.name)
            must(self._refused(event) is wrong, "paused", f"{event} of a job that is {job.row}")
            return
        rounds = rng.randint(job.config.job.rounds, max(ROUNDS_MOST, job.config.job.rounds))
        quorum = rng.randint(1, job.config.selection.clients_per_round)
        what = [f"job.rounds={rounds}", f"selection.quorum={quorum}", f"client.options.lr={rng.random()}"]
        if self._cluster.returns.acts:
            what.append(f"job.priority={rng.randint(1, 3)}")
        edit = edited(job.config, rng.sample(what, rng.randint(1, len(what))))
        must(not self._refused(ev.JobEdited(job.name, edit)), "paused", f"{edit.changes} of job {job.name!r}")

    def _refused(self, event: Any) -> bool:
        try:
            self._cluster.handle(self._cluster.home, event)
        except Refused:
            return True
        return False
