"""A node's MC as the paper finds it: real updates arrive faster and faster, until each takes longer to be folded.

The node is one of its own, on the same machine and with more workers than cores, so that folds can get in each other's
way.  Its clients bring their updates through the node's memory, evenly spread over a round's time.  After
each the node tells how long its leaves were busy and over how many updates: E, the mean of one; k is how many
came per second.  The first step is slow enough to be an unloaded node's, the next ones are faster by `FASTER`.  The
steps end when E has grown beyond `SATURATED_GROWTH` of the steps' median, or when updates do not come faster any
more, whatever is asked for.  A step of either kind is made once more before it is believed.  MC is the largest k * E
before that.

So other than the quick measure at a node's start (`rules/calibration.py`), which has folds alone contend for cores and
memory, this has all that an update costs the machine compete with them.

Source: LIFL (MLSys 2024), appendix E.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from statistics import median_low
from typing import NamedTuple

import numpy as np

from lifl.client import Client
from lifl.core.errors import LiflError, ResourceFault
from lifl.core.planning.capacity import SATURATED_GROWTH

CLIENTS = 16
"""Updates of a step: with the default fan-in they keep eight leaves at work."""
UNLOADED = 0.25
"""Updates in service at the first step."""
FASTER = 1.5
"""The rate of a step over that of the step before."""
STEPS_MAX = 16
"""The last step asks for more than a hundred updates in service."""
ROUNDS_OF_STEP = 3
"""Rounds of each step, of which the median counts."""
STEP_S_MAX = 4.0
"""A round of the first step takes no longer, however slow the folds before it were."""
WARM_ROUNDS = 2
"""Rounds before the first step, all of whose updates come at once: pages and workers are fresh in the first of them."""
BEHIND = 0.75
"""Updates that come at less than this of the rate that was asked for, and no faster than before, are at the limit."""
CAPACITY_MIN = 1.0
"""A node folds one update at a time, however busy its cores are; with less it has room for none in a plan."""
JOB = "calibrate"
TENSOR = "update"


class Step(NamedTuple):
    """One step: the rates asked for and reached (updates per second), and the mean time of one fold, in seconds."""

    asked_per_s: float
    rate_per_s: float
    execution_s: float

    @property
    def load(self) -> float:
        """Updates in service: k * E."""
        return self.rate_per_s * self.execution_s


class Found(NamedTuple):
    """What was found: MC in updates at a time, each step, and why there was no further one."""

    capacity: float
    steps: tuple[Step, ...]
    ended: str


SLOWER = "folds-slower"
NO_FASTER = "no-faster"
LAST_STEP = "last-step"
ENDED_TEXTS = {
    SLOWER: f"a fold took more than {SATURATED_GROWTH:g} times as long as on an unloaded node",
    NO_FASTER: "updates did not come any faster: clients, memory and folds share the cores",
    LAST_STEP: "that was the fastest step, and folds were not slower yet",
}
"""By why the steps have ended: what is told of it."""


class Course:
    """The course of the steps: which rate is next, and when there is none.  Pure."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.ended = ""
        self._in_doubt = False
        self._rounds: list[Step] = []

    def next_rate(self, execution_s: float) -> float:
        """Return the rate of the next step; `execution_s` is how long a fold took before the first one."""
        if not self.steps:
            return max(UNLOADED / execution_s, CLIENTS / STEP_S_MAX)
        last = self.steps[-1]
        return max(last.asked_per_s * FASTER, UNLOADED / last.execution_s)

    def note(self, round_: Step) -> bool:
        """Take what a round has given; return whether its step is done, and the next one is due, or none."""
        self._rounds.append(round_)
        if len(self._rounds) < ROUNDS_OF_STEP:
            return False
        step = sorted(self._rounds, key=lambda each: each.execution_s)[ROUNDS_OF_STEP // 2]
        self._rounds.clear()
        why = self._limit(step)
        if why and not self._in_doubt:
            self._in_doubt = True
            return False
        self._in_doubt = False
        self.steps.append(step)
        self.ended = why or (LAST_STEP if len(self.steps) >= STEPS_MAX else "")
        return True

    def _limit(self, step: Step) -> str:
        if not self.steps:
            return ""
        if step.execution_s > SATURATED_GROWTH * self._usual_s():
            return SLOWER
        fastest = max(each.rate_per_s for each in self.steps)
        return NO_FASTER if step.rate_per_s < min(BEHIND * step.asked_per_s, FASTER**0.5 * fastest) else ""

    def found(self) -> Found:
        """Return what is known, once a step is done: the largest load at which folds took no longer; at least 1."""
        most_s = SATURATED_GROWTH * self._usual_s()
        most = max(step.load for step in self.steps if step.execution_s <= most_s)
        return Found(max(CAPACITY_MIN, round(most, 2)), tuple(self.steps), self.ended)

    def _usual_s(self) -> float:
        """Return how long a fold usually takes, in seconds: one step that was disturbed, or was lucky, does not count.

        It is the median of the steps, without the one that has ended them.
        """
        counted = self.steps[:-1] if self.ended == SLOWER else self.steps
        return median_low(step.execution_s for step in counted)


class Arrivals:
    """The clients that bring the updates of the job `JOB` to the node with state folder `node`, each of so many bytes.

    `totals` asks the node for the updates that its leaves have folded so far and the seconds that took; `told` is
    called after each step, in a thread of ours.
    """

    def __init__(
        self, node: str, update_bytes: int, totals: Callable[[], tuple[int, float]], told: Callable[[Step], None]
    ) -> None:
        self._update = {TENSOR: np.ones(update_bytes // 4, np.float32)}
        self._totals = totals
        self._told = told
        self._course = Course()
        self._lock = threading.Lock()
        self._fault: Exception | None = None
        self._over = False
        self._rounds = 0
        self._rate_per_s = 0.0  # 0: all at once
        self._execution_s = 0.0
        self._begun_s = 0.0
        self._accepted_s: list[float] = []
        self._before = (0, 0.0)
        self._begins = threading.Barrier(CLIENTS, self._begin)
        self._ends = threading.Barrier(CLIENTS, self._end)
        self._clients = [Client(node, job=JOB, client=f"client-{number}") for number in range(CLIENTS)]
        self._threads = [
            threading.Thread(target=self._take_part, args=(number, client), daemon=True)
            for number, client in enumerate(self._clients)
        ]

    def run(self) -> Found:
        """Make all steps; return what was found.  Raise what a client has met."""
        try:
            for thread in self._threads:
                thread.start()
            for thread in self._threads:
                thread.join()
        finally:
            self._stop()
        if self._fault is not None:
            raise self._fault
        return self._course.found()

    def _stop(self) -> None:
        """Have no client wait for another, or for its node."""
        self._over = True
        self._begins.abort()
        self._ends.abort()
        for client in self._clients:
            client.close()

    def _take_part(self, number: int, client: Client) -> None:
        try:
            for round_ in client.rounds(models=False):
                self._begins.wait()
                if self._rate_per_s:
                    time.sleep(max(0.0, self._begun_s + number / self._rate_per_s - time.monotonic()))
                round_.submit(self._update, 1.0)
                with self._lock:
                    self._accepted_s.append(time.monotonic())
                client.wait_committed(round_)
                self._ends.wait()
                if self._over:
                    return
        except threading.BrokenBarrierError:
            pass
        except (LiflError, OSError) as error:
            with self._lock:
                if not self._over:
                    self._fault = self._fault or error
            self._begins.abort()
            self._ends.abort()

    def _begin(self) -> None:
        """Let the updates of a round come: all clients have been selected, and nothing is on its way."""
        self._before, self._accepted_s = self._totals(), []
        self._begun_s = time.monotonic()

    def _end(self) -> None:
        """Take what the round has given, and choose the rate of the next one; or end."""
        folded, busy_s = (now - before for now, before in zip(self._totals(), self._before, strict=True))
        if not folded:
            raise ResourceFault("no leaf has folded an update: the node's figures tell nothing")
        execution_s = busy_s / folded
        self._rounds += 1
        if self._rounds <= WARM_ROUNDS:
            self._execution_s = execution_s
        else:
            passed_s = max(self._accepted_s) - min(self._accepted_s)
            if not self._course.note(Step(self._rate_per_s, (CLIENTS - 1) / passed_s, execution_s)):
                return
            self._told(self._course.steps[-1])
        if self._rounds >= WARM_ROUNDS:
            self._over = bool(self._course.ended)
            self._rate_per_s = self._course.next_rate(self._execution_s)
