"""The HTTP door's side of visits: which secrets `lifld` knows, and a visitor's requests to it.

`lifld` tells the digests of all links and visits, so that who has none costs it nothing.  Each request is a connection
of the command line of its own, by a socket pair whose one end goes to `lifld` with the visit's secrets: only `lifld`
says as whom it is, and what may be asked.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any, NamedTuple

import msgspec

from lifl.core.errors import Refused
from lifl.core.identity import Identity, Role
from lifl.core.limits import WEB_ASKS_MAX
from lifl.core.protocol import cli as om
from lifl.core.protocol import http as hm
from lifl.core.protocol.client import Refusal
from lifl.core.trust import policy
from lifl.core.trust.page_visits import digest_of_visit
from lifl.core.trust.tokens import TokenSecret, digest_of
from lifl.node.http.native import AWAY
from lifl.node.link import Link

ANSWER_S = 10.0
"""`lifld` answers what is only looked at within this time, or is too busy."""
NO_VISIT = Refused("visit-over", "page", "this page is for who has opened a link to it: `lifl web` makes one")
NOBODY: tuple[float, Role] = (0.0, "reader")
"""Of who has no visit: it has ended."""


class Secrets(NamedTuple):
    """The two secrets of a visit."""

    cookie: str
    key: str

    @property
    def digest(self) -> bytes:
        """What both sides keep of them."""
        return digest_of_visit(self.cookie, self.key)


class Visits:
    """What is known of them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._links: frozenset[bytes] = frozenset()
        self._visits: dict[bytes, tuple[float, Role]] = {}
        self._shown: dict[int, asyncio.Future[hm.VisitOpened]] = {}
        self._asking = 0

    def told(self, message: hm.VisitsTold) -> None:
        """Know what `lifld` knows."""
        self._links = frozenset(message.links)
        self._visits = {digest: (until, role) for digest, until, role in message.visits}

    def opened(self, message: hm.VisitOpened) -> None:
        """Hand on what became of a link."""
        shown = self._shown.get(message.number)
        if shown is not None and not shown.done():
            shown.set_result(message)

    def is_valid(self, secrets: Secrets) -> bool:
        """Return whether there is such a visit, as far as is known here."""
        return self._visits.get(secrets.digest, NOBODY)[0] > time.time()

    def check_may(self, secrets: Secrets, question: type[om.FromCli]) -> None:
        """Raise `Refused` for what `lifld` would refuse a visitor, so that the door takes nothing in for it."""
        until_unix_s, role = self._visits.get(secrets.digest, NOBODY)
        if until_unix_s <= time.time():
            raise NO_VISIT
        policy.check(Identity(role, "visitor"), om.ACTION_OF[question])

    async def open(self, link: str) -> hm.VisitOpened:
        """Use a link up.  Raise `Refused`."""
        try:
            link = msgspec.convert(link, TokenSecret)
        except msgspec.ValidationError:
            raise Refused("link-over", "link", "that is no link to the page: `lifl web` makes one") from None
        if digest_of(link) not in self._links:
            raise Refused("link-over", "link", "that link is used up, or over: `lifl web` makes another one")
        number = max(self._shown, default=0) + 1
        shown: asyncio.Future[hm.VisitOpened] = asyncio.get_running_loop().create_future()
        self._shown[number] = shown
        self._link.send(hm.LinkShown(number, link))
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await shown
        except TimeoutError:
            raise AWAY from None
        finally:
            del self._shown[number]
        if found.code:
            raise Refused(found.code, "link", found.text)
        return found

    def end(self, secrets: Secrets) -> None:
        """End a visit."""
        if self._visits.pop(secrets.digest, None) is not None:
            self._link.send(hm.VisitEnded(*secrets))

    async def ask(self, secrets: Secrets, question: om.FromCli, patience_s: float = ANSWER_S) -> dict[str, Any]:
        """Return what `lifld` answers a visitor.  Raise `Refused`."""
        if not self.is_valid(secrets):
            raise NO_VISIT
        if self._asking >= WEB_ASKS_MAX:
            raise Refused("quota", "page", f"{WEB_ASKS_MAX} requests of pages are being answered; ask again")
        self._asking += 1
        ours, theirs = socket.socketpair()
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def tell(message: Any) -> None:
            if not told.done():
                told.set_result(message)

        link = Link(ours, om.ToCli, tell, tell)
        try:
            with theirs:
                self._link.send(hm.VisitorCame(*secrets), descriptors=[theirs.fileno()])
            link.send(question)
            async with asyncio.timeout(patience_s):
                answer = await told
        except TimeoutError:
            raise AWAY from None
        finally:
            self._asking -= 1
            link.close()
        if isinstance(answer, Refusal):
            raise Refused(answer.code, answer.field, answer.text)
        if not isinstance(answer, om.Answer):
            raise AWAY
        return answer.result
