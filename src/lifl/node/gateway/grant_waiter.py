"""A connection's question to the daemon, and its answer: a grant, or what it told the client instead."""

from __future__ import annotations

import asyncio
import os

import msgspec

from lifl.core.errors import RemoteFault
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.node.link import Link

Question = gm.Admit | gm.WantModel | gm.Offered | gm.ModelPut
ENDED = "the connection ended before the daemon answered"


class Loan:
    """A model that is `granted` as a loan, and the two descriptors for the client, which are closed with this."""

    def __init__(self, granted: gm.ModelGranted, segment: int, end: int) -> None:
        self.granted = granted
        self.descriptors: tuple[int, ...] = (segment, end)

    def close(self) -> None:
        """Close this process' descriptors; may be called twice."""
        descriptors, self.descriptors = self.descriptors, ()
        for fd in descriptors:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


Grant = gm.Granted | gm.ModelGranted | Loan


class GrantWaiter:
    """Asks for one connection, one question at a time."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._about: tuple[str, int] | None = None
        self._answer: asyncio.Future[Grant | None] | None = None
        self._ended = False

    async def ask(self, question: Question) -> Grant | None:
        """Return the daemon's grant; None when it answered the client itself (accepted already, busy, refused).

        Raise `ConnectionResetError` when the connection ends first, or has ended: its last message may be taken up
        after that, and a daemon that waits for the gateway's end answers nothing more.
        """
        if self._ended:
            raise ConnectionResetError(ENDED)
        self._about = None if isinstance(question, gm.Offered) else (question.job, question.round)
        self._answer = self._loop.create_future()
        self._link.gather(question)
        try:
            return await self._answer
        finally:
            self._about = self._answer = None

    @property
    def waiting(self) -> bool:
        """True while there is no answer."""
        return self._answer is not None and not self._answer.done()

    def granted(self, grant: Grant) -> bool:
        """Take the daemon's answer to a question; return False when nothing was asked."""
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_result(grant)
        return True

    def delivered(self, encoded: bytes) -> None:
        """See whether the daemon's message to the client, packed, is the answer to the question."""
        if self._answer is None or self._answer.done():
            return
        try:
            message = cm.unpacked(encoded)
        except msgspec.DecodeError as error:
            raise RemoteFault(f"lifld delivers what no client understands: {error}") from error
        if isinstance(message, cm.Accepted | cm.Busy | cm.Refusal) and self._about in (
            None,
            (message.job, message.round),
        ):
            self._answer.set_result(None)

    def connection_ended(self) -> None:
        """End the wait with an error, and have none begin."""
        self._ended = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(ENDED))
