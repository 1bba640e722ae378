"""Work that is done beside: kept from the collector, and what goes wrong in it is not lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


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
