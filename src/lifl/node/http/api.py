"""What is answered to each request: the handlers that `operations.py` names.

A refusal of the node becomes an answer with the same code and a status of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from lifl.core.errors import Refused
from lifl.core.fields import NAME_RULE, Name
from lifl.core.limits import COUNT_MAX, HTTP_WAIT_S_MAX, REASON_BYTES_MAX, WEIGHT_MAX, WEIGHT_MIN
from lifl.core.protocol import client as cm
from lifl.core.protocol.ticket_line import line_of
from lifl.core.protocol.update_check import check_metrics
from lifl.node.http import metrics
from lifl.node.http.callers import Caller
from lifl.node.http.description import described
from lifl.node.http.models import ModelFile, names, wanted
from lifl.node.http.operations import SAFETENSORS, WAIT_S_DEFAULT
from lifl.node.http.sessions import Fate, JobEnded, NoRoom, Session, Sessions, wanted_of
from lifl.node.http.ticket_sessions import TicketSession
from lifl.node.http.uploads import Upload
from lifl.node.http.wire import Exchange, Problem
from lifl.node.security import Security

STATUS = {
    "no-cookie": 401,
    "wrong-cookie": 401,
    "no-certificate": 401,
    "unknown-token": 401,
    "token-over": 401,
    "bad-token": 401,
    "revoked": 401,
    "visit-over": 401,
    "link-over": 403,
    "too-many-guesses": 429,
    "wrong-certificate": 403,
    "wrong-ticket": 403,
    "ticket-expired": 403,
    "fold-full": 409,
    "wrong-origin": 403,
    "not-allowed": 403,
    "not-own-name": 403,
    "not-own-job": 403,
    "not-listed": 403,
    "unknown-job": 404,
    "unknown-node": 404,
    "no-plan": 404,
    "not-secured": 404,
    "no-roots": 503,
    "not-selected": 409,
    "wrong-round": 409,
    "replaced": 409,
    "use-gateway": 409,
    "round-over": 410,
    "spoilt": 410,
    "job-over": 410,
    "failed": 500,
    "too-large": 413,
    "quota": 429,
    "too-many-connections": 429,
    "busy": 503,
    "paused": 503,
    "node-away": 503,
    "host-away": 503,
}
"""By the code of a refusal; others are of an update that is none of this model's: 422."""
AGAIN_S = "1"
KNOWN_S = 2.0
"""How long it may take that what became of an earlier update is told."""
NONE_YET = Fate("unknown")
SETTLED = ("committed", "over")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_Metrics = msgspec.json.Decoder(dict[str, float])


def problem_of(refused: Refused) -> Problem:
    """Return how a refusal is answered."""
    status = STATUS.get(refused.code, 422)
    headers = {}
    if isinstance(refused, NoRoom):
        headers["Retry-After"] = str(math.ceil(refused.retry_after_s))
    elif status in (429, 503):
        headers["Retry-After"] = AGAIN_S
    elif status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Problem(status, refused.code, refused.text, refused.field, headers)


class Api:
    """The handlers; `ask_status` asks `lifld` for what the node does, `ask_ready` whether it takes updates."""

    def __init__(
        self,
        sessions: Sessions,
        security: Security,
        ask_status: Callable[[], Awaitable[dict[str, Any]]],
        ask_ready: Callable[[], Awaitable[bool]],
    ) -> None:
        self._ask_ready = ask_ready
        self._security = security
        self._sessions = sessions
        self._ask_status = ask_status
        self._loop = asyncio.get_running_loop()

    # ---- the node --------------------------------------------------------------------------------------------------

    async def get_description(self, exchange: Exchange, _caller: Caller | None, _of: Mapping[str, str]) -> None:
        """Answer with the description of all this."""
        await exchange.answer(200, described())

    async def get_roots(self, exchange: Exchange, _caller: Caller | None, _of: Mapping[str, str]) -> None:
        """Answer with the authority's roots."""
        await exchange.answer(200, self._security.roots().encode(), kind="text/plain")

    async def get_status(self, exchange: Exchange, caller: Caller, _of: Mapping[str, str]) -> None:
        """Answer with what the node does."""
        await exchange.answer(200, await self._status(caller))

    async def get_health(self, exchange: Exchange, _caller: Caller | None, _of: Mapping[str, str]) -> None:
        """Answer when `lifld` answers."""
        await self._ask_ready()
        await exchange.answer(200, b'{"state":"alive"}')

    async def get_readiness(self, exchange: Exchange, _caller: Caller | None, _of: Mapping[str, str]) -> None:
        """Answer whether updates are taken; why not is for those who may see the node's status."""
        if not await self._ask_ready():
            text = "the node takes no updates now: `lifl top` and its log tell why"
            raise Problem(503, "not-ready", text, "node", {"Retry-After": AGAIN_S})
        await exchange.answer(200, b'{"state":"ready"}')

    async def get_metrics(self, exchange: Exchange, caller: Caller, _of: Mapping[str, str]) -> None:
        """Answer with the same for Prometheus."""
        await exchange.answer(200, metrics.text_of(await self._status(caller)), kind=metrics.KIND)

    async def _status(self, caller: Caller) -> dict[str, Any]:
        caller.check_reader()
        return {**await self._ask_status(), "clients": len(self._sessions)}

    # ---- taking part -----------------------------------------------------------------------------------------------

    def _session(self, caller: Caller, of: Mapping[str, str]) -> Session:
        for field in ("client", "job"):
            try:
                msgspec.convert(of[field], Name)
            except msgspec.ValidationError:
                raise Problem(400, "protocol", f"{of[field]!r:.100} is no name: {NAME_RULE}", field) from None
        caller.check_client(of["client"], of["job"])
        who = (caller.came(), of["client"], of["job"])
        if (ticket := caller.ticket) is not None:  # by all that its line says: what was found of one is so of no other
            return self._sessions.of(*who, partial(TicketSession, ticket=ticket), f"ticket {line_of(ticket)}")
        return self._sessions.of(*who)

    async def get_selection(self, exchange: Exchange, caller: Caller, of: Mapping[str, str]) -> None:
        """Wait until the client is selected."""
        until_s = self._loop.time() + _wait_s(exchange.arguments(), WAIT_S_DEFAULT)
        with self._session(caller, of).attended() as session:
            found = await exchange.attended(_selection(session, until_s))
            if found is None:
                await exchange.answer(204)
                return
            base = f"/v1/jobs/{session.job}/clients/{session.name}/rounds/{found.round}"
            answer = {
                "job": session.job,
                "round": found.round,
                "deadline_s": session.deadline_s,
                "options": found.options,
                "tensors": [msgspec.structs.asdict(tensor) for tensor in session.tensors],
                "model": f"{base}/model",
                "update": f"{base}/update",
            }
            await exchange.answer(200, answer)

    async def get_ticket(self, exchange: Exchange, caller: Caller, _of: Mapping[str, str]) -> None:
        """Wait until the fold is open that a ticket is for."""
        if caller.ticket is None:
            text = "send the line that fold.ticket(client=...) returns, as LIFL-Ticket"
            raise Problem(422, "wrong-ticket", text, "ticket")
        await self.get_selection(exchange, caller, {"job": caller.ticket.job, "client": caller.ticket.client})

    async def decline_round(self, exchange: Exchange, caller: Caller, of: Mapping[str, str]) -> None:
        """Say that the client is not in a round."""
        reason, round_ = exchange.arguments().get("reason", ""), _round(of)
        if len(reason) > REASON_BYTES_MAX // 4:
            raise Problem(400, "protocol", f"a reason has at most {REASON_BYTES_MAX // 4} characters", "reason")
        with self._session(caller, of).attended() as session:
            await session.join()
            session.decline(round_, reason)
            await exchange.answer(204)

    async def leave_job(self, exchange: Exchange, caller: Caller, of: Mapping[str, str]) -> None:
        """Have the client take part no longer."""
        self._sessions.forget(self._session(caller, of))
        await exchange.answer(204)

    # ---- the model -------------------------------------------------------------------------------------------------

    async def get_model(self, exchange: Exchange, caller: Caller, of: Mapping[str, str]) -> None:
        """Send the model that a round starts from, or the part that is asked for."""
        round_ = _round(of)
        with self._session(caller, of).attended() as session:
            async with session.model(round_) as lent:
                await _send_model(exchange, ModelFile(lent), lent.check)

    # ---- the update ------------------------------------------------------------------------------------------------

    async def get_update(self, exchange: Exchange, caller: Caller, of: Mapping[str, str]) -> None:
        """Tell what became of an update."""
        round_, begin_s = _round(of), self._loop.time()
        wait_s = _wait_s(exchange.arguments(), 0.0)
        with self._session(caller, of).attended() as session:
            if session.upload is None and session.fates.get(round_, NONE_YET).state not in SETTLED:
                with contextlib.suppress(JobEnded):
                    await exchange.attended(_fate(session, round_, begin_s, wait_s))
            await exchange.answer(200, _told(session, round_))

    async def put_update(self, exchange: Exchange, caller: Caller, of: Mapping[str, str]) -> None:
        """Take an update in, or more of it."""
        round_, weight, metrics_ = _round(of), _weight(exchange.arguments()), _metrics_of(exchange.headers)
        with self._session(caller, of).attended() as session:
            first, total = _placed(exchange)
            running = session.upload
            if running is not None and running.cut is not None:
                if first > running.received_bytes:  # several at a time: this one is refused, that one goes on
                    raise _wrong_range(running.received_bytes)
                running.cut()  # an earlier request, whose client has come again
            async with session.turn:
                if first:
                    upload: Upload | None = _resumed(session, round_, weight, metrics_, first, total)
                else:
                    upload = session.again(round_, weight, metrics_)
                    upload = upload or await session.begin(round_, weight, metrics_)
                accepted = upload is not None and await self._take(exchange, session, upload, None if first else total)
            if upload is None:
                await exchange.discard()
            # What this request has come to, whatever has become of the update since.
            found = _told(session, round_, Fate("accepted")) if accepted else _told(session, round_)
            await exchange.answer(200 if not session.upload else 202, found)

    async def _take(self, exchange: Exchange, session: Session, upload: Upload, total: int | None) -> bool:
        """Take the body into an update; when it is whole, have it accepted, and return that it is."""
        try:
            if total is not None:
                upload.begin(total)
            session.take_up()
            upload.cut = exchange.cut
            await exchange.go_on()
            await upload.take(exchange.length, exchange.receive_into)
            if not upload.is_whole:
                session.keep(upload)
                return False
            await session.finish(upload)
            return True
        except Refused:
            if upload is session.upload or upload.ended is not None:
                session.reset()
            raise
        except OSError:
            session.keep(upload)
            raise
        finally:
            upload.cut = None


async def _send_model(exchange: Exchange, file: ModelFile, check: Callable[[], None]) -> None:
    etag = await file.etag()
    check()
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
    asked = exchange.headers
    if "if-none-match" in asked and names(asked["if-none-match"], etag):
        await exchange.answer(304, headers=headers)
        return
    status, begin, end = 200, 0, file.nbytes
    if "range" in asked and asked.get("if-range", etag) == etag:
        try:
            found = wanted(asked["range"], file.nbytes)
        except ValueError:
            of_all = {"Content-Range": f"bytes */{file.nbytes}"}
            raise Problem(416, "no-range", f"the file has {file.nbytes} bytes", "Range", of_all) from None
        if found is not None:
            status, (begin, end) = 206, found
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file.nbytes}"
    await exchange.begin(status, end - begin, headers | {"Content-Type": SAFETENSORS})
    if exchange.method != "HEAD":
        for piece in file.pieces(begin, end):
            await exchange.send(piece, check)


async def _selection(session: Session, until_s: float) -> cm.Selected | None:
    """Join, and wait until the client is selected; None: it is not by then.  Raise `Refused`."""
    await session.join()
    if isinstance(session, TicketSession):
        session.look_anew()
    while (found := wanted_of(session)) is None:
        if not await session.news(until_s):
            return None
    return found


async def _fate(session: Session, round_: int, begin_s: float, wait_s: float) -> None:
    """Join, and wait until an update is settled, or without `wait_s` until anything is known of it.  Raise `Refused`.

    Without it nothing is known of one, either, when the client is asked for an update.
    """
    await session.join(holding=round_)
    until_s = begin_s + (wait_s or (0.0 if round_ in session.fates else KNOWN_S))
    wanted = SETTLED if wait_s else ("accepted", *SETTLED)
    while session.fates.get(round_, NONE_YET).state not in wanted and await session.news(until_s):
        if not wait_s and session.selected is not None:
            return


def _told(session: Session, round_: int, fate: Fate | None = None) -> dict[str, Any]:
    """Return what is known of an update; or this, in the place of what became of it."""
    upload, fate = session.upload, fate or session.fates.get(round_, NONE_YET)
    found: dict[str, Any] = {"round": round_, "state": fate.state, "received_bytes": 0}
    if upload is not None and upload.round == round_:
        found |= {"state": "receiving", "received_bytes": upload.received_bytes, "total_bytes": upload.total_bytes}
    if fate.state == "committed":
        found["counted"] = fate.counted
    if fate.code:
        found |= {"code": fate.code, "text": fate.text}
    return found


def _resumed(
    session: Session, round_: int, weight: float, metrics_: dict[str, float], first: int, total: int
) -> Upload:
    """Return the update whose rest comes, from byte `first` on.  Raise `Problem`."""
    upload = session.again(round_, weight, metrics_)
    received = upload.received_bytes if upload is not None and upload.total_bytes == total else 0
    if upload is None or first != received:
        raise _wrong_range(received)
    return upload


def _wrong_range(received: int) -> Problem:
    text = f"of this update {received} bytes are here: send what follows them"
    if not received:
        text = "nothing of this update is here (any more): send it from its first byte on"
    return Problem(416, "wrong-range", text, "Content-Range", received_bytes=received)


def _placed(exchange: Exchange) -> tuple[int, int]:
    """Return where the body begins in the file, and how long that is.  Raise `Problem`."""
    header = exchange.headers.get("content-range")
    if "content-length" not in exchange.headers:
        raise Problem(411, "protocol", "say by Content-Length how long the update is", "Content-Length")
    if not exchange.length:
        raise Problem(422, "bad-model-file", "the body is empty: it is to be a safetensors file", "update")
    if header is None:
        return 0, exchange.length
    text = "Content-Range is bytes FIRST-LAST/TOTAL, of as many bytes as the body has"
    found = _CONTENT_RANGE.fullmatch(header)
    first, last, total = map(int, found.groups()) if found is not None else (0, 0, 0)
    if not first <= last < total or last - first + 1 != exchange.length:
        raise Problem(416, "wrong-range", text, "Content-Range")
    return first, total


def _round(of: Mapping[str, str]) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", of["round"]) or int(of["round"]) > COUNT_MAX:
        raise Problem(400, "protocol", f"{of['round']!r:.100} is no round", "round")
    return int(of["round"])


def _number(text: str, field: str) -> float:
    try:
        if not text.isascii() or "_" in text:  # Python reads more than digits
            raise ValueError
        return float(text)
    except ValueError:
        raise Problem(400, "protocol", f"{text!r:.100} is no number", field) from None


def _wait_s(arguments: Mapping[str, str], default: float) -> float:
    wait_s = _number(arguments.get("wait_s", str(default)), "wait_s")
    if not 0 <= wait_s <= HTTP_WAIT_S_MAX:
        raise Problem(400, "protocol", f"wait_s is 0 to {HTTP_WAIT_S_MAX:g} seconds, not {wait_s}", "wait_s")
    return wait_s


def _weight(arguments: Mapping[str, str]) -> float:
    weight = _number(arguments["weight"], "weight") if "weight" in arguments else math.nan
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        text = f"say what the update counts, from {WEIGHT_MIN} to {WEIGHT_MAX}: ?weight=120, as the number of examples"
        raise Problem(422, "bad-weight", text, "weight")
    return weight


def _metrics_of(headers: Mapping[str, str]) -> dict[str, float]:
    if "lifl-metrics" not in headers:
        return {}
    try:
        found = _Metrics.decode(headers["lifl-metrics"].encode("latin-1"))
        check_metrics(found)
        return found
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        text = f'LIFL-Metrics is a JSON object of numbers, as {{"loss": 0.3}}: {error}'
        raise Problem(422, "bad-metric", text, "metrics") from None
