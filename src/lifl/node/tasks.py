"""Work that is done beside: kept from the collector, and what goes wrong in it is not lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lifl.core.errors import EndedEarly, ResourceFault

T = TypeVar("T")


def start(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
    """Run `work` beside; an error in it is the loop's, as one in a callback would be."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    tasks.add(task)

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler({"message": f"{what} failed", "exception": error, "task": task})

    task.add_done_callback(ended)
    return task


async def unless(ended: asyncio.Event, what: Coroutine[Any, Any, T], why: Callable[[], ResourceFault | None]) -> T:
    """Return what is waited for.  Raise `why`, a `ResourceFault`, when the node is told to end before."""
    task, told = asyncio.ensure_future(what), asyncio.ensure_future(ended.wait())
    await asyncio.wait([task, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if task.done():
        return task.result()
    task.cancel()
    raise why() or ended_early()


def ended_early() -> EndedEarly:
    """Return what is raised when the node was told to end before it was ready."""
    return EndedEarly(f"lifld (pid {os.getpid()}) was ended while it was starting: by lifl down, or a signal")
