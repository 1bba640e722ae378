"""Whether a job has learned enough (`config/stopping.py`), as far as its metrics are told.

A function of the user's is asked with each round's metrics, beside the round that runs by then: no round waits for it.
What it raises, or returns that says nothing, is told; the job goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from lifl.core import effects as fx
from lifl.core.config.stopping import Seen, judged, parse_stop
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.user_calls import FunctionCalls
from lifl.core.limits import CALL_BYTES_MAX, STOP_HISTORY_ROUNDS_MAX, TEXT_CHARS_MAX
from lifl.core.protocol.user_calls import STOPS, FunctionReturned
from lifl.core.turn import Turn

_HEAD_BYTES = 8
"""Of an array, packed."""


class Stopping:
    """The books of one job: what was `seen`, which the row of each round has, and the `reason` to stop.

    `fault` is why the user's function has said nothing when it was asked last.
    """

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable) -> None:
        self._stop = spec.config.job.stop
        self._spec = spec
        self._turn = turn
        self._calls = FunctionCalls(spec, turn, nodes, STOPS)
        self._history: deque[bytes] = deque()  # packed, by round
        self._history_bytes = _HEAD_BYTES
        self._more = False  # is known than the call that runs was told
        self.seen: Seen = ()
        self.reason = ""
        self.fault = ""

    def begin(self, seen: Seen, history: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Take up what an earlier life has seen, and the metrics of its rounds."""
        self.seen = seen
        for number, values in history if self._calls.function else ():
            self._keep(number, values)

    def note(self, number: int, values: Mapping[str, float]) -> None:
        """Note what a round's metrics are."""
        if not isinstance(self._stop, str) or self.reason:
            return
        self.seen, self.reason = judged(parse_stop(self._stop, "job.stop"), self.seen, values)
        if self._calls.function and not self.reason:
            self._keep(number, values)
            self._ask()

    def opened(self) -> None:
        """Ask again what was asked when the job was paused: its workers were let go."""
        if self._calls.runs:
            self._calls.runs = False
            self._ask()

    def _keep(self, number: int, values: Mapping[str, float]) -> None:
        self._history.append(msgspec.msgpack.encode({**values, "round": number}))
        self._history_bytes += len(self._history[-1])
        while len(self._history) > STOP_HISTORY_ROUNDS_MAX or self._history_bytes > CALL_BYTES_MAX:
            self._history_bytes -= len(self._history.popleft())

    def _ask(self) -> None:
        self._more = self._calls.runs
        if not self._more:
            self._calls.ask(msgspec.msgpack.encode([msgspec.Raw(each) for each in self._history]))

    def answered(self, report: FunctionReturned) -> None:
        """Note what the function has said; ask again where more is known by now."""
        if not self._calls.answers(report):
            return
        name, stops, why, self.fault = self._calls.function, False, "", ""
        try:
            if report.fault:
                raise ValueError(report.fault)
            stops, why = msgspec.msgpack.decode(report.answer, type=tuple[bool, str])
        except ValueError as error:  # a DecodeError is one, too
            self.fault = f"{name} (job.stop) has not said whether to stop: {error}"[:TEXT_CHARS_MAX]
            self._turn.emit(fx.Publish("stop.fault", self._spec.name, {"reason": self.fault}))
        if stops and not self.reason:
            self.reason = f"{name}: {why}"[:TEXT_CHARS_MAX] if why else f"{name} says so"
        elif self._more:
            self._ask()
