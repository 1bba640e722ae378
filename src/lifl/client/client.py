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

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from types import TracebackType
from typing import TypeVar

import msgspec
import numpy as np

from lifl.client.books import Books, HeldUpdate
from lifl.client.gateways import OVER_CODES, Gateways
from lifl.client.home import Home, pause
from lifl.client.outcomes import JobCancelled, JobFailed, RoundEnded, Settled, Submission
from lifl.client.stream import Progress, Stream
from lifl.client.tensors import Array, Tensors, Update, as_model
from lifl.core.errors import LocalFault, Refused, RemoteFault
from lifl.core.fields import NAME_RULE, Name
from lifl.core.protocol import client as cm
from lifl.core.protocol.submit_check import check_submit
from lifl.core.schema import Layout, TensorSpec

HELD_ROUNDS_MAX = 2
"""Uncommitted updates that are kept; the next round begins only when the oldest of them is committed."""

T = TypeVar("T")


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
        self.layout = client._layout_of(selected.tensors)
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
        """Send this client's update and return when the node has ACCEPTED it (or the round is over).

        `tensors` has the model's names, dtypes and shapes: a dict of arrays, a torch `state_dict`, or the path of a
        safetensors file.  It must not change until the next round begins.  `weight` is usually the number of
        examples; `metrics` are averaged with it.  `progress(sent_bytes, all_bytes)` is called while it is sent.
        Raise `Refused`, naming the field, when the update cannot be taken, and `NodeUnreachable`.
        """
        return self._client._submit(self, tensors, weight, dict(metrics or {}), progress)

    @property
    def committed(self) -> bool | None:
        """True: this client's update is in a durable model.  False: it is in none.  None: not known yet."""
        return self._client._books.fates.get(self.number)


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
        nodes = [address.strip() for address in addresses]
        if not nodes or not all(nodes):
            raise LocalFault(f"node={node!r}: give an address, or several with commas between them")
        self.job = job
        self.client = client
        self._closed = threading.Event()
        self._layout: Layout | None = None
        self._books = Books(job)
        self._home = Home(
            nodes, self._books, self._closed, job=job, client=client, direct=direct, give_up_after_s=give_up_after_s
        )
        self._gateways = Gateways(client, self._home, self._books, self._closed)

    @property
    def node(self) -> str:
        """The address of the node that the client is at, or tries next."""
        return self._home.node

    @property
    def give_up_after_s(self) -> float:
        """How long no node may be reached at a stretch."""
        return self._home.give_up_after_s

    @give_up_after_s.setter
    def give_up_after_s(self, seconds: float) -> None:
        self._home.give_up_after_s = seconds

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the job and close the connection; may be called twice."""
        self._closed.set()
        if self._home.stream is not None:
            try:
                self._home.stream.send(cm.Leave(self.job))
            except OSError:  # the node is gone: it knows
                pass
            self._home.disconnect()

    # ---- what trainers use -----------------------------------------------------------------------------------------

    def rounds(self) -> Iterator[Round]:
        """Yield the rounds that this client is selected for, until the job has finished.

        Raise `JobFailed`, `JobCancelled`, `Refused` (the job is unknown, the name is taken) and `NodeUnreachable`.
        """
        while True:
            event = self._books.events.popleft() if self._books.events else self._home.retrying(self._next_event)
            if isinstance(event, cm.JobOver):
                self._books.held.clear()
                self._end(event)
                return
            number = event.round
            self._books.begin(number)
            if number in self._books.held:
                self._send(self._books.held[number])
                continue
            while len(self._books.held) >= HELD_ROUNDS_MAX and self._wait_fate(min(self._books.held)) is not None:
                pass
            self._books.detach_held()
            self._books.fates.pop(number, None)  # of an attempt that failed: the round begins again
            yield Round(self, event)

    def wait_committed(self, round_: Round) -> bool:
        """Wait until the round is COMMITTED; return whether this client's update is in its model."""
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
        check_submit(layout, submit, self.client)
        held = self._books.held[round_.number] = HeldUpdate(submit, update, progress)
        try:
            return self._send(held)
        except Refused:
            self._books.held.pop(round_.number, None)
            raise

    def _send(self, held: HeldUpdate) -> Submission:
        try:
            return self._for_round(held.submit.round, partial(self._offer, held=held))
        except Settled as settled:
            return settled.submission

    def _offer(self, stream: Stream, held: HeldUpdate) -> Submission:
        """Submit an update on this connection, until there is an answer."""
        submit = held.submit
        if self._books.held.get(submit.round) is not held:
            # Its fate was told on a connection that broke before the answer.
            return self._books.verdict(submit, "the round ended without it")
        self._books.fates.pop(submit.round, None)  # of an earlier attempt at the round
        announced = submit
        if cm.DIGESTS in stream.knows:
            announced = msgspec.structs.replace(submit, tensors=(), digest=held.update.layout.digest)
        stream.send(announced)
        answer = self._home.answer(stream, submit.round, cm.Go | cm.Accepted | cm.Busy | cm.Refusal)
        while isinstance(answer, cm.Busy):
            self._pause(answer.retry_after_s)
            stream.send(announced)
            answer = self._home.answer(stream, submit.round, cm.Go | cm.Accepted | cm.Busy | cm.Refusal)
        if isinstance(answer, cm.Go):
            if answer.direct:
                self._fill(stream, answer.offset, held)
                stream.send(cm.Filled(submit.job, submit.round))
            else:
                stream.send_views(held.update.views, held.progress)
            answer = self._home.answer(stream, submit.round, cm.Accepted | cm.Refusal)
        if isinstance(answer, cm.Accepted):
            held.accepted = True
            return Submission(submit.job, submit.round, accepted=True)
        if answer.code in OVER_CODES and stream is self._home.stream:
            return self._books.verdict(submit, answer.text)
        raise Refused(answer.code, answer.field, answer.text)

    def _fill(self, stream: Stream, offset: int, held: HeldUpdate) -> None:
        """Write an update to its slot of the node's arena; stop when the node is gone, for then others get the slot."""
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
            layout = round_.layout
            digest = layout.digest if cm.DIGESTS in stream.knows else msgspec.UNSET
            stream.send(cm.GetModel(self.job, round_.number, digest=digest))
            answer = self._home.answer(stream, round_.number, cm.Model | cm.Refusal)
            if isinstance(answer, cm.Refusal):
                if answer.code in OVER_CODES and stream is self._home.stream:
                    raise RoundEnded(answer.text)
                raise Refused(answer.code, answer.field, answer.text)
            same = answer.digest == digest if cm.DIGESTS in stream.knows else answer.tensors == layout.tensors
            if not same or answer.data_bytes != layout.data_bytes:
                raise RemoteFault(f"the model of round {round_.number} differs from what its selection announced")
            data = np.empty(answer.data_bytes, np.uint8)
            stream.receive_into(data.data)
            return as_model(layout, data)

        return self._for_round(round_.number, fetch)

    # ---- what the node says ----------------------------------------------------------------------------------------

    def _next_event(self, stream: Stream) -> cm.Selected | cm.JobOver:
        while not self._books.events:
            self._books.note(stream.receive())
        return self._books.events.popleft()

    def _wait_fate(self, number: int) -> bool | None:
        """Return whether the round's update was counted; None when the job ends first."""
        while number not in self._books.fates:
            if self._books.is_job_over():
                return None
            self._home.retrying(self._take_note)
        return self._books.fates[number]

    def _take_note(self, stream: Stream) -> None:
        self._books.note(stream.receive())
        self._give_again(stream)

    def _give_again(self, home: Stream) -> None:
        """Send what it holds and is asked for again: a node died with it before the round was committed."""
        for event in self._books.asked_again():
            if self._home.stream is not home:
                return  # given up: the next connection begins by saying what is wanted
            self._books.events.remove(event)
            with suppress(Settled):
                self._gateways.do(home, event.round, partial(self._offer, held=self._books.held[event.round]))

    def _layout_of(self, tensors: tuple[TensorSpec, ...]) -> Layout:
        """Return the layout, which is the last round's nearly always."""
        if self._layout is None or self._layout.tensors is not tensors:
            self._layout = Layout(tensors)
        return self._layout

    def _end(self, over: cm.JobOver) -> None:
        if over.status == "failed":
            raise JobFailed(f"job {self.job!r} has failed: {over.reason}")
        if over.status == "cancelled":
            raise JobCancelled(f"job {self.job!r} was cancelled: {over.reason or 'no reason given'}")

    def _for_round(self, number: int, action: Callable[[Stream], T]) -> T:
        return self._home.retrying(lambda home: self._gateways.do(home, number, action))

    def _pause(self, pause_s: float) -> None:
        pause(self._closed, pause_s)


class _Names(msgspec.Struct):
    job: Name
    client: Name
