"""Who may look at the node's page in a browser: links that are good once, and the visits that they open.

A link carries a secret.  Who shows it gets a visit: two secrets, of which the browser keeps one in a cookie that no
script can read, and the page the other.  Both are asked for with every request.  Cookies go to whatever listens on the
same host, at any port, and are sent for pages of other ports too; what the page keeps is for its own origin alone, the
port included.  So neither is of use without the other.

The node keeps digests, in memory: a visit ends with the node's life, when its time is over, when it is told to, or
when the certificate is revoked of who asked for the link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec

from lifl.core.errors import Refused
from lifl.core.identity import Identity, Role
from lifl.core.limits import WEB_LINK_S, WEB_LINKS_MAX, WEB_VISIT_S, WEB_VISITS_MAX
from lifl.core.trust.tokens import digest_of

ROLES: tuple[Role, ...] = ("operator", "reader")
"""As whom somebody looks."""
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Visitor(msgspec.Struct, frozen=True):
    """As whom the page is looked at, and who asked for the link, by which certificate (empty: by none)."""

    identity: Identity
    asked_by: Identity
    serial: str = ""
    issued_unix_s: float = 0.0


class Visit(msgspec.Struct, frozen=True):
    """A visitor, and until when."""

    visitor: Visitor
    expires_unix_s: float


def digest_of_visit(cookie: str, key: str) -> bytes:
    """Return what is kept of a visit's two secrets."""
    return digest_of(f"{cookie}\n{key}")


def visitor_of(asker: Identity, role: Role, serial: str = "", issued_unix_s: float = 0.0) -> Visitor:
    """Return who looks by a link that `asker` wants for `role`.  Raise `Refused`: nobody gives more than it has."""
    if role not in ROLES or asker.role not in ROLES or ROLES.index(role) < ROLES.index(asker.role):
        text = f"{asker} may not open the page as {role}: a link gives no more than who asks for it may do"
        raise Refused("not-allowed", "role", text)
    return Visitor(Identity(role, asker.name), asker, serial, issued_unix_s)


def _first_of_most(book: Mapping[bytes, Visit]) -> bytes:
    """Return the oldest of who has asked for the most of them: whoever asks without end pushes out nobody else's."""
    numbers = Counter(visit.visitor.asked_by for visit in book.values())
    return max(book, key=lambda digest: numbers[book[digest].visitor.asked_by])


class PageVisits:
    """The links and visits of a node, by digest; there are never more than the limits say."""

    def __init__(self) -> None:
        self._links: dict[bytes, Visit] = {}
        self._visits: dict[bytes, Visit] = {}

    def link(self, secret: str, visitor: Visitor, now_unix_s: float) -> float:
        """Take note of a link; return until when it is good.  Where there are too many, one gives way."""
        self._forget(now_unix_s)
        while len(self._links) >= WEB_LINKS_MAX:
            del self._links[_first_of_most(self._links)]
        expires = now_unix_s + WEB_LINK_S
        self._links[digest_of(secret)] = Visit(visitor, expires)
        return expires

    def open(self, secret: str, cookie: str, key: str, now_unix_s: float) -> Visit:
        """Use a link up, for a visit by these two secrets.  Raise `Refused`, the same for all links that are none."""
        self._forget(now_unix_s)
        found = self._links.pop(digest_of(secret), None)
        if found is None:
            text = f"that link is used up, or older than {WEB_LINK_S:g} s: `lifl web` makes another one"
            raise Refused("link-over", "link", text)
        while len(self._visits) >= WEB_VISITS_MAX:
            del self._visits[_first_of_most(self._visits)]
        visit = Visit(found.visitor, now_unix_s + WEB_VISIT_S)
        self._visits[digest_of_visit(cookie, key)] = visit
        return visit

    def find(self, cookie: str, key: str, now_unix_s: float) -> Visit:
        """Return the visit that these secrets are of.  Raise `Refused`."""
        self._forget(now_unix_s)
        found = self._visits.get(digest_of_visit(cookie, key))
        if found is None:
            raise Refused("visit-over", "page", "this visit of the page is over: `lifl web` makes a link to it")
        return found

    def end(self, cookie: str, key: str) -> None:
        """End a visit, if it is here."""
        self._visits.pop(digest_of_visit(cookie, key), None)

    def end_where(self, ends: Callable[[Visitor], bool]) -> None:
        """End all visits, and forget all links, of certain visitors."""
        for book in (self._links, self._visits):
            for digest in [digest for digest, visit in book.items() if ends(visit.visitor)]:
                del book[digest]

    def links(self) -> tuple[bytes, ...]:
        """Return the digests of the links."""
        return tuple(self._links)

    def visits(self) -> tuple[tuple[bytes, float, Role], ...]:
        """Return of each visit its digest, until when it lasts, and as whom it is."""
        return tuple(
            (digest, visit.expires_unix_s, visit.visitor.identity.role) for digest, visit in self._visits.items()
        )

    def _forget(self, now_unix_s: float) -> None:
        for book in (self._links, self._visits):
            for digest in [digest for digest, visit in book.items() if visit.expires_unix_s <= now_unix_s]:
                del book[digest]
