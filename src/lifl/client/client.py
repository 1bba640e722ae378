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

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from lifl.client.addresses import Node, understood
from lifl.client.books import Books, HeldUpdate, is_evaluation
from lifl.client.buffers import Buffers
from lifl.client.gateways import OVER_CODES, Gateways
from lifl.client.home import Home, pause
from lifl.client.kept_updates import keep_update, kept_in
from lifl.client.loans import Loans
from lifl.client.outcomes import JobCancelled, JobFailed, RoundEnded, Settled, Submission
from lifl.client.properties import properties_of
from lifl.client.round import Round
from lifl.client.split import Split, check_streams, split
from lifl.client.stream import Progress, Stream
from lifl.client.tensors import Array, Tensors, Update, as_metrics, as_model, as_weight
from lifl.core.errors import LocalFault, Refused, RemoteFault, ResourceFault
from lifl.core.fields import NAME_RULE, Name
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol.update_check import check_submit
from lifl.core.schema import Layout, TensorSpec

log = logging.getLogger("lifl.client")

ASK_AGAIN_S = 0.5
"""How long after a round was refused, though it may not be over, a client says again that it takes part."""
HELD_ROUNDS_MAX = 2
"""Uncommitted updates that are kept; the next round begins only when the oldest of them is committed."""


class Client:
    """A client of one job on one node; use it in a ``with`` statement, from one thread.

    `node` is ``HOST:PORT``, ``unix:PATH`` or a node's state folder, or several of them (a sequence, or a text with
    commas) of one cluster: when the first cannot be reached the next one is tried, and so on around.  `job` and
    `client` are names (letters, digits and ``._:-``); a client's name must be its own.  On the node's own machine, by
    its socket, updates are written straight into the node's memory (unless `direct` is False).

    To another machine it is TLS, and the client shows who it is: by the identity that `lifl enroll HOST:PORT` has made,
    or the one in the folder `identity` (or ``$LIFL_IDENTITY``); its certificate's name must be `client`.  In its place
    `token_file` (or ``$LIFL_TOKEN_FILE``) may have a bearer token for this name and job.  `insecure` does without,
    where the node was started with ``--insecure``: nothing is encrypted, and nobody knows who is who.

    A job may select clients, and give them options, by what they say of themselves: `labels` (name and text), the
    number of `examples` that they have, the class of their `device` (``gpu``).  With `evaluate` its `rounds` are also
    those in which a model is to be evaluated.

    When no node can be reached for longer than `give_up_after_s`, `NodeUnreachable` is raised; a job that does not
    exist is waited for as long, then `Refused` is raised.  Each of that, and a connection made again, is logged as a
    warning of the logger ``lifl.client``.

    Where TLS is bound by a core, a large model or update goes over several connections, of the same client to the same
    node: at most `streams`, 8 at the most, if the node takes as many; 0: half as many as there are cores, up to 4.

    Each update is written to a file in the folder `keep_updates`, if there is one, before it is sent: whoever has those
    of a round can check its model (``lifl verify``).

    A process forked from this one (a worker of a DataLoader) has no part in it: it must make a client of its own.
    """

    def __init__(
        self,
        node: Node | Sequence[Node],
        *,
        job: str,
        client: str,
        direct: bool = True,
        give_up_after_s: float = 300.0,
        identity: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        token_file: str | os.PathLike[str] | None = None,
        labels: Mapping[str, str] | None = None,
        examples: int | None = None,
        device: str = "",
        evaluate: bool = False,
        streams: int = 0,
        keep_updates: str | os.PathLike[str] | None = None,
    ) -> None:
        try:
            msgspec.convert({"job": job, "client": client}, type=_Names)
        except msgspec.ValidationError:
            raise LocalFault(f"job={job!r}, client={client!r}: a name is {NAME_RULE}") from None
        check_streams(streams)
        nodes = understood(node)
        self.job = job
        self.client = client
        self._keep_updates = None if keep_updates is None else kept_in(keep_updates)
        self._closed = threading.Event()
        self._layout: Layout | None = None
        self._books = Books(job)
        self._buffers = Buffers()
        self._loans = Loans()
        self._home = Home(
            nodes,
            self._books,
            self._closed,
            job=job,
            client=client,
            direct=direct,
            identity=identity,
            insecure=insecure,
            token_file=token_file,
            properties=properties_of(labels, examples, device, evaluate),
            streams=streams,
        )
        self.give_up_after_s = give_up_after_s
        self._gateways = Gateways(client, self._home, self._books, self._closed)

    @property
    def node(self) -> str:
        """The address of the node that the client is at, or tries next."""
        return self._home.node

    @property
    def give_up_after_s(self) -> float:
        """How long no node may be reached at a stretch, and how long the job may be unknown."""
        return self._home.give_up_after_s

    @give_up_after_s.setter
    def give_up_after_s(self, seconds: float) -> None:
        if not (isinstance(seconds, int | float) and seconds >= 0):
            raise LocalFault(f"give_up_after_s={seconds!r}: give a number of seconds, 0 or more")
        self._home.give_up_after_s = seconds

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the job and close the connection; may be called twice, and from any thread: one that waits wakes up.

        Its `rounds` end then, and whatever else it waits for raises `LocalFault`.  In a forked process it does nothing.
        """
        self._closed.set()
        self._home.close()
        self._buffers.close()

    # ---- what trainers use -----------------------------------------------------------------------------------------

    def rounds(self, models: bool = True) -> Iterator[Round]:
        """Yield the rounds that this client is selected for, with their models, until the job has finished.

        A round that ends while its model is fetched is not yielded: the next one is.  Without `models` rounds are
        yielded at once, and `Round.model` fetches.  Raise `JobFailed`, `JobCancelled`, `Refused` (the name is taken,
        the job stays unknown) and `NodeUnreachable`.  When the client is closed meanwhile they end.

        Who calls it again, because training raised an error, gets the round that was neither submitted nor declined.
        """
        self._books.resume()
        while True:
            try:
                round_ = self._next_round(models)
            except LocalFault:
                if self._closed.is_set() and self._home.joined:
                    return
                raise
            if round_ is None:
                return
            yield round_

    def _next_round(self, models: bool) -> Round | None:
        """Return the next round to train in; None when the job has finished."""
        while True:
            over = self._books.is_job_over()
            event = self._books.take_event() if over else self._home.retrying(self._next_event)
            if isinstance(event, cm.JobOver):
                self._books.held.clear()
                self._end(event)
                return None
            if is_evaluation(event):
                if (evaluation := self._evaluation(event, models)) is not None:
                    return evaluation
                continue
            number = event.round
            self._home.dialler.renew()
            self._books.begin(event)
            if number in self._books.held and self._send_again(self._books.held[number]):
                continue
            while len(self._books.held) >= HELD_ROUNDS_MAX and self._wait_fate(min(self._books.held)) is not None:
                pass
            self._books.detach_held()
            self._books.fates.pop(number, None)  # of an attempt that failed: the round begins again
            round_ = Round(self, event)
            self._books.rounds.add(round_)
            try:
                if models:
                    _ = round_.model
            except RoundEnded as ended:
                log.info("round.over job=%s round=%d reason=%a", self.job, number, str(ended))
                self._take_part_again(number)
            else:
                return round_

    def _evaluation(self, event: cm.Selected, models: bool) -> Round | None:
        """Return the round in which a model is to be evaluated; None when that is over."""
        self._home.dialler.renew()
        self._books.detach_held()
        round_ = Round(self, event)
        try:
            if models:
                _ = round_.model
        except RoundEnded as ended:
            log.info("evaluation.over job=%s round=%d reason=%a", self.job, event.round, str(ended))
            return None
        return round_

    def _take_part_again(self, number: int) -> None:
        """Have the node select the client again when a round was refused that is not known to be over.

        A gateway that has just begun may not know the job yet, nor its node the round's model.
        """
        if self._books.is_settled(number) or self._books.events:
            return
        self._pause(ASK_AGAIN_S)
        self._home.retrying(self._home.hear)
        if number not in self._books.fates and not self._books.events:
            log.warning("round.refused job=%s round=%d: taking part again", self.job, number)
            self._home.say(self._home.join())

    def _send_again(self, held: HeldUpdate) -> bool:
        """Submit an update that was trained before; return False when it is refused, so that it is made anew."""
        try:
            self._send(held)
        except Refused as refused:
            number = held.submit.round
            log.warning("update.refused job=%s round=%d reason=%a: training again", self.job, number, refused.text)
            self._books.held.pop(number, None)
            return False
        return True

    def wait_committed(self, round_: Round) -> bool:
        """Wait until the round is COMMITTED; return whether this client's update is in its model."""
        fate = self._wait_fate(round_.number)
        return bool(fate)

    # ---- one round -------------------------------------------------------------------------------------------------

    def _submit(
        self, round_: Round, tensors: Tensors, weight: float, metrics: Mapping[str, float], progress: Progress | None
    ) -> Submission:
        if round_._declined:
            raise LocalFault(f"round {round_.number} was declined: it takes no update of this client")
        if round_.kind == "evaluate":
            text = f"the model of round {round_.number} is to be evaluated: report(metrics, weight) takes no tensors"
            raise Refused("no-tensors", "tensors", text)
        layout = round_.layout
        number, numbers = as_weight(weight), as_metrics(metrics)
        update = Update(layout, tensors, trainable=round_.trainable)
        about = (self.job, round_.number, number, layout.data_bytes, layout.tensors, numbers)
        submit = cm.Submit(*about, absent=update.absent)
        check_submit(layout, submit, self.client, bool(round_.trainable))
        before = self._books.held.get(round_.number)
        if self._books.fates.get(round_.number) or (before is not None and before.accepted):
            return Submission(self.job, round_.number, True)
        if self._keep_updates is not None:
            keep_update(self._keep_updates, self.client, submit, update)
        told = None if progress is None else partial(_tell, progress)
        held = self._books.held[round_.number] = HeldUpdate(submit, update, told)
        try:
            return self._send(held)
        except Refused:
            self._books.held.pop(round_.number, None)
            raise

    def _send(self, held: HeldUpdate) -> Submission:
        number = held.submit.round

        def offer(home: Stream) -> Submission:
            self._home.hear(home)
            if self._books.held.get(number) is not held or self._books.has_moved_on(number):
                # Its fate was told while it was trained, or on a connection that broke before the answer.
                return self._books.verdict(held.submit, f"round {number} is over without this update")
            self._books.forget_selection(number)  # of another attempt: this is the answer to it
            send = split(self.client, held.submit.data_bytes, partial(self._offer, held=held))
            return self._gateways.do(home, number, send)

        try:
            done = self._home.retrying(offer)
        except Settled as settled:
            return settled.submission
        if not done.accepted:
            self._take_part_again(number)
        return done

    def _decline(self, round_: Round, reason: str) -> None:
        number = round_.number
        if number in self._books.held:
            raise LocalFault(f"round {number} has an update of this client: it cannot be declined any more")
        text = str(reason).encode(errors="replace").decode()[:TEXT_CHARS_MAX]
        if round_.kind == "evaluate":
            self._home.say(cm.Decline(self.job, number, text))
            return
        self._books.declined = declined = cm.Decline(self.job, number, text)
        self._books.forget_selection(number)
        self._books.fates[number] = False
        stream = self._home.stream
        if stream is not None and cm.DECLINE in stream.knows:
            self._home.say(declined)
        elif stream is not None:  # an earlier version selects another for one that leaves
            self._home.say(cm.Leave(self.job), self._home.join())

    def _offer(self, stream: Stream, ways: Split, held: HeldUpdate) -> Submission:
        """Submit an update on this connection, until there is an answer."""
        submit = held.submit
        before = self._books.fates.pop(submit.round, None)  # of an earlier attempt at the round
        announced = msgspec.structs.replace(submit, streams=ways.asked)
        if cm.DIGESTS in stream.knows:
            announced = msgspec.structs.replace(announced, tensors=(), digest=held.update.layout.digest)
        stream.send(announced)
        answer = self._home.answer(stream, submit.round, cm.Go | cm.Accepted | cm.Busy | cm.Refusal)
        while isinstance(answer, cm.Busy):
            log.warning("node.busy job=%s round=%d pause_s=%.2f", self.job, submit.round, answer.retry_after_s)
            self._pause(answer.retry_after_s)
            stream.send(announced)
            answer = self._home.answer(stream, submit.round, cm.Go | cm.Accepted | cm.Busy | cm.Refusal)
        if isinstance(answer, cm.Go):
            if answer.direct:
                stream.send(stream.fill(answer, submit.data_bytes, partial(_write, held)))
            else:
                ways.send(answer.transfer, held.update.views, held.progress)
            answer = self._home.answer(stream, submit.round, cm.Accepted | cm.Refusal)
        if isinstance(answer, cm.Accepted):
            held.accepted = True
            return Submission(submit.job, submit.round, accepted=True)
        if answer.code == cm.SPOILT:
            self._books.note(answer)
            return self._books.verdict(submit, answer.text)
        if answer.code in OVER_CODES and stream is self._home.stream:
            if before is not None:
                self._books.fates[submit.round] = before
            return self._books.verdict(submit, answer.text)
        raise Refused(answer.code, answer.field, answer.text)

    def _fetch_model(self, round_: Round) -> dict[str, Array]:
        number = round_.number + (round_.kind == "evaluate")  # of the round that starts from it
        nbytes = round_.layout.data_bytes

        def asked(stream: Stream, ways: Split) -> cm.Model:
            layout = round_.layout
            digests = cm.DIGESTS in stream.knows
            digest = layout.digest if digests else msgspec.UNSET
            lend = True if self._loans.asks(stream, nbytes) else msgspec.UNSET
            stream.send(cm.GetModel(self.job, number, digest=digest, streams=ways.asked, lend=lend))
            answer: cm.Model | cm.Refusal = self._home.answer(stream, number, cm.Model | cm.Refusal)
            if isinstance(answer, cm.Refusal):
                if answer.code in OVER_CODES and stream is self._home.stream:
                    raise RoundEnded(answer.text)
                raise Refused(answer.code, answer.field, answer.text)
            same = answer.digest == digest if digests else answer.tensors == layout.tensors
            if not same or answer.data_bytes != layout.data_bytes:
                raise RemoteFault(f"the model of round {round_.number} differs from what its selection announced")
            return answer

        def fetch(stream: Stream, ways: Split) -> dict[str, Array]:
            answer = asked(stream, ways)
            if isinstance(answer.offset, int):
                lent = self._loans.take(stream, answer.offset, nbytes)
                if lent is not None:
                    return as_model(round_.layout, lent)
                answer = asked(stream, ways)  # it could not be mapped
            data = _memory(self._buffers, round_)
            ways.receive_into(answer.transfer, data.data)
            return as_model(round_.layout, data)

        try:
            return self._home.retrying(lambda home: self._gateways.do(home, number, split(self.client, nbytes, fetch)))
        except Settled as settled:
            raise RoundEnded(settled.submission.reason or f"round {round_.number} is committed") from None

    # ---- what the node says ----------------------------------------------------------------------------------------

    def _next_event(self, stream: Stream) -> cm.Selected | cm.JobOver:
        self._home.hear(stream)
        while not self._books.events:
            self._books.note(stream.receive())
        return self._books.take_event()

    def _wait_fate(self, number: int) -> bool | None:
        """Return whether the round's update was counted; None when that is not told any more."""
        while not self._books.is_settled(number):
            self._home.retrying(self._take_note)
        return self._books.fates.get(number)

    def _take_note(self, stream: Stream) -> None:
        self._books.note(stream.receive())
        self._give_again(stream)

    def _give_again(self, home: Stream) -> None:
        """Send what it holds and is asked for again: a node died with it before the round was committed."""
        for event in self._books.asked_again():
            if self._home.stream is not home:
                return  # given up: the next connection begins by saying what is wanted
            self._books.events.remove(event)
            held = self._books.held[event.round]
            send = split(self.client, held.submit.data_bytes, partial(self._offer, held=held))
            with suppress(Settled):
                self._gateways.do(home, event.round, send)

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

    def _pause(self, pause_s: float) -> None:
        pause(self._closed, pause_s)


def _tell(progress: Progress, sent_bytes: int, all_bytes: int) -> None:
    """Call a trainer's `progress`; what it raises for reasons of its own is not taken for a broken connection."""
    try:
        progress(sent_bytes, all_bytes)
    except OSError as error:
        raise LocalFault(f"progress({sent_bytes}, {all_bytes}) raised {error!r}") from error


def _memory(buffers: Buffers, round_: Round) -> NDArray[np.uint8]:
    nbytes = round_.layout.data_bytes
    try:
        return buffers.take(nbytes)
    except MemoryError as error:
        raise ResourceFault(f"there is no memory for the model of round {round_.number}, {nbytes} bytes") from error


def _write(held: HeldUpdate, slot: memoryview, before_piece: Callable[[int], None]) -> int:
    """Write an update to its slot, and say how far it is; return what `Update.write_to` does."""

    def tell(position: int) -> None:
        if held.progress is not None:
            held.progress(position, held.submit.data_bytes)

    def tell_both(position: int) -> None:
        tell(position)
        before_piece(position)

    checksum = held.update.write_to(slot, tell_both)
    tell(held.submit.data_bytes)
    return checksum


class _Names(msgspec.Struct):
    job: Name
    client: Name
