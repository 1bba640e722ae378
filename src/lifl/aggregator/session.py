"""A session on the node, in which one fold after the other is made; the rule's state is kept there in between."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lifl.aggregator.line import Line
from lifl.aggregator.outcomes import FoldFailed
from lifl.client.tensors import Array, Update, as_model
from lifl.core.config.job import fold_job
from lifl.core.errors import Refused, RemoteFault, ResourceFault
from lifl.core.ids import ATTEMPTS_MAX, epoch_of
from lifl.core.planning.treatment import reads_model
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.schema import Layout


class RuleSpec(NamedTuple):
    """The rule of an `Aggregator`, and the names of its states."""

    name: str
    options: Mapping[str, Any]
    folder: str
    states: tuple[str, ...]


class Session:
    """One session, of models of one `layout`, on the `line` of its host."""

    def __init__(
        self, line: Line, name: str, layout: Layout, rule: RuleSpec, expected: int, trainable: tuple[str, ...]
    ) -> None:
        self.line = line
        self.name = name
        self.layout = layout
        self.trainable = trainable
        self.in_use = False
        self.unsure = False  # the node was away when the last fold was cancelled: it may have a result
        self._rule = rule
        self._expected = expected
        self._round = 0  # of its last result
        self._attempt = 0  # at the next round
        self._model = b""  # the digest of the model that is on the node
        self._shared = False  # others than the host fetch models
        aggregation = fold_job(name, expected, rule.name, rule.options).aggregation
        self._reads_model = reads_model(layout, aggregation, trainable)
        self.lock = threading.Lock()
        self.secret = secrets.token_hex(32)
        self.gateway = ""
        """Where the node takes the updates of others."""

    # ---- what is said to the node ------------------------------------------------------------------------------------

    def host(self) -> None:
        """Make the session, or take it up again on a new connection.  Raise `Refused`."""
        rule = self._rule
        more = (rule.name, dict(rule.options), rule.folder, rule.states, self.secret)
        said = fm.HostSession(self.name, self._expected, self.layout.tensors, *more, self.trainable)
        ready = self.ask(said, fm.SessionReady)
        assert isinstance(ready, fm.SessionReady)
        self.gateway = ready.gateway
        if ready.round < self._round or self.unsure:
            self._round, self._model, self.unsure = ready.round, b"", False

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
    def next_round(self) -> int:
        """The round of the fold that is open, or comes next."""
        return self._round + 1

    def done(self) -> None:
        """Note that the fold has its result, which is the model now."""
        self._round, self._attempt = self._round + 1, 0
        self._model = b""

    def put(self, model: Update, wanted: bool = False) -> None:
        """Bring the model that the next fold starts from, if it is not there, and the rule reads it or it is `wanted`.

        Raise `Refused`, and `NodeUnreachable`.
        """
        self._shared = self._shared or wanted
        if not (self._reads_model or wanted):
            return
        digest = _digest_of(model)
        if digest != self._model:
            self.line.retrying(lambda: self._put(model))
            self._model = digest

    def _put(self, model: Update) -> None:
        said = fm.PutModel(self.name, self._round, self.layout.data_bytes, self.layout.digest)
        send_body(self.line, said, model)

    def result(self) -> dict[str, Array]:
        """Return the model of the last fold, a copy.  Raise `Refused`, `ResourceFault`."""
        try:
            data = np.empty(self.layout.data_bytes, np.uint8)
        except MemoryError as error:
            raise ResourceFault(f"there is no memory for the result, {self.layout.data_bytes} bytes") from error

        def fetch() -> None:
            wanted = cm.GetModel(self.name, self._round + 1, digest=self.layout.digest)
            answer = self.line.ask(wanted, data.data)
            if isinstance(answer, cm.Refusal):
                raise Refused(answer.code, answer.field, answer.text)

        self.line.retrying(fetch)
        if self._reads_model or self._shared:
            self._model = hashlib.sha256(data.data).digest()
        return as_model(self.layout, data)


def send_body(line: Line, said: cm.Submit | fm.PutModel, update: Update) -> cm.ToClient | None:
    """Announce an update or a model, and bring it; return why it was not taken, or None.  Raise `OSError`."""
    while True:
        with line.turn() as stream:
            answer = line.exchange(stream, said, said)
            if isinstance(answer, cm.Go) and answer.direct:
                answer = line.exchange(stream, said, stream.fill(answer, said.data_bytes, update.write_to))
            elif isinstance(answer, cm.Go):
                stream.send_views(update.views, None)
                answer = line.exchange(stream, said, None)
        if isinstance(answer, cm.Accepted):
            return None
        if not isinstance(answer, cm.Busy):
            return answer
        line.rest(answer.retry_after_s)


def _digest_of(model: Update) -> bytes:
    found = hashlib.sha256()
    for view in model.views:
        found.update(view)
    return found.digest()
