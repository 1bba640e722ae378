"""Which client is on which connection in which job: the one place for client connections.

A client takes part in a job over one connection, at the gateway of some node: of two that claim its name, the one whose
Join comes last, and the other one is told so.  Only connections that live are compared, and no clocks: those of clients
are set back and copied.  What comes by different nodes may come out of order, so a client that moved may be told by
mistake that it was replaced; it joins once more, and has its name again.  Of two clients with one name that do so in
turn, one is told twice, and gives up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from lifl.core.errors import Refused
from lifl.core.fields import Message, Properties
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.turn import Turn


class Connection(NamedTuple):
    """A client's connection: the node whose gateway it is at, and that gateway's number for it."""

    node: int
    conn: int


_NOWHERE: Mapping[str, Connection] = MappingProxyType({})
_NOTHING: Mapping[str, Properties] = MappingProxyType({})
_NOBODY: Mapping[str, None] = MappingProxyType({})


class Presence:
    """The connections of all jobs' clients; what is said to a client goes through here."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._of: dict[str, dict[str, Connection]] = {}  # by job and client
        self._jobs: dict[Connection, dict[str, str]] = {}  # the same by connection and job: the client's name
        self._said: dict[str, dict[str, Properties]] = {}  # by job and client: what those say of themselves who do
        self._apart: dict[str, dict[str, None]] = {}  # by job: those of whom its condition is not true

    def of(self, job: str) -> Mapping[str, Connection]:
        """Return the clients that take part in the job, in the order in which they came."""
        return self._of.get(job, _NOWHERE)

    def said(self, job: str) -> Mapping[str, Properties]:
        """Return what the clients of the job that take part say of themselves, as far as they do."""
        return self._said.get(job, _NOTHING)

    def apart(self, job: str) -> Mapping[str, None]:
        """Return those who take part in the job, and are not to be selected."""
        return self._apart.get(job, _NOBODY)

    # ---- what is said to clients ---------------------------------------------------------------------------------

    def send(self, to: Connection, message: Message) -> None:
        """Send a message over a connection, behind the orders before it."""
        self._turn.order(to.node, gm.TellClient(to.conn, cm.packed(message)))

    def refuse(self, to: Connection, refused: Refused, job: str, round_: int) -> None:
        """Answer "no" over a connection."""
        self.send(to, cm.Refusal(refused.code, refused.field, refused.text, job, round_))

    def select(self, to: Connection, selected: cm.Selected) -> None:
        """Send a selection over a connection; its gateway adds what is the same for all."""
        self._turn.order(to.node, gm.TellClient(to.conn, cm.packed(selected), selected.job))

    def tell(self, job: str, client: str, message: Message) -> None:
        """Send a message to a client of the job, if it is here."""
        to = self._of[job].get(client) if job in self._of else None
        if to is not None:
            self.send(to, message)

    def tell_all(self, job: str, clients: Iterable[str], message: Message) -> None:
        """Send one message to those of the clients that are here."""
        present, packed = self.of(job), cm.packed(cm.with_short_reason(message))
        for client in clients:
            to = present.get(client)
            if to is not None:
                self._turn.order(to.node, gm.TellClient(to.conn, packed))

    # ---- who comes and goes --------------------------------------------------------------------------------------

    def claim(self, job: str, client: str, here: Connection) -> None:
        """Let the client's name belong to this connection; tell the one that had it."""
        before = self.of(job).get(client)
        if before is not None and before != here:
            text = f"client {client!r} has joined job {job!r} from another connection; names must differ"
            self.send(before, cm.Refusal(cm.REPLACED, "client", text, job))

    def add(
        self, job: str, client: str, here: Connection, said: Properties | None = None, selectable: bool = True
    ) -> None:
        """Let the client take part in the job over this connection, and no other."""
        clients = self._of.setdefault(job, {})
        before = clients.get(client)
        if before is not None and before != here:
            self._forget(before, job)
        replaced = self._jobs.get(here, {}).get(job)
        if replaced is not None and replaced != client:
            del clients[replaced]
            self._unsay(job, replaced)
        clients[client] = here
        self._jobs.setdefault(here, {})[job] = client
        self._unsay(job, client)
        if said is not None:
            self._said.setdefault(job, {})[client] = said
        if not selectable:
            self._apart.setdefault(job, {})[client] = None

    def _unsay(self, job: str, client: str) -> None:
        """Forget what a client has said of itself."""
        self._said.get(job, {}).pop(client, None)
        self._apart.get(job, {}).pop(client, None)

    def remove(self, here: Connection, job: str = "") -> list[tuple[str, str]]:
        """Forget the connection for a job (empty: each); return the jobs and clients that took part over it."""
        gone = [(name, client) for name, client in self._jobs.get(here, {}).items() if job in ("", name)]
        for name, client in gone:
            self._forget(here, name)
            del self._of[name][client]
            self._unsay(name, client)
        return gone

    def remove_job(self, job: str) -> None:
        """Forget all connections of a job that is over."""
        self._said.pop(job, None)
        self._apart.pop(job, None)
        for here in self._of.pop(job, {}).values():
            self._forget(here, job)

    def at(self, node: int) -> list[Connection]:
        """Return the connections at a node's gateway."""
        return [here for here in self._jobs if here.node == node]

    def _forget(self, here: Connection, job: str) -> None:
        del self._jobs[here][job]
        if not self._jobs[here]:
            del self._jobs[here]

    def faults(self) -> Iterator[str]:
        """Yield where the two indexes differ."""
        here = {(here, job, client) for job, clients in self._of.items() for client, here in clients.items()}
        there = {(here, job, client) for here, jobs in self._jobs.items() for job, client in jobs.items()}
        for connection, job, client in sorted(here ^ there):
            yield f"client {client!r} of job {job!r} stands under {connection} in one index of connections only"
        for what in (self._said, self._apart):
            for job, clients in what.items():
                if gone := clients.keys() - self.of(job).keys():
                    yield f"of clients {sorted(gone)} of job {job!r} it is known what they are, and they are not here"
        for connection, jobs in self._jobs.items():
            if not jobs:
                yield f"{connection} is kept, and no client takes part over it"
