"""Those who ask without end rest, and who asks the same shares an answer: so none of them takes `lifld`'s time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from lifl.node.tasks import start

T = TypeVar("T")

REST = 3.0
"""Who has been answered is answered again after this many times as long as that has taken: whoever asks without end
takes a quarter of the time at most, on however many connections."""


class Joint(Generic[T]):
    """A question of many, which `ask` asks once for all who wait for it: one at a time, with a rest in between.

    Everybody gets the answer to a question that was asked after they came.
    """

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._ask = ask
        self._next: asyncio.Future[T] | None = None
        self._running = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self) -> T:
        """Return the answer, or raise what `ask` does."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if not self._running:
                self._running = True
                start(self._tasks, self._run(), "a question of many")
        return await asyncio.shield(self._next)

    async def _run(self) -> None:
        while self._next is not None:
            asked, self._next = self._next, None
            began_s = time.monotonic()
            asking = asyncio.ensure_future(self._ask())
            await asyncio.wait([asking])
            if (error := asking.exception()) is not None:
                asked.set_exception(error)
                asked.exception()  # whoever waited may have left
            else:
                asked.set_result(asking.result())
            await asyncio.sleep(REST * (time.monotonic() - began_s))
        self._running = False
