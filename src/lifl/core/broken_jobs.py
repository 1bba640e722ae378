"""Jobs whose books contradict each other: such a job ends, where it was found, and the others go on.

What is done for one job is a share of an event (`Turn.share`), and a fault within it is noted for that job.  Between
the steps of the event the jobs so found are ended: by the coordinator, if it is here; else the agent drops its part,
and says that it has none of it.  A second fault of a job is the engine's.
"""

from __future__ import annotations

from lifl.core import effects as fx
from lifl.core.agent.agent import Agent, tell
from lifl.core.coordinator.coordinator import Coordinator, fail
from lifl.core.errors import LocalFault
from lifl.core.ids import is_hosted
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.protocol.commands import CloseJob
from lifl.core.turn import Turn


class BrokenJobs:
    """The jobs of one engine that were ended for that."""

    def __init__(self, turn: Turn, agent: Agent, coordinator: Coordinator | None) -> None:
        self._turn = turn
        self._agent = agent
        self.coordinator = coordinator
        self.hosting: Coordinator | None = None
        self._ended: set[int] = set()
        self.is_new = False
        """One was ended, and what is left was not looked at yet."""

    def end_found(self) -> None:
        """End the jobs in which faults were found.  Raise `LocalFault` for one that was ended already."""
        turn = self._turn
        while turn.faults:
            number, fault = turn.faults.pop(0)
            if number in self._ended:
                raise LocalFault(f"the books of job {number} are wrong again after its end: {fault!r}") from fault
            self._ended.add(number)
            self.is_new = True
            said = f"{type(fault).__name__}: {fault}"[: TEXT_CHARS_MAX // 2]
            turn.emit(fx.JobBroke(number, said))
            runs = self.hosting if is_hosted(number) else self.coordinator
            if runs is not None and number in runs.running:
                text = f"a fault of LIFL, not of this job's: its books contradict each other ({said}); please report it"
                fail(runs, number, text)
            else:
                self._agent.handle(CloseJob(number))
                tell(self._agent)
            self._agent.waiting.look_again()
