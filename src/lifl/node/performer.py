"""Performs the engine's effects, in their order: messages are sent, addresses are routed, rows are written.

A commit's row is on the disk before anything that follows it is performed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, get_args

from lifl import failpoints
from lifl.core import effects as fx
from lifl.core.errors import FrameTooLong
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import journal as jm
from lifl.node.children import Child
from lifl.node.cli_server import CliServer
from lifl.node.cluster.transport import Peers
from lifl.node.database import DatabaseFault
from lifl.node.durable_rows import DurableRows
from lifl.node.journal.journal import Journal
from lifl.node.keeper import Keeper
from lifl.node.loans import Loans
from lifl.node.meters import Meters
from lifl.node.outbound.outbound import Outbound
from lifl.node.store import NodeStore, trim_rounds
from lifl.node.trackers import Trackers
from lifl.node.workers import Workers

log = logging.getLogger("lifl.daemon")

TO_GATEWAY = frozenset(get_args(gm.ToGateway))
OF_EACH_UPDATE = frozenset({"update.accepted"})
"""Events that are in no ordinary log: a line for each would cost as much as what it tells of."""

FOR_THE_OPERATOR = frozenset({"job.paused", "job.goes_on", "model.damaged", "model.unchecked"})
"""Events that somebody should see, and perhaps do something about."""


class Performer:
    """The hands of one node.  `peers` is None while the node is in no cluster: then nothing is sent to others.

    `on_stopped(worker)` is told, a moment later, of a worker that was looked at and is stopped.
    `on_unsendable(job, text)` is told of a job, by its number or name, that a message is too long for; it must not hand
    in an event at once.
    """

    def __init__(
        self,
        gateway: Child,
        zygote: Child,
        journal: Journal,
        workers: Workers,
        rows: DurableRows,
        store: NodeStore,
        cli: CliServer,
        meters: Meters,
        keeper: Keeper,
        outbound: Outbound,
        loans: Loans,
        on_stopped: Callable[[int], None],
        on_unsendable: Callable[[int | str, str], None],
    ) -> None:
        self.http: Child | None = None
        self.keeper, self.outbound = keeper, outbound
        outbound.freed = lambda kept: keeper.keep(kept, outbound.needed(kept.number))
        self.trackers: Trackers | None = None
        self._loans = loans
        self._on_unsendable = on_unsendable
        self._gateway = gateway
        self._zygote = zygote
        self._journal = journal
        self._on_stopped = on_stopped
        self._workers = workers
        self._rows = rows
        self._store = store
        self._cli = cli
        self._meters = meters
        self.peers: Peers | None = None
        self.on_broken: Callable[[fx.JobBroke], None] = lambda _effect: None
        self.on_over: Callable[[], None] = lambda: None  # a job is over, and its row says so

    def perform(self, effects: Sequence[fx.Effect]) -> None:
        """Perform effects in order.

        Raise `DatabaseFault` when a row cannot be written now: it and what is behind it is not performed.
        """
        messages: list[Any] = []  # those to the gateway that follow one another
        for done, effect in enumerate(effects):
            if type(effect) in TO_GATEWAY and not (isinstance(effect, gm.ModelGranted) and effect.lent):
                messages.append(effect)
                continue
            self._send_gateway(messages)
            messages.clear()
            if isinstance(effect, fx.ROWS):  # it takes as long as the disk does
                self._gateway.flush()
            try:
                if isinstance(effect, gm.ModelGranted):
                    self._loans.grant(effect)
                else:
                    self._perform(effect)
            except FrameTooLong as fault:
                self._unsendable(effect, fault)
            except DatabaseFault as fault:
                fault.rest = effects[done:]
                raise
        self._send_gateway(messages)

    def _send_gateway(self, messages: Sequence[Any]) -> None:
        try:
            self._gateway.gather(*messages)
        except FrameTooLong:
            for message in messages:
                try:
                    self._gateway.gather(message)
                except FrameTooLong as fault:
                    self._unsendable(message, fault)

    def _unsendable(self, effect: fx.Effect, fault: FrameTooLong) -> None:
        """End what a message was about that no frame holds: its job, or else its client's connection."""
        message: Any = effect
        if isinstance(effect, fx.SendNode | fx.SendCoordinator | fx.SendWorker):
            message = effect.order if isinstance(effect, fx.SendNode) else getattr(effect, "report", None)
            message = message or getattr(effect, "message", None)
        log.error("message.too-long %s", fault)
        job = getattr(message, "number", None) or getattr(message, "job", "")
        if job:
            self._on_unsendable(job, str(fault))
        elif hasattr(message, "conn"):
            self._gateway.send(gm.HangUp(message.conn))

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.ForkWorker():
                self._workers.fork(effect.worker)
            case fx.LookAtWorker():
                if self._workers.is_stopped(effect.worker):
                    # Told later: nothing that is performed hands in an event within that.
                    asyncio.get_running_loop().call_soon(self._on_stopped, effect.worker)
            case fx.KillWorker():
                self._workers.kill(effect.worker, effect.why)
            case fx.LookAtChildren():
                self._gateway.kill_if_stopped()
                self._zygote.kill_if_stopped()
                self._journal.kill_if_stopped()
                if self.http is not None:
                    self.http.kill_if_stopped()
            case jm.StoreUpdate() | jm.LoadUpdate() | jm.DropUpdates():
                self._journal.send(effect)
            case fx.SendWorker():
                self._workers.send(effect.worker, effect.message)
            case fx.Route():
                self._workers.route(effect.address, effect.worker)
            case fx.SendKeys():
                self._workers.send_keys(effect.address, effect.attempt, effect.keys)
            case fx.SendNode():
                if self.peers is not None:
                    failpoints.hit("lifld.order.before")
                    self.peers.send(effect.node, effect.order)
                    failpoints.hit("lifld.order.after")
            case fx.SendCoordinator():
                if self.peers is not None:
                    failpoints.hit("lifld.report.before")
                    self.peers.report(effect.report)
                    failpoints.hit("lifld.report.after")
            case fx.JobBroke():
                self.on_broken(effect)
            case fx.SaveRound():
                self._meters.complete(effect, self._workers.redirector.name)
                self._rows.write(effect)
            case fx.SaveJob() | fx.SaveConfig() | fx.DropJob() | fx.SaveEvaluation() | fx.SetAside():
                self._rows.write(effect)
                if isinstance(effect, fx.DropJob):
                    self.outbound.forget(effect.number)
            case fx.KeepModels():
                self.outbound.keep(effect)
                self.keeper.keep(effect, self.outbound.needed(effect.number))
            case fx.TrimRounds():
                trim_rounds(self._store, effect.job, effect.rounds, effect.receipts, effect.kept)
            case fx.SavePlan():
                self._store.save_plan(effect.job, effect.round, effect.attempt, effect.request, effect.plan)
            case fx.Publish():
                self._publish(effect)

    def _publish(self, effect: fx.Publish) -> None:
        self._meters.published(effect)
        level = logging.DEBUG if effect.name in OF_EACH_UPDATE else logging.INFO
        level = logging.WARNING if effect.name in FOR_THE_OPERATOR else level
        if log.isEnabledFor(level):
            shown = " ".join(f"{name}={value}" for name, value in effect.fields.items() if name != "receipt")
            facts = {"job": effect.job, **{name: value for name, value in effect.fields.items() if name != "receipt"}}
            log.log(level, "%s job=%s %s", effect.name, effect.job, shown, extra={"facts": facts})
        self._cli.publish(effect.name, effect.job, effect.fields)
        if self.trackers is not None:
            self.trackers.published(effect)
        if effect.name == "job.over":
            self.on_over()
