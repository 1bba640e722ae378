"""The handling of one event: the clock at it, and all that it leads to, in order.

Coordinator and agent have one between them.  What they say to the world are effects; what they say to each other are
orders and reports, which travel where the two are on different nodes, and wait in a queue where they share a process.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType

from lifl.core import effects as fx
from lifl.core.errors import Refused, RemoteFault
from lifl.core.fields import Message
from lifl.core.ids import is_hosted


class Share:
    """A job's share of an event: a fault within it is laid to that job, and the rest of the event goes on.

    Refusals, and what others are to blame for, are no faults of ours and pass.
    """

    __slots__ = ("_faults", "_job")

    def __init__(self, faults: list[tuple[int, Exception]], job: int) -> None:
        self._faults = faults
        self._job = job

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, Refused | RemoteFault):
            return False
        self._faults.append((self._job, error))
        return True


class Turn:
    """Collects effects, orders and reports; `engine.py` takes them.

    `now` is the event's time in seconds of a monotonic clock.  `node` is this node's number; while it `coordinates` the
    coordinator is on it, under `term` where that may move to other nodes (0: it stays).
    """

    def __init__(self, node: int, coordinates: bool) -> None:
        self.node = node
        self.coordinates = coordinates
        self.term = 0
        self.now = 0.0
        self.effects: list[fx.Effect] = []
        self.queue: deque[Message] = deque()  # orders and reports between the two sides of this node
        self.touched: dict[int, None] = {}  # jobs on this node, by number, that may go on: `Agent.settle` looks at them
        self.faults: list[tuple[int, Exception]] = []  # by job: `Engine` ends those
        self.writes = False  # among the effects is a row: what follows waits until that is durable

    def share(self, job: int) -> Share:
        """Return the context of what is done for one job."""
        return Share(self.faults, job)

    def touch(self, job: int) -> None:
        """Note that something about the job has changed on this node."""
        self.touched[job] = None

    def emit(self, effect: fx.Effect) -> None:
        """Add an effect to those of this event."""
        self.effects.append(effect)
        self.writes = self.writes or isinstance(effect, fx.ROWS)

    def order(self, node: int, order: Message) -> None:
        """Send an order of the coordinator to a node's agent."""
        if node == self.node:
            self.queue.append(order)
        else:
            self.emit(fx.SendNode(node, order))

    def report(self, report: Message) -> None:
        """Send an agent's report, or an event of a client, to the coordinator; of a session hosted here, to its own."""
        if self.coordinates or is_hosted(getattr(report, "number", 0)):
            self.queue.append(report)
        else:
            self.emit(fx.SendCoordinator(report))
