"""A client in a job, between its requests: as the gateway sees it, one connection (`native.py`).

Whoever asks for something takes part from then on (Join), and is there while it asks and `HTTP_AWAY_S` after.  What the
coordinator tells the client meanwhile is kept here: the round that it is selected for, and what became of its updates.
When the connection ends (the gateway was started again, an update was given up) the next request makes another one;
what is known stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

import msgspec

from lifl.core import limits
from lifl.core.errors import Refused
from lifl.core.fields import Message
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.tickets import ShowTicket
from lifl.core.schema import Layout, TensorSpec
from lifl.node.http.native import AWAY, Answer, Native, connected, is_fault
from lifl.node.http.segments import Segments
from lifl.node.http.uploads import Upload
from lifl.node.link import Link
from lifl.shm.mapping import Mapped


class JobEnded(Refused):
    """The job is over: `status` tells how."""

    def __init__(self, over: cm.JobOver) -> None:
        text = f"job {over.job!r} is {over.status}" + (f": {over.reason}" if over.reason else "")
        super().__init__("job-over", "job", text)
        self.status = over.status


class Fate(NamedTuple):
    """What became of an update: ``accepted``, ``committed`` (`counted`: it is in the model), or ``over``."""

    state: str
    counted: bool = False
    code: str = ""
    text: str = ""


LOST = Fate("over", code="round-over", text="it was lost with a node before its round ended, and is asked for again")


class Lent(NamedTuple):
    """A model where it lies, and what it was sealed with; 0: nothing.

    `check` raises `ClientGone` when it is lent no more: what lies there may be anybody's.
    """

    view: memoryview
    layout: Layout
    checksum: int
    check: Callable[[], None]


class Session:
    """One client (`name`) in one job."""

    asks_once = True
    """Whether it is told of a round once for each update that is wanted."""

    def __init__(self, door: Link, segments: Segments, came: gm.ClientCame, name: str, job: str) -> None:
        self.name, self.job = name, job
        self.turn = asyncio.Lock()
        """Held while something is asked of the gateway that the next question has to wait for."""
        self.upload: Upload | None = None
        """The update that is on its way, also one that was cut off."""
        self.selected: cm.Selected | None = None
        self.selected_at_s = 0.0
        self.fates: dict[int, Fate] = {}
        self.anew: int | None = None  # the round that it is selected for though it has a fate: of an earlier attempt
        self.busy = 0
        """Requests that are being answered."""
        self.idle_since_s = 0.0
        self._door, self._segments, self._came = door, segments, came
        self._lets_in: ShowTicket | None = None  # what is shown to the gateway, which the door does not look at
        self._native: Native | None = None
        self._connecting = asyncio.Lock()
        self._layout: Layout | None = None
        self._segment: Mapped | None = None
        self._over: cm.JobOver | None = None
        self._trouble: Refused | None = None
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] = self._loop.create_future()
        self._upload_ends: asyncio.TimerHandle | None = None

    # ---- taking part -----------------------------------------------------------------------------------------------

    async def join(self, holding: int | None = None) -> Native:
        """Return the connection, over which the client has joined the job.  Raise `Refused`.

        `holding`: the round whose update it asks for; what became of that is told if it is known.
        """
        async with self._connecting:
            self._check()
            if self._native is None or self._native.closed:
                try:
                    who = (self._door, self._came, self.name)
                    self._native = await connected(*who, self._heard, self._ended, self._lets_in)
                finally:
                    self._trouble = None  # it is what was raised
                self._take_part(self._native, holding)
            elif holding is not None and holding not in self.fates and self.upload is None and not self.turn.locked():
                self._take_part(self._native, holding)
            return self._native

    def _take_part(self, native: Native, holding: int | None) -> None:
        """Ask to be selected."""
        native.say(cm.Join(self.job, holding))

    def _check(self) -> None:
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            self.reset()
            raise trouble
        if self._over is not None:
            over, self._over = self._over, None
            self.reset()
            raise JobEnded(over)

    async def _ask(self, native: Native, question: Message, round_: int) -> Answer:
        """Ask about a round.  Raise `Refused`; what the client was told of its Join goes before."""
        try:
            return await native.ask(question, self.job, round_)
        except Refused:
            self._check()
            raise

    @property
    def takes_part(self) -> bool:
        """Whether it has a connection."""
        return self._native is not None

    def reset(self) -> None:
        """End the connection, and with it what was lent: the next request makes another."""
        self._forget_upload()
        native, self._native = self._native, None
        if native is not None:
            native.close()

    def _heard(self, message: Message) -> None:
        match message:
            case cm.Selected():
                tensors = message.tensors or (self._layout.tensors if self._layout is not None else ())
                self._know(tensors)
                if self.asks_once:
                    _note_anew(self, message.round)
                self.selected, self.selected_at_s = message, self._loop.time()
            case cm.Accepted(_job, number):
                self._settle(number, Fate("accepted"))
            case cm.Committed(_job, number, counted):
                self._settle(number, Fate("committed", counted))
            case cm.RoundOver(_job, number, reason):
                self._settle(number, Fate("over", code="round-over", text=reason))
            case cm.Refusal(cm.SPOILT, _field, text, _job, number):
                self._settle(number, Fate("over", code=cm.SPOILT, text=text))
            case cm.JobOver():
                self._over, self.selected = message, None
            case cm.Refusal(code, field, text, _job, number) if number < 0:
                self._trouble = Refused(code, field, text)
            case _:
                return
        self._tell()

    def _settle(self, number: int, fate: Fate) -> None:
        self.fates[number] = fate
        self.anew = None if self.anew == number else self.anew
        while len(self.fates) > limits.HTTP_ROUNDS_KEPT:
            del self.fates[min(self.fates)]
        if fate.state != "accepted" and self.selected is not None and self.selected.round == number:
            self.selected = None
        if fate.state != "accepted" and self.upload is not None and self.upload.round == number:
            self.upload.end(Refused(fate.code or "round-over", "round", fate.text or "the round is over"))

    def _know(self, tensors: tuple[TensorSpec, ...]) -> Layout:
        if self._layout is None or self._layout.tensors != tensors:
            self._layout = Layout(tensors)
        return self._layout

    def _ended(self) -> None:
        self._native = self.selected = None
        self._forget_upload()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, self._loop.create_future()
        news.set_result(None)

    async def news(self, wait_until_s: float) -> bool:
        """Wait until something is told of the client; return False when nothing was by then.  Raise `Refused`.

        The client has joined: without a connection nobody would tell anything.
        """
        native, left_s = self._native, wait_until_s - self._loop.time()
        if native is None:
            self._check()
            raise AWAY
        if left_s <= 0:
            return False
        await asyncio.wait({self._news}, timeout=left_s)
        self._check()
        if self._native is not native:
            raise AWAY
        return self._loop.time() < wait_until_s

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The model's tensors, as far as they are known."""
        return self._layout.tensors if self._layout is not None else ()

    @property
    def deadline_s(self) -> float:
        """The seconds that are left of the round that the client is selected for."""
        assert self.selected is not None
        return max(0.0, self.selected.deadline_s - (self._loop.time() - self.selected_at_s))

    @contextmanager
    def attended(self) -> Iterator[Session]:
        """Note that somebody asks."""
        self.busy += 1
        try:
            yield self
        finally:
            self.busy -= 1
            self.idle_since_s = self._loop.time()

    def decline(self, round_: int, reason: str) -> None:
        """Say that the client is not in this round."""
        if self._native is not None:
            self._native.say(cm.Decline(self.job, round_, reason))
        if self.selected is not None and self.selected.round == round_:
            self.selected = None

    # ---- the model -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def model(self, round_: int) -> AsyncIterator[Lent]:
        """Lend the model that a round starts from.  Raise `Refused`."""
        async with self.turn:
            if self.upload is not None:
                self.reset()  # one that was cut off: over its connection nothing else can be asked
            native = await self.join()
            known = self._layout.digest if self._layout is not None else msgspec.UNSET
            question = cm.GetModel(self.job, round_, digest=known, direct=True)
            answer = await self._ask(native, question, round_)
            told = answer.message
            if not isinstance(told, cm.Model):
                raise _over(told, round_)
            assert isinstance(told.offset, int) and isinstance(told.checksum, int)
            layout = self._know(told.tensors or (self._layout.tensors if self._layout is not None else ()))
            self._segment = self._segments.take(answer.descriptor)
            try:
                view = self._segment.view[told.offset : told.offset + told.data_bytes]
                yield Lent(view.toreadonly(), layout, told.checksum, native.check_lent)
            finally:
                native.say(cm.ModelRead(self.job, round_))

    # ---- the update ------------------------------------------------------------------------------------------------

    def again(self, round_: int, weight: float, metrics: dict[str, float]) -> Upload | None:
        """Return the upload that was cut off, if it is of the same update."""
        upload = self.upload
        if upload is None or upload.ended is not None:
            return None
        same = (upload.round, upload.weight, upload.metrics) == (round_, weight, metrics)
        return upload if same else None

    async def begin(self, round_: int, weight: float, metrics: dict[str, float]) -> Upload | None:
        """Return the upload of an update, whose slot is there; None when the update is there already.

        The caller has the `turn`.  Raise `Refused`; `Busy` as one.
        """
        if self.upload is not None:
            self.reset()
        native = await self.join()
        if self._layout is None:
            await self._learn(native, round_)
        layout = self._layout
        assert layout is not None
        submit = cm.Submit(self.job, round_, weight, layout.data_bytes, (), metrics, digest=layout.digest)
        try:
            answer = await self._ask(native, submit, round_)
        except Refused as refused:
            if refused.code != cm.USE_GATEWAY:
                raise
            answer = await self._ask(native, submit, round_)  # this door is the only one: its node is to take it
        go = answer.message
        if isinstance(go, cm.Accepted):
            return None
        if isinstance(go, cm.Busy):
            raise NoRoom(go.retry_after_s)
        if not isinstance(go, cm.Go):
            raise _over(go, round_)
        self._segment = self._segments.take(answer.descriptor)
        self.fates.pop(round_, None)
        self.upload = Upload(self._segment, go.offset, layout, round_, weight, metrics)
        return self.upload

    async def _learn(self, native: Native, round_: int) -> None:
        """Get to know the tensors of the job: the client has come again, and is not selected anew."""
        answer = await self._ask(native, cm.GetModel(self.job, round_, direct=True), round_)
        if not isinstance(answer.message, cm.Model):
            raise _over(answer.message, round_)
        self._segment = self._segments.take(answer.descriptor)
        native.say(cm.ModelRead(self.job, round_))
        self._know(answer.message.tensors)

    async def finish(self, upload: Upload) -> None:
        """Have an update that is whole checked and accepted.  Raise `Refused`."""
        native = self._native
        if native is None or self.upload is not upload:
            raise AWAY
        self._forget_upload()
        answer = await self._ask(native, cm.Filled(self.job, upload.round), upload.round)
        if not isinstance(answer.message, cm.Accepted):
            raise _over(answer.message, upload.round)

    def keep(self, upload: Upload) -> None:
        """Keep an update that was cut off, for a while."""
        if self.upload is upload:
            self.take_up()
            self._upload_ends = self._loop.call_later(limits.HTTP_RESUME_S, self.reset)

    def _forget_upload(self) -> None:
        self.take_up()
        upload, self.upload = self.upload, None
        if upload is not None:
            upload.end(AWAY)

    def take_up(self) -> None:
        """Go on with an update that was cut off, or forget it: it does not end by itself any more."""
        if self._upload_ends is not None:
            self._upload_ends.cancel()
            self._upload_ends = None


Make = Callable[[Link, Segments, gm.ClientCame, str, str], Session]


class NoRoom(Refused):
    """There is no room for an update now."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("busy", "round", "there is no room for the update now; send it again after Retry-After")
        self.retry_after_s = retry_after_s


def _over(message: Message, round_: int) -> Exception:
    """Return what to raise for what was told of a round in the place of an answer."""
    match message:
        case cm.RoundOver(_job, _round, reason):
            return Refused("round-over", "round", reason)
        case cm.Committed():
            return Refused("round-over", "round", f"round {round_} is committed; wait for the next selection")
    return is_fault(message)


def wanted_of(session: Session) -> cm.Selected | None:
    """Return the round that an update is wanted for, if there is one: nothing has become of one since it was told."""
    found = session.selected
    known = found is not None and found.round in session.fates and found.round != session.anew
    return None if known else found


def _note_anew(session: Session, number: int) -> None:
    """Note that an update is wanted; what is known of one is of an attempt that failed, or it is lost."""
    if (fate := session.fates.get(number)) is not None:
        session.anew = number
        session.fates[number] = LOST if fate.state == "accepted" else fate


class Sessions:
    """All clients that take part by HTTP.  One that was away for long is forgotten."""

    def __init__(self, door: Link) -> None:
        self._door = door
        self._segments = Segments()
        self._all: dict[tuple[str, str, str], Session] = {}
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._all)

    def of(self, came: gm.ClientCame, name: str, job: str, make: Make = Session, by: str = "") -> Session:
        """Return a client's session, which `make` makes, of who has come `by` something beside who it is.

        Raise `Refused` when there is no place for another.
        """
        shown = came.peer
        whose = f"{shown.role} {shown.name} {shown.bearer or shown.serial}" if shown is not None else ""
        at = f"{whose} {by}", name, job
        found = self._all.get(at)
        if found is None:
            if len(self._all) >= limits.HTTP_SESSIONS_MAX and not self._make_place():
                text = f"{limits.HTTP_SESSIONS_MAX} clients take part by HTTP, more are not taken; try again later"
                raise Refused("too-many-connections", "", text)
            found = self._all[at] = make(self._door, self._segments, came, name, job)
            found.idle_since_s = self._loop.time()
            if self._look is None:
                self._look = self._loop.call_later(limits.HTTP_AWAY_S, self._forget_away)
        return found

    def forget(self, session: Session) -> None:
        """Have a client take part no longer."""
        for at, found in list(self._all.items()):
            if found is session:
                del self._all[at]
        session.reset()

    def close(self) -> None:
        """End all."""
        for session in list(self._all.values()):
            session.reset()
        if self._look is not None:
            self._look.cancel()

    def _make_place(self) -> bool:
        """Forget a client that takes part in nothing any more."""
        for session in self._all.values():
            if not session.busy and not session.takes_part:
                self.forget(session)
                return True
        return False

    def _forget_away(self) -> None:
        now = self._loop.time()
        for session in list(self._all.values()):
            if not session.busy and now - session.idle_since_s >= limits.HTTP_AWAY_S:
                self.forget(session)
        self._look = None
        if self._all:
            first_s = min(session.idle_since_s for session in self._all.values())
            self._look = self._loop.call_at(max(first_s, now) + limits.HTTP_AWAY_S, self._forget_away)
