"""A session of folds: a job whose rounds are opened, fed and closed by one program, its *host*.

A fold is a round, named by its epoch.  It opens as soon as its host says so, takes what comes, from whomever the host
brings or lets in, and closes when the host says so, with what was accepted by then: nobody is selected, nothing has a
deadline.  Its result is the model of its round, in the arena; no file has it, and no row but that of the session
itself, by which a `lifld` that starts again knows of it.  What it goes on from then is sealed in the arena: updates,
the last result, the rule's states.

The session ends when its host says so, when somebody cancels it, or when its host's connection has ended and it is not
back within `HOST_GRACE_S`.  Nothing of it stays.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from lifl.core import effects as fx
from lifl.core.config.job import FOLD_PLACES_FREE, most_of
from lifl.core.coordinator.brought import Brought
from lifl.core.coordinator.checkpoints import Stored
from lifl.core.coordinator.job import Job, Row
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.presence import Connection, Presence
from lifl.core.coordinator.receipt import metrics_of
from lifl.core.coordinator.round import Phase, Round
from lifl.core.coordinator.round_runner import TOO_LATE
from lifl.core.errors import Refused
from lifl.core.fields import Message, RevokedTicket
from lifl.core.ids import epoch_of, round_of
from lifl.core.limits import HOST_GRACE_S, SESSION_ROOM_S, TEXT_CHARS_MAX
from lifl.core.planning.arena_need import ARENA_MORE_BYTES
from lifl.core.planning.treatment import reads_model
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import folds as fm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import tickets as tm
from lifl.core.protocol.contribution import Contribution
from lifl.core.trust.ticket import ANY_FOLD, entry_key
from lifl.core.turn import Turn

CANCELLED = "the fold was cancelled by its host"
NO_ROOM = "there was no room for it on the node"
HOST_LOST = "its host has gone, and was not back within {grace_s:g} s"
OPEN_RETRY_S = 0.2


class Session(Job):
    """One session; `host` is the connection of its host, while there is one."""

    host: Connection | None = None
    _done: fm.FoldDone | None = None  # the last result, told again to who asks again

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable, presence: Presence) -> None:
        super().__init__(spec, turn, nodes, presence)
        self._brought = self.runner.brought = Brought(self.name, spec.layout.data_bytes, presence)

    # ---- begin and end -----------------------------------------------------------------------------------------------

    def resume(
        self,
        committed: int,
        counted: dict[int, frozenset[str]],
        rows: dict[int, Row],
        adopting: bool,
        stored: Mapping[int, Stored] | None = None,
        terms: Mapping[int, int] | None = None,
        holders: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        """Go on with what an earlier life has left sealed; its host has so long to come back."""
        self._adopting = True
        self.due_s = self._turn.now + HOST_GRACE_S
        self._turn.emit(tickets_of(self))

    def start(self) -> None:
        """Have the arena's room promised, and what an earlier life has left taken up."""
        self.rounds.committed = 0
        self._replicas.load_session(self._adopting)

    def fold_adopted(self, report: o.FoldAdopted) -> None:
        """Go on behind the last fold that has a result."""
        self.rounds.committed = self._replicas.model_round = report.round
        if report.epoch:
            self._note_done(report.epoch, [Contribution(*member) for member in report.members])

    def job_opened(self, _report: o.JobOpened) -> None:
        """Let folds be opened."""
        self.status = "running"
        if self.host is not None:
            self.due_s = math.inf
        self._nodes.promised[self.spec.number] = {self._nodes.home: self.spec.bytes_min()}
        self._publish("session.running", round=self.rounds.committed)
        self._greet()

    def _begin_round(self) -> None:
        """Leave it to the host."""

    def hosted(self, here: Connection, secret: str = "", revoked: Iterable[RevokedTicket] = ()) -> None:
        """Note that the session's host is on this connection, and on no other; `secret` is that of its tickets.

        What was `revoked` is known before the first ticket counts.  Raise `Refused` for too many.
        """
        for each in revoked:
            self.answers.revoked.add(each.fold, each.client, _current_fold(self))
        if self.host is not None and self.host != here:
            text = f"the host of session {self.name!r} has come over another connection"
            self._presence.send(self.host, cm.Refusal(cm.REPLACED, "job", text, self.name))
        self.host = self.answers.host = self._brought.host = here
        self.answers.secret, self.due_s = secret, math.inf
        self._turn.emit(tickets_of(self))
        if self.status == "running":
            self._greet()
        elif not self._adopting:  # else there are updates that were accepted: for these it waits as long as it takes
            self.due_s = self._turn.now + SESSION_ROOM_S

    def _greet(self) -> None:
        fold = self._done.fold if self._done is not None else 0
        gateway = self._nodes.gateway_of(self._nodes.home)
        self._tell_host(fm.SessionReady(self.name, self.rounds.committed, fold, gateway))

    def left(self, node: int, conn: int | None = None) -> None:
        """Note that a connection (None: each at the node's gateway) has ended: the host may come back."""
        self._brought.left(node, conn)
        if self.host is not None and self.host.node == node and conn in (None, self.host.conn):
            self.host = self.answers.host = self._brought.host = None
            self.due_s = self._turn.now + HOST_GRACE_S

    def tick(self) -> None:
        """Do what is due."""
        super().tick()
        if self.over or self._turn.now < self.due_s:
            return
        if self.host is None:
            self.end("cancelled", HOST_LOST.format(grace_s=HOST_GRACE_S))
            return
        self._tell_host(_no_room(self.spec, self._nodes))
        self.host = None  # that is its answer: JobOver behind it would be taken for that of its next question
        self.end("cancelled", NO_ROOM)

    def end(self, status: str, reason: str) -> None:
        """Free everything that the session held, and forget it."""
        self._nodes.promised.pop(self.spec.number, None)
        self.status, self.reason, self.due_s = status, reason, math.inf
        if self.round is not None:
            self._drop_round(self.round, f"the session is {status}: {reason}" if reason else f"the session is {status}")
        self._replicas.close()
        self._turn.emit(fx.DropJob(self.name, self.spec.number))
        self._tell_host(cm.JobOver(self.name, status, reason))
        self._brought.end(self.rounds.committed, f"the session is {status}")
        self.host = None
        self._publish("job.over", status=status, reason=reason)

    def join(self, here: Connection, event: gm.ClientJoined) -> None:
        """Raise `Refused`: nobody is selected here."""
        text = f"{self.name!r} is a session of folds: its host brings its updates; clients take part in jobs"
        raise Refused("not-a-job", "job", text)

    # ---- folds -------------------------------------------------------------------------------------------------------

    def open_fold(self, fold: int, expected: int) -> None:
        """Begin a fold, or go on with it; an earlier one that its host has given up is dropped.  Raise `Refused`."""
        if self._done is not None and self._done.fold == fold:
            self._tell_host(self._done)
            return
        number, attempt = round_of(fold), fold - epoch_of(round_of(fold), 0)
        if number != self.rounds.committed + 1 or not attempt:
            text = f"the next fold of session {self.name!r} is that of round {self.rounds.committed + 1}, not {number}"
            raise Refused("wrong-round", "fold", text)
        if self.round is not None and self.round.epoch > fold:
            raise Refused("wrong-round", "fold", f"a later try at fold {number} of session {self.name!r} is open")
        if self.round is not None and self.round.epoch < fold:
            self._drop_round(self.round, CANCELLED)
        if self.round is None:
            self._begin_fold(number, attempt, most_of(expected))
        if self.round is not None and self.round.phase is Phase.RECOVERING:
            self._tell_host(cm.Busy(self.name, number, OPEN_RETRY_S))
            return
        if self.round is not None:
            for client, contribution in self.round.accepted.items():
                self._brought.tell_host(self.round, contribution, self.round.granted_over.get(client))
            self._tell_host(fm.FoldOpen(self.name, fold, self.round.goal - FOLD_PLACES_FREE))
            self._brought.tell_waiting(self.round)

    def _begin_fold(self, number: int, attempt: int, most: int) -> None:
        self.planner.check_fold(most)
        round_ = Round(number, attempt, self.spec.config.selection, self._turn.now)
        round_.goal = round_.target = most + FOLD_PLACES_FREE
        round_.quorum = 0
        round_.deadline_s = round_.deadline_at_s = math.inf
        self.rounds.current, self._attempt = round_, attempt
        self._brought.opened(round_.epoch)
        adopting, self._adopting = self._adopting, False
        self.runner.begin({} if adopting else None)

    def close_fold(self, fold: int) -> None:
        """Take no more updates into the fold, and have its result made.  Raise `Refused` when it has none."""
        if self._done is not None and self._done.fold == fold:
            self._tell_host(fm.FoldClosing(self.name, fold, len(self._done.clients)))
            self._tell_host(self._done)
            return
        round_ = self._find(fold)
        if round_.phase is Phase.RECOVERING:
            self._tell_host(cm.Busy(self.name, round_.number, OPEN_RETRY_S))
            return
        if not round_.accepted:
            text = f"fold {round_.number} of session {self.name!r} has no update: there is nothing to make a model of"
            raise Refused("no-updates", "fold", text)
        self._tell_host(fm.FoldClosing(self.name, fold, len(round_.accepted)))
        if round_.phase is Phase.COLLECTING:
            self.runner.close(round_)

    def cancel_fold(self, fold: int) -> None:
        """End the fold without a result, if it is still open."""
        if self.round is not None and self.round.epoch == fold:
            self._drop_round(self.round, CANCELLED)
        else:
            self._tell_host(fm.FoldOver(self.name, fold, CANCELLED))

    def put_model(self, here: Connection, event: gm.ModelPut) -> None:
        """Let the host bring the model that the next fold starts from, or a state of the rule.  Raise `Refused`."""
        config = self.spec.config
        if event.state:  # the session goes on behind the round that the rule was at elsewhere
            begun = self.round is not None or self._done is not None
            if begun or event.state not in self.spec.states or self.rounds.committed not in (0, event.round):
                states = ", ".join(self.spec.states) or "(it has none)"
                text = f"the states of session {self.name!r}, {states}, can be put before its first fold, of one round"
                raise Refused("wrong-round", "state", text)
            self.rounds.committed = self._replicas.model_round = event.round
        reads = reads_model(self.spec.layout, config.aggregation, config.trainable)
        begun = bool(self.round is not None and self.round.accepted and reads)
        if event.round != self.rounds.committed or begun:
            text = f"the model of session {self.name!r} can be put before a fold has updates, behind its last result"
            raise Refused("wrong-round", "round", text)
        order = o.TakeModel(self.spec.number, here.conn, event.round, event.direct, event.state)
        self._turn.order(here.node, order)

    def take_part(self, here: Connection, event: gm.PartTaken) -> None:
        """Tell who has a ticket what updates look like.  Raise `Refused` when it is not for the fold that is open."""
        if self.host is None and not self.answers.secret:  # it alone knows what its tickets are made with
            self._presence.send(here, cm.Busy(self.name, self.rounds.committed, OPEN_RETRY_S))
            return
        if self.answers.check_ticket(event.client, event.fold, event.ticket):
            self._brought.wait(event.client, here, event.fold)
            if self.round is not None and self.round.phase is Phase.COLLECTING:
                self._brought.tell_waiting(self.round)
            return
        self._brought.select(here, self._find(event.fold))

    def _find(self, fold: int) -> Round:
        if self.round is None or self.round.epoch != fold:
            raise Refused("round-over", "fold", f"session {self.name!r} has no such fold open")
        return self.round

    def model_sealed(self, report: o.ModelSealed) -> None:
        """Tell the host of the result: it is what counts from now on."""
        round_ = self.round
        if round_ is None or round_.epoch != report.epoch:
            return
        round_.move(Phase.SAVING)  # AGGREGATING -> SAVING
        round_.sealed_s = self._turn.now
        round_.branches[0].cost = report.cost
        self.rounds.current = None
        self._replicas.model_round = round_.number
        self.rounds.commit(round_)  # SAVING -> COMMITTED
        for node in round_.nodes:
            self._turn.order(node, o.CommitBranch(self.spec.number, round_.epoch))
        _tell_late(self, round_, TOO_LATE, {*round_.granted_over.values()})
        self._note_done(round_.epoch, list(round_.accepted.values()))
        assert self._done is not None
        self._publish("fold.done", round=round_.number, counted=len(round_.accepted), metrics=self._done.metrics)
        self._tell_host(self._done)

    def _note_done(self, fold: int, members: list[Contribution]) -> None:
        clients = tuple(member.client for member in members)
        weight = math.fsum(member.weight for member in members)
        self._done = fm.FoldDone(self.name, fold, weight, metrics_of({m.client: m for m in members}), clients)

    def _fail_round(self, round_: Round, reason: str) -> None:
        """End the fold without a result: its host decides what follows."""
        self._drop_round(round_, reason)

    def _fail(self, reason: str) -> None:
        """End the fold: whatever failed, the session may go on with another one."""
        if self.round is not None:
            self._drop_round(self.round, reason)

    def _drop_round(self, round_: Round, reason: str) -> None:
        """End the fold without a result, and tell who waits for it."""
        round_.move(Phase.FAILED)
        round_.reason = reason
        self.rounds.current = None
        self._branches.drop(round_)
        self._publish("fold.over", round=round_.number, reason=reason)
        _tell_late(self, round_, reason, {*round_.granted_over.values()} - {self.host})
        self._tell_host(fm.FoldOver(self.name, round_.epoch, reason[:TEXT_CHARS_MAX]))

    def _tell_host(self, message: Message) -> None:
        if self.host is not None:
            self._presence.send(self.host, message)


def _tell_late(session: Session, round_: Round, reason: str, to: Collection[Connection | None]) -> None:
    """Tell those whose updates are on their way that the fold is over: nobody would when these are there."""
    over = cm.RoundOver(session.name, round_.number, reason[:TEXT_CHARS_MAX])
    for client in round_.granted:
        if (its := round_.granted_over.get(client)) is not None and its in to:
            session._presence.send(its, over)


def _current_fold(session: Session) -> int:
    """Return the fold that is open, or the least that can come next."""
    return session.round.epoch if session.round is not None else epoch_of(session.rounds.committed + 1, 0)


def tickets_of(session: Session) -> tm.TicketKey | tm.TicketsAwaited:
    """Return what the gateway is to know of a session's tickets."""
    secret = session.answers.secret
    if not secret and session.host is None:
        return tm.TicketsAwaited(session.name)
    key = entry_key(secret, session.name) if secret else ""
    return tm.TicketKey(session.name, key, session.answers.revoked.entries)


def revoke(session: Session, asked: tm.RevocationAsked) -> None:
    """Let a client bring no update by a ticket any more; one that is on its way ends.  Raise `Refused` for too many."""
    current, round_ = _current_fold(session), session.round
    session.answers.revoked.add(asked.fold, asked.client, current)
    session._turn.emit(tm.TicketOut(session.name, asked.fold, asked.client, current))
    if round_ is not None and asked.fold in (ANY_FOLD, current):
        over = round_.granted_over.get(asked.client)
        on_its_way = asked.client in round_.granted and asked.client not in round_.accepted
        if on_its_way and over is not None and over != session.host:
            session._turn.emit(gm.HangUp(over.conn))
    session._tell_host(tm.TicketRevoked(session.name, asked.fold, asked.client))


def _no_room(spec: JobSpec, nodes: NodeTable) -> cm.Refusal:
    """Return why a session was not opened: all this time others have had the room of its first fold."""
    node, need = nodes.get(nodes.home), spec.bytes_min()
    assert node is not None
    text = f"a fold of such a model needs {need} bytes of the arena; for {SESSION_ROOM_S:g} s jobs and other folds have"
    text = f"{text} had too much of the {node.arena_bytes} that the node has (`lifl jobs` and `lifl top` show them): "
    more = f"end one, or start the node with {need + ARENA_MORE_BYTES} bytes more (lifl up --arena-bytes)"
    return cm.Refusal("no-room", "node", text + more, spec.name)


def host_left(jobs: Iterable[Job], node: int, conn: int | None = None) -> None:
    """Note that a connection (None: each at the node's gateway) has ended, which may be a host's."""
    for job in jobs:
        if isinstance(job, Session):
            job.left(node, conn)
