"""Pages that are told what happens, by server-sent events: while there are any, `lifld` is asked once a second.

All watchers share what it answers: one `Snapshot`, and of each job that somebody looks at the running round with its
tree.  An event is a part of that which is another than a moment ago.  Of each part a watcher is owed the last value
only, so one that reads slowly misses what lies between, and one that reads nothing is told nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import msgspec

from lifl.core.errors import LiflError, Refused
from lifl.core.limits import WEB_STALL_S, WEB_WATCHERS_MAX
from lifl.core.protocol import cli as om
from lifl.node.http.visits import Secrets, Visits
from lifl.node.http.wire import Exchange

TICK_S = 1.0
SOON_S = 0.2
"""A page that has just come is told after so long at most; others, within the tick."""
PARTS = ("node", "nodes", "workers", "jobs")
"""Of a snapshot; beside them there is `round`, of the job that a watcher looks at, and `trouble`."""


class Watcher:
    """One page."""

    def __init__(self, secrets: Secrets, job: str) -> None:
        self.secrets = secrets
        self.job = job
        self.owed: dict[str, bytes] = {}
        self.woken = asyncio.Event()
        self.ended = False
        self._last: dict[str, bytes] = {}

    def owe(self, part: str, data: bytes) -> None:
        """Tell a part, unless the page knows it so."""
        if self._last.get(part) != data:
            self._last[part] = self.owed[part] = data
            self.woken.set()

    def end(self) -> None:
        """Tell nothing more than what is owed."""
        self.ended = True
        self.woken.set()


class Watchers:
    """All pages."""

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._all: list[Watcher] = []
        self._ticking: asyncio.Task[None] | None = None
        self._newcomer = asyncio.Event()

    async def tell(self, exchange: Exchange, secrets: Secrets, job: str) -> None:
        """Tell a page what happens, until it leaves, or its visit is over.  Raise `Refused`, `OSError`."""
        if len(self._all) >= WEB_WATCHERS_MAX and not self._makes_place(secrets):
            text = f"{WEB_WATCHERS_MAX} pages are open already, the most that may be; close one of them"
            raise Refused("too-many-connections", "page", text)
        watcher = Watcher(secrets, job)
        self._all.append(watcher)
        self._newcomer.set()
        leaving = asyncio.get_running_loop().create_task(exchange.gone())
        leaving.add_done_callback(lambda _task: watcher.end())
        try:
            await exchange.begin_stream("text/event-stream")
            if self._ticking is None:
                self._ticking = asyncio.get_running_loop().create_task(self._tick())
            await self._push(exchange, watcher)
        finally:
            leaving.cancel()
            self._all.remove(watcher)

    def _makes_place(self, secrets: Secrets) -> bool:
        """End a page of the visit that has most of them open, if that has more than another one of `secrets` makes.

        There are as many places as visits: so each visit gets one.
        """
        numbers = Counter(watcher.secrets.digest for watcher in self._all if not watcher.ended)
        most = max(numbers, key=lambda digest: numbers[digest], default=b"")
        if numbers[most] <= numbers[secrets.digest] + 1:
            return False
        next(each for each in self._all if each.secrets.digest == most and not each.ended).end()
        return True

    @staticmethod
    async def _push(exchange: Exchange, watcher: Watcher) -> None:
        while not watcher.ended or watcher.owed:
            await watcher.woken.wait()
            watcher.woken.clear()
            owed, watcher.owed = watcher.owed, {}
            data = b"".join(b"event: %s\ndata: %s\n\n" % (part.encode(), data) for part, data in owed.items())
            if data:
                async with asyncio.timeout(WEB_STALL_S):
                    await exchange.push(data)
        await exchange.end_stream()

    def close(self) -> None:
        """End all."""
        for watcher in self._all:
            watcher.end()
        if self._ticking is not None:
            self._ticking.cancel()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._all:
                begin_s = loop.time()
                self._newcomer.clear()
                try:
                    await self._look()
                except LiflError as error:
                    trouble = msgspec.json.encode({"text": str(error)})
                    for watcher in self._all:
                        watcher.owe("trouble", trouble)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(begin_s + TICK_S):
                        await self._newcomer.wait()
                await asyncio.sleep(max(0.0, begin_s + SOON_S - loop.time()))
        finally:
            self._ticking = None

    async def _look(self) -> None:
        for watcher in self._all:
            if not self._visits.is_valid(watcher.secrets):
                watcher.owe("over", b"{}")
                watcher.end()
        watching = [watcher for watcher in self._all if not watcher.ended]
        if not watching:
            return
        snapshot = await self._visits.ask(watching[0].secrets, om.Snapshot(trees=False))
        encoded = {part: msgspec.json.encode(snapshot[part]) for part in PARTS}
        encoded["trouble"] = b"null"
        for watcher in watching:
            for part, data in encoded.items():
                watcher.owe(part, data)
        for job in {watcher.job for watcher in watching if watcher.job}:
            data = msgspec.json.encode(await self._round(watching[0].secrets, job))
            for watcher in watching:
                if watcher.job == job:
                    watcher.owe("round", data)

    async def _round(self, secrets: Secrets, job: str) -> dict[str, Any] | None:
        """Return the running round of a job; None: it has none, or is no job here."""
        try:
            now: dict[str, Any] | None = (await self._visits.ask(secrets, om.JobStatus(job, last=0)))["now"]
        except Refused as refused:
            if refused.code == "unknown-job":
                return None
            raise
        return now
