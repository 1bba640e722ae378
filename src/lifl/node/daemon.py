"""`lifld`: one node's daemon, from its start to its end.

It holds no tensor and decides nothing: what its sockets say goes to the engine (`driver.py`), and what the engine wants
done is performed in order (`performer.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from lifl import failpoints
from lifl.confine import signals
from lifl.confine.account import Account
from lifl.core import events as ev
from lifl.core.config.node import NodeConfig, coordinates, reached
from lifl.core.coordinator.nodes import Node
from lifl.core.engine import Engine
from lifl.core.errors import Impossible, ResourceFault
from lifl.core.ids import Key
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.trust.tokens import Token
from lifl.node import descriptors, machine, service_manager
from lifl.node import locks as at
from lifl.node.audit_log import FOLDER as AUDIT_FOLDER
from lifl.node.audit_log import AuditLog
from lifl.node.authority.credentials import Credentials
from lifl.node.authority.enforcement import Enforcement
from lifl.node.authority.health import IdentityHealth
from lifl.node.authority.hosts import hosts_of
from lifl.node.authority.renewal import Renewal
from lifl.node.authority.requests import CredentialRequests
from lifl.node.callers import Callers
from lifl.node.children import Child
from lifl.node.cli_server import CliServer, listen_unix
from lifl.node.cluster.bridge import Bridge
from lifl.node.door_log import DoorLog
from lifl.node.driver import Driver
from lifl.node.http_door import HttpDoor, check_library
from lifl.node.journal.journal import FOLDER as JOURNAL_FOLDER
from lifl.node.journal.journal import Journal
from lifl.node.keeper import Keeper
from lifl.node.loans import Loans
from lifl.node.locks import StateLocks
from lifl.node.log_file import set_up_log
from lifl.node.meters import Meters
from lifl.node.modes import told
from lifl.node.outbound.outbound import Outbound
from lifl.node.pages import Pages
from lifl.node.performer import Performer
from lifl.node.privileged import Privileged, opened_by
from lifl.node.process_state import ended_text
from lifl.node.requests import Requests
from lifl.node.resume import Left, resume_jobs
from lifl.node.sessions import Sessions
from lifl.node.state_format import take_format
from lifl.node.status import NodeStatus
from lifl.node.store import NodeStore, kept_capacity
from lifl.node.succession import Store, Succession, open_rows, open_store
from lifl.node.tasks import ended_early, unless
from lifl.node.views import NodeIdentity
from lifl.node.workers import Workers
from lifl.redirect import open_redirector
from lifl.shm.segment import SegmentLock

log = logging.getLogger("lifl.daemon")

DRAIN_S = 30.0
"""How long a shutdown waits for rounds whose updates are all in."""
CHILD_END_S = 5.0
START_S = 30.0
Announce = Callable[[dict[str, Any]], None]


class Daemon:
    """One node, from its start to its end."""

    _requests: Requests

    def __init__(
        self,
        config: NodeConfig,
        folder: Path,
        locks: StateLocks,
        opened: Privileged,
        done: asyncio.Event,
        token: Token | None,
        shared: Store | None = None,
    ) -> None:
        self.config = config
        self._privileged = opened
        self.succession: Succession | None = None
        self.folder = folder
        self.failure: ResourceFault | None = None
        self.done = done
        """The node is to end: it was told so, or has a failure."""
        self._locks = locks
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._bridge: Bridge | None = None
        self._http: HttpDoor | None = None
        self._paused = False
        self._door_log = DoorLog()
        self._opened = contextlib.ExitStack()
        try:
            self._open(locks, token, shared)
        except BaseException:
            self._opened.close()
            raise

    def _open(self, locks: StateLocks, token: Token | None, shared: Store | None) -> None:
        config, folder, opened = self.config, self.folder, self._opened
        self.audit = AuditLog(folder / AUDIT_FOLDER)
        opened.callback(self.audit.close)
        self._callers = Callers(self.audit)
        self.store = NodeStore(folder / "lifl.db")
        opened.callback(self.store.close)
        number = self.store.node_id()
        addresses = [address for address in (config.listen, config.control, config.http) if address]
        self.credentials = Credentials(config, folder, number, lambda: hosts_of(addresses), token, self.audit.note)
        opened.callback(self.credentials.close)
        tcp = self._privileged.gateway
        unix = opened.enter_context(listen_unix(folder / "gateway.sock"))
        opened.callback((folder / "gateway.sock").unlink, missing_ok=True)
        lock = opened.enter_context(contextlib.closing(SegmentLock(f"/lifl-{number:016x}")))
        lock.take()
        self.arena, warnings = machine.open_arena(f"/lifl-{number:016x}", config, number)
        lock.take()
        opened.callback(self._close_arena)
        workers_max = machine.workers_max(config)
        self.identity = NodeIdentity(number, machine.shown(tcp), self.arena.arena_bytes, workers_max)
        self.engine = self._make_engine()
        self._open_children(locks, tcp, unix)
        machine.tell_of_segments(self.arena, self.gateway)
        asked = lambda message, link: self._requests.handle(message, link)  # noqa: E731, PLW0108 - made below
        self.cli = CliServer(folder / "lifld.sock", asked, self.audit)
        opened.callback(self.cli.close)
        self._enforcement = Enforcement(self.credentials.revocations, self.credentials.bearers, self.gateway)
        self._enforcement.add(self.cli)
        if self._http is not None:
            self._http.belongs(lambda: self._requests.snapshot(), self._enforcement)  # noqa: PLW0108 - made below
        self._renewal = Renewal(self.credentials, lambda: self.status.authority_address() or config.join)
        opened.callback(self._renewal.close)
        self._meters = Meters(self.gateway, self.zygote, self._http.child if self._http is not None else None)
        rows, jobs, self.succession = open_rows(self.store, folder, number, shared)
        opened.callback(jobs.close)
        hands = (self.gateway, self.zygote, self.journal, self.workers, rows, jobs, self.cli, self._meters)
        self._performer = Performer(*hands, *self._models, self._loans, self._worker_stopped, self._unsendable)
        self._driver = Driver(self.engine, folder, self._performer.perform)
        # A node starts in a pause, too: until the gateway is ready it is heard.
        self._driver.on_pause = lambda paused: self.gateway.hold(paused and self._ready.done())
        self._performer.on_broken, self.journal.on_event = self._driver.record, self._driver.handle
        shown = (self._driver, self.arena, self.gateway, self.zygote, self.workers, self._meters)
        faulty, known = (self.audit, self.journal), (bool(config.capacity), bool(kept_capacity(self.store)))
        self.status = NodeStatus(self.identity, folder, known, warnings, faulty, *shown)
        self._performer.http = self.status.known_door(self._http)
        self.status.health, self._performer.trackers = (
            IdentityHealth(self.credentials, self._renewal),
            self.status.trackers,
        )
        credentials, pages = (
            CredentialRequests(self.credentials, self.status.authority_address),
            Pages(self._http, self.cli, config, self.audit, self._enforcement),
        )
        parts = (self._driver, rows, jobs, self.cli, self.status, credentials, folder, self.audit)
        self._requests = Requests(*parts, *self._models, pages, self._shut_down, self.calibrate, config.jobs_kept)
        self._performer.on_over = self._requests.jobs_kept.look
        self._sessions = Sessions(self._driver, self.store, self.gateway, self._callers, self.audit, config)

    def _make_engine(self) -> Engine:
        config, identity = self.config, self.identity
        # Until it is measured, one fold for each core.
        known = config.capacity or kept_capacity(self.store)
        capacity = known or float(min(identity.workers_max, machine.cores()))
        node = Node(identity.number, identity.gateway, capacity, identity.arena_bytes, identity.workers_max)
        node.labels, node.reached = config.labels, reached(config)
        about = (machine.ArenaStore(self.arena), node, config.idle_timeout_s, config.wait_queue_max)
        engine = Engine(*about, coordinates(config), time.monotonic(), self.store.seed())
        engine.agent.load = msgspec.structs.replace(engine.agent.load, smoothing=config.smoothing)
        return engine

    def _open_children(self, locks: StateLocks, tcp: socket.socket, unix: socket.socket) -> None:
        config, opened = self.config, self._opened
        self._mend = partial(machine.mend, self.arena, self._unsendable)
        box = ["--state", str(self.folder), "--data-bytes", str(machine.worker_data_bytes(config))]
        self.zygote = self._child("lifl.worker.zygote", box, [locks.children], wm.FromZygote, self._from_zygote)
        opened.callback(self.zygote.stop, CHILD_END_S)  # after the workers' links, at whose end the workers go
        journal = (self.folder / JOURNAL_FOLDER, self.arena.name, [locks.children])
        self.journal = Journal(*journal, self._mend, self._broken, self._loop.time)
        opened.callback(self.journal.stop, CHILD_END_S)
        self._models = Keeper(self.folder, self.engine), Outbound(self.folder, [locks.children])
        opened.callback(self._models[1].stop, CHILD_END_S)
        events = (self._from_worker, self._worker_gone, self._bounced)
        redirector = open_redirector(config.redirector, self.folder, self._privileged.program)
        self.workers = Workers(self.zygote, redirector, *events, self.folder)
        opened.callback(self.workers.end)
        gateway = ["--tcp-fd", str(tcp.fileno()), "--unix-fd", str(unix.fileno())]
        gateway += machine.gateway_settings(config, self.folder)
        if self.credentials.contexts is not None:
            gateway += ["--identity", str(self.credentials.contexts.files.folder)]
        passed = [locks.children, tcp.fileno(), unix.fileno()]
        self.gateway = self._child("lifl.node.gateway.main", gateway, passed, gm.FromGateway, self._from_gateway)
        opened.callback(self.gateway.stop, CHILD_END_S)
        lending = Loans(self.arena, self.gateway, lambda over: self._driver.handle(over))  # noqa: PLW0108 - made later
        self._loans = opened.enter_context(contextlib.closing(lending))
        if self._privileged.http is not None:
            doors = (self._privileged.http, self.credentials.contexts, self.gateway, [locks.children])
            with told(self.folder):
                self._http = HttpDoor(config, self.folder, *doors, self._mend, self._broken, self._loop.time)
            opened.callback(self._http.stop, CHILD_END_S)

    def _child(
        self, module: str, arguments: list[str], passed: list[int], kinds: Any, on_message: Callable[[Any], None]
    ) -> Child:
        arguments = ["--arena", self.arena.name, *arguments]
        end = self._gateway_gone if "gateway" in module else self._zygote_gone
        return Child(module, arguments, passed, kinds, on_message, end, self._broken, self._loop.time)

    def _shut_down(self) -> None:
        self._loop.call_soon(self.done.set)  # the request is answered first

    # ---- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> dict[str, Any]:
        """Start the children and take up the jobs of an earlier daemon; return the node's report.

        Raise `ResourceFault` when the node cannot run, or is told to end meanwhile.
        """
        failpoints.hit("lifld.children.before")
        self.zygote.start()
        journals = await unless(self.done, self.journal.left(), lambda: self.failure)
        left = Left(self.arena, journals, self.journal.send, self._loans.found())
        resumed = resume_jobs(self._driver.handle, self.store, left, coordinates(self.config), self.folder)
        self.gateway.start()
        self._tell_gateway()
        if self._http is not None:
            self._http.start()
        await self._until_ready()
        if self._privileged.control is not None:
            self._bridge = self._join(self._privileged.control)
        self._renewal.start()
        self._requests.take_unreadable(resumed.unreadable)
        self.status.warnings += [
            f"job {name} could not be taken up: {why}; `lifl cancel {name}` ends it"
            for name, why in resumed.unreadable.items()
        ]
        self._locks.say(at.UP)
        self.audit.note(
            "node.started", f"local uid={os.getuid()}", pid=os.getpid(), node=f"{self.identity.number:016x}"
        )
        joined = await unless(self.done, self._bridge.peers.tried(), lambda: self.failure) if self._bridge else {}
        return self.status.report({"jobs": resumed.jobs, "updates": resumed.updates}) | joined

    async def _until_ready(self) -> None:
        told: asyncio.Future[Any] = self._loop.create_task(self.done.wait())
        await asyncio.wait([self._ready, told], timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if self._ready.done():
            self._ready.result()  # or why it cannot be
        if self.done.is_set():
            raise ended_early()
        if not self._ready.done():
            said = self.gateway.last_words() or "nothing"
            raise ResourceFault(f"the gateway was not ready within {START_S:g} s; it said: {said}")

    def _join(self, listener: socket.socket) -> Bridge:
        cluster = self.succession.cluster if self.succession is not None else ""
        ours = (self.identity, self._driver, self.store, self.audit, self.credentials, self.cli, cluster)
        bridge = Bridge(listener, self.config.join, *ours)
        self._enforcement.add(bridge)
        self._enforcement.tell_bearers = bridge.bearers.changed
        self._performer.peers = bridge.peers
        self.status.bridge = bridge
        self._requests.changes.belong(bridge.removed)
        if self.succession is not None:
            self.status.succession = self._requests.changes.succession = self.succession
            self.succession.on_unreadable = self._requests.take_unreadable
            self.succession.begin(bridge, self._driver)
        return bridge

    def calibrate(self) -> None:
        """Have the node's capacity measured, unless it is given or kept; the answer comes later."""
        if not (self.config.capacity or self.status.capacity_kept):
            self.zygote.send(wm.Calibrate(self.identity.workers_max))

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take note of an exception in a callback of the loop.

        What one connection, peer or child leads to ends that one (`link.py`) and does not come here.  The node stops,
        and keeps its arena, when its own state is not to be trusted; anything else is a fault of ours that goes to the
        log while the node lives.
        """
        error = context.get("exception")
        log.error("daemon.failed %s", context.get("message"), exc_info=error)
        if isinstance(error, Impossible):
            text = f"lifld failed: {error!r}; its log tells more; `lifl up` goes on from its arena"
            self._broken(ResourceFault(text))

    def _broken(self, fault: ResourceFault) -> None:
        self.failure = self.failure or fault
        if not self._ready.done():
            self._ready.set_exception(fault)
        self.done.set()

    async def drain(self) -> None:
        """Let rounds whose updates are all in commit, then tell the others' clients that their updates expired."""
        self._locks.say(at.STOPPING)
        failpoints.hit("lifld.drain.before")
        if self.succession is not None:
            await self.succession.hand_over()
        self._driver.handle(ev.Leaving())
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._driver.settled()
        except TimeoutError:
            log.warning("daemon.drain rounds were not committed within %g s", DRAIN_S)
        self._driver.handle(ev.Stopping())
        if self._bridge is not None:
            self._performer.peers = self.status.bridge = None
            await self._bridge.leave()

    def close(self) -> None:
        """End all children and remove everything that the node has made, but for its database and models."""
        self._locks.say(at.STOPPING)
        self.status.trackers.close()
        self._driver.close()
        self._paused = self._driver.fault is not None
        self.audit.note("node.ended", "lifld", str(self.failure or ""), pid=os.getpid())
        self._opened.close()
        self._door_log.flush()

    def _close_arena(self) -> None:
        """Keep the arena after a failure, or in a pause, if it holds updates: the next lifld goes on from it."""
        whole = self.failure is None and not self._paused
        self.arena.close(unlink=whole or not any(True for _ in self.arena.live()))

    # ---- events ------------------------------------------------------------------------------------------------------

    def _from_gateway(self, message: Any) -> None:
        if self._callers.heard(message):
            return
        match message:
            case gm.GatewayReady():
                self.status.landlock["gateway"] = message.landlock
                self.gateway.hold(self._driver.fault is not None)
                if not self._ready.done():
                    self._ready.set_result(None)
                return
            case gm.AskPulse():
                peers = self._bridge.peers if self._bridge is not None else None
                if peers.connected if peers is not None else coordinates(self.config):
                    self.gateway.send(gm.Pulse(peers.gateways() if peers is not None else ()))
                return
            case gm.Disconnected(_conn, client, reason, who):
                self._door_log.say("client.disconnected", who, reason, client=client)
                return
            case gm.GatewayStats():
                self.status.gateway_stats = message
                return
            case gm.SessionAsked():
                self._sessions.ask(message)
                return
            case gm.Aborted():
                self._door_log.say("update.aborted", "", message.reason)
            case gm.CarryEnded() | gm.FetchEnded() if message.error:
                what = "carry" if isinstance(message, gm.CarryEnded) else "fetch"
                log.warning("%s.failed key=%s %s", what, Key.unpack(message.key), message.error)
        self._driver.handle(self._loans.told(message))

    def _gateway_gone(self) -> None:
        log.warning("gateway.ended %s", self.gateway.last_words() or "without a word")
        self.status.gateway_stats = None
        self._callers.gone()
        self._mend()
        self._loans.gateway_gone()
        self._driver.handle(gm.GatewayLost())
        self._loop.call_soon(self._tell_gateway)

    def _tell_gateway(self) -> None:
        """Tell a gateway that has just begun what it has to know."""
        self._enforcement.tell_children()
        self._performer.perform(self.engine.schemas())

    def _from_zygote(self, message: Any) -> None:
        match message:
            case wm.ZygoteReady():
                self.status.landlock["zygote"] = message.landlock
            case wm.Forked(worker, pid):
                self.workers.forked(worker, pid)
            case wm.Exited(worker, pid, status):
                log.info("worker.ended worker=%d pid=%d %s", worker, pid, ended_text(status))
                self._mend()
                self._driver.handle(ev.WorkerExited(worker, ended_text(status)))
            case wm.Calibrated(capacity):
                if not self.status.capacity_kept:  # else `lifl calibrate` has found it meanwhile
                    self._driver.handle(ev.Calibrated(capacity))
                log.info("node.calibrated capacity=%g", capacity)

    def _zygote_gone(self) -> None:
        log.warning("zygote.ended %s", self.zygote.last_words() or "without a word")

    def _from_worker(self, worker: int, message: Any) -> None:
        if isinstance(message, wm.TaskFailed):
            log.warning("task.failed worker=%d address=%d %s", worker, message.address, message.text)
        self._driver.handle(ev.FromWorker(worker, message))

    def _unsendable(self, job: int | str, text: str) -> None:
        self._loop.call_soon(self._driver.handle, ev.JobBroken(job, text))

    def _worker_gone(self, worker: int) -> None:
        self._driver.handle(ev.WorkerGone(worker))

    def _worker_stopped(self, worker: int) -> None:
        self._driver.handle(ev.WorkerSeen(worker, stopped=True))

    def _bounced(self, address: int, key: Key) -> None:
        self._driver.handle(ev.Bounced(address, key))


def run(config: NodeConfig, announce: Announce, log_to_file: bool = False, token: Token | None = None) -> None:
    """Run a node until a signal of `signals.ENDS` or `lifl down`; call `announce` once, when it is ready.

    By the `token` it joins a cluster for the first time.

    Raise `LiflError` (core/errors.py) when it cannot start, or when one of its processes ends again and again.
    """
    signals.ignore_stray()
    account = Account(config.user)
    descriptors.raise_for_node(config, machine.workers_max(config))
    account.lower()
    account.check()
    check_library(config)
    folder = machine.state_folder(config)
    locks = StateLocks(folder)
    try:
        take_format(folder)
        with told(folder):
            set_up_log(folder, log_to_file, config.log_format)
            uvloop.run(_run(config, folder, locks, account, announce, token))
    finally:
        locks.close()


async def _run(
    config: NodeConfig, folder: Path, locks: StateLocks, account: Account, announce: Announce, token: Token | None
) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    for number in signals.ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(number, done.set)
    if signals.came_early():
        raise ended_early()
    failpoints.hit("lifld.open.before")
    with opened_by(account, config) as opened:
        # The store's library has threads.
        shared = await unless(done, open_store(config), lambda: None) if config.store else None
        try:
            daemon = Daemon(config, folder, locks, opened, done, token, shared)
        except BaseException:
            if shared is not None:
                await shared.etcd.close()
            if signals.came_early():
                raise ended_early() from None
            raise
        await _live(daemon, announce)


async def _live(daemon: Daemon, announce: Announce) -> None:
    asyncio.get_running_loop().set_exception_handler(daemon.failed)
    try:
        report = await daemon.start()
        log.info("daemon.ready %s", report)
        announce(report)
        service_manager.tell("READY=1", f"STATUS=node {report['node']} at {', '.join(report['listen'])}")
        daemon.calibrate()
        await daemon.done.wait()
        service_manager.tell("STOPPING=1", "STATUS=completing the rounds whose updates are all in")
        if daemon.failure is None:
            await daemon.drain()
    finally:
        signals.end_within()
        if daemon.succession is not None:
            await daemon.succession.end()
        daemon.close()
        log.info("daemon.ended %s", daemon.failure or "as it was told")
    if daemon.failure is not None:
        raise daemon.failure
