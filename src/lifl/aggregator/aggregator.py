"""The aggregator as a library: the one thing under every adapter.

An `Aggregator` has one connection to its node, and sessions there (`core/coordinator/session.py`): one for each fold
that is open at a time.  A node of its own is started when the first fold is opened, for then it is known how large its
arena is to be.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

import msgspec

from lifl.aggregator.fold import Fold, opened
from lifl.aggregator.line import Line
from lifl.aggregator.local_node import LocalNode
from lifl.aggregator.session import RuleSpec, Session
from lifl.client.addresses import understood
from lifl.client.outcomes import NodeUnreachable
from lifl.client.tensors import Tensors, Update, as_arrays
from lifl.client.torch_tensors import is_module
from lifl.core.config.job import fold_job, most_of
from lifl.core.errors import ConfigError, LocalFault, Refused
from lifl.core.fields import TrainablePatterns
from lifl.core.limits import (
    CLIENTS_PER_ROUND_MAX,
    CONTRIBUTION_BYTES_MAX,
    PATTERN_CHARS_MAX,
    TRAINABLE_PATTERNS_MAX,
)
from lifl.core.planning.arena_need import PAGE_BYTES, round_bytes_min
from lifl.core.planning.treatment import trainable_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.schema import Layout, TensorSpec

LOCAL = ":local:"
RETURN_WITHIN_S = 60.0
LOCAL_AHEAD = 8
"""Updates that have room in a local node's arena beside what a fold needs at the least."""


class Aggregator:
    """Makes aggregates of updates by a `rule`; use it in a ``with`` statement, from any threads.

    `node` is ``":local:"``: a node of its own, which it starts and ends, with an arena of `arena_bytes` (none given:
    what the first fold needs); or the state folder of a node of this account, or the HOST:PORT of one, which takes this
    account by its cookie on the same machine, and elsewhere by an operator's certificate (`identity`, as of `Client`).

    `rule` and `options` are those of a job (`aggregation.rule`, `aggregation.options`); the rule's state is kept from
    fold to fold.  A node that is away is waited for up to `return_within_s`.
    """

    def __init__(
        self,
        node: str | os.PathLike[str] = LOCAL,
        rule: str = "fedavg",
        options: Mapping[str, Any] | None = None,
        *,
        rule_folder: str = "",
        arena_bytes: int | None = None,
        identity: str | None = None,
        return_within_s: float = RETURN_WITHIN_S,
    ) -> None:
        from lifl.rules.load import check_lacking, load_rule

        loaded = load_rule(rule, options or {}, rule_folder)
        self._check_lacking = partial(check_lacking, loaded, rule)
        states = tuple(loaded.states)
        self._rule = RuleSpec(rule, dict(options or {}), rule_folder, states)
        self._node = LOCAL if node == LOCAL else understood(node)[0]
        self._arena_bytes = arena_bytes
        self._local: LocalNode | None = None
        self._name = f"fold-{secrets.token_hex(6)}"
        self._lock = threading.RLock()
        self._sessions: dict[str, Session] = {}
        self._made = 0
        self._folds: dict[tuple[str, int], Fold] = {}
        self._line = Line(self._address, self._name, identity, return_within_s, self._heard, self._broken)
        self._line.greet = self._greet

    def __enter__(self) -> Aggregator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all folds and sessions, and a node of its own; may be called twice."""
        if self._line.closed:
            return
        for session in list(self._sessions.values()) if self._line.is_up else ():
            with suppress(OSError, Refused, NodeUnreachable, LocalFault):
                self._line.ask(fm.EndSession(session.name))
        self._line.close()
        with self._lock:
            for fold in self._folds.values():
                fold.fail("the aggregator is closed")
            self._folds.clear()
        if self._local is not None:
            self._local.close()

    # ---- folds -------------------------------------------------------------------------------------------------------

    def open(self, model: Tensors, expected: int, trainable: Sequence[str] = (), shared: bool = False) -> Fold:
        """Begin a fold of about `expected` updates to `model`, and return it: it takes updates from now on.

        `model` (a dict of arrays, a torch `state_dict`, the path of a safetensors file) says what updates look like; a
        rule that steps from the model before starts from it.  With patterns of `trainable` tensors (as `job.trainable`)
        the fold is about these alone: an update may lack some, each is averaged over those that have it, and one that
        none has stays the model's.  With `shared` the model is on the node before the fold is open, for who has a
        standing ticket.  Several folds may be open at once, where the rule has no state.  Raise `Refused` and
        `NodeUnreachable`.
        """
        if isinstance(expected, bool) or not (isinstance(expected, int) and 1 <= expected <= CLIENTS_PER_ROUND_MAX):
            text = f"expected={expected!r}: about how many updates come, 1 to {CLIENTS_PER_ROUND_MAX}"
            raise Refused("bad-expected", "expected", text)
        patterns = self._patterns(trainable)
        arrays = as_arrays(dict(model.state_dict()) if is_module(model) else model, patterns)
        tensors = [TensorSpec(name, array.dtype.name, array.shape) for name, array in arrays.items()]
        try:
            layout = Layout(trainable_of(tuple(tensors), patterns))
        except ConfigError as error:
            raise Refused("bad-trainable", "trainable", f"trainable: {error.problem}") from error
        session = self._session_for(layout, expected, patterns)
        try:
            update = Update(layout, arrays, numbers=False)
            session.put(update, wanted=shared)
            fold = Fold(session, session.next_fold(), expected, update, self._ended)
            with self._lock:
                self._folds[session.name, fold.number] = fold
            opened(fold)
        except BaseException:
            self._ended(session)
            raise
        return fold

    def _patterns(self, trainable: Sequence[str]) -> tuple[str, ...]:
        """Return the patterns of a fold.  Raise `Refused`."""
        try:
            if isinstance(trainable, str):
                raise ValueError("they are a list of patterns, not one text")
            patterns = _as_patterns(trainable)
            if patterns:
                self._check_lacking()
        except (ValueError, ConfigError) as error:
            raise Refused("bad-trainable", "trainable", f"trainable={trainable!r:.200}: {error}") from error
        return patterns

    def _session_for(self, layout: Layout, expected: int, trainable: tuple[str, ...]) -> Session:
        """Return a session that is free now, a new one if need be.  Raise `Refused`."""
        with self._lock:
            if self._line.closed:
                raise LocalFault("the aggregator is closed")
            if self._rule.states and any(each.in_use for each in self._sessions.values()):
                text = f"a fold of rule {self._rule.name} is open, whose state is in use: end it first"
                raise Refused("state-in-use", "rule", f"{text}, or open this one in another Aggregator")
            alike = (layout.digest, trainable)
            same = [each for each in self._sessions.values() if (each.layout.digest, each.trainable) == alike]
            free = next((each for each in same if not each.in_use), None)
            if free is None and self._rule.states and self._sessions:
                text = f"the state of rule {self._rule.name} is that of a model with other tensors"
                raise Refused("wrong-schema", "model", f"{text}: open this one in another Aggregator")
            session = free or self._new_session(layout, expected, trainable)
            session.in_use = True
        try:
            if free is None or free.unsure:
                self._line.retrying(session.host)
        except BaseException:
            with self._lock:
                session.in_use = False
                if free is None:
                    del self._sessions[session.name]
            raise
        return session

    def _new_session(self, layout: Layout, expected: int, trainable: tuple[str, ...]) -> Session:
        if self._node == LOCAL and self._local is None:
            self._local = LocalNode(self._arena_bytes or self._need(layout, expected))
        self._made += 1
        session = Session(self._line, f"{self._name}-{self._made}", layout, self._rule, expected, trainable)
        self._sessions[session.name] = session
        return session

    def _need(self, layout: Layout, expected: int) -> int:
        """Return what an arena needs for a fold, with room for updates that come faster than they are folded."""
        aggregation = fold_job(self._name, expected, self._rule.name, self._rule.options).aggregation
        least = round_bytes_min(layout, aggregation, most_of(expected), len(self._rule.states))
        ahead = min(expected, LOCAL_AHEAD) + 2
        return least + ahead * (layout.data_bytes + CONTRIBUTION_BYTES_MAX + PAGE_BYTES) + (8 << 20)

    def _ended(self, session: Session) -> None:
        """Let another fold have the session."""
        with self._lock:
            session.in_use = False
            for at in [at for at in self._folds if at[0] == session.name]:
                del self._folds[at]

    # ---- the connection ----------------------------------------------------------------------------------------------

    def _address(self) -> str:
        if self._local is not None:
            self._local.start()  # it may have been killed
            return self._local.folder
        return self._node

    def _greet(self) -> None:
        """Take up what is open, on a new connection."""
        with self._lock:
            sessions, folds = list(self._sessions.values()), list(self._folds.values())
        for session in sessions:
            try:
                session.host()
            except Refused as refused:
                for fold in [fold for fold in folds if fold.of(session)]:
                    fold.fail(f"the node does not go on with it: {refused.text}")
        for fold in folds:
            fold.reopen()

    def _heard(self, message: cm.ToClient) -> bool:
        """Take what the node says by itself; return whether it was that.  In the line's own thread."""
        asked = self._line.asked
        if isinstance(message, cm.JobOver):
            for (session, _fold), its in list(self._folds.items()):
                if session == message.job:
                    its.fail(f"its session on the node is over: {message.reason or message.status}")
            return self._is_news(message, fm.EndSession, asked)
        if not isinstance(message, fm.FoldAccepted | fm.FoldDone | fm.FoldOver):
            return False
        fold = self._folds.get((message.job, message.fold))
        if isinstance(message, fm.FoldAccepted):
            if fold is not None:
                fold.note(message)
            return True
        if isinstance(message, fm.FoldDone):
            if fold is not None:
                fold.finish(message)
            return not (isinstance(asked, fm.OpenFold) and asked.fold == message.fold)
        if fold is not None:
            fold.fail(message.reason)
        return self._is_news(message, fm.CancelFold, asked)

    def _is_news(self, message: cm.JobOver | fm.FoldOver, wanted: type, asked: cm.FromClient | None) -> bool:
        """Return whether nobody asked for that; who asks something else about what is over is not answered any more."""
        if getattr(asked, "job", "") != message.job:
            return True
        if isinstance(asked, wanted):
            return False
        if isinstance(message, cm.JobOver) or getattr(asked, "fold", None) == message.fold:
            self._line.give_up("what was asked about is over")
        return True

    def _broken(self) -> None:
        for fold in list(self._folds.values()):
            fold.wake()


def _as_patterns(trainable: Sequence[str]) -> tuple[str, ...]:
    """Return the patterns, or raise `ValueError` saying what they can be."""
    try:
        return msgspec.convert(tuple(trainable), TrainablePatterns)
    except (TypeError, msgspec.ValidationError) as error:
        each = f"each of 1 to {PATTERN_CHARS_MAX} printable characters"
        raise ValueError(f"they are a list of at most {TRAINABLE_PATTERNS_MAX} patterns, {each}") from error
