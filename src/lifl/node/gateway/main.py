"""The gateway: the node's only door for tensors, a process of its own beside `lifld`.

It accepts on the daemon's two listening sockets, TCP and AF_UNIX (for clients of this machine, which may then write
to their slot themselves); they stay bound while the gateway is started again.  One uvloop thread
speaks the protocol (`connection`); a few threads move bytes between sockets and the arena
(`body_moves`); an update is checked once, on its way in (`content`).  Which client may submit what, and
where it goes in the arena, `lifld` says, over one link.  A refusal costs no bandwidth: the body comes
after `Go`.  Partials and models of other nodes come and go by the same door (`peer_transfer` is the side that dials).

Before it listens it enters its box (`confine/box.py`): it reads what strangers send.

It ends with exit status 0 when `lifld` says Drain, on SIGTERM, or when the link ends; it dies with `lifld`.

With an identity connections by TCP are TLS, and who comes shows a certificate; with a cookie who comes by TCP shows
that it has read that.  Until it has, it is one of those that give way to others (`quotas`).

    python -m lifl.node.gateway.main --fd N --arena NAME --tcp-fd N --unix-fd N --connections-max N ...
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from lifl import failpoints
from lifl.confine import box, signals
from lifl.core import limits
from lifl.core.config.values import joined_address
from lifl.core.errors import LiflError, Refused, ResourceFault
from lifl.core.identity import Identity
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import tickets as tm
from lifl.core.protocol.frames import encode
from lifl.core.protocol.small_models import ModelChanged
from lifl.core.trust.bearers import BearerList
from lifl.core.trust.revocation import RevokedList
from lifl.node import descriptors
from lifl.node.gateway.asked_for import ASKS_FOR_CERTIFICATE
from lifl.node.gateway.body_moves import Movers
from lifl.node.gateway.client_socket import tune
from lifl.node.gateway.connection import Connection
from lifl.node.gateway.content import JobLayout
from lifl.node.gateway.grant_waiter import Loan
from lifl.node.gateway.peer_transfer import PeerTransfers
from lifl.node.gateway.pulse import Pulse
from lifl.node.gateway.quotas import Limits, Quotas
from lifl.node.gateway.read_waiter import ReadWaiter
from lifl.node.gateway.refusals import Refusals
from lifl.node.gateway.shared import Shared
from lifl.node.gateway.small_models import SmallModels
from lifl.node.gateway.transfers import Transfers
from lifl.node.greetings import cut
from lifl.node.link import Link
from lifl.node.listening import Listening
from lifl.node.security import Cookie, PlainSpeech, Secured, Security, Vouched
from lifl.node.who import who_is
from lifl.shm.arena import Arena
from lifl.shm.prefault import Prefault
from lifl.tls.contexts import Contexts
from lifl.tls.folder import load
from lifl.tls.peer import Peer
from lifl.tls.tls_socket import Stream
from lifl.tls.waits import lingered, sent

log = logging.getLogger("lifl.gateway")

MOVERS = 2
"""Threads that move bytes.  More than two did not gain on two cores: the kernel's copy is what takes the time.  Where a
body goes over more connections than that, there is one for each."""
_PR_SET_PDEATHSIG = 1


class Gateway:
    """The gateway's state; `serve` is its life."""

    def __init__(self, limits_: Limits, landlock: int, security: Security, streams: int) -> None:
        self._quotas = Quotas(limits_, self._cut)
        self._landlock = landlock
        self._security = security
        self._streams = streams
        self._arriving: dict[int, socket.socket] = {}  # by number: TLS is being agreed on
        self._next_number = 1
        self._turned_away = 0
        self._connections: dict[int, Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._shared: Shared
        self._peer_transfers: PeerTransfers

    async def serve(self, link_sock: socket.socket, arena: Arena, listeners: Sequence[socket.socket]) -> None:
        """Serve on the daemon's listening sockets (TCP first, then AF_UNIX) until it is told to end."""
        loop = asyncio.get_running_loop()
        link = Link(link_sock, gm.ToGateway, self._on_message, self._on_link_closed, takes_descriptors=True)
        movers = Movers(max(MOVERS, self._streams))
        checks = ThreadPoolExecutor(MOVERS, "check")
        read_waiter = ReadWaiter()
        told = (Pulse(link), Refusals(link), self._quotas, self._security, Transfers(self._streams), SmallModels(link))
        self._shared = Shared(link, arena, movers, checks, read_waiter, *told, f"{arena.node:016x}")
        self._peer_transfers = PeerTransfers(self._shared, self._start)
        prefault = Prefault(arena)
        doors = [Listening("gateway", listener, self._taken) for listener in listeners]
        host, port = listeners[0].getsockname()[:2]
        address = joined_address(host, port)
        failpoints.hit("gateway.ready.before")
        link.send(gm.GatewayReady(os.getpid(), (address,), self._landlock))
        await self._ending.wait()
        link.hurry()  # a lifld that waits for our end reads nothing more
        for door in doors:
            door.close()
        for raw in self._arriving.values():
            cut(raw)
        for connection in list(self._connections.values()):
            connection.shut()
        self._peer_transfers.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await loop.run_in_executor(None, prefault.stop)
        checks.shutdown()
        movers.stop()
        read_waiter.close()
        link.close()

    # ---- clients ---------------------------------------------------------------------------------------------------

    def _taken(self, sock: socket.socket, _where: object) -> None:
        self._take_in(sock, who_is(sock))

    def _vouched(self, came: gm.ClientCame, fd: int) -> None:
        """Take in a client whom the HTTP door has let in."""
        sock, shown = socket.socket(fileno=fd), came.peer
        sock.setblocking(False)
        peer = None
        if shown is not None:
            times = (shown.begins_unix_s, shown.expires_unix_s)
            identity = Identity(shown.role, shown.name)
            peer = Peer(shown.cluster, identity, shown.serial, *times, shown.jobs, issued_unix_s=shown.issued_unix_s)
        secured = Vouched(sock, self._security, came.who, peer, shown.bearer if shown is not None else "")
        secured.shows_ticket = came.by_ticket
        if secured.is_revoked or (peer is None and self._security.is_on and not came.by_ticket):
            sock.close()
        else:
            self._take_in(sock, came.who, secured)

    def _take_in(self, sock: socket.socket, who: str, vouched: Vouched | None = None) -> None:
        try:
            self._quotas.arrived(self._next_number, who, asyncio.get_running_loop().time())
        except Refused as refused:
            refusal = cm.Refusal(refused.code, refused.field, refused.text)
            self._shared.refusals.note(who, "", refusal)
            if self._turned_away < limits.TURNED_AWAY_MAX:
                self._turned_away += 1
                self._start(self._turn_away(sock, refusal))
            else:
                sock.close()
        else:  # it counts from here on: several may come in one turn of the loop
            number = self._next_number
            self._next_number += 1
            if sock.family != socket.AF_UNIX:
                tune(sock)
            if sock.family == socket.AF_UNIX or not self._security.is_on:
                self._attend_to(number, vouched or Secured(sock))
            else:
                self._arriving[number] = sock
                self._start(self._secure(number, sock))

    async def _secure(self, number: int, raw: socket.socket) -> None:
        """Agree on TLS, in bounded time, and attend to who has come; else its place is free again."""
        kept: Secured | None = None
        try:
            async with asyncio.timeout(limits.HELLO_S):
                kept = await self._security.taken(raw)
        except PlainSpeech:
            refusal = cm.Refusal("no-certificate", "identity", ASKS_FOR_CERTIFICATE)
            self._shared.refusals.note(who_is(raw), "", refusal)
            await self._say_last(raw, refusal)
        except (OSError, TimeoutError) as error:
            log.info("gateway.handshake host=%s failed: %s", who_is(raw), str(error) or "it took too long")
        finally:
            del self._arriving[number]
            if kept is None:
                self._quotas.left(number)
                raw.close()
        if kept is not None:
            self._attend_to(number, kept)
            if self._ending.is_set():
                self._connections[number].shut()

    def _cut(self, number: int, because: str) -> None:
        if number in self._arriving:
            cut(self._arriving[number])
        else:
            self._connections[number].cut(because)

    def _start(self, life: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug: nothing may wait for ever for what this task held.  The daemon starts a new gateway.
            traceback.print_exception(error)
            os._exit(70)

    def _attend_to(self, number: int, secured: Secured) -> None:
        connection = self._connections[number] = Connection(self._shared, number, secured)
        self._shared.pulse.connections = len(self._connections)
        self._start(self._attend(number, connection))

    async def _attend(self, number: int, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            del self._connections[number]
            self._quotas.left(number)
            self._shared.pulse.connections = len(self._connections)

    async def _turn_away(self, sock: socket.socket, refusal: cm.Refusal) -> None:
        try:
            async with asyncio.timeout(limits.LINGER_S):
                secured = await self._security.taken(sock)
            await self._say_last(secured.sock, refusal)
        except (OSError, TimeoutError):
            pass
        finally:
            self._turned_away -= 1
            sock.close()

    async def _say_last(self, sock: Stream, refusal: cm.Refusal) -> None:
        """Say something before the connection is closed, and let it be read."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(limits.LINGER_S):
                await sent(sock, encode(refusal))
                await lingered(sock)

    # ---- the daemon ------------------------------------------------------------------------------------------------

    def _on_link_closed(self, _error: Exception | None) -> None:
        self._ending.set()

    def _told_whom_to_believe(self, said: gm.Revoked | gm.BearersTold | tm.TicketNews) -> None:
        """Take note, and end the connections of those who are not believed any more."""
        match said:
            case gm.Revoked(entries):
                self._security.revoked = RevokedList(entries)
            case gm.BearersTold(entries):
                self._security.bearers = BearerList(entries)
            case tm.TicketKey(job, key, revoked):
                self._security.tickets.told(job, key, revoked)
            case tm.TicketsAwaited(job):
                self._security.tickets.awaited(job)
            case tm.TicketOut(job, fold, client, current):
                self._security.tickets.revoke(job, fold, client, current)
        for connection in list(self._connections.values()):
            connection.end_if_revoked()

    def _on_message(self, message: gm.ToGateway) -> None:
        shared, connections = self._shared, self._connections
        match message:
            case gm.JobSchema(job):
                shared.jobs[job] = JobLayout(message)
                shared.small_models.changed(job)
            case gm.JobForget(job):
                shared.jobs.pop(job, None)
                shared.small_models.changed(job)
                self._security.tickets.forget(job)
            case gm.TellClient(conn, encoded, selects):
                if (connection := connections.get(conn)) is not None:
                    if selects:
                        connection.select(selects, bytes(encoded))
                    else:
                        connection.deliver(bytes(encoded))
            case gm.Granted(conn, key):
                connection = connections.get(conn)
                if connection is None or not connection.granted(message):
                    shared.link.send(gm.Aborted(conn, key, "the client is gone"))
            case gm.FollowUpdate(conn, key):
                if (connection := connections.get(conn)) is not None:
                    connection.follow(key)
            case gm.ModelGranted():
                self._model_granted(message)
            case gm.Carry() | gm.Fetch():
                self._peer_transfers.start(message)
            case ModelChanged(job):
                shared.small_models.changed(job)
            case gm.EndFetch(key):
                self._peer_transfers.end(key)
            case gm.HangUp(conn, after_updates):
                ending = [conn] if conn else list(connections)
                for connection in filter(None, map(connections.get, ending)):
                    connection.hang_up(after_updates)
            case gm.Revoked() | gm.BearersTold() | tm.TicketKey() | tm.TicketsAwaited() | tm.TicketOut():
                self._told_whom_to_believe(message)
            case gm.Pulse():
                shared.pulse.heard(message)
            case gm.AskStats():
                shared.link.send(self._stats())
            case gm.SegmentOpened(number):
                shared.arena.segments.take(number, shared.link.taken_descriptor())
            case gm.SegmentClosed(number):
                shared.arena.segments.forget(number)
            case gm.ClientCame():
                self._vouched(message, shared.link.taken_descriptor())
            case gm.Drain():
                self._ending.set()

    def _model_granted(self, granted: gm.ModelGranted) -> None:
        link, connection = self._shared.link, self._connections.get(granted.conn)
        if not granted.lent:
            if connection is None or not connection.granted(granted):
                link.send(gm.ModelSent(granted.conn, granted.key, 0))
            return
        loan = Loan(granted, link.taken_descriptor(), link.taken_descriptor())
        if connection is None or not connection.granted(loan):
            loan.close()

    def _stats(self) -> gm.GatewayStats:
        shared = self._shared
        connections = len(self._connections)
        return gm.GatewayStats(shared.received_bytes, shared.sent_bytes, connections, time.process_time())


# ---- the process -----------------------------------------------------------------------------------------------


def _die_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that died just before has closed the link: then its end ends us.


def _die_of_bugs(caught: threading.ExceptHookArgs) -> None:
    traceback.print_exception(caught.exc_type, caught.exc_value, caught.exc_traceback)
    os._exit(70)


def main() -> int:
    """Run the gateway; the exit status is 0 after a drain, 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="lifl-gateway", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--arena", required=True)
    parser.add_argument("--tcp-fd", type=int, required=True)
    parser.add_argument("--unix-fd", type=int, required=True)
    parser.add_argument("--identity", type=Path)
    parser.add_argument("--cookie", type=Path, help="by which clients show that they are of this account")
    parser.add_argument("--connections-max", type=int, default=1024)
    parser.add_argument("--streams", type=int, default=1, help="a large body goes over so many connections at most")
    for name in Limits._fields[1:]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=0)
    parser.add_argument("--readable", type=Path, action="append", default=[], help="a folder that it reads later")
    options = parser.parse_args()
    _die_with_parent()
    # Read when NumPy is loaded, which is later: its linear algebra would start a thread per core for the checks.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    signals.leave_to_lifld()
    threading.excepthook = _die_of_bugs
    try:
        connections = f"{options.connections_max} connections (connections_max)"
        descriptors.raise_limit(descriptors.gateway_needs(options.connections_max), connections)
        contexts = _contexts(options.identity) if options.identity else None
        security = Security(contexts, Cookie.read(options.cookie) if options.cookie else None)
        box.keep_lengths()  # what clients get to write to, they cannot cut short
        arena = Arena.attach(options.arena)
        arena.segments.open_all()  # later ones come from lifld: in the box no file is opened for writing
        link_sock = socket.socket(fileno=options.fd)
        readable = [*options.readable, *([options.identity] if options.identity else [])]  # renewed ones, too
        landlock = box.enter_gateway(options.connections_max, readable)
        uvloop.run(_serve(link_sock, arena, options, landlock, security))
        arena.close()
    except LiflError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    return 0


def _contexts(folder: Path) -> Contexts:
    files = load(folder)
    if files is None:
        raise ResourceFault(f"identity folder {folder} is empty; lifld puts the node's identity there")
    return Contexts(files)


async def _serve(
    link_sock: socket.socket, arena: Arena, options: argparse.Namespace, landlock: int, security: Security
) -> None:
    quotas = Limits(*(getattr(options, name) for name in Limits._fields))
    gateway = Gateway(quotas, landlock, security, options.streams)
    listeners = [socket.socket(fileno=fd) for fd in (options.tcp_fd, options.unix_fd)]
    for listener in listeners:
        listener.setblocking(False)
    await gateway.serve(link_sock, arena, listeners)


if __name__ == "__main__":
    sys.exit(main())
