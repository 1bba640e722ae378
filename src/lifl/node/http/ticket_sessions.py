"""Who takes part by a ticket, in a program's folds: a session like any other (`sessions.py`), of which TakePart asks.

Its selection is the fold that is open.  The gateway, and the fold's coordinator, look at the ticket: nobody does here.
"""

from __future__ import annotations

import msgspec

from lifl.core.errors import Refused
from lifl.core.fields import Message
from lifl.core.ids import round_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.ticket_line import TicketLine
from lifl.node.http.native import Answer, Native
from lifl.node.http.segments import Segments
from lifl.node.http.sessions import Session
from lifl.node.http.uploads import Upload
from lifl.node.link import Link

TOLD_S = 10.0
"""How long it may take that who has a ticket is told of the fold that is open."""


class TicketSession(Session):
    """One client's, by one ticket."""

    asks_once = False  # it is told of the fold that is open as often as it asks, also of one that has its update

    def __init__(
        self, door: Link, segments: Segments, came: gm.ClientCame, name: str, job: str, *, ticket: TicketLine
    ) -> None:
        super().__init__(door, segments, came, name, job)
        self._ticket = ticket
        self._lets_in = ticket.lets_in if came.by_ticket else None
        self._fold = 0  # the one that it was told of last
        self._asks = False  # it has shown its ticket, and is not told of a fold yet

    def look_anew(self) -> None:
        """Ask which fold is open, unless that is asked already, or an update is under way."""
        if self._native is not None and self.upload is None and not self.turn.locked() and not self._asks:
            self.selected = None
            self._take_part(self._native, None)

    def _take_part(self, native: Native, holding: int | None) -> None:
        """Show the ticket: of a standing one the fold is wanted behind the one that has its update."""
        if self._asks:
            return
        self._asks = True
        settled = bool(self._fold) and round_of(self._fold) in self.fates
        after = self._ticket.fold or (self._fold if settled else 0)
        native.say(fm.TakePart(self.job, after, self._ticket.shown))

    def _heard(self, message: Message) -> None:
        if isinstance(message, cm.Busy) and self._asks and self._native is not None:  # its host is about to come back
            self._loop.call_later(message.retry_after_s, self._ask_again, self._native)
            return
        if isinstance(message, cm.Selected):
            self._asks = False
            if not isinstance(message.fold, msgspec.UnsetType) and message.fold != self._fold:
                self._fold = message.fold
                self.fates.pop(message.round, None)  # of a fold of that round that had no result
        super()._heard(message)

    def _ask_again(self, native: Native) -> None:
        self._asks = False
        if native is self._native and not native.closed:
            self.look_anew()

    def reset(self) -> None:
        """End the connection."""
        self._asks = False
        super().reset()

    def _ended(self) -> None:
        self._asks = False
        super()._ended()

    async def begin(self, round_: int, weight: float, metrics: dict[str, float]) -> Upload | None:
        """Return the upload of an update, when it is known what those of the fold look like.  Raise `Refused`."""
        if self.upload is not None:
            self.reset()
        native, until_s = await self.join(), self._loop.time() + TOLD_S
        if self.selected is None:
            self._take_part(native, None)
        while self.selected is None:
            if not await self.news(until_s):
                raise Refused("wrong-round", "round", "no such fold is open now: GET /v1/ticket waits for the next")
        return await super().begin(round_, weight, metrics)

    async def _ask(self, native: Native, question: Message, round_: int) -> Answer:
        if isinstance(question, cm.Submit):
            question = msgspec.structs.replace(question, fold=self._fold, ticket=self._ticket.shown)
        return await super()._ask(native, question, round_)
