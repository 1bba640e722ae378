"""A timer of the event loop for something that says itself when it is due next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timer:
    """Calls `tick(now)` when `next_timer()` says; `set` after whatever may make that earlier."""

    def __init__(self, tick: Callable[[float], None], next_timer: Callable[[], float | None]) -> None:
        self._tick = tick
        self._next_timer = next_timer
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._cancelled = False

    def set(self) -> None:
        """Make the next call early enough."""
        if self._cancelled:
            return
        due = self._next_timer()
        if self._handle is not None:
            if due is not None and due >= self._due:
                return  # early enough; when it fires it asks again
            self._handle.cancel()
            self._handle = None
        if due is not None:
            self._due = due
            self._handle = self._loop.call_at(due, self._fired)

    def _fired(self) -> None:
        self._handle = None
        try:
            self._tick(self._loop.time())
        finally:
            self.set()  # what went wrong once does not stop the clock

    def cancel(self) -> None:
        """Make no more calls, ever; a tick may do this."""
        self._cancelled = True
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
