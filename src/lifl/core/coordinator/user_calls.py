"""Calls of a user's function, which a worker at home makes (`agent/evaluation_tasks.py`): asked now, answered later.

Nothing waits for an answer here: the coordinator goes on with everything else.
"""

from __future__ import annotations

from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.limits import CALL_S
from lifl.core.protocol.user_calls import CallFunction, CallKey, FunctionReturned
from lifl.core.turn import Turn


class FunctionCalls:
    """The calls of the function that one `key` of a job's config names, of which the last one's answer counts."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable, key: CallKey) -> None:
        self.runs = False
        self._last = 0
        self._key: CallKey = key
        self._spec = spec
        self._turn = turn
        self._nodes = nodes

    @property
    def function(self) -> str:
        """The function's name; empty: there is none."""
        return self._spec.config.functions.get(self._key, "")

    def ask(self, given: bytes) -> None:
        """Have the function called with what is packed; a call that runs yet is given up."""
        self._last += 1
        self.runs = True
        order = CallFunction(self._spec.number, self._last, self._key, self.function, given, CALL_S)
        self._turn.order(self._nodes.home, order)

    def answers(self, report: FunctionReturned) -> bool:
        """Return whether this is the answer that is waited for."""
        if not self.runs or report.key != self._key or report.call != self._last:
            return False
        self.runs = False
        return True
