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
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from lifl.core.errors import LocalFault

RATE_HALF_LIFE_S = 60.0
EXECUTION_HALF_INPUTS = 32
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
    """

    capacity: float
    at_s: float
    rate_per_s: float = 0.0
    execution_s: float = 0.0
    messages: int = 0
    last_ns: int = 0
    folded: int = 0
    busy_s: float = 0.0

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
        folded, all_s = self.folded + inputs, self.busy_s + busy_s
        return msgspec.structs.replace(self, execution_s=mean_s, folded=folded, busy_s=all_s)

    def rate_at(self, now_s: float) -> float:
        """Return k_i now, in updates per second: silence since the last message has lowered it."""
        return self.rate_per_s * (1 - alpha(max(0.0, now_s - self.at_s), RATE_HALF_LIFE_S))

    def queue(self, now_s: float) -> float:
        """Return Q_i: updates in service at a time."""
        return self.rate_at(now_s) * self.execution_s

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
