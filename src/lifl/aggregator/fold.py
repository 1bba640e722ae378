"""One fold: updates come in, their aggregate comes out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import msgspec

from lifl.aggregator.outcomes import FoldFailed, FoldResult, UpdateRefused
from lifl.aggregator.session import Session, send_body
from lifl.aggregator.tickets import TICKET_S, made_ticket
from lifl.client.tensors import Tensors, Update, as_metrics, as_number, as_weight
from lifl.core.errors import LiflError, Refused
from lifl.core.fields import NAME_RULE, Name
from lifl.core.limits import DEADLINE_S_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol.update_check import check_submit
from lifl.core.trust.ticket import ANY_FOLD


class Fold:
    """A fold that `Aggregator.open` has begun; use it in a ``with`` statement, from any threads.

    It ends with `result` or `cancel`; at the end of the ``with`` statement it is cancelled if it has not ended.
    """

    def __init__(
        self, session: Session, number: int, expected: int, model: Update, ended: Callable[[Session], None]
    ) -> None:
        self.expected = expected
        self.number = number
        """By which the node knows it."""
        self.job = session.name
        """The session that it is of."""
        self._session = session
        self._round = session.next_round
        self._model: Update | None = model  # the caller's arrays: for who has a ticket and asks for it
        self._ended = ended
        self._accepted: set[str] = set()
        self._brought: dict[str, fm.FoldAccepted] = {}
        self._next_name = 1
        self._news = threading.Condition()
        self._done: fm.FoldDone | None = None
        self._over = ""
        self._result: FoldResult | None = None
        self._closes = False  # the node was told to make the result
        self._counted = False  # the session knows of the result
        self._released = False  # another fold may have the session
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Fold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    @property
    def accepted(self) -> int:
        """How many updates were added through this object."""
        return len(self._accepted)

    # ---- updates -----------------------------------------------------------------------------------------------------

    def add(
        self,
        tensors: Tensors,
        weight: float,
        metrics: Mapping[str, float] | None = None,
        client: str | None = None,
    ) -> None:
        """Add an update, and return when the node has it (ACCEPTED): nothing of it is kept here.

        `tensors` has the names, dtypes and shapes of the model; where the fold was opened with `trainable` some may be
        missing.  `weight` is usually a number of examples; `metrics` are averaged by it.  `client` says whose it is (a
        name is made up if none is given): the same client once more gets the first one's answer.  A node that is away
        is waited for, as long as the aggregator's `return_within_s` says.

        Raise `UpdateRefused`, naming the field, when it cannot be taken; `FoldFailed` when the fold has ended;
        `NodeUnreachable`.
        """
        client = self._named(client)
        try:
            submit, update = self._submit(tensors, weight, {} if metrics is None else metrics, client)
            why = self._session.line.retrying(lambda: self._send(submit, update))
        except UpdateRefused:
            raise
        except Refused as refused:
            raise UpdateRefused(refused.code, refused.field, refused.text, client) from refused
        if isinstance(why, cm.Refusal):
            raise UpdateRefused(why.code, why.field, why.text, client)
        if why is not None:
            reason = getattr(why, "reason", "") or self._over or "it takes no more updates"
            raise FoldFailed(f"the fold is over without the update of client {client!r}: {reason}")
        with self._news:
            self._accepted.add(client)

    def _send(self, submit: cm.Submit, update: Update) -> cm.ToClient | None:
        self._check_open()
        return send_body(self._session.line, submit, update)

    def _named(self, client: str | None) -> str:
        if client is None:
            with self._news:
                client, self._next_name = f"update-{self._next_name}", self._next_name + 1
            return client
        try:
            return str(msgspec.convert(client, Name))
        except msgspec.ValidationError:
            raise _no_name(client) from None

    def _submit(
        self, tensors: Tensors, weight: float, metrics: Mapping[str, float], client: str
    ) -> tuple[cm.Submit, Update]:
        number, numbers = as_weight(weight), as_metrics(metrics)
        layout = self._session.layout
        trainable = self._session.trainable
        update = Update(layout, tensors, numbers=False, trainable=trainable)
        about = (self._session.name, self._round, number, layout.data_bytes, (), numbers, layout.digest)
        submit = cm.Submit(*about, client=client, fold=self.number, absent=update.absent)
        check_submit(layout, submit, client, bool(trainable))
        return submit, update

    def add_future(self, tensors: Tensors, weight: float, **more: object) -> Future[None]:
        """Add an update in a thread of the fold's own, in turn; the future has what `add` returns or raises."""
        with self._news:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "lifl-add")
            return self._pool.submit(self.add, tensors, weight, **more)  # type: ignore[arg-type]

    async def add_async(self, tensors: Tensors, weight: float, **more: object) -> None:
        """Add an update, as `add` does, in a thread that the loop waits for."""
        await asyncio.to_thread(self.add, tensors, weight, **more)  # type: ignore[arg-type]

    async def result_async(self, copy: bool = False) -> FoldResult:
        """Return the fold's result, as `result` does, in a thread that the loop waits for."""
        return await asyncio.to_thread(self.result, copy)

    def ticket(
        self, client: str, valid_s: float = TICKET_S, model: bool = True, standing: bool = False, bearer: bool = False
    ) -> str:
        """Return one line by which another process, or machine, brings the update of `client` to this fold.

        It is good for that name in this fold alone, for `valid_s` seconds; a `standing` one in this and each later fold
        for such a model (`Part.next`), which are opened `shared`.  With `model` the model that the fold was opened with
        is brought to the node, if it is not there, for `take_part(...).model`.  With `bearer` whoever has the line
        needs no certificate, of a node that asks for one.  Raise `UpdateRefused` for a name that is none, `FoldFailed`,
        `Refused` and `NodeUnreachable`.
        """
        client = self._named(client)
        self._check_open()
        if model and self._model is not None:
            self._session.put(self._model, wanted=True)
        return made_ticket(self._session, ANY_FOLD if standing else self.number, client, valid_s, bearer)

    def revoke(self, client: str) -> None:
        """Let no ticket of `client` count any more, for this fold and standing ones; an update that was brought stays.

        Who has come by one without a certificate is sent away.  Raise `UpdateRefused` for a name that is none,
        `FoldFailed`, `Refused` for too many, and `NodeUnreachable`.
        """
        if client is None:
            raise _no_name(client)
        client = self._named(client)
        self._check_open()
        for fold in (self.number, ANY_FOLD):
            self._session.revoke(fold, client)

    @property
    def brought(self) -> dict[str, fm.FoldAccepted]:
        """The updates that were brought by tickets, by client, each with its `weight` and `metrics`."""
        with self._news:
            return dict(self._brought)

    def wait(self, clients: Collection[str], timeout_s: float | None = None) -> bool:
        """Wait until the updates of all these clients were brought by tickets; return whether they were.

        At most for `timeout_s` seconds, if that is given.  Raise `Refused` for names or a time that are none,
        `FoldFailed` when the fold has ended, and `NodeUnreachable`.
        """
        listed = isinstance(clients, Collection) and not isinstance(clients, str)
        if not listed or not all(isinstance(client, str) for client in clients):
            raise Refused("bad-name", "clients", f"clients={clients!r:.200}: give a list of names")
        if timeout_s is not None and not (as_number(timeout_s, "bad-time", "timeout_s", "timeout_s") <= DEADLINE_S_MAX):
            text = f"timeout_s={timeout_s!r}: give seconds, at most {DEADLINE_S_MAX:.0f}; or none, to wait for as long"
            raise Refused("bad-time", "timeout_s", f"{text} as it takes")
        line, wanted = self._session.line, set(clients)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._news:
                left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
                self._news.wait_for(lambda: self._over or self._brought.keys() >= wanted or not line.is_up, left_s)
                if self._over:
                    raise FoldFailed(self._over)
                if self._brought.keys() >= wanted or line.is_up:
                    return self._brought.keys() >= wanted
            line.retrying(line.reach)  # and the node tells again what is there

    # ---- the end -----------------------------------------------------------------------------------------------------

    def result(self, copy: bool = False) -> FoldResult:
        """Close the fold with what was accepted by now, and return the aggregate; once more returns the same.

        Its arrays are read-only.  On the node's own machine a large result is not copied but read where the node has
        it, for as long as you like: when the node wants its memory back (the next fold of such a model gets a result,
        the aggregator is closed), what you still have is copied, and stays as it is.  With `copy` the arrays are yours
        to change.

        Raise `Refused` when it has no updates (it stays open), `FoldFailed` when they cannot be aggregated, and
        `NodeUnreachable`.
        """
        made = self._made()
        return made.copy() if copy else made

    def _made(self) -> FoldResult:
        with self._session.lock:
            if self._result is not None:
                return self._result
            self._check_open()
            self._session.part()
            done = self._session.line.retrying(self._closed)
            if not self._counted:
                self._counted = True
                self._session.done()
            lost = self._accepted - set(done.clients)
            if lost:
                self._end(f"the node has lost updates that it had accepted, of {', '.join(sorted(lost)[:8])}")
                raise FoldFailed(self._over)
            tensors = self._session.result()
            self._result = FoldResult(tensors, done.clients, done.weight, done.metrics)
        self._end("the fold is closed: it has its result")
        return self._result

    def _closed(self) -> fm.FoldDone:
        """Have the fold closed, and wait for its result.  Raise `OSError` when the connection breaks meanwhile."""
        line = self._session.line
        life = line.life
        if self._done is None:
            self._closes = True
            self._session.ask(fm.CloseFold(self._session.name, self.number), fm.FoldClosing)
        with self._news:
            self._news.wait_for(lambda: self._done is not None or self._over or line.life != life or line.closed)
            if self._done is not None:
                return self._done
        if self._over:
            raise FoldFailed(self._over)
        raise ConnectionResetError("the connection broke before the fold was done")

    def cancel(self) -> None:
        """End the fold without a result, if it has not ended; may be called twice."""
        if self._released:
            return
        if self._over:  # the node has said so
            self._end(self._over)
            return
        # The node hears of it with the next fold, if it is away now.
        said = fm.CancelFold(self._session.name, self.number)
        try:
            if self._closes:
                self._session.ask(said, fm.FoldOver)
            else:  # it has no result, whatever becomes of the word
                self._session.line.tell(said)
        except (OSError, LiflError):
            self._session.unsure = self._session.unsure or self._closes
        self._end("the fold was cancelled")

    def _end(self, why: str) -> None:
        with self._news:
            released, self._released = self._released, True
            self._over = self._over or why
            self._news.notify_all()
            pool, self._pool = self._pool, None
            self._model = None
        if pool is not None:
            pool.shutdown(wait=False)
        if not released:
            self._ended(self._session)

    def _check_open(self) -> None:
        if self._over:
            raise FoldFailed(self._over)

    # ---- what the node says ------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Go on with the fold on a new connection: the node may have started again."""
        if self._over or self._done is not None:
            return
        said = fm.OpenFold(self._session.name, self.number, self.expected)
        try:
            answer = self._session.ask(said, fm.FoldOpen, fm.FoldDone, fm.FoldOver)
        except Refused as refused:
            self.fail(f"the node does not go on with it: {refused.text}")
            return
        if isinstance(answer, fm.FoldDone):
            self.finish(answer)

    def note(self, accepted: fm.FoldAccepted) -> None:
        """Take note of an update that somebody has brought by a ticket."""
        with self._news:
            self._brought[accepted.client] = accepted
            self._news.notify_all()

    def finish(self, done: fm.FoldDone) -> None:
        """Take note of the result."""
        with self._news:
            self._done = done
            self._news.notify_all()

    def fail(self, reason: str) -> None:
        """Take note that there will be no result."""
        with self._news:
            self._over = self._over or reason
            self._news.notify_all()


def _no_name(client: object) -> UpdateRefused:
    return UpdateRefused("bad-name", "client", f"client={client!r:.200}: a name is {NAME_RULE}", f"{client!s:.200}")


def wake(fold: Fold) -> None:
    """Have who waits for a fold look again: the connection has ended."""
    with fold._news:
        fold._news.notify_all()


def opened(fold: Fold) -> None:
    """Have the node open the fold.  Raise `Refused`."""
    said = fm.OpenFold(fold._session.name, fold.number, fold.expected)
    fold._session.line.retrying(lambda: fold._session.ask(said, fm.FoldOpen))
