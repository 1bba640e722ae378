"""Copies of small models: `lifld` is asked for each once, and the gateway sends it from there to whoever asks.

A copy is of the model that one round of a job starts from.  It goes when `lifld` says that the model is another one
(`ModelChanged`), which it does before it says anything else of the next one.  While the first who asks has no answer
yet, others wait for it.
"""

from __future__ import annotations

import asyncio

from lifl.core.limits import SMALL_BODY_BYTES
from lifl.core.protocol.small_models import ModelServed
from lifl.node.link import Link


class Copy:
    """The model that a round starts from; without `data` while it is asked for."""

    def __init__(self, round_: int) -> None:
        self.round = round_
        self.data = b""
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class SmallModels:
    """The copies of all jobs, one of each."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._copies: dict[str, Copy] = {}
        self._sent_bytes: dict[str, int] = {}  # what is not told yet

    async def of(self, job: str, round_: int, data_bytes: int) -> Copy | None:
        """Return the copy of a round's model.  Without `data` the caller is to fetch that, and to `settle` it.

        None: it is too large for one.
        """
        if not 0 < data_bytes <= SMALL_BODY_BYTES:
            return None
        while True:
            copy = self._copies.get(job)
            if copy is None or copy.round != round_:
                copy = self._copies[job] = Copy(round_)
                return copy
            if copy.data:
                return copy
            await asyncio.shield(copy.settled)

    def settle(self, job: str, copy: Copy) -> None:
        """Have others who wait for it go on: with its data, or asking for themselves."""
        if not copy.data and self._copies.get(job) is copy:
            del self._copies[job]
        if not copy.settled.done():
            copy.settled.set_result(None)

    def changed(self, job: str) -> None:
        """Let the copy go; who fetches one at this moment uses it alone."""
        self._copies.pop(job, None)

    def served(self, job: str, sent_bytes: int) -> None:
        """Tell `lifld`, for all who are served in this turn of the loop at once."""
        if not self._sent_bytes:
            self._loop.call_soon(self._tell)
        self._sent_bytes[job] = self._sent_bytes.get(job, 0) + sent_bytes

    def _tell(self) -> None:
        for job, sent_bytes in self._sent_bytes.items():
            self._link.send(ModelServed(job, sent_bytes))
        self._sent_bytes.clear()
