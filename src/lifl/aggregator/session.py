"""A session on the node, in which one fold after the other is made; the rule's state is kept there in between."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from lifl.aggregator.lent_result import LENT_BYTES_MIN, LentResult, borrowed
from lifl.aggregator.line import Line
from lifl.aggregator.outcomes import FoldFailed
from lifl.aggregator.rule_state import RuleState, packed, unpacked
from lifl.client.tensors import Array, Update, as_model
from lifl.core.config.job import fold_job
from lifl.core.errors import Refused, RemoteFault, ResourceFault
from lifl.core.fields import RevokedTicket
from lifl.core.ids import ATTEMPTS_MAX, epoch_of
from lifl.core.planning.treatment import reads_model
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol import tickets as tm
from lifl.core.schema import Layout, TensorSpec
from lifl.core.trust.ticket import ANY_FOLD


class RuleSpec(NamedTuple):
    """The rule of an `Aggregator`, the names of its states, and whether its sums are reproducible."""

    name: str
    options: Mapping[str, Any]
    folder: str
    states: tuple[str, ...]
    reproducible: bool = False

    def layout_of(self, tensors: tuple[TensorSpec, ...]) -> Layout:
        """Return how such a fold's updates and sums lie.  Raise `Refused`."""
        return Layout(tensors, self.reproducible)


class Session:
    """One session, of models of one `layout`, on the `line` of its host."""

    def __init__(
        self,
        line: Line,
        name: str,
        layout: Layout,
        rule: RuleSpec,
        expected: int,
        trainable: tuple[str, ...],
        first: RuleState | None = None,
    ) -> None:
        self.line = line
        self.name = name
        self.layout = layout
        self.trainable = trainable
        self.in_use = False
        self.need_bytes = 0  # of an arena, for a fold
        self.unsure = False  # the node was away when the last fold was cancelled: it may have a result
        self._rule = rule
        self._expected = expected
        self._round = 0  # of its last result
        self._attempt = 0  # at the next round
        self._first = first  # the rule's state that it begins with
        self._counted = False  # a fold has had its result
        self._model = b""  # the digest of the model that is on the node
        self._bringing = threading.Lock()
        self._shared = False  # others than the host fetch models
        self._lent: LentResult | None = None  # the last result, while it is read where the node has it
        aggregation = fold_job(name, expected, rule.name, rule.options).aggregation
        self._reads_model = reads_model(layout, aggregation, trainable)
        self._revoked: dict[tuple[int, str], None] = {}  # tickets: for which fold (0: standing), of which clients
        self.lock = threading.Lock()
        self.secret = secrets.token_hex(32)
        self.gateway = ""
        """Where the node takes the updates of others."""

    # ---- what is said to the node ------------------------------------------------------------------------------------

    def host(self) -> None:
        """Make the session, or take it up again on a new connection.  Raise `Refused`."""
        rule = self._rule
        revoked = tuple(RevokedTicket(*at) for at in list(self._revoked))
        more = (rule.name, dict(rule.options), rule.folder, rule.states, self.secret)
        said = fm.HostSession(
            self.name, self._expected, self.layout.tensors, *more, self.trainable, rule.reproducible, revoked
        )
        ready = self.ask(said, fm.SessionReady)
        assert isinstance(ready, fm.SessionReady)
        self.gateway = ready.gateway
        if ready.round < self._round or self.unsure:
            self._round, self._model, self.unsure = ready.round, b"", False
        if self._first is not None and not self._counted:
            if ready.round < self._first.rounds:
                self._bring_state(self._first)
            self._round = max(self._round, self._first.rounds)

    def revoke(self, fold: int, client: str) -> None:
        """Let no ticket of a client for the fold (0: no standing one) count any more.

        Raise `Refused`, `NodeUnreachable`.
        """
        said = tm.RevokeTicket(self.name, fold, client)
        self.line.retrying(lambda: self.ask(said, tm.TicketRevoked))
        self._revoked[fold, client] = None

    def _bring_state(self, state: RuleState) -> None:
        """Have the node go on from a state that the rule had elsewhere.  Raise `Refused`, `OSError`."""
        for name in self._rule.states:
            data = packed(self.layout, name, state[name])
            said = fm.PutModel(self.name, state.rounds, len(data), self.layout.digest, name)
            why = send_body(self.line, said, _Bytes([data.data]))
            if isinstance(why, cm.Refusal):
                raise Refused(why.code, why.field, why.text)

    def state(self) -> RuleState:
        """Return the rule's state behind the last result.  Raise `Refused`, `NodeUnreachable`."""
        if not self._counted:
            if self._first is not None:
                return self._first
            raise Refused("no-state", "state", f"rule {self._rule.name} has no state before the first result")
        return RuleState(
            self._rule.name,
            self._round,
            {name: self._state_of(part) for part, name in enumerate(self._rule.states, 1)},
        )

    def _state_of(self, part: int) -> dict[str, Array]:
        data = np.empty(self.layout.state_bytes, np.uint8)

        def fetch() -> None:
            wanted = cm.GetModel(self.name, self._round + 1, checked=True, digest=self.layout.digest, part=part)
            answer, _sums = self.line.ask_checked(wanted, data.data)
            if isinstance(answer, cm.Refusal):
                raise Refused(answer.code, answer.field, answer.text)

        self.line.retrying(fetch)
        return unpacked(self.layout, data)

    def ask(self, message: cm.FromClient, *wanted: type) -> cm.ToClient:
        """Return the answer; ask again while the node is busy.  Raise `Refused`, and `RemoteFault` for another."""
        while True:
            answer = self.line.ask(message)
            if isinstance(answer, cm.Busy):
                self.line.rest(answer.retry_after_s)
                continue
            if isinstance(answer, cm.Refusal):
                raise Refused(answer.code, answer.field, answer.text)
            if isinstance(answer, fm.FoldOver) and fm.FoldOver not in wanted:
                raise FoldFailed(answer.reason)
            if not isinstance(answer, wanted):
                raise RemoteFault(f"the node answers {type(message).__name__} by {type(answer).__name__}")
            return answer

    def next_fold(self) -> int:
        """Return the name of the next fold."""
        self._attempt += 1
        if self._attempt > ATTEMPTS_MAX:
            text = f"{ATTEMPTS_MAX} folds in a row had no result: open another Aggregator"
            raise Refused("too-many-attempts", "fold", text)
        return epoch_of(self._round + 1, self._attempt)

    @property
    def is_shared(self) -> bool:
        """Whether others may wait for its next fold."""
        return self._shared

    @property
    def next_round(self) -> int:
        """The round of the fold that is open, or comes next."""
        return self._round + 1

    def done(self) -> None:
        """Note that the fold has its result, which is the model now."""
        self._round, self._attempt, self._counted = self._round + 1, 0, True
        self._revoked = {at: None for at in self._revoked if at[0] == ANY_FOLD}
        self._model = b""

    def put(self, model: Update, wanted: bool = False) -> None:
        """Bring the model that the next fold starts from, if it is not there, and the rule reads it or it is `wanted`.

        Raise `Refused`, and `NodeUnreachable`.
        """
        self._shared = self._shared or wanted
        if not (self._reads_model or wanted):
            return
        with self._bringing:  # many threads ask for tickets at the same time: it is brought, and read, once
            if model.digest != self._model:
                self.part()
                self.line.retrying(lambda: self._put(model))
                self._model = model.digest

    def _put(self, model: Update) -> None:
        said = fm.PutModel(self.name, self._round, self.layout.data_bytes, self.layout.digest)
        send_body(self.line, said, model)

    def result(self) -> dict[str, Array]:
        """Return the model of the last fold, read-only.  Raise `Refused`, `ResourceFault`, `NodeUnreachable`."""
        data = self._borrowed() if self.layout.data_bytes >= LENT_BYTES_MIN else None
        if data is None:
            data = self._fetched()
        if self._reads_model or self._shared:
            self._model = hashlib.sha256(data.data).digest()
        return as_model(self.layout, data)

    def _borrowed(self) -> NDArray[np.uint8] | None:
        """Return the model's bytes where the node has them; None: it is elsewhere, or lends nothing to us."""
        self.line.retrying(self.line.reach)
        if not self.line.is_local:
            return None
        try:
            self._lent = borrowed(self.line, self.name, self._round, self.layout)
        except (OSError, Refused, RemoteFault, ResourceFault):  # no place for another connection, say: it is copied
            return None
        return self._lent.take() if self._lent is not None else None

    def _fetched(self) -> NDArray[np.uint8]:
        try:
            data = np.empty(self.layout.data_bytes, np.uint8)
        except MemoryError as error:
            raise ResourceFault(f"there is no memory for the result, {self.layout.data_bytes} bytes") from error

        def fetch() -> None:
            wanted = cm.GetModel(self.name, self._round + 1, digest=self.layout.digest)
            answer = self.line.fetch(wanted, data.data)
            if isinstance(answer, cm.Refusal):
                raise Refused(answer.code, answer.field, answer.text)

        self.line.retrying(fetch)
        data.flags.writeable = False
        return data

    def part(self) -> None:
        """Have the last result in memory of our own, as far as it is looked at still: the node is to do without it.

        Raise `ResourceFault` when there is no memory for it.
        """
        lent = self._lent
        if lent is not None:
            lent.part()
            self._lent = None


class _Bytes(NamedTuple):
    """What is brought, and is no update."""

    views: list[memoryview]


def send_body(line: Line, said: cm.Submit | fm.PutModel, update: Update | _Bytes) -> cm.ToClient | None:
    """Announce an update or a model, and bring it; return why it was not taken, or None.  Raise `OSError`."""
    nbytes = said.data_bytes if isinstance(update, Update) else 0  # a rule's state is not split
    while True:
        with line.turn() as stream, line.ways(stream, nbytes) as ways:
            announced = msgspec.structs.replace(said, streams=ways.asked)
            answer = line.exchange(stream, announced, announced)
            if isinstance(answer, cm.Go) and answer.direct and isinstance(update, Update):
                answer = line.exchange(stream, said, stream.fill(answer, said.data_bytes, update.write_to))
            elif isinstance(answer, cm.Go):
                answer = line.exchange(stream, said, partial(ways.send, answer.transfer, update.views, None))
        if isinstance(answer, cm.Accepted):
            return None
        if not isinstance(answer, cm.Busy):
            return answer
        line.rest(answer.retry_after_s)
