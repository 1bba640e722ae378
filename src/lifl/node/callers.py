"""Who is on which connection of the gateway, and what of them goes to the audit log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lifl.core.protocol import gateway as gm
from lifl.core.protocol import tickets as tm
from lifl.node.audit_log import AuditLog

UNKNOWN = "unknown"


class Callers:
    """The connections of one gateway whose clients have said Hello."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._who: dict[int, str] = {}  # by connection
        self._gateways = 0  # how many have ended: the next one's connections may have the same numbers

    def heard(self, message: Any) -> bool:
        """Note what a gateway says; return whether that was all that is to be done about it."""
        match message:
            case gm.Greeted(conn, who):
                self._who[conn] = who
                return True
            case gm.ClientRefused():
                self._audit.note(
                    "client.refused",
                    message.who,
                    message.text,
                    message.count,
                    client=message.client,
                    job=message.job,
                    code=message.code,
                    field=message.field,
                )
                return True
            case gm.ClientJoined(conn, client, job):
                self._audit.note("client.join", self.who(conn), client=client, job=job)
            case gm.PartTaken(conn, client, job):
                self._audit.note("ticket.used", self.who(conn), client=client, job=job)
            case tm.RevocationAsked(conn, job, fold, client):
                self._audit.note("ticket.revoked", self.who(conn), client=client, job=job, fold=fold)
            case gm.ClientLeft(conn, ""):
                self._who.pop(conn, None)
        return False

    def who(self, conn: int) -> str:
        """Return who is on a connection."""
        return self._who.get(conn, UNKNOWN)

    def is_here(self, conn: int) -> Callable[[], bool]:
        """Return what says later on whether this connection has been there all the while."""
        gateways = self._gateways
        return lambda: gateways == self._gateways and conn in self._who

    def gone(self) -> None:
        """Forget all connections: the gateway has ended."""
        self._who.clear()
        self._gateways += 1
