"""`lifld`: one node's daemon.  Sockets in, the engine decides, effects out.

It holds no tensor and decides nothing: each event goes to `core/engine.py` with the clock, and what the engine
returns is performed here in order.  A commit's row is on the disk before anybody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from lifl import failpoints
from lifl.core import effects as fx
from lifl.core.config.node import NodeConfig
from lifl.core.coordinator.coordinator import Node
from lifl.core.engine import Engine
from lifl.core.errors import ResourceFault
from lifl.core.ids import Key
from lifl.core.planning.capacity import NodeLoad
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.node import machine
from lifl.node.children import Child
from lifl.node.cli_server import Control, listen_unix
from lifl.node.cluster.bridge import Cluster
from lifl.node.locks import StateLocks
from lifl.node.requests import Requests
from lifl.node.resume import resume_jobs
from lifl.node.store import NodeStore
from lifl.node.workers import Workers

log = logging.getLogger("lifl.daemon")

DRAIN_S = 30.0
"""How long a shutdown waits for rounds whose updates are all in."""
CHILD_END_S = 5.0
START_S = 30.0
LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_FILES_MAX = 3
OF_EACH_UPDATE = frozenset({"update.accepted"})
"""Events that are in no ordinary log: a line for each would cost as much as what it tells of."""

Announce = Callable[[dict[str, Any]], None]


class Daemon:
    """One node, from its start to its end."""

    def __init__(self, config: NodeConfig, folder: Path, locks: StateLocks) -> None:
        self.config = config
        self.folder = folder
        self.loop = asyncio.get_running_loop()
        self.started_unix_s = time.time()
        self.failure: ResourceFault | None = None
        self.done = asyncio.Event()
        self._ready: asyncio.Future[None] = self.loop.create_future()
        self._settled: asyncio.Event | None = None  # of a shutdown: it waits for nothing any more
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._meters: dict[str, dict[str, float]] = {}
        self.gateway_stats: gm.GatewayStats | None = None
        self._opened = contextlib.ExitStack()
        self._closing = False
        try:
            self._open(locks)
        except BaseException:
            self._opened.close()
            raise

    def _open(self, locks: StateLocks) -> None:
        config, folder, opened = self.config, self.folder, self._opened
        self.store = NodeStore(folder / "lifl.db")
        opened.callback(self.store.close)
        self.node = self.store.node_id()
        self.tcp = opened.enter_context(machine.listen_tcp(config.listen))
        self.unix = opened.enter_context(listen_unix(folder / "gateway.sock"))
        opened.callback((folder / "gateway.sock").unlink, missing_ok=True)
        self.arena, self.warnings = machine.open_arena(f"/lifl-{self.node:016x}", config, self.node)
        opened.callback(self._close_arena)
        # Until it is measured, one fold for each core.
        workers_max = machine.workers_max(config)
        capacity = config.capacity or float(min(workers_max, machine.cores()))
        self.identity = Node(self.node, machine.shown(self.tcp), capacity, self.arena.arena_bytes, workers_max)
        self.engine = Engine(
            machine.ArenaStore(self.arena),
            self.identity,
            config.idle_timeout_s,
            config.wait_queue_max,
            coordinates=not config.join,
        )
        self.identity.load = NodeLoad(capacity, time.monotonic())
        self._arrivals = 0
        self.cluster: Cluster | None = None
        self.zygote = self._child("lifl.worker.zygote", [], [locks.children], wm.FromZygote, self._from_zygote)
        opened.callback(self.zygote.stop, CHILD_END_S)  # after the workers' links, at whose end the workers go
        self.workers = Workers(
            self.zygote, config.redirector, folder, self._from_worker, self._worker_gone, self._fallback
        )
        opened.callback(self.workers.end)
        gateway = ["--tcp-fd", str(self.tcp.fileno()), "--unix-fd", str(self.unix.fileno())]
        gateway += ["--connections-max", str(config.connections_max)]
        passed = [locks.children, self.tcp.fileno(), self.unix.fileno()]
        self.gateway = self._child("lifl.node.gateway.main", gateway, passed, gm.FromGateway, self._from_gateway)
        opened.callback(self.gateway.stop, CHILD_END_S)
        self.control = Control(folder / "lifld.sock", Requests(self).handle)
        opened.callback(self.control.close)

    def _child(
        self, module: str, arguments: list[str], passed: list[int], kinds: Any, on_message: Callable[[Any], None]
    ) -> Child:
        arguments = ["--arena", self.arena.name, *arguments]
        end = self._gateway_gone if "gateway" in module else self._zygote_gone
        return Child(module, arguments, passed, kinds, on_message, end, self._broken, self.loop.time)

    # ---- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> dict[str, int]:
        """Starts the children and takes up the jobs of an earlier daemon; returns what was adopted."""
        self.zygote.start()
        adopted = resume_jobs(self)
        self.perform()
        self.gateway.start()
        self._tell_schemas()
        try:
            async with asyncio.timeout(START_S):
                await self._ready
        except TimeoutError:
            raise ResourceFault(
                f"the gateway was not ready within {START_S:g} s; it said: {self.gateway.last_words() or 'nothing'}"
            ) from None
        if self.config.control or self.config.join:
            self.cluster = Cluster(self)
        return adopted

    def calibrate(self) -> None:
        """Has the node's capacity measured, unless it is given; the answer comes later."""
        if not self.config.capacity:
            self.zygote.send(wm.Calibrate(self.identity.workers_max))

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's handler of exceptions in callbacks: the state is not to be trusted, so stop and keep the arena."""
        error = context.get("exception")
        log.error("daemon.failed %s", context.get("message"), exc_info=error)
        self._broken(ResourceFault(f"lifld failed: {error!r}; its log tells more; `lifl up` goes on from its arena"))

    def _broken(self, fault: ResourceFault) -> None:
        self.failure = self.failure or fault
        if not self._ready.done():
            self._ready.set_exception(fault)
        self.done.set()

    async def drain(self) -> None:
        """Lets rounds whose updates are all in commit, then tells the others' clients that their updates expired."""
        failpoints.hit("lifld.drain.before")
        self._settled = asyncio.Event()
        self.engine.leave(time.monotonic())
        self.perform()
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._settled.wait()
        except TimeoutError:
            log.warning("daemon.drain rounds were not committed within %g s", DRAIN_S)
        self.engine.stop(time.monotonic())
        self.perform()
        if self.cluster is not None:
            cluster, self.cluster = self.cluster, None
            await cluster.leave()

    def close(self) -> None:
        """Ends all children and removes everything that the node has made, but for its database and models."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._opened.close()

    def _close_arena(self) -> None:
        """After a failure the segment stays if it holds ACCEPTED updates: the next lifld goes on from it."""
        self.arena.close(unlink=self.failure is None or not any(True for _ in self.arena.live()))

    # ---- effects -----------------------------------------------------------------------------------------------------

    def perform(self) -> None:
        """Does what the engine wants done, in order, and sets its timer."""
        if self._closing:
            return
        while effects := self.engine.take_effects():
            messages: list[gm.ToGateway] = []  # that follow one another: one system call, and the gateway wakes once
            for effect in effects:
                if isinstance(effect, gm.ToGateway):
                    messages.append(effect)
                    continue
                self.gateway.send(*messages)
                messages.clear()
                self._perform(effect)
            self.gateway.send(*messages)
        self._set_timer()
        if self._settled is not None and not self.engine.busy():
            self._settled.set()

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.ForkWorker():
                self.workers.fork(effect.worker)
            case fx.SendWorker():
                self.workers.send(effect.worker, effect.message)
            case fx.SendNode():
                if self.cluster is not None:
                    self.cluster.send(effect.node, effect.order)
            case fx.SendCoordinator():
                if self.cluster is not None:
                    self.cluster.report(effect.report)
            case fx.Route():
                self.workers.route(effect.address, effect.worker)
            case fx.SendKeys():
                self.workers.send_keys(effect.address, effect.attempt, effect.keys)
            case fx.SaveJob():
                self.store.save_job(effect.job, effect.status, effect.reason)
            case fx.SaveRound():
                self._complete_receipt(effect)
                self.store.save_round(effect.job, effect.round, effect.attempt, effect.status, effect.fields)
            case fx.SavePlan():
                self.store.save_plan(effect.job, effect.round, effect.attempt, effect.request, effect.plan)
            case fx.Publish():
                self._publish(effect)

    def _publish(self, effect: fx.Publish) -> None:
        if effect.name == "round.opened":
            self._meters[f"{effect.job}/{effect.fields['round']}"] = self.meters()
        level = logging.DEBUG if effect.name in OF_EACH_UPDATE else logging.INFO
        if log.isEnabledFor(level):
            shown = " ".join(f"{name}={value}" for name, value in effect.fields.items() if name != "receipt")
            log.log(level, "%s job=%s %s", effect.name, effect.job, shown)
        self.control.publish(effect.name, effect.job, effect.fields)

    def meters(self) -> dict[str, float]:
        """The CPU seconds of this node's standing processes until now."""
        return {
            "lifld": machine.cpu_s([os.getpid()]),
            "gateway": machine.cpu_s([self.gateway.pid] if self.gateway.pid else []),
            "zygote": machine.cpu_s([self.zygote.pid] if self.zygote.pid else []),
        }

    def _complete_receipt(self, effect: fx.SaveRound) -> None:
        receipt = effect.fields.get("receipt")
        if not receipt:
            return
        receipt["redirector"] = self.workers.redirector.name
        before = self._meters.pop(f"{effect.job}/{effect.round}", None)
        if before is not None:
            # A process that was started again since counts from zero.
            spent = {name: max(0.0, now - before[name]) for name, now in self.meters().items()}
            receipt["cpu_s"] |= spent

    def _set_timer(self) -> None:
        due = self.engine.next_timer()
        if self._timer is not None and due != self._timer_at:
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None:
            self._timer_at = due
            self._timer = self.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        # The engine's clock is the system's, not the loop's, which stands still within a turn and counts milliseconds.
        self._timer = None
        self.engine.tick(time.monotonic())
        self.perform()

    # ---- events ------------------------------------------------------------------------------------------------------

    def _from_gateway(self, message: Any) -> None:
        now = time.monotonic()
        match message:
            case gm.GatewayReady():
                if not self._ready.done():
                    self._ready.set_result(None)
            case gm.ClientJoined():
                self.engine.client_joined(message, now)
            case gm.ClientLeft():
                self.engine.client_left(message, now)
            case gm.Disconnected(conn, client, reason):
                log.warning("client.disconnected conn=%d client=%s %s", conn, client or "-", reason)
            case gm.Admit():
                self.engine.admit(message, now)
            case gm.Sealed():
                self._arrivals += 1
                self.identity.load = self.identity.load.counted(self._arrivals, time.monotonic_ns())
                self.engine.sealed(message, now)
            case gm.Aborted():
                log.info("update.aborted conn=%d %s", message.conn, message.reason)
                self.engine.aborted(message, now)
            case gm.Progress():
                self.engine.progress(message, now)
            case gm.WantModel():
                self.engine.want_model(message, now)
            case gm.ModelSent():
                self.engine.model_sent(message, now)
            case gm.Offered():
                self.engine.offered(message, now)
            case gm.CarryEnded():
                if message.error:
                    log.warning("carry.failed key=%s %s", Key.unpack(message.key), message.error)
                self.engine.carry_ended(message, now)
            case gm.FetchEnded():
                if message.error:
                    log.warning("fetch.failed key=%s %s", Key.unpack(message.key), message.error)
                self.engine.fetch_ended(message, now)
            case gm.GatewayStats():
                self.gateway_stats = message
        self.perform()

    def _gateway_gone(self) -> None:
        log.warning("gateway.ended %s", self.gateway.last_words() or "without a word")
        self.gateway_stats = None
        self.engine.gateway_gone(time.monotonic())
        self.perform()
        self.loop.call_soon(self._tell_schemas)

    def _tell_schemas(self) -> None:
        self.gateway.send(*self.engine.schemas())

    def _from_zygote(self, message: Any) -> None:
        match message:
            case wm.Exited(worker, pid, status):
                log.info("worker.ended worker=%d pid=%d status=%d", worker, pid, status)
            case wm.Calibrated(capacity):
                self.identity.load = msgspec.structs.replace(self.identity.load, capacity=capacity)
                log.info("node.calibrated capacity=%g", capacity)
            case _:
                pass

    def _zygote_gone(self) -> None:
        log.warning("zygote.ended %s", self.zygote.last_words() or "without a word")

    def _from_worker(self, worker: int, message: Any) -> None:
        now = time.monotonic()
        match message:
            case wm.WorkerReady():
                self.engine.worker_ready(message, now)
            case wm.TaskDone():
                found = self.engine.agent.task_at(message.address)
                if found is not None and found[1].role == "leaf":
                    self.identity.load = self.identity.load.done(message.busy_s, message.inputs)
                self.engine.task_done(worker, message, now)
            case wm.TaskFailed():
                log.warning("task.failed worker=%d address=%d %s", worker, message.address, message.text)
                self.engine.task_failed(worker, message, now)
            case wm.TaskDropped():
                self.engine.task_dropped(worker, message, now)
        self.perform()

    def _worker_gone(self, worker: int) -> None:
        self.engine.worker_gone(worker, time.monotonic())
        self.perform()

    def _fallback(self, address: int, key: Key) -> None:
        self.engine.fallback(address, key, time.monotonic())
        self.perform()

    def report(self, adopted: dict[str, int]) -> dict[str, Any]:
        """What `lifl up` prints."""
        return {
            "node": f"{self.node:016x}",
            "pid": os.getpid(),
            "listen": [self.identity.gateway],
            "control": self.cluster.control if self.cluster is not None else "",
            "socket": str(self.folder / "gateway.sock"),
            "arena_bytes": self.arena.arena_bytes,
            "capacity": self.identity.load.capacity,
            "capacity_given": bool(self.config.capacity),
            "redirector": self.workers.redirector.name,
            "why": self.workers.redirector.why,
            "state_dir": str(self.folder),
            "adopted": adopted,
            "warnings": self.warnings,
        }


def run(config: NodeConfig, announce: Announce, log_to_file: bool = False) -> None:
    """Runs a node until SIGTERM, SIGINT or `lifl down`; `announce` is called once, when it is ready.

    Raises `LiflError` (core/errors.py) when it cannot start, or when one of its processes ends again and again.
    """
    folder = machine.state_folder(config)
    locks = StateLocks(folder)
    try:
        _set_up_log(folder, log_to_file)
        uvloop.run(_run(config, folder, locks, announce))
    finally:
        locks.close()


async def _run(config: NodeConfig, folder: Path, locks: StateLocks, announce: Announce) -> None:
    daemon = Daemon(config, folder, locks)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(daemon.failed)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.done.set)
    try:
        adopted = await daemon.start()
        report = daemon.report(adopted)
        log.info("daemon.ready %s", report)
        announce(report)
        daemon.calibrate()
        await daemon.done.wait()
        if daemon.failure is None:
            await daemon.drain()
    finally:
        daemon.close()
        log.info("daemon.ended %s", daemon.failure or "as it was told")
    if daemon.failure is not None:
        raise daemon.failure


def _set_up_log(folder: Path, log_to_file: bool) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if log_to_file:
        handler = logging.handlers.RotatingFileHandler(
            folder / "lifld.log", maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_MAX
        )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("lifl")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if log_to_file else logging.WARNING)
