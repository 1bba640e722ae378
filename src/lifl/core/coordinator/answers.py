"""What a client is answered: whether its update may come, and what became of one that it still holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from lifl.core.config.job import FOLD_PLACES_FREE
from lifl.core.coordinator.branches import BranchTracker
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.presence import Connection, Presence
from lifl.core.coordinator.round import Phase, Round
from lifl.core.coordinator.rounds import Rounds
from lifl.core.coordinator.selection import may_be_late
from lifl.core.errors import Refused
from lifl.core.fields import Ticket
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution
from lifl.core.trust.ticket import ANY_FOLD, REVOKED, RevokedTickets, fits
from lifl.core.turn import Turn

LOADING_RETRY_S = 0.2
GRANTED_RETRY_S = 1.0


class Answers:
    """Answers the clients of one job out of the books of its rounds."""

    def __init__(
        self,
        spec: JobSpec,
        turn: Turn,
        nodes: NodeTable,
        presence: Presence,
        rounds: Rounds,
        branches: BranchTracker,
    ) -> None:
        self._spec = spec
        self._turn = turn
        self._nodes = nodes
        self._presence = presence
        self._rounds = rounds
        self._branches = branches
        self.host: Connection | None = None  # of a session of folds
        self.secret = ""  # by which its tickets are made
        self.revoked = RevokedTickets()

    def admit(self, here: Connection, event: gm.Admit, loading: bool) -> None:
        """Grant an update that is announced, or answer.  Raise `Refused`; `loading`: the job's model is not there."""
        round_, client, number = self._rounds.current, event.client, event.round
        if self._rounds.has(number, client):
            self._presence.send(here, cm.Accepted(self._spec.name, number))
            return
        if loading or (round_ is not None and round_.phase is Phase.RECOVERING):
            # It comes from an earlier life of the daemon, to which the round is still to be told; or a node that is
            # still to come may have this update.
            self._presence.send(here, cm.Busy(self._spec.name, number, LOADING_RETRY_S))
            return
        where = f"round {number} of job {self._spec.name!r}"
        if round_ is None or number < round_.number:
            raise Refused("round-over", "round", f"{where} is over; wait for the next selection")
        if number > round_.number:
            raise Refused("wrong-round", "round", f"{where} has not begun: the job is at round {round_.number}")
        if self._spec.is_fold and self.host is None and not self.secret:
            self._presence.send(here, cm.Busy(self._spec.name, number, LOADING_RETRY_S))  # what tickets are made with
            return
        if self._spec.is_fold:
            self._check_fold(round_, here, event)
        if self._spec.is_fold or may_be_late(round_, client):
            round_.selected[client] = None
        if client not in round_.selected or client in round_.declined:
            raise Refused("not-selected", "client", f"client {client!r} is not selected for {where}; wait for it")
        if round_.phase is not Phase.COLLECTING:
            raise Refused("round-over", "round", f"{where} takes no more updates; wait for the next selection")
        if client in round_.granted:
            # Its first connection may be dead and not yet known to be: it asks again until that is settled.
            self._end_earlier(round_, here, client)
            self._presence.send(here, cm.Busy(self._spec.name, number, GRANTED_RETRY_S))
            return
        if len(round_.granted) >= (self._spec.config.quota.updates_in_flight or math.inf):
            self._presence.send(here, cm.Busy(self._spec.name, number, GRANTED_RETRY_S))
            return
        takes = self._nodes.takes_grants(here.node)
        record = round_.branch_for(here.node) if takes else None
        if record is None:
            self._send_elsewhere(round_, here, client, takes and not self._nodes.goes(here.node))
            record = round_.branch_for(here.node) if takes else None
        if record is None:
            return
        round_.granted_over[client] = here
        round_.grant(Contribution(client, event.weight, event.metrics), record, self._turn.now)
        granted = (client, event.weight, event.metrics, event.direct)
        self._turn.order(here.node, o.Grant(self._spec.number, round_.epoch, record.number, here.conn, *granted))

    def check_ticket(self, client: str, fold: int, ticket: Ticket) -> bool:
        """Return whether it is a standing ticket.  Raise `Refused` unless it is one for this fold by this name."""
        name = self._spec.name
        standing = fits(ticket.credential, self.secret, name, ANY_FOLD, client, ticket.expires_unix_s)
        if not standing and not fits(ticket.credential, self.secret, name, fold, client, ticket.expires_unix_s):
            text = f"that is no ticket for this fold of session {name!r} by the name {client!r}; ask its host for one"
            raise Refused("wrong-ticket", "ticket", text)
        if self.revoked.has(ANY_FOLD if standing else fold, client):
            raise Refused("wrong-ticket", "ticket", REVOKED)
        return standing

    def _check_fold(self, round_: Round, here: Connection, event: gm.Admit) -> None:
        """Raise `Refused` unless the fold takes this update of a client who was not asked."""
        if here != self.host and not isinstance(event.fold, msgspec.UnsetType):
            if isinstance(event.ticket, msgspec.UnsetType):
                raise Refused("not-host", "job", f"session {self._spec.name!r} is another connection's")
            self.check_ticket(event.client, event.fold, event.ticket)
        if event.fold != round_.epoch:
            text = f"that fold of session {self._spec.name!r} is over; this one is named otherwise"
            raise Refused("round-over", "fold", text)
        most = round_.goal - FOLD_PLACES_FREE
        if len(round_.accepted) + len(round_.granted) >= most and event.client not in round_.granted:
            text = f"this fold of session {self._spec.name!r} takes {most} updates, and they are there"
            raise Refused("fold-full", "expected", f"{text}: open it with a larger `expected`")

    def _end_earlier(self, round_: Round, here: Connection, client: str) -> None:
        """End what a client has left behind on the connection over which it was granted, if it asks over another."""
        before = round_.granted_over.get(client)
        if before is not None and before != here:
            round_.granted_over[client] = here
            text = f"client {client!r} submits over another connection"
            self._presence.send(before, cm.Refusal(cm.REPLACED, "client", text, self._spec.name))

    def _send_elsewhere(self, round_: Round, here: Connection, client: str, takes: bool) -> None:
        """Tell a client to use another gateway, or to wait; or let a branch here take it.

        `takes`: the node here may be granted something.  Who comes back from where it was sent could not reach that.
        """
        node = max(round_.nodes, key=round_.room_at)
        if node != here.node and (round_.room_at(node) > 0 or len(round_.branches) == 1):
            if takes and round_.sent.get(client) == node and self._branches.take_over(round_, node, here.node):
                return
            round_.sent[client] = node
            gateway = self._nodes.gateway_of(node)
            text = f"round {round_.number} of job {self._spec.name!r} takes this update at another node: submit to "
            raise Refused("use-gateway", gateway, text + gateway)
        self._presence.send(here, cm.Busy(self._spec.name, round_.number, GRANTED_RETRY_S))

    def spoil(self, round_: Round, suspects: Sequence[str], reason: str) -> None:
        """Have clients forget the updates by which the round fails: the next attempt takes none of them again.

        When no suspects are named, it may be the update of any.
        """
        found = (frozenset(suspects) or round_.accepted.keys()) & round_.accepted.keys()
        round_.spoilt |= found
        text = f"this update cannot be aggregated: {reason}"[:TEXT_CHARS_MAX]
        refusal = cm.Refusal(cm.SPOILT, "update", text, self._spec.name, round_.number)
        self._presence.tell_all(self._spec.name, dict.fromkeys(sorted(found)), refusal)

    def tell_spoilt(self, here: Connection, client: str) -> None:
        """Tell a client that its update made an attempt of the round fail, which it may not have heard."""
        round_ = self._rounds.current
        if round_ is not None and client in round_.spoilt and client not in round_.selected:
            text = "this update made an attempt of the round fail"
            self._presence.send(here, cm.Refusal(cm.SPOILT, "update", text, self._spec.name, round_.number))

    def tell_fates(self, here: Connection, client: str, holding: int | None) -> None:
        """Tell what became of its updates; `holding` is the oldest round whose update it still holds, if any.

        It may hold later ones too.
        """
        if holding is not None:
            for number in sorted({holding, *(later for later in self._rounds.counted if later > holding)}):
                self._tell_fate(here, client, number)

    def _tell_fate(self, here: Connection, client: str, number: int) -> None:
        if number > self._rounds.committed:
            return
        members = self._rounds.counted.get(number)
        if members is None or client in members:
            self._presence.send(here, cm.Committed(self._spec.name, number, counted=members is not None))
        else:
            text = "the round was committed without this update"
            self._presence.send(here, cm.RoundOver(self._spec.name, number, text))
