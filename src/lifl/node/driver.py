"""Runs the engine: each event goes in with the clock, what it wants done is performed, and its timer is set.

The clock is the system's monotonic one, not the loop's, which stands still within a turn and counts milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.engine import Engine
from lifl.core.errors import Impossible, LocalFault, Refused, RemoteFault, ResourceFault
from lifl.node.recordings import write_recording

log = logging.getLogger("lifl.driver")

Handle = Callable[[Any], None]
"""Hand an event to the engine and perform what it leads to."""


class Driver:
    """The engine in a running loop.

    `perform` performs effects in order; it must not hand in events itself.  When the engine meets what it holds
    impossible, its last events are written to a file of `folder`.
    """

    def __init__(self, engine: Engine, folder: Path, perform: Callable[[Sequence[fx.Effect]], None]) -> None:
        self.engine = engine
        self._folder = folder
        self._perform = perform
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._settled: asyncio.Event | None = None
        self._closed = False

    def handle(self, event: Any) -> None:
        """Hand an event to the engine and perform what it leads to, rows before what must wait for them.

        Raise `Refused` and `RemoteFault` as `Engine.handle` does; `Impossible` when the node cannot go on.
        """
        if self._closed:
            return
        self._do(self._decided(event))
        while self.engine.writing:
            self._do(self._decided(ev.RowsWritten()))
        self._set_timer()
        if self._settled is not None and not self.engine.busy():
            self._settled.set()

    def _do(self, effects: Sequence[fx.Effect]) -> None:
        """Perform effects; when that fails, what is decided and what is done are not the same any more."""
        try:
            self._perform(effects)
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
            try:
                log.error("engine.impossible recording=%s", write_recording(self._folder, self.engine.recording()))
            except (ResourceFault, LocalFault) as fault:
                log.error("engine.impossible %s", fault)
            if isinstance(error, Impossible):
                raise
            text = f"{type(event).__name__} could not be decided on: {type(error).__name__}: {error}"
            raise Impossible(text) from error

    def _set_timer(self) -> None:
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
        """Return when no round whose updates are all in waits for its commit (an agent: for its partial's way)."""
        self._settled = asyncio.Event()
        if self.engine.busy():
            await self._settled.wait()

    def close(self) -> None:
        """Handle no more events."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
