"""`lifld`'s side of the page in a browser (`node/http/page.py`): the links to it, and who visits it.

The HTTP door parses what browsers send, and vouches for nobody here: it hands over a visit's secrets with each request,
and a connection, over which the request is one of the command line (`cli_server.py`), as whom the visit is.  So the
page does what a command line does, by the same policy, and the audit log says so.
"""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import suppress
from typing import Any, cast

from lifl.core.config.node import NodeConfig, beyond_loopback, secured
from lifl.core.errors import Refused
from lifl.core.identity import Role
from lifl.core.protocol import client as cm
from lifl.core.protocol import http as hm
from lifl.core.protocol.frames import encode
from lifl.core.trust.page_visits import PageVisits, visitor_of
from lifl.core.trust.revocation import Revocation, RevokedList
from lifl.core.trust.tokens import SECRET_BYTES
from lifl.node.audit_log import AuditLog
from lifl.node.authority.enforcement import Enforcement
from lifl.node.cli_server import OWNER, CliServer
from lifl.node.http_door import HttpDoor
from lifl.tls.peer import Peer

NO_DOOR = "this node serves no page: start it with `lifl up --web`; that takes pip install 'lifl[web]'"
IN_PLAIN = (
    "this node speaks plain HTTP with other machines (--insecure), and who listens there would get the page's cookie: "
    "have it on 127.0.0.1 (--web alone), or do without --insecure"
)


class Pages:
    """The links and visits of a node; `door` is None where it has no HTTP."""

    def __init__(
        self, door: HttpDoor | None, cli: CliServer, config: NodeConfig, audit: AuditLog, enforcement: Enforcement
    ) -> None:
        self._door = door
        self._cli = cli
        self._audit = audit
        self._in_plain = config.insecure and "http" in beyond_loopback(config)
        self._is_tls = secured(config)
        self._visits = PageVisits()
        if door is not None:
            door.on_page = self._heard
        enforcement.add(self)

    def link(self, role: str, peer: Peer | None) -> dict[str, Any]:
        """Return a link, for who has the certificate `peer` (None: the owner).  Raise `Refused`."""
        if self._door is None:
            raise Refused("no-page", "http", NO_DOOR)
        if self._in_plain:
            raise Refused("not-secured", "http", IN_PLAIN)
        asker = peer.identity if peer is not None else OWNER
        shown = (peer.serial, peer.issued_unix_s) if peer is not None else ("", 0.0)
        visitor = visitor_of(asker, cast(Role, role or asker.role), *shown)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        expires = self._visits.link(secret, visitor, time.time())
        self._audit.note("page.linked", str(asker), role=visitor.identity.role)
        self._tell()
        return {
            "address": self._door.address,
            "tls": self._is_tls,
            "link": secret,
            "role": visitor.identity.role,
            "expires_unix_s": expires,
        }

    def revoke(self, _entries: tuple[Revocation, ...], revoked: RevokedList) -> None:
        """End the visits of those whose certificates are revoked."""
        self._visits.end_where(lambda each: revoked.names(each.asked_by, each.serial, each.issued_unix_s))
        self._tell()

    def _tell(self) -> None:
        if self._door is not None:
            self._door.child.send(hm.VisitsTold(self._visits.links(), self._visits.visits()))

    def _heard(self, message: Any) -> None:
        match message:
            case hm.HttpReady():
                self._tell()
            case hm.LinkShown(number, link):
                self._open(number, link)
            case hm.VisitorCame(cookie, key):
                self._came(cookie, key)
            case hm.VisitEnded(cookie, key):
                self._visits.end(cookie, key)
                self._tell()

    def _open(self, number: int, link: str) -> None:
        assert self._door is not None
        cookie, key = (secrets.token_urlsafe(SECRET_BYTES) for _ in range(2))
        try:
            visit = self._visits.open(link, cookie, key, time.time())
        except Refused as refused:
            self._door.child.send(hm.VisitOpened(number, code=refused.code, text=refused.text))
            return
        who = visit.visitor.identity
        self._audit.note("page.opened", str(visit.visitor.asked_by), role=who.role)
        self._tell()  # before the answer: a request may follow at once
        self._door.child.send(hm.VisitOpened(number, cookie, key, who.role, who.name, visit.expires_unix_s))

    def _came(self, cookie: str, key: str) -> None:
        assert self._door is not None
        sock = socket.socket(fileno=self._door.child.taken_descriptor())
        try:
            visit = self._visits.find(cookie, key, time.time())
        except Refused as refused:
            with sock, suppress(OSError):
                sock.send(encode(cm.Refusal(refused.code, refused.field, refused.text)))
            return
        self._cli.take_visitor(sock, visit.visitor.identity)
