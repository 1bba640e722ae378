"""A cluster under a job of short rounds, to which something is done: what `chaos.py` and `soak.py` share.

Each update of each round is followed: what its trainer was told, and what stands in the committed model (the one-hot
oracle).  Accepted are those whose trainer was told so.  Of these each is *counted*; or *expired*, when its trainer was
told that the round went without it; else it is *lost*.  One that stands in the model more than once is *doubled*.

It has recovered from a fault when a round has been committed that began after it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fleet import Fleet, OneHot, Trainer, all_rounds, ask, submit, until
from netns import Machine, SharedCluster

from lifl.client import JobCancelled, Round
from lifl.core.errors import LiflError
from lifl.core.protocol import cli as om

PACE_S = 0.15
"""How long a trainer trains."""
SLICE_S = 1.0
FATES = ("rounds", "accepted", "counted", "expired", "lost", "doubled", "unseen")
"""Sums of a job; *unseen* are rounds whose lines nobody had any more when they were asked for."""

Fault = Callable[[SharedCluster, Machine], Callable[[], None]]
"""Makes it happen to a node, and returns what undoes it."""


class Field:
    """One job on a cluster, with its trainers; `found` sums what became of the updates."""

    def __init__(
        self, cluster: SharedCluster, job: str, clients: int, ballast_bytes: int = 0, pace_s: float = PACE_S
    ) -> None:
        self.cluster, self.job, self.clients, self._pace_s = cluster, job, clients, pace_s
        self.oracle = OneHot(clients, ballast_bytes)
        self.lines: dict[int, dict[str, Any]] = {}
        """The status lines of committed rounds."""
        self.team: Fleet | None = None
        self._begun: list[float] = []  # when a trainer was first given each round, from round 1 on
        self._changed = threading.Condition()
        self._handed_over = False  # while it was being submitted

    @contextmanager
    def running(self, **keys: Any) -> Iterator[Field]:
        """The job is submitted, runs, and is cancelled at the end; then all its updates have been told of."""
        cluster = self.cluster
        wanted = {"job__rounds": 100_000, **cluster.job(self.job), **keys}
        until("the job to be taken", lambda: self._submitted(wanted))
        with cluster.fleet(self.job, self.clients, self.oracle.update, play=self._play) as team:
            self.team = team
            self.wait(2)
            yield self
            cluster.settled()
            self.wait(self.round + 2)
            self.collect()
            until("the end", self._cancelled)
            team.join(well=False)
            errors = {type(error) for error in team.errors().values()}
            assert errors <= {JobCancelled}, team.errors()

    def _submitted(self, wanted: dict[str, Any]) -> bool:
        """Whether the job is there; False: who coordinated does not any more, and may have kept it all the same."""
        try:
            submit(self.cluster.coordinator, self.job, self.oracle.model(), **wanted)
        except AssertionError as refused:
            if self._handed_over and "[job-exists]" in str(refused):
                return True
            if "[not-coordinator]" not in str(refused):
                raise
            self._handed_over = True
            return False
        return True

    def _play(self, trainer: Trainer, round_: Round) -> None:
        with self._changed:
            if round_.number > len(self._begun):
                missed = round_.number - len(self._begun)
                self._begun += [time.monotonic()] * missed
                self._changed.notify_all()
        threading.Event().wait(self._pace_s)
        trainer.fleet.submit(trainer, round_)

    def _cancelled(self) -> bool:
        with suppress(LiflError):
            ask(self.cluster.coordinator, om.CancelJob(self.job))
            return True
        return False

    @property
    def round(self) -> int:
        """The round at hand, as trainers are told."""
        return len(self._begun)

    def wait(self, number: int) -> float:
        """Wait until a trainer is given this round; return when that was."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self._begun) >= number, 120.0)
            text = f"round {number} of {self.job} has not begun within 120 s: it is at {len(self._begun)}"
            assert came, f"{text}\n{self.told()}"
            return self._begun[number - 1]

    def told(self) -> str:
        """What trainers and the coordinator say, for a run that goes on no more."""
        found = []
        if self.team is not None:
            for trainer in self.team.trainers:
                client, given = trainer.client, [round_.number for round_ in trainer.rounds[-1:]]
                books = client._books
                state = f"round {given}, holds {list(books.held)}, error {trainer.error!r}"
                found.append(f"{trainer.name} at {client._home.node}: {state}")
        leader = self.cluster.leading()
        if leader is not None:
            found.append(str(ask(leader, om.JobStatus(self.job, 2))))
            found.append(str(ask(leader, om.ListNodes())))
        return "\n".join(found)

    def recovered(self, began_s: float, at: int) -> float:
        """Wait until a round that began after the fault is committed; return how long that took, in seconds."""
        return self.wait(at + 2) - began_s

    def collect(self) -> None:
        """Keep the lines of the rounds that were committed; one that comes to coordinate knows the last of them."""
        with suppress(LiflError, OSError):
            leader = self.cluster.leading()
            if leader is not None:
                found = all_rounds(leader, self.job)
                self.lines |= {line["round"]: line for line in found if line["status"] == "committed" and line["round"]}

    def forget(self, last: int) -> None:
        """Keep nothing of the rounds up to this one: they were looked at."""
        self.lines = {number: line for number, line in self.lines.items() if number > last}
        for trainer in self.team.trainers if self.team is not None else ():
            for number in [number for number in trainer.submissions if number <= last]:
                del trainer.submissions[number]
            trainer.rounds[:] = [round_ for round_ in trainer.rounds if round_.number > last]

    # ---- what became of the updates ----------------------------------------------------------------------------------

    def account(self, first: int, last: int) -> Counter[str]:
        """What became of the updates of these rounds, when the job is over."""
        sums: Counter[str] = Counter(dict.fromkeys(FATES, 0))
        for number in range(first, last + 1):
            line = self.lines.get(number)
            if line is None:
                sums["unseen"] += 1
                continue
            counted = line["receipt"]["counted"]
            sums.update(self.of_round(number, self.oracle.counts(line["path"], number, counted)))
        return sums

    def of_round(self, number: int, counts: list[int]) -> Counter[str]:
        """What became of the updates of one round, in whose model each stands so often."""
        assert self.team is not None
        sums = Counter(rounds=1, counted=sum(map(bool, counts)), doubled=sum(max(0, count - 1) for count in counts))
        for trainer, count in zip(self.team.trainers, counts, strict=True):
            said = trainer.submissions.get(number)
            told = self.team.fate(trainer.index, number)
            accepted = said is not None and said.accepted
            sums["accepted"] += accepted or told is True
            if (accepted or told is True) and not count:
                sums["expired" if told is False else "lost"] += 1
        return sums

    @property
    def last(self) -> int:
        """The last round that is known to be committed."""
        return max(self.lines, default=0)
