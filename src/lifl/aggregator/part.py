"""To take part in a fold by a ticket: one connection, one thread, one update."""

from __future__ import annotations

import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TypeVar

import msgspec
import numpy as np

from lifl.aggregator.outcomes import FoldFailed, UpdateRefused
from lifl.aggregator.tickets import TicketContent, read_ticket
from lifl.client.dialling import Dialler, Sockets
from lifl.client.outcomes import NodeUnreachable
from lifl.client.split import Split, check_streams, split
from lifl.client.stream import GREETING_S, Stream, greeted
from lifl.client.tensors import Array, Tensors, Update, as_metrics, as_model, as_weight
from lifl.core.errors import LocalFault, Refused, RemoteFault
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol.update_check import check_submit
from lifl.core.schema import Layout
from lifl.core.trust.ticket import ANY_FOLD

PAUSE_FIRST_S, PAUSE_MAX_S = 0.05, 2.0
UNIX = "unix:"
CLOSED = "the part in the fold is closed"

T = TypeVar("T")


class Part:
    """One client's part in one fold; use it in a ``with`` statement, from one thread.  `close` may come from any."""

    def __init__(
        self, content: TicketContent, identity: str | None, return_within_s: float, behind: int = 0, streams: int = 0
    ) -> None:
        self.client = content.client
        self._content = content
        self._identity = identity
        self._streams = streams
        self._diallers: dict[str, Dialler] = {}  # by address
        self._return_within_s = return_within_s
        self._stream: Stream | None = None
        self._sockets = Sockets()
        self._closing = threading.Event()
        self._in_use = threading.Lock()
        self._layout: Layout | None = None
        self._trainable: tuple[str, ...] = ()
        self._round = 0
        self._behind = behind  # the fold before the only one that it is for; 0: for whichever
        self._fold = self._after = content.fold or behind  # of a standing ticket 0: the first that is open
        self._model: dict[str, Array] | None = None
        self._retrying(lambda stream: None)

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, and wake who waits on it; may be called twice."""
        self._closing.set()
        if self._in_use.acquire(blocking=False):
            self._drop()
            self._in_use.release()
        else:
            self._sockets.cut()

    def _rest(self, pause_s: float) -> None:
        """Wait.  Raise `LocalFault` when the part is closed meanwhile."""
        if self._closing.wait(pause_s):
            raise LocalFault(CLOSED)

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    @property
    def model(self) -> dict[str, Array]:
        """The model that the fold was opened with: name → writable array, in its order; fetched when first asked for.

        Raise `FoldFailed` when the fold is over, or its host has not brought the model.
        """
        if self._model is None:
            assert self._layout is not None
            self._model = self._retrying(split(self.client, self._layout.data_bytes, self._fetch))
        return self._model

    def submit(self, tensors: Tensors, weight: float, metrics: Mapping[str, float] | None = None) -> None:
        """Bring the update, and return when the node has it (ACCEPTED); once more gets the first one's answer.

        Raise `UpdateRefused`, naming the field, `FoldFailed` when the fold is over, and `NodeUnreachable`.
        """
        try:
            number, numbers = as_weight(weight), as_metrics({} if metrics is None else metrics)
            assert self._layout is not None
            layout, content = self._layout, self._content
            update = Update(layout, tensors, numbers=False, trainable=self._trainable)
            about = (content.job, self._round, number, layout.data_bytes, (), numbers, layout.digest)
            submit = cm.Submit(*about, fold=self._fold, ticket=content.shown, absent=update.absent)
            check_submit(layout, submit, self.client, bool(self._trainable))
            send = partial(self._send, submit=submit, update=update)
            self._retrying(split(self.client, submit.data_bytes, send))
        except UpdateRefused:
            raise
        except Refused as refused:
            if refused.code == "round-over":
                raise FoldFailed(refused.text) from refused
            raise UpdateRefused(refused.code, refused.field, refused.text, self.client) from refused

    def next(self) -> None:
        """Wait for the next fold that a standing ticket is good for: `model` and `submit` are about that one then.

        Raise `FoldFailed` when the host makes no more, and `NodeUnreachable`.
        """
        if self._content.fold != ANY_FOLD:
            raise LocalFault("this ticket is good for one fold: its host gives one for more by `standing=True`")
        self._after, self._behind, self._model = self._fold, 0, None
        self._retrying(lambda stream: None if self._fold > self._after else self._show(stream))

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _send(self, stream: Stream, ways: Split, submit: cm.Submit, update: Update) -> None:
        announced = msgspec.structs.replace(submit, streams=ways.asked)
        while True:
            stream.send(announced)
            answer = stream.receive()
            if isinstance(answer, cm.Go) and answer.direct:
                stream.send(stream.fill(answer, submit.data_bytes, update.write_to))
                answer = stream.receive()
            elif isinstance(answer, cm.Go):
                ways.send(answer.transfer, update.views, None)
                answer = stream.receive()
            if not isinstance(answer, cm.Busy):
                break
            self._rest(answer.retry_after_s)
        if not isinstance(answer, cm.Accepted):
            raise _refused(answer)

    def _fetch(self, stream: Stream, ways: Split) -> dict[str, Array]:
        assert self._layout is not None
        stream.send(cm.GetModel(self._content.job, self._round, digest=self._layout.digest, streams=ways.asked))
        answer = stream.receive()
        if not isinstance(answer, cm.Model):
            refused = _refused(answer)
            raise FoldFailed(refused.text) if refused.code == "round-over" else refused
        data = np.empty(answer.data_bytes, np.uint8)
        ways.receive_into(answer.transfer, data.data)
        return as_model(self._layout, data)

    def _retrying(self, act: Callable[[Stream], T]) -> T:
        """Do what is safe to do again, until the connection stands.  Raise `NodeUnreachable`."""
        with self._in_use:
            try:
                return self._retried(act)
            finally:
                if self._closing.is_set():
                    self._drop()

    def _retried(self, act: Callable[[Stream], T]) -> T:
        since_s, pause_s = math.inf, PAUSE_FIRST_S  # the next fold may have been waited for for hours
        while True:
            try:
                self._rest(0)
                return act(self._connected())
            except (OSError, RemoteFault) as error:
                self._drop()
                self._rest(0)
                since_s = min(since_s, time.monotonic())
                if time.monotonic() - since_s + pause_s > self._return_within_s:
                    where = " or ".join(self._content.addresses)
                    raise NodeUnreachable(f"the fold's node cannot be reached at {where}: {error}") from error
                self._rest(random.uniform(pause_s / 2, pause_s))
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
            except BaseException:
                self._drop()  # it may be out of step
                raise

    def _connected(self) -> Stream:
        """Return the connection, on which the ticket was shown."""
        if self._stream is not None:
            return self._stream
        stream = self._dialled()
        try:
            self._show(stream)
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        return stream

    def _opened(self, sock: socket.socket) -> None:
        self._sockets.note(sock)
        self._rest(0)  # closed just before: then it was not seen

    def _show(self, stream: Stream) -> None:
        """Show the ticket, and note which fold it is that the node names."""
        shown = fm.TakePart(self._content.job, self._after, self._content.shown)
        stream.send(shown)
        answer = stream.receive()
        while isinstance(answer, cm.Busy):
            self._rest(answer.retry_after_s)
            stream.send(shown)
            answer = stream.receive()
        if not isinstance(answer, cm.Selected):
            refused = _refused(answer)
            raise FoldFailed(refused.text) if refused.code == "round-over" else refused
        if self._behind and answer.behind not in (msgspec.UNSET, self._behind):
            raise FoldFailed(f"the fold behind {self._behind} of session {self._content.job!r} is over")
        self._layout, self._round = Layout(answer.tensors), answer.round
        self._trainable = () if isinstance(answer.trainable, msgspec.UnsetType) else answer.trainable
        if not isinstance(answer.fold, msgspec.UnsetType):
            self._fold = answer.fold

    def _dialled(self) -> Stream:
        """Return a connection to the ticket's node: by its socket, where that is here.  Raise `OSError`, `Refused`."""
        failed: OSError | None = None
        patience_s = max(min(GREETING_S, self._return_within_s), PAUSE_FIRST_S)
        found = self._content.addresses
        here = [each for each in found if each.startswith(UNIX) and os.path.exists(each.removeprefix(UNIX))]
        for address in (*here, *(each for each in found if not each.startswith(UNIX))):
            try:
                stream = greeted(address, patience_s, self.client, True, self._dialler_to(address))
            except OSError as error:
                failed = error
                continue
            if stream.node == self._content.node:
                return stream
            stream.close()
            failed = ConnectionRefusedError(f"at {address} is another node than the ticket's")
        raise failed or ConnectionRefusedError("the ticket names no address that can be reached from here")

    def _dialler_to(self, address: str) -> Dialler:
        """Return what makes connections there; it knows how the last ones went."""
        if address not in self._diallers:
            access = self._content.access if self._identity is None else None
            more = (self._opened, None, access, self._streams)
            self._diallers[address] = Dialler([address], self._identity, False, *more)
        return self._diallers[address]


def take_part(
    ticket: str,
    *,
    identity: str | None = None,
    return_within_s: float = 60.0,
    behind: int | None = None,
    streams: int = 0,
) -> Part:
    """Return the part in a fold that a ticket gives (`Fold.ticket`).

    With a standing ticket and the number of a fold, `behind`, it is in the one that the host opens next after that
    (`Fold.number`), and this waits until it is open.

    On the node's machine and account nothing else is needed; elsewhere the client's certificate is (`identity`, as of
    `Client`), unless the ticket was made with `bearer`.  Where TLS is bound by a core, a large model or update goes
    over several connections, as a `Client`'s does, `streams` at most.

    Raise `LocalFault` for what is no ticket, `Refused` for one that is wrong, expired or another's,
    `FoldFailed` when its fold is over, and `NodeUnreachable`.
    """
    content = read_ticket(ticket)
    if behind is not None and (content.fold != ANY_FOLD or isinstance(behind, bool) or not behind > 0):
        text = f"behind={behind!r} is for a standing ticket, and the number of a fold before the one that is waited for"
        raise LocalFault(text)
    check_streams(streams)
    return Part(content, identity, return_within_s, behind or 0, streams)


def _refused(answer: cm.ToClient) -> Refused:
    """Return why something was not done."""
    if isinstance(answer, cm.Refusal):
        return Refused(answer.code, answer.field, answer.text)
    if isinstance(answer, cm.RoundOver):
        return Refused("round-over", "fold", answer.reason)
    raise RemoteFault(f"the node answers by {type(answer).__name__}")
