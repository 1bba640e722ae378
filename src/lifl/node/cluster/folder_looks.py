"""Whether all nodes that may come to coordinate see a job's folder: asked when the job is submitted.

One that does not would find none of the job's models.  A node that does not answer in time keeps no job out: it may be
gone for long, and the job's models may be on its disk as well.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lifl.core.errors import Refused
from lifl.core.limits import REFUSAL_CHARS_MAX
from lifl.core.protocol import cluster as p
from lifl.node import folders

log = logging.getLogger("lifl.cluster")

LOOK_S = 2.0
"""How long the others are waited for; a disk of theirs may hang."""


class FolderLooks:
    """The coordinator's questions that are not answered yet; one job is submitted at a time."""

    def __init__(self, send: Callable[[int, p.SeeFolder], None]) -> None:
        self._send = send
        self._waits: dict[tuple[int, int], asyncio.Future[str]] = {}  # by node and job

    async def ask(self, nodes: Iterable[int], folder: Path, owner: int, number: int) -> None:
        """Ask nodes whether they see the folder of a job.  Raise `Refused` for the first that does not."""
        loop = asyncio.get_running_loop()
        waits = {(node, number): loop.create_future() for node in nodes}
        self._waits |= waits
        try:
            for node, _number in waits:
                self._send(node, p.SeeFolder(str(folder), owner, number))
            if waits:
                await asyncio.wait(waits.values(), timeout=LOOK_S)
        finally:
            for asked in waits:
                self._waits.pop(asked, None)
        for (node, _number), wait in waits.items():
            if not wait.done():
                log.warning("folder.unseen node=%016x did not say whether it sees %s", node, folder)
            elif fault := wait.result():
                text = f"node {node:016x} may come to coordinate, and does not see the job's folder: {fault}"
                fix = "set checkpoint.folder to one that all nodes reach under one path"
                raise Refused("bad-config", "checkpoint.folder", f"{text}; {fix}")

    def answered(self, node: int, message: p.FolderSeen) -> None:
        """Take an answer; one that nobody waits for is dropped."""
        wait = self._waits.get((node, message.number))
        if wait is not None and not wait.done():
            wait.set_result(message.fault)


async def look(question: p.SeeFolder) -> p.FolderSeen:
    """Return what is seen of a folder here; the disk may keep a thread waiting, but not the node."""
    fault = await asyncio.to_thread(_fault, Path(question.folder), question.owner, question.number)
    return p.FolderSeen(question.number, fault[:REFUSAL_CHARS_MAX])


def _fault(folder: Path, owner: int, number: int) -> str:
    try:
        folders.check_own(folder, (owner,), number)
    except Refused as refused:
        return refused.text
    return "" if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else f"{folder} is not writable for lifld there"
