"""Makes the sessions of folds that programs ask for at the gateway: the row of a job, and its place in the engine.

The row is there before the session is, so that a `lifld` that is killed goes on with it; it goes with the session.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from lifl.core import events as ev
from lifl.core.config.job import fold_job
from lifl.core.config.node import NodeConfig, coordinates
from lifl.core.engine import check_submitted
from lifl.core.errors import ConfigError, LiflError, Refused, ResourceFault
from lifl.core.limits import FIELD_CHARS_MAX, TEXT_CHARS_MAX
from lifl.core.planning.treatment import trainable_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.schema import Layout
from lifl.node.audit_log import AuditLog
from lifl.node.callers import Callers
from lifl.node.children import Child
from lifl.node.database import DatabaseFault
from lifl.node.driver import Driver
from lifl.node.store import NodeStore, add_session

log = logging.getLogger("lifl.daemon")


class Sessions:
    """Makes sessions, one after the other: on any node, for a session is in its arena alone, and in its own database.

    Where the node is one of a cluster's that another may coordinate they are beside the cluster's jobs.
    """

    def __init__(
        self,
        driver: Driver,
        store: NodeStore,
        gateway: Child,
        callers: Callers,
        audit: AuditLog,
        config: NodeConfig,
    ) -> None:
        self._driver = driver
        self._store = store
        self._gateway = gateway
        self._callers = callers
        self._audit = audit
        self._beside = not coordinates(config)
        self._in_turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, asked: gm.SessionAsked) -> None:
        """Let the session be there, and its host be told."""
        task = asyncio.get_running_loop().create_task(self._host(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _host(self, asked: gm.SessionAsked) -> None:
        """Host the session; if who asked leaves meanwhile, it waits for a host as one that has lost its own."""
        is_here = self._callers.is_here(asked.conn)
        try:
            async with self._in_turn:
                job = self._driver.engine.jobs.get(asked.job)
                if job is None or not job.spec.is_fold or job.over:
                    await self._make(asked)
                elif Layout(asked.tensors).digest != job.spec.layout.digest:
                    text = f"session {asked.job!r} has other tensors; open another session for these"
                    raise Refused("wrong-schema", "tensors", text)
                if is_here():
                    self._driver.handle(ev.SessionHosted(asked.conn, asked.job, asked.secret, asked.revoked))
        except LiflError as error:
            if is_here():
                self._refuse(asked, _refusal(error))

    def _refuse(self, asked: gm.SessionAsked, refused: Refused) -> None:
        said = (refused.code, refused.field[:FIELD_CHARS_MAX], refused.text[:TEXT_CHARS_MAX], asked.job)
        self._gateway.send(gm.TellClient(asked.conn, cm.packed(cm.Refusal(*said))))

    async def _make(self, asked: gm.SessionAsked) -> None:
        """Raise `Refused`, `ConfigError` or `ResourceFault` when it cannot be, and leave nothing."""
        engine, name = self._driver.engine, asked.job
        size = Layout(asked.tensors).data_bytes
        rule = (asked.rule, asked.options, asked.rule_folder)
        config = fold_job(name, asked.expected, *rule, asked.trainable, size, asked.reproducible)
        trainable_of(asked.tensors, config.trainable)
        await self._driver.idle()
        if self._driver.fault is not None:
            raise ResourceFault(f"the node is paused, try again later: {self._driver.fault}")
        if self._store.job(name) is not None:
            raise Refused("job-exists", "job", f"a job named {name!r} is here already; choose another name")
        check_submitted(engine, ev.JobFacts(0, config, asked.tensors, asked.states, ""))
        row = (config, asked.tensors, asked.states)
        number = add_session(self._store, *row) if self._beside else self._store.add_job(*row, "")
        try:
            self._store.save_job(name, "running", "")
            owner = self._callers.who(asked.conn)
            self._driver.handle(ev.JobSubmitted(ev.JobFacts(number, config, asked.tensors, asked.states, "", owner)))
        except LiflError:
            with suppress(DatabaseFault):  # then it is gone with the next start
                self._store.drop_job(number)
            raise
        self._audit.note("session.opened", self._callers.who(asked.conn), job=name, number=number)


def _refusal(error: LiflError) -> Refused:
    match error:
        case Refused():
            return error
        case ConfigError():
            return Refused("bad-config", error.path, str(error))
    return Refused("paused", "node", str(error))
