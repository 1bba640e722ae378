"""Runs the engine: each event goes in with the clock, what it wants done is performed, and its timer is set.

When a row cannot be written (its disk is full, or read-only) nothing that is behind it is performed: the *pause* lasts
until it is, tried again after a while that doubles.  Events that come meanwhile wait, in their order.  So do they, for
a moment, while a row is on its way to a store that a cluster shares (`durable_rows.py`).

The clock is the system's monotonic one, not the loop's, which stands still within a turn and counts milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.engine import Engine
from lifl.core.errors import Impossible, LocalFault, Refused, RemoteFault, ResourceFault
from lifl.core.limits import DATABASE_RETRY_S, DATABASE_RETRY_S_MAX, PAUSE_EVENTS_MAX
from lifl.node.database import DatabaseFault
from lifl.node.durable_rows import RowPending
from lifl.node.recordings import write_recording

log = logging.getLogger("lifl.driver")

Handle = Callable[[Any], None]
"""Hand an event to the engine and perform what it leads to."""

OF_COORDINATOR = (ev.Promoted, ev.NodeUp, ev.NodeSuspect, ev.NodeGone, ev.NodeLoadTold, ev.FromNode)
"""Events that only whoever coordinates has, and for which nobody waits: the next one hears of all nodes."""


class Driver:
    """The engine in a running loop.

    `perform` performs effects in order; it must not hand in events itself.  When the engine meets what it holds
    impossible, its last events are written to a file of `folder`.  `on_pause` is told of each pause's begin and end.
    """

    def __init__(self, engine: Engine, folder: Path, perform: Callable[[Sequence[fx.Effect]], None]) -> None:
        self.fault: DatabaseFault | None = None  # why nothing is performed now
        self.lapsed: Callable[[], bool] = lambda: False  # this node coordinated, and its time is over
        self.on_lapsed: Callable[[], None] = lambda: None
        self._pending: RowPending | None = None  # the row that all waits for
        self._idle = asyncio.Event()  # no row is on its way
        self._idle.set()
        self.on_pause: Callable[[bool], None] = lambda _paused: None
        self._backlog: deque[Any] = deque()  # events that came in the pause
        self._retry_s = DATABASE_RETRY_S
        self.engine = engine
        self._folder = folder
        self._perform = perform
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._timer_is_old = False  # it is looked at when the loop has its turn: once for all events of this one
        self._settled: asyncio.Event | None = None
        self._changed: asyncio.Future[None] | None = None  # somebody waits for what an event may bring
        self._closed = False

    def handle(self, event: Any) -> None:
        """Hand an event to the engine and perform what it leads to, rows before what must wait for them.

        Raise `Refused` and `RemoteFault` as `Engine.handle` does; `Impossible` when the node cannot go on.
        """
        if self._closed:
            return
        if self.lapsed():
            self.on_lapsed()
            if isinstance(event, OF_COORDINATOR):  # of what is over already
                return
        if self.fault is not None or self._pending is not None:
            if len(self._backlog) >= PAUSE_EVENTS_MAX:
                self._closed = True
                raise Impossible(f"{len(self._backlog)} events wait, for {self.fault}")
            self._backlog.append(event)
            return
        self._go_on(self._decided(event))

    def _go_on(self, effects: Sequence[fx.Effect]) -> None:
        """Perform effects, what waits for their rows, and then the events that came meanwhile."""
        if not self._done(effects):
            return
        while self._backlog:
            event = self._backlog.popleft()
            try:
                effects = self._decided(event)
            except (Refused, RemoteFault) as error:  # whoever said it may be gone by now
                log.warning("driver.refused %s %s", type(event).__name__, error)
            else:
                if not self._done(effects):
                    return

    def _done(self, effects: Sequence[fx.Effect]) -> bool:
        """Perform effects, and what waits for their rows; return whether that is done, and nothing is waited for."""
        try:
            self._do(effects)
            while self.engine.writing:
                self._do(self._decided(ev.RowsWritten()))
        except RowPending as pending:
            self._wait(pending)
            return False
        except DatabaseFault as fault:
            self._pause(fault)
            return False
        self._idle.set()
        if self.fault is not None:
            log.warning("database.goes_on events=%d", len(self._backlog))
            self._end_pause()
        if not self._timer_is_old:
            self._timer_is_old = True
            self._loop.call_soon(self._set_timer)
        if self._settled is not None and not self.engine.busy():
            self._settled.set()
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
        return True

    def _wait(self, pending: RowPending) -> None:
        """Go on when the row is there; or pause, when it could not be written."""
        self._pending = pending
        self._idle.clear()
        pending.written.add_done_callback(lambda _written: self._written(pending))

    def _written(self, pending: RowPending) -> None:
        if self._pending is not pending or self._closed or pending.written.cancelled():
            return
        self._pending = None
        fault = pending.written.result()
        if fault is None:
            self._go_on(pending.rest)
        else:
            fault.rest = pending.rest
            self._idle.set()
            self._pause(fault)

    async def idle(self) -> None:
        """Return when no row is on its way: an event that is handed in then is decided on at once."""
        while not self._idle.is_set():
            await self._idle.wait()

    def demote(self) -> None:
        """Coordinate no longer: what only a coordinator wants done is left out, of the effects that wait, too."""
        if self._closed:
            return
        waiting: DatabaseFault | None = self._pending or self.fault
        self._pending = None
        self._backlog = deque(event for event in self._backlog if not isinstance(event, ev.Promoted))
        if self.fault is not None:
            self._end_pause()
        if waiting is not None:
            self._do(fx.without_decisions(waiting.rest))
        self._go_on(self._decided(ev.Demoted()))

    def _pause(self, fault: DatabaseFault) -> None:
        """Wait, and try again."""
        if self.fault is None:
            log.error("database.paused %s; what follows waits, and it is tried again by itself", fault)
            self._retry_s = DATABASE_RETRY_S
            self.on_pause(True)
        self.fault = fault
        self._loop.call_later(self._retry_s, self._retry)
        self._retry_s = min(2 * self._retry_s, DATABASE_RETRY_S_MAX)

    def _retry(self) -> None:
        if self.fault is not None and not self._closed:
            self._go_on(self.fault.rest)

    def _end_pause(self) -> None:
        self.fault = None
        self.on_pause(False)

    def _do(self, effects: Sequence[fx.Effect]) -> None:
        """Perform effects; when that fails, what is decided and what is done are not the same any more.

        Raise `DatabaseFault` when a row cannot be written now: the rest is performed when it can.
        """
        try:
            self._perform(effects)
        except DatabaseFault:
            raise
        except Exception as error:
            self._closed = True
            raise Impossible(f"what was decided could not be done: {type(error).__name__}: {error}") from error

    def _decided(self, event: Any) -> Sequence[fx.Effect]:
        try:
            return self.engine.handle(event, time.monotonic())
        except (Refused, RemoteFault):
            raise  # nothing has changed
        except Exception as error:
            self._closed = True  # nothing that it decides from now on can be trusted
            self._record("engine.impossible")
            if isinstance(error, Impossible):
                raise
            text = f"{type(event).__name__} could not be decided on: {type(error).__name__}: {error}"
            raise Impossible(text) from error

    def record(self, broken: fx.JobBroke) -> None:
        """Write down how a job's books came to contradict each other."""
        self._record("job.broken", f"number={broken.job} {broken.text}")

    def _record(self, event: str, said: str = "") -> None:
        try:
            log.error("%s recording=%s %s", event, write_recording(self._folder, self.engine.recording()), said)
        except (ResourceFault, LocalFault) as fault:
            log.error("%s %s %s", event, fault, said)

    def _set_timer(self) -> None:
        self._timer_is_old = False
        if self._closed:
            return
        due_s = self.engine.next_timer()
        if self._timer is not None and due_s != self._timer_at_s:
            self._timer.cancel()
            self._timer = None
        if due_s is not None and self._timer is None:
            self._timer_at_s = due_s
            self._timer = self._loop.call_at(due_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.handle(ev.Tick())

    async def settled(self) -> None:
        """Return when no round whose updates are all in waits for its commit (an agent: for its partial's way).

        In a pause that may be long: it is not waited for.
        """
        self._settled = asyncio.Event()
        if self.engine.busy() and self.fault is None:
            await self._settled.wait()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when this holds, at which is looked after each event."""
        while not holds():
            self._changed = self._changed or self._loop.create_future()
            await asyncio.shield(self._changed)

    def close(self) -> None:
        """Handle no more events."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
