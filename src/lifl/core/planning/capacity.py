"""How loaded a node is, and how much more it can take: the numbers that placement and the hierarchy plan start from.

    k_i          arrival rate of updates at node i, per second
    E_i          mean execution time of one of them in a worker, in seconds
    Q_i = k_i * E_i       updates in service at a time (Little's law): the node's load
    RC_i = MC_i - Q_i     residual capacity, MC_i being the most that it serves at a time without E_i growing

Source: LIFL (MLSys 2024), section 5, which smooths by an exponentially weighted moving average (EWMA).

Both averages forget by half: the rate within `RATE_HALF_LIFE_S`, the execution time within `EXECUTION_HALF_INPUTS`
inputs, so neither depends on how often it is read.  A sample that covers dt seconds weighs 1 - 2^(-dt / half-life),
which is the EWMA's alpha; at the default re-planning interval of 120 s the half-life of 60 s makes it 0.75.  Silence
lowers the rate by itself when it is read, so an idle node need not be sampled at all.  It says nothing about
the execution time, which therefore forgets by inputs and not by time.

The paper smooths Q itself instead: Q <- 0.7 * Q + 0.3 * Q_new at each re-plan, Q_new being the mean of the interval.
That is the other smoothing, `queue`.  `bench/smoothing.py` compares how well each tells the next interval's Q.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from lifl.core.config.node import Smoothing
from lifl.core.errors import LocalFault

RATE_HALF_LIFE_S = 60.0
EXECUTION_HALF_INPUTS = 32
QUEUE_KEPT = 0.7
"""What Q keeps of itself at the end of an interval: the paper's alpha (section 5.2)."""
QUEUE_INTERVAL_S = 120.0
"""The paper's, between two re-plans."""
SATURATED_GROWTH = 1.5
"""Beyond this factor on the unloaded execution time a node counts as saturated."""


def alpha(passed: float, half_life: float) -> float:
    """Return the weight of a sample over `passed` units of what `half_life` is counted in: 0 at once, 1 in the end."""
    return -math.expm1(-math.log(2) * passed / half_life)


class NodeLoad(msgspec.Struct, frozen=True):
    """The smoothed load of one node, at `at_s` on the monotonic clock of that node.

    `capacity` is MC_i in updates at a time; `rate_per_s` is k_i as it was at `at_s`; `execution_s` is E_i (0: no task
    has ended yet); `messages` and `last_ns` are the counters as last read.  `folded` updates in `busy_s` seconds are
    all that tasks have had so far, nothing forgotten.  Each observation gives a new record.

    With the `smoothing` of Q, `smoothed` is Q as it was at the end of the last of `intervals` intervals, which was at
    `interval_s`; of the next one tasks have told `interval_busy_s` so far.
    """

    capacity: float
    at_s: float
    rate_per_s: float = 0.0
    execution_s: float = 0.0
    messages: int = 0
    last_ns: int = 0
    folded: int = 0
    busy_s: float = 0.0
    smoothing: Smoothing = "rate-and-time"
    smoothed: float = 0.0
    intervals: int = 0
    interval_s: float = 0.0
    interval_busy_s: float = 0.0

    def counted(self, messages: int, last_ns: int) -> NodeLoad:
        """Take in the redirector's counters: `messages` updates delivered to leaves so far, the last one at `last_ns`.

        What came since the last reading is taken as spread evenly over the time up to the last message.  A count below
        the one before means that the counters began again at 0.  Raise `LocalFault` on negative counters.
        """
        if messages < 0 or last_ns < 0:
            raise LocalFault(f"counters cannot be negative: messages {messages}, last_ns {last_ns}")
        came = messages - self.messages if messages >= self.messages else messages
        if not came:
            return msgspec.structs.replace(self, messages=messages)
        at_s = max(last_ns / 1e9, self.at_s)
        passed_s = at_s - self.at_s
        # alpha * came / passed_s, and its limit where all came at the very moment of the last reading.
        weight = alpha(passed_s, RATE_HALF_LIFE_S)
        added = weight * came / passed_s if weight else came * math.log(2) / RATE_HALF_LIFE_S
        rate = (1 - weight) * self.rate_per_s + added
        return msgspec.structs.replace(self, at_s=at_s, rate_per_s=rate, messages=messages, last_ns=last_ns)

    def done(self, busy_s: float, inputs: int) -> NodeLoad:
        """Take in a task's costs: `busy_s` over `inputs` inputs.  Raise `LocalFault` on impossible ones."""
        if inputs < 0 or not (math.isfinite(busy_s) and busy_s >= 0):
            raise LocalFault(f"a task cannot have been busy for {busy_s} s over {inputs} inputs")
        if not inputs:
            return self
        weight = alpha(inputs, EXECUTION_HALF_INPUTS) if self.execution_s else 1.0
        mean_s = (1 - weight) * self.execution_s + weight * busy_s / inputs
        more = {"folded": self.folded + inputs, "busy_s": self.busy_s + busy_s}
        return msgspec.structs.replace(self, execution_s=mean_s, interval_busy_s=self.interval_busy_s + busy_s, **more)

    def passed(self, now_s: float) -> NodeLoad:
        """Take in that it is `now_s`: intervals that are over by then change Q; before what a task tells then."""
        over = int((now_s - self.interval_s) // QUEUE_INTERVAL_S)
        if over < 1:
            return self
        came = self.interval_busy_s / QUEUE_INTERVAL_S
        first = QUEUE_KEPT * self.smoothed + (1 - QUEUE_KEPT) * came if self.intervals else came
        return msgspec.structs.replace(
            self,
            smoothed=first * QUEUE_KEPT ** (over - 1),  # nothing came in the others
            intervals=self.intervals + over,
            interval_s=self.interval_s + over * QUEUE_INTERVAL_S,
            interval_busy_s=0.0,
        )

    def rate_at(self, now_s: float) -> float:
        """Return k_i now, in updates per second: silence since the last message has lowered it."""
        return self.rate_per_s * (1 - alpha(max(0.0, now_s - self.at_s), RATE_HALF_LIFE_S))

    def queue(self, now_s: float) -> float:
        """Return Q_i: updates in service at a time; before the first interval is over it is k * E in either way."""
        if self.smoothing == "queue" and (by_now := self.passed(now_s)).intervals:
            return by_now.smoothed
        return self.rate_at(now_s) * self.execution_s

    def told_rate(self, now_s: float) -> float:
        """Return the k_i whose product with E_i is Q_i: so a node tells its load to others, however it is smoothed."""
        return self.queue(now_s) / self.execution_s if self.execution_s else self.rate_at(now_s)

    def residual(self, now_s: float) -> float:
        """Return RC_i in updates; negative where the node has more than it can serve."""
        return self.capacity - self.queue(now_s)


def saturation(samples: Iterable[tuple[float, float]]) -> float:
    """MC_i from a calibration: the largest k * E before the execution time grows beyond `SATURATED_GROWTH`.

    `samples` are (rate per second, execution time in seconds), in the order of rising rates; the first is the unloaded
    one.  Source: LIFL, section 5: the load at which the execution time begins to climb.  Raise `LocalFault` when there
    is no sample, or one is not positive.
    """
    most, unloaded_s = 0.0, 0.0
    for rate_per_s, execution_s in samples:
        if not (rate_per_s > 0 and execution_s > 0):
            raise LocalFault(f"a calibration sample must be positive, not {rate_per_s}/s at {execution_s} s")
        unloaded_s = unloaded_s or execution_s
        if execution_s > SATURATED_GROWTH * unloaded_s:
            break
        most = max(most, rate_per_s * execution_s)
    if not most:
        raise LocalFault("a calibration needs at least one sample")
    return most
