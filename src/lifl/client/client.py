"""A trainer's side of federated learning: wait to be selected, get the model, submit the update.

One blocking connection and no thread: waiting is a blocking read.  What the node says while another answer is awaited
is noted or put in line for `rounds`.  A connection that breaks is made again, with growing, jittered pauses; what was
under way is then done again, which is safe because an update's identity is (job, round, client): the second submission
gets the first one's answer.

In a cluster a selection may name another node's gateway.  Model and update then go over a second connection, made for
that one request; the first one, by which the client takes part, goes on being listened to.  What does not work there
is done at home.

An update is kept until its round is COMMITTED, because ACCEPTED does not survive the loss of the node's machine: a
node that comes back without it selects the client again for that round, and the kept update is sent without
training again.  The next round may begin while the last one's checkpoint is still being written; then the kept arrays
are copied before the trainer gets control, since it may train in place.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import numpy as np

from lifl.client.stream import GREETING_S, Progress, Stream
from lifl.client.tensors import Array, Tensors, Update, as_model
from lifl.core.errors import LiflError, LocalFault, Refused, RemoteFault, ResourceFault
from lifl.core.fields import NAME_RULE, Name
from lifl.core.protocol import client as cm
from lifl.core.protocol.admission import check_submit
from lifl.core.schema import Layout

log = logging.getLogger("lifl.client")

PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 15.0
AWAY_GREETING_S = 5.0
"""Another node's gateway answers within this time, or the client's own is asked (of several nodes: the next one)."""
REDIRECTED_PAUSE_S = 1.0
"""When two redirects in a row have led to no gateway: how long until the next attempt."""
HELD_ROUNDS_MAX = 2
"""Uncommitted updates that are kept; the next round begins only when the oldest of them is committed."""
FATES_REMEMBERED = 16
OVER_CODES = frozenset({"round-over", "wrong-round", "not-selected", "unknown-job"})
"""Refusals that are no fault of this client: the round went on without it."""
_ASK_HOME_CODES = OVER_CODES | {"protocol", "wrong-version"}
"""What another node's gateway may refuse because it knows less than the client's own."""

T = TypeVar("T")


class JobFailed(LiflError):
    """The job has failed; the text is the node's reason."""


class JobCancelled(LiflError):
    """Somebody has cancelled the job."""


class RoundEnded(LiflError):
    """The round ended before its model was fetched; go on with the next one."""


class NodeUnreachable(ResourceFault):
    """The node could not be reached for `give_up_after_s`."""


@dataclass(frozen=True)
class Submission:
    """What became of a `submit`: `accepted`, or not and why (the round had ended without this client)."""

    job: str
    round: int
    accepted: bool
    reason: str = ""


class _Settled(RoundEnded):
    """The end of the round, or of the job, was told while an answer was waited for."""

    def __init__(self, job: str, number: int, over: cm.Committed | cm.RoundOver | cm.JobOver) -> None:
        counted = isinstance(over, cm.Committed) and over.counted
        without = "" if counted else "the round was committed without this update"
        reason = without if isinstance(over, cm.Committed) else over.reason or "the job is over"
        super().__init__(reason or "the round was committed")
        self.submission = Submission(job, number, counted, reason)


@dataclass
class _Held:
    """An update that is kept until it is committed."""

    submit: cm.Submit
    update: Update
    progress: Progress | None
    accepted: bool = False
    detached: bool = False


class Round:
    """One round that this client was selected for.

    `number` counts from 1; `deadline_s` is how many seconds were left when the node selected; `options` are the job's
    `client.options`.
    """

    def __init__(self, client: Client, selected: cm.Selected) -> None:
        self.job = selected.job
        self.number = selected.round
        self.deadline_s = selected.deadline_s
        self.options = selected.options
        self.layout = Layout(selected.tensors)
        self._client = client

    @cached_property
    def model(self) -> dict[str, Array]:
        """The model to start from: name → writable array; fetched when first asked for.

        Raises `RoundEnded` when the round ended meanwhile, `NodeUnreachable`.
        """
        return self._client._fetch_model(self)

    def submit(
        self,
        tensors: Tensors,
        weight: float,
        metrics: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> Submission:
        """Sends this client's update and returns when the node has ACCEPTED it (or the round is over).

        `tensors` has the model's names, dtypes and shapes: a dict of arrays, a torch `state_dict`, or the path of a
        safetensors file.  It must not change until the next round begins.  `weight` is usually the number of
        examples; `metrics` are averaged with it.  `progress(sent_bytes, all_bytes)` is called while it is sent.
        Raises `Refused`, naming the field, when the update cannot be taken, and `NodeUnreachable`.
        """
        return self._client._submit(self, tensors, weight, dict(metrics or {}), progress)

    @property
    def committed(self) -> bool | None:
        """True: this client's update is in a durable model.  False: it is in none.  None: not known yet."""
        return self._client._fates.get(self.number)


class Client:
    """A client of one job on one node; use it in a ``with`` statement, from one thread.

    `node` is ``HOST:PORT``, ``unix:PATH`` or a node's state folder, or several of them (a sequence, or a text with
    commas) of one cluster: when the first cannot be reached the next one is tried, and so on around.  `job` and
    `client` are names (letters, digits and ``._:-``); a client's name must be its own.  On the node's own machine, by
    its socket, updates are written straight into the node's memory (unless `direct` is False).  When no node can be
    reached for longer than `give_up_after_s`, `NodeUnreachable` is raised.
    """

    def __init__(
        self,
        node: str | Sequence[str],
        *,
        job: str,
        client: str,
        direct: bool = True,
        give_up_after_s: float = 300.0,
    ) -> None:
        try:
            msgspec.convert({"job": job, "client": client}, type=_Names)
        except msgspec.ValidationError:
            raise LocalFault(f"job={job!r}, client={client!r}: a name is {NAME_RULE}") from None
        addresses = node.split(",") if isinstance(node, str) else node
        self._nodes = deque(address.strip() for address in addresses)
        if not self._nodes or not all(self._nodes):
            raise LocalFault(f"node={node!r}: give an address, or several with commas between them")
        self.job = job
        self.client = client
        self.give_up_after_s = give_up_after_s
        self._direct = direct
        self._stream: Stream | None = None
        self._pending: deque[cm.Selected | cm.JobOver] = deque()
        self._held: dict[int, _Held] = {}
        self._fates: dict[int, bool] = {}
        self._named: tuple[int, str] = (0, "")  # the last selection's round, and the gateway it named
        self._failing_since_s: float | None = None
        self._pause_s = PAUSE_FIRST_S
        self._closed = threading.Event()

    @property
    def node(self) -> str:
        """The address of the node that the client is at, or tries next."""
        return self._nodes[0]

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the job and closes the connection; may be called twice."""
        self._closed.set()
        if self._stream is not None:
            try:
                self._stream.send(cm.Leave(self.job))
            except OSError:  # the node is gone: it knows
                pass
            self._disconnect()

    # ---- what trainers use -----------------------------------------------------------------------------------------

    def rounds(self) -> Iterator[Round]:
        """The rounds that this client is selected for, until the job has finished.

        Raises `JobFailed`, `JobCancelled`, `Refused` (the job is unknown, the name is taken) and `NodeUnreachable`.
        """
        while True:
            event = self._pending.popleft() if self._pending else self._retrying(self._next_event)
            if isinstance(event, cm.JobOver):
                self._held.clear()
                self._end(event)
                return
            number = event.round
            for other in [n for n, held in self._held.items() if n > number or (n < number and not held.accepted)]:
                del self._held[other]  # later ones were trained on a model that is gone
            if number in self._held:
                self._send(self._held[number])
                continue
            while len(self._held) >= HELD_ROUNDS_MAX and self._wait_fate(min(self._held)) is not None:
                pass
            self._detach_held()
            self._fates.pop(number, None)  # of an attempt that failed: the round begins again
            yield Round(self, event)

    def wait_committed(self, round_: Round) -> bool:
        """Waits until the round is COMMITTED; returns whether this client's update is in its model."""
        fate = self._wait_fate(round_.number)
        return bool(fate)

    # ---- one round -------------------------------------------------------------------------------------------------

    def _submit(
        self, round_: Round, tensors: Tensors, weight: float, metrics: dict[str, float], progress: Progress | None
    ) -> Submission:
        layout = round_.layout
        update = Update(layout, tensors)
        numbers = {str(name): float(value) for name, value in metrics.items()}
        submit = cm.Submit(self.job, round_.number, float(weight), layout.data_bytes, layout.tensors, numbers)
        check_submit(layout, submit)
        held = self._held[round_.number] = _Held(submit, update, progress)
        try:
            return self._send(held)
        except Refused:
            self._held.pop(round_.number, None)
            raise

    def _send(self, held: _Held) -> Submission:
        try:
            return self._for_round(held.submit.round, partial(self._offer, held=held))
        except _Settled as settled:
            return settled.submission

    def _offer(self, stream: Stream, held: _Held) -> Submission:
        """Submits an update on this connection, until there is an answer."""
        submit = held.submit
        if self._held.get(submit.round) is not held:  # its fate was told on a connection that broke before the answer
            return self._verdict(submit, "the round ended without it")
        self._fates.pop(submit.round, None)  # of an earlier attempt at the round
        stream.send(submit)
        answer = self._answer(stream, submit.round, cm.Go | cm.Accepted | cm.Busy | cm.Refusal)
        while isinstance(answer, cm.Busy):
            self._pause(answer.retry_after_s)
            stream.send(submit)
            answer = self._answer(stream, submit.round, cm.Go | cm.Accepted | cm.Busy | cm.Refusal)
        if isinstance(answer, cm.Go):
            if answer.direct:
                self._fill(stream, answer.offset, held)
                stream.send(cm.Filled(submit.job, submit.round))
            else:
                stream.send_views(held.update.views, held.progress)
            answer = self._answer(stream, submit.round, cm.Accepted | cm.Refusal)
        if isinstance(answer, cm.Accepted):
            held.accepted = True
            return Submission(submit.job, submit.round, accepted=True)
        if answer.code in OVER_CODES and stream is self._stream:
            return self._verdict(submit, answer.text)
        raise Refused(answer.code, answer.field, answer.text)

    def _verdict(self, submit: cm.Submit, reason: str) -> Submission:
        """The round is over; the node may have told that the update counts though it could not tell ACCEPTED."""
        counted = self._fates.get(submit.round, False)
        return Submission(submit.job, submit.round, counted, "" if counted else reason)

    def _fill(self, stream: Stream, offset: int, held: _Held) -> None:
        """Writes an update to its slot of the node's arena, and stops when the node has gone: others get it then."""
        data_bytes = held.submit.data_bytes

        def before_piece(position: int) -> None:
            if held.progress is not None:
                held.progress(position, data_bytes)
            stream.check_connected()

        held.update.write_to(stream.window(offset, data_bytes), before_piece)
        if held.progress is not None:
            held.progress(data_bytes, data_bytes)

    def _fetch_model(self, round_: Round) -> dict[str, Array]:
        def fetch(stream: Stream) -> dict[str, Array]:
            stream.send(cm.GetModel(self.job, round_.number))
            answer = self._answer(stream, round_.number, cm.Model | cm.Refusal)
            if isinstance(answer, cm.Refusal):
                if answer.code in OVER_CODES and stream is self._stream:
                    raise RoundEnded(answer.text)
                raise Refused(answer.code, answer.field, answer.text)
            if answer.tensors != round_.layout.tensors or answer.data_bytes != round_.layout.data_bytes:
                raise RemoteFault(f"the model of round {round_.number} differs from what its selection announced")
            data = np.empty(answer.data_bytes, np.uint8)
            stream.receive_into(data.data)
            return as_model(round_.layout, data)

        return self._for_round(round_.number, fetch)

    def _detach_held(self) -> None:
        for held in self._held.values():
            if not held.detached:
                held.update.detach()
                held.detached = True

    # ---- what the node says ----------------------------------------------------------------------------------------

    def _next_event(self, stream: Stream) -> cm.Selected | cm.JobOver:
        while not self._pending:
            self._note(stream.receive())
        return self._pending.popleft()

    def _answer(self, stream: Stream, number: int, kinds: Any) -> Any:
        """The next message of `kinds` about the round; all others are noted."""
        while True:
            message = self._receive(stream, number)
            if isinstance(message, kinds) and (message.job, message.round) == (self.job, number):
                return message
            if isinstance(message, cm.Selected) and message.round == number and number not in self._fates:
                self._named = (number, message.gateway)
                continue  # said again after a new connection: this is the round we are at, unless it began again
            self._note(message)

    def _note(self, message: cm.ToClient) -> None:
        match message:
            case cm.Selected(round=number, gateway=gateway):
                self._named = (number, gateway)
                self._pending.append(message)
            case cm.JobOver():
                self._pending.append(message)
            case cm.Committed(_, number, counted):
                self._settle(number, counted)
            case cm.RoundOver(_, number, reason):
                log.info("round.over job=%s round=%d reason=%s", self.job, number, reason)
                self._settle(number, False)
            case cm.Refusal(code, field, text) if message.round < 0:
                raise Refused(code, field, text)

    def _settle(self, number: int, counted: bool) -> None:
        self._held.pop(number, None)
        self._fates[number] = counted
        while len(self._fates) > FATES_REMEMBERED:
            del self._fates[min(self._fates)]

    def _wait_fate(self, number: int) -> bool | None:
        """Whether the round's update was counted; None when the job ends first."""
        while number not in self._fates:
            if any(isinstance(event, cm.JobOver) for event in self._pending):
                return None
            self._retrying(self._take_note)
        return self._fates[number]

    def _take_note(self, stream: Stream) -> None:
        self._note(stream.receive())
        self._give_again(stream)

    def _give_again(self, home: Stream) -> None:
        """Sends what it holds and is asked for again: a node died with it before the round was committed."""
        for event in [event for event in self._pending if isinstance(event, cm.Selected) and event.round in self._held]:
            if self._stream is not home:
                return  # given up: the next connection begins by saying what is wanted
            self._pending.remove(event)
            with suppress(_Settled):
                self._where_named(home, event.round, partial(self._offer, held=self._held[event.round]))

    def _end(self, over: cm.JobOver) -> None:
        if over.status == "failed":
            raise JobFailed(f"job {self.job!r} has failed: {over.reason}")
        if over.status == "cancelled":
            raise JobCancelled(f"job {self.job!r} was cancelled: {over.reason or 'no reason given'}")

    # ---- another node's gateway ------------------------------------------------------------------------------------

    def _for_round(self, number: int, action: Callable[[Stream], T]) -> T:
        return self._retrying(lambda home: self._where_named(home, number, action))

    def _where_named(self, home: Stream, number: int, action: Callable[[Stream], T]) -> T:
        """Does `action` at the gateway that the round's selection named, or at that of a redirect."""
        address = self._named[1] if self._named[0] == number else ""
        for redirected in itertools.cycle((False, True)):
            try:
                return self._at(address, home, action)
            except Refused as refused:
                if refused.code != cm.USE_GATEWAY:
                    raise
                address = refused.field
            if redirected:
                self._pause(REDIRECTED_PAUSE_S)
        raise AssertionError("a cycle has no end")

    def _at(self, address: str, home: Stream, action: Callable[[Stream], T]) -> T:
        """Does `action` over a connection to `address`; at home when that is there, or when it does not work."""
        away = self._dialled(address) if address and address != self.node else None
        if away is not None:
            try:
                with closing(away):
                    return action(away)
            except Refused as refused:
                if refused.code not in _ASK_HOME_CODES:
                    raise
                log.info("gateway.refused gateway=%s why=%s", address, refused)
            except (OSError, RemoteFault) as error:
                log.info("gateway.lost gateway=%s error=%s", address, error)
        return action(home)

    def _dialled(self, address: str) -> Stream | None:
        """A connection to another node's gateway, which takes the client; else None."""
        try:
            away = Stream(address, AWAY_GREETING_S)
        except (OSError, LocalFault) as error:
            log.info("gateway.unreachable gateway=%s error=%s", address, error)
            return None
        try:
            away.greet(self.client, direct=False)
        except (OSError, Refused, RemoteFault) as error:
            away.close()
            log.info("gateway.unreachable gateway=%s error=%s", address, error)
            return None
        return away

    def _receive(self, stream: Stream, number: int) -> cm.ToClient:
        """The next message from `stream`, or (when that is another gateway's) from home.

        Raises `_Settled` when it says that the round, or the job, is over.  Then nobody knows whether an answer to what
        was asked is still to come: the connection is given up, and the next one begins in step.
        """
        home = self._stream
        message = (stream if home is None or stream is home else stream.wait_with(home)).receive()
        if isinstance(message, cm.JobOver) or (
            isinstance(message, cm.Committed | cm.RoundOver) and message.round == number
        ):
            self._note(message)
            if stream is home:
                self._disconnect()
            raise _Settled(self.job, number, message)
        return message

    # ---- the connection --------------------------------------------------------------------------------------------

    def _retrying(self, action: Callable[[Stream], T]) -> T:
        """Does `action` on a connection, again on a new one when it breaks.  Raises `NodeUnreachable`."""
        while True:
            try:
                result = action(self._connected())
            except OSError as error:
                self._disconnect()
                self._back_off(error)
            except (Refused, RoundEnded):  # the stream is in step
                raise
            except BaseException:
                self._disconnect()
                raise
            else:
                return result

    def _connected(self) -> Stream:
        if self._stream is not None:
            return self._stream
        if self._closed.is_set():
            raise LocalFault("the client is closed")
        stream = Stream(self.node, GREETING_S if len(self._nodes) == 1 else AWAY_GREETING_S)
        try:
            stream.greet(self.client, self._direct)
            stream.send(cm.Join(self.job, min(self._held, default=None), time.time_ns()))
        except BaseException:
            stream.close()
            raise
        # The node is there.  What is asked of it now may take hours, so this is not left until it is answered.
        self._failing_since_s = None
        self._pause_s = PAUSE_FIRST_S
        self._stream = stream
        return stream

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            # The node selects again on the next connection; what it said on this one may be out of date by then.
            self._pending = deque(event for event in self._pending if isinstance(event, cm.JobOver))

    def _back_off(self, error: OSError) -> None:
        now = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now
        away_s = now - self._failing_since_s
        if away_s + self._pause_s > self.give_up_after_s:
            nodes = " or ".join(self._nodes)
            raise NodeUnreachable(
                f"no node could be reached at {nodes} for {away_s:.0f} s: {error}; is `lifl up` running there?"
            ) from error
        log.info("node.unreachable node=%s error=%s pause_s=%.2f", self.node, error, self._pause_s)
        self._nodes.rotate(-1)
        self._pause(random.uniform(self._pause_s / 2, self._pause_s))
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def _pause(self, pause_s: float) -> None:
        if self._closed.wait(pause_s):
            raise LocalFault("the client was closed while it waited for the node")


class _Names(msgspec.Struct):
    job: Name
    client: Name
