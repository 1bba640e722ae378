"""The HTTP door: a process of `lifld`, beside the gateway, to which it brings clients that come by HTTP.

It reads what strangers send, and enters its box (`confine/box.py`) before it hears the first word.  What a client may
do, whether its update may come, and what becomes of it the gateway and `lifld` say, as to any other (`native.py`): this
process only puts the bytes where they belong (`uploads.py`, `models.py`).  An update is received straight into the slot
that the gateway lends, a model sent from where it lies.

It ends with exit status 0 when `lifld` says Drain, or when the link ends; it dies with `lifld`.

    python -m lifl.node.http.main --fd N --http-fd N [--identity DIR | --header FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from lifl.confine import box, kernel, signals
from lifl.core import limits
from lifl.core.config.values import joined_address
from lifl.core.errors import LiflError, Refused, RemoteFault, ResourceFault
from lifl.core.identity import ROLES
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import http as hm
from lifl.core.trust.bearers import BearerList
from lifl.core.trust.revocation import RevokedList
from lifl.node import descriptors
from lifl.node.gateway.budgets import Pace
from lifl.node.gateway.client_socket import tune
from lifl.node.gateway.quotas import Limits, Quotas
from lifl.node.greetings import cut
from lifl.node.http.api import Api, problem_of
from lifl.node.http.callers import Caller, Callers, read_header
from lifl.node.http.native import AWAY
from lifl.node.http.operations import OPEN, matched
from lifl.node.http.page import PageDoor, is_of_page
from lifl.node.http.sessions import Sessions
from lifl.node.http.visits import Visits
from lifl.node.http.wire import ClientGone, Exchange, Problem, Requests
from lifl.node.link import Link
from lifl.node.listening import Listening
from lifl.node.pace import Joint
from lifl.node.security import PlainSpeech, Secured, Security
from lifl.node.who import who_is
from lifl.tls.contexts import Contexts
from lifl.tls.faults import TlsFault
from lifl.tls.folder import load
from lifl.tls.waits import lingered

log = logging.getLogger("lifl.http")

PR_SET_PDEATHSIG = 1
STATUS_S = 5.0
"""`lifld` answers within this time, or is too busy to say what it does."""
RESERVED = 64
"""Descriptors beside those of connections and sessions."""
CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "ETag, Content-Range, Retry-After"}
"""Any page of a browser may ask where a credential is asked for: it has to bring that itself."""
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, PUT, POST, DELETE",
    "Access-Control-Allow-Headers": "*, Authorization",
    "Access-Control-Max-Age": "3600",
}


class Door:
    """The process' state; `serve` is its life."""

    def __init__(
        self, security: Security, header: str, requests_per_s: int, connections_per_client: int, landlock: int
    ) -> None:
        self._security = security
        self._callers = Callers(security, header)
        self._asks = security.is_on or bool(header)
        self._requests_per_s = requests_per_s
        self._landlock = landlock
        self._quotas = Quotas(Limits(limits.HTTP_CONNECTIONS_MAX, connections_per_client), self._cut)
        self._connections: dict[int, Secured] = {}
        self._next_number = 1
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._joint_status: Joint[dict[str, Any]] = Joint(partial(self._asked, hm.StatusAsked))
        self._told: dict[int, asyncio.Future[Any]] = {}  # status or health, by the number of the question
        self._port = 0
        self._link: Link
        self._api: Api
        self._visits: Visits
        self._page: PageDoor

    async def serve(self, link_sock: socket.socket, listener: socket.socket) -> None:
        """Serve until it is told to end."""
        self._link = Link(link_sock, hm.ToHttp, self._on_message, lambda _error: self._ending.set())
        sessions = Sessions(self._link)
        self._api = Api(sessions, self._security, self._joint_status.answer, self._ready)
        self._visits = Visits(self._link)
        self._page = PageDoor(self._visits, self._security.is_on)
        door = Listening("http", listener, self._taken)
        host, port = listener.getsockname()[:2]
        self._port = port
        self._link.send(hm.HttpReady(os.getpid(), joined_address(host, port), self._landlock))
        await self._ending.wait()
        door.close()
        for secured in list(self._connections.values()):
            cut_off(secured)
        sessions.close()
        self._page.watchers.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._link.close()

    # ---- connections -----------------------------------------------------------------------------------------------

    def _taken(self, sock: socket.socket, _where: object) -> None:
        number = self._next_number
        try:
            self._quotas.arrived(number, who_is(sock), asyncio.get_running_loop().time())
        except Refused:
            sock.close()
            return
        self._next_number += 1
        tune(sock)
        self._connections[number] = Secured(sock)
        self._start(self._attend(number, sock))

    def _cut(self, number: int, _because: str) -> None:
        cut_off(self._connections[number])

    def _start(self, life: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error)  # a bug; `lifld` starts another process
            os._exit(70)

    async def _attend(self, number: int, raw: socket.socket) -> None:
        fault: TlsFault | None = None
        try:
            async with asyncio.timeout(limits.HELLO_S):
                secured = await self._security.taken(raw)
            try:
                if not secured.is_stranger:
                    secured.check(ROLES)
            except TlsFault as error:
                fault = error
            self._connections[number] = secured
            await self._converse(number, secured, fault)
        except PlainSpeech as error:
            with contextlib.suppress(OSError):
                await Requests(raw).say_last(Problem(400, "no-certificate", f"{error}: https://", "identity"))
        except OSError:  # it left, or was cut; TimeoutError is one
            pass
        finally:
            del self._connections[number]
            self._quotas.left(number)
            raw.close()

    async def _converse(self, number: int, secured: Secured, fault: TlsFault | None) -> None:
        """Answer requests until the connection ends.  Raise `OSError`."""
        loop, requests = asyncio.get_running_loop(), Requests(secured.sock)
        pace, patience_s = Pace(loop.time(), self._requests_per_s), limits.HTTP_HEAD_S
        while not self._ending.is_set():
            try:
                exchange = await requests.next(patience_s)
            except Problem as problem:
                await requests.say_last(problem)
                return
            if exchange is None:
                return
            if self._asks:
                exchange.common = CORS
            await asyncio.sleep(pace.wait_s(loop.time()))
            if await self._answer(number, exchange, secured, fault):
                patience_s = limits.HTTP_KEPT_S
            if not exchange.keeps:
                async with asyncio.timeout(limits.HTTP_LINGER_S):
                    await lingered(secured.sock)
                return
            requests.done(exchange)

    # ---- requests --------------------------------------------------------------------------------------------------

    def _known(self, number: int, exchange: Exchange, who: str, name: str) -> None:
        """Note who it is that has come over a connection.  Raise `Refused` when that one has as many as it may.

        Where nobody says who it is, all are of the node's own account, and each connection is for itself.
        """
        at = (who, name) if self._security.is_on else (f"connection {number}", "")
        try:
            self._quotas.greeted(number, *at, asyncio.get_running_loop().time())
        except Refused:
            exchange.keeps = False
            raise

    async def _answer(self, number: int, exchange: Exchange, secured: Secured, fault: TlsFault | None) -> bool:
        """Answer a request; return whether it came with what is asked for.  Raise `OSError`."""
        known = False
        try:
            if is_of_page(exchange.path):
                visiting = partial(self._known, number, exchange)
                return await self._page.answer(exchange, self._port, visiting)
            found, of = matched(exchange.segments)
            if not found:
                raise Problem(404, "unknown-path", "there is no such thing; /openapi.json tells what there is", "path")
            if exchange.method == "OPTIONS" and self._asks:
                await exchange.answer(204, headers=PREFLIGHT)
                return False
            operation = found.get("GET" if exchange.method == "HEAD" else exchange.method)
            if operation is None:
                allowed = {"Allow": ", ".join(found)}
                raise Problem(405, "unknown-method", f"not by {exchange.method:.20}", "method", allowed)
            caller: Caller | None = None
            if operation.name not in OPEN:
                if fault is not None:
                    raise Refused("wrong-certificate", "identity", f"this connection is not taken: {fault}")
                caller = self._callers.of(secured, exchange.headers)
                known = not caller.by_ticket  # that is looked at by the gateway
                if known:
                    self._known(number, exchange, *caller.whose)
            await getattr(self._api, operation.name)(exchange, caller, of)
        except Problem as problem:
            await self._say(exchange, problem)
        except Refused as refused:
            await self._say(exchange, problem_of(refused))
        except (ResourceFault, RemoteFault) as error:
            await self._say(exchange, Problem(503, "node-away", str(error), "node", {"Retry-After": "1"}))
        except OSError:
            raise
        except Exception:  # a bug of ours: it ends this request, and no other
            log.exception("http.request %s %.200s failed", exchange.method, exchange.path)
            traceback.print_exc()
            exchange.keeps = False
            await self._say(exchange, Problem(500, "fault", "a fault of this node; its log says more", "node"))
        return known

    @staticmethod
    async def _say(exchange: Exchange, problem: Problem) -> None:
        if exchange.answered:
            raise ClientGone("an answer that has begun cannot be ended otherwise")
        exchange.keeps = exchange.keeps and problem.status != 401
        await exchange.answer(problem.status, problem.body, problem.headers)

    async def _ready(self) -> bool:
        return bool(await self._asked(hm.HealthAsked))

    async def _asked(self, kind: type[hm.StatusAsked | hm.HealthAsked]) -> Any:
        number = max(self._told, default=0) + 1
        told = self._told[number] = asyncio.get_running_loop().create_future()
        self._link.send(kind(number))
        try:
            async with asyncio.timeout(STATUS_S):
                return await told
        except TimeoutError:
            raise AWAY from None
        finally:
            del self._told[number]

    # ---- lifld -----------------------------------------------------------------------------------------------------

    def _on_message(self, message: Any) -> None:
        match message:
            case gm.Revoked(entries):
                self._security.revoked = RevokedList(entries)
                for secured in list(self._connections.values()):
                    if secured.is_revoked:
                        cut_off(secured)
            case gm.BearersTold(entries):
                self._security.bearers = BearerList(entries)
            case hm.StatusTold(number, answer) | hm.HealthTold(number, answer):
                told = self._told.get(number)
                if told is not None and not told.done():
                    told.set_result(answer)
            case hm.VisitsTold():
                self._visits.told(message)
            case hm.VisitOpened():
                self._visits.opened(message)
            case gm.Drain():
                self._ending.set()


def cut_off(secured: Secured) -> None:
    """End a connection: whatever waits for it wakes up."""
    if isinstance(secured.sock, socket.socket):
        cut(secured.sock)
    else:
        with contextlib.suppress(OSError):
            secured.sock.shutdown(socket.SHUT_RDWR)


def _contexts(folder: Path) -> Contexts:
    files = load(folder)
    if files is None:
        raise ResourceFault(f"identity folder {folder} is empty; lifld puts the node's identity there")
    return Contexts(files)


def main() -> int:
    """Run the door; the exit status is 0 after a drain, 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="lifl-http", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--http-fd", type=int, required=True)
    parser.add_argument("--identity", type=Path)
    parser.add_argument("--header", type=Path, help="by which clients show that they are of this account")
    parser.add_argument("--requests-per-s", type=int, default=limits.REQUESTS_PER_S)
    parser.add_argument("--connections-per-client", type=int, default=0)
    options = parser.parse_args()
    kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    signals.leave_to_lifld()
    try:
        needed = limits.HTTP_CONNECTIONS_MAX + 2 * limits.HTTP_SESSIONS_MAX + RESERVED
        descriptors.raise_limit(needed, f"{limits.HTTP_CONNECTIONS_MAX} connections by HTTP")
        security = Security(_contexts(options.identity) if options.identity else None)
        header = read_header(options.header) if options.header else ""
        link_sock, listener = (socket.socket(fileno=fd) for fd in (options.fd, options.http_fd))
        listener.setblocking(False)
        landlock = box.enter_http([options.identity] if options.identity else [])
        what = (security, header, options.requests_per_s, options.connections_per_client, landlock)
        uvloop.run(_serve(Door, what, link_sock, listener))
    except LiflError as error:
        print(f"http: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(kind: type[Door], what: Any, link_sock: socket.socket, listener: socket.socket) -> None:
    await kind(*what).serve(link_sock, listener)


if __name__ == "__main__":
    sys.exit(main())
