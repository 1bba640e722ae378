"""The aggregator as a library: the one thing under every adapter.

An `Aggregator` has one connection to its node, and sessions there (`core/coordinator/session.py`): one for each fold
that is open at a time.  A node of its own is started when the first fold is opened, for then it is known how large its
arena is to be.
"""

from __future__ import annotations

import operator
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

import msgspec

from lifl.aggregator.fold import Fold, opened, wake
from lifl.aggregator.line import Line
from lifl.aggregator.local_node import LocalNode
from lifl.aggregator.rule_state import RuleState, check_state
from lifl.aggregator.session import RuleSpec, Session
from lifl.client.addresses import understood
from lifl.client.outcomes import NodeUnreachable
from lifl.client.split import check_streams
from lifl.client.tensors import Tensors, Update, as_arrays
from lifl.client.torch_tensors import is_module
from lifl.core.config.job import fold_job, most_of
from lifl.core.errors import ConfigError, LocalFault, Refused, ResourceFault
from lifl.core.fields import TrainablePatterns
from lifl.core.limits import (
    ARENA_BYTES_MAX,
    ARENA_BYTES_MIN,
    CLIENTS_PER_ROUND_MAX,
    DEADLINE_S_MAX,
    PATTERN_CHARS_MAX,
    ROUNDS_MAX,
    TRAINABLE_PATTERNS_MAX,
)
from lifl.core.planning.arena_need import ARENA_MORE_BYTES, fold_bytes_min
from lifl.core.planning.treatment import trainable_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.schema import Layout, TensorSpec

LOCAL = ":local:"
RETURN_WITHIN_S = 60.0


class Aggregator:
    """Makes aggregates of updates by a `rule`; use it in a ``with`` statement, from any threads.

    `node` is ``":local:"``: a node of its own, which it starts and ends, with an arena of `arena_bytes` (none given:
    what the first fold needs); or the state folder of a node of this account, or the HOST:PORT of one, which takes this
    account by its cookie on the same machine, and elsewhere by an operator's certificate (`identity`, as of `Client`).

    `rule` and `options` are those of a job (`aggregation.rule`, `aggregation.options`); the rule's state is kept from
    fold to fold, and begins with `state`, if one is given (`Aggregator.state`).  A node that is away is waited for up
    to `return_within_s`.

    With `reproducible` (`aggregation.reproducible` of a job) the same updates give the same result bit for bit, in
    whatever order they come; weights are whole numbers then.  From elsewhere, where TLS is bound by a core, large
    updates, models and results go over several connections, `streams` at most, as a `Client`'s do.
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
        state: RuleState | None = None,
        reproducible: bool = False,
        streams: int = 0,
    ) -> None:
        from lifl.rules.load import check_lacking, check_reproducible, load_rule

        _check_given(arena_bytes, identity, return_within_s, reproducible)
        check_streams(streams)
        loaded = load_rule(rule, options or {}, rule_folder)
        if reproducible:
            check_reproducible(loaded, rule)
        self._check_lacking = partial(check_lacking, loaded, rule)
        states = tuple(loaded.states)
        self._rule = RuleSpec(rule, dict(options or {}), rule_folder, states, reproducible)
        if state is not None:
            check_state(state, rule, states, ROUNDS_MAX)
        self._first = state
        self._node = LOCAL if node == LOCAL else understood(node)[0]
        self._arena_bytes = arena_bytes
        self._local: LocalNode | None = None
        self._name = f"fold-{secrets.token_hex(6)}"
        self._lock = threading.RLock()
        self._sessions: dict[str, Session] = {}
        self._made = 0
        self._folds: dict[tuple[str, int], Fold] = {}
        told = (self._heard, self._broken)
        self._line = Line(self._address, self._name, identity, return_within_s, *told, streams)
        self._line.greet = self._greet

    def __enter__(self) -> Aggregator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all folds and sessions, and a node of its own; may be called twice.

        In a forked child it ends nothing: all of that is the parent's.
        """
        if self._line.closed or self._line.is_forked:
            return
        for session in list(self._sessions.values()):
            with suppress(ResourceFault):
                session.part()
            if not self._line.is_up:
                continue
            with suppress(OSError, Refused, NodeUnreachable, LocalFault):
                self._line.ask(fm.EndSession(session.name))
        self._line.close()
        with self._lock:
            for fold in self._folds.values():
                fold.fail("the aggregator is closed")
            self._folds.clear()
        if self._local is not None:
            self._local.close()

    def state(self) -> RuleState:
        """Return the rule's state behind the last result: an `Aggregator` that is made with it goes on from there.

        Raise `Refused` when the rule keeps none, or has none yet, and `NodeUnreachable`.
        """
        if not self._rule.states:
            raise Refused("no-state", "rule", f"rule {self._rule.name} keeps no state: each fold begins anew")
        with self._lock:
            session = next(iter(self._sessions.values()), None)  # there is one at most, where there is a state
        if session is not None:
            return session.state()
        if self._first is None:
            raise Refused("no-state", "state", f"rule {self._rule.name} has no state before the first result")
        return self._first

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
        self._line.check_process()
        expected = _number_of(expected)
        patterns = self._patterns(trainable)
        arrays = as_arrays(dict(model.state_dict()) if is_module(model) else model, patterns)
        tensors = [TensorSpec(name, array.dtype.name, array.shape) for name, array in arrays.items()]
        try:
            layout = self._rule.layout_of(trainable_of(tuple(tensors), patterns))
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
        need = self._need(layout, expected)
        if self._node == LOCAL and self._local is None:
            self._local = LocalNode(self._arena_bytes or need + ARENA_MORE_BYTES)
        self._make_room(need)
        self._made += 1
        name, about = f"{self._name}-{self._made}", (layout, self._rule, expected, trainable, self._first)
        session = Session(self._line, name, *about)
        session.need_bytes = need
        self._sessions[session.name] = session
        return session

    def _need(self, layout: Layout, expected: int) -> int:
        """Return what an arena needs for a fold at the least."""
        rule, size = self._rule, layout.data_bytes
        aggregation = fold_job(self._name, expected, rule.name, rule.options, update_bytes=size).aggregation
        return fold_bytes_min(layout, aggregation, most_of(expected), len(rule.states))

    def _make_room(self, need: int) -> None:
        """End sessions of a node of its own that nobody uses, where their room is needed; their rule has no state.

        Raise `Refused` when those in use leave none: nobody else would end.
        """
        if self._local is None:
            return
        sessions = list(self._sessions.values())
        if sum(each.need_bytes for each in sessions) + need + ARENA_MORE_BYTES > self._local.arena_bytes:
            for idle in [each for each in sessions if not (each.in_use or each.is_shared)]:
                with suppress(ResourceFault):
                    idle.part()
                with suppress(OSError):  # then the next connection does without it
                    self._line.ask(fm.EndSession(idle.name))
                del self._sessions[idle.name]
        wanted = sum(each.need_bytes for each in self._sessions.values()) + need
        if wanted > self._local.arena_bytes:
            text = f"the folds that are open at once need {wanted} bytes of the aggregator's node"
            more = f"it has {self._local.arena_bytes}: give arena_bytes={wanted + ARENA_MORE_BYTES}"
            raise Refused("too-large", "arena_bytes", f"{text}, {more}, or end one first")

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
            if not session.gateway:  # it is being made, by who has made this connection for it
                continue
            try:
                session.host()
            except Refused as refused:
                for fold in [fold for fold in folds if fold.job == session.name]:
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
        if isinstance(message, cm.Refusal):  # of what was told, and not asked
            return bool(message.job) and getattr(asked, "job", message.job) != message.job
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
        if isinstance(asked, wanted) and getattr(asked, "fold", None) == getattr(message, "fold", None):
            return False
        if isinstance(message, cm.JobOver) or getattr(asked, "fold", None) == message.fold:
            self._line.give_up("what was asked about is over")
        return True

    def _broken(self) -> None:
        for session in list(self._sessions.values()):
            with suppress(ResourceFault):
                session.part()
        for fold in list(self._folds.values()):
            wake(fold)


def _number_of(expected: int) -> int:
    """Return how many updates are expected.  Raise `Refused`."""
    try:
        number = 0 if isinstance(expected, bool) else operator.index(expected)
    except TypeError:
        number = 0
    if not 1 <= number <= CLIENTS_PER_ROUND_MAX:
        text = f"expected={expected!r:.100}: about how many updates come, 1 to {CLIENTS_PER_ROUND_MAX}"
        raise Refused("bad-expected", "expected", text)
    return number


def _check_given(arena_bytes: int | None, identity: str | None, return_within_s: float, reproducible: bool) -> None:
    """Raise `LocalFault`, naming the argument, for one that can be none."""
    if not isinstance(reproducible, bool):
        raise LocalFault(f"reproducible={reproducible!r:.100}: give True or False")
    whole = isinstance(arena_bytes, int) and not isinstance(arena_bytes, bool)
    if arena_bytes is not None and not (whole and ARENA_BYTES_MIN <= arena_bytes <= ARENA_BYTES_MAX):
        text = f"arena_bytes={arena_bytes!r:.100}: give a number of bytes, {ARENA_BYTES_MIN} to {ARENA_BYTES_MAX}"
        raise LocalFault(f"{text}, or none")
    if identity is not None and not isinstance(identity, str | os.PathLike):
        raise LocalFault(f"identity={identity!r:.100}: give the path of an identity folder, or none")
    seconds = isinstance(return_within_s, int | float) and not isinstance(return_within_s, bool)
    if not (seconds and 0 <= return_within_s <= DEADLINE_S_MAX):
        text = f"return_within_s={return_within_s!r:.100}: give seconds, at most {DEADLINE_S_MAX:.0f}"
        raise LocalFault(f"{text}: so long a node that is away is waited for")


def _as_patterns(trainable: Sequence[str]) -> tuple[str, ...]:
    """Return the patterns, or raise `ValueError` saying what they can be."""
    try:
        return msgspec.convert(tuple(trainable), TrainablePatterns)
    except (TypeError, msgspec.ValidationError) as error:
        each = f"each of 1 to {PATTERN_CHARS_MAX} printable characters"
        raise ValueError(f"they are a list of at most {TRAINABLE_PATTERNS_MAX} patterns, {each}") from error
