"""How a node comes to coordinate, and ends, where any node of the cluster may: with rows in a store that all reach.

Elected (`etcd/leadership.py`), it reads what other terms have left, and only then is the engine's coordinator made and
told of each job, and the control channel turned round: the others dial this node, whose address stands in the leader's
key.  When its time is over it stops at once, by its own clock: it writes nothing, its engine forgets what is not
durable, and it dials whoever leads.  Before each event the clock is looked at: one that stood still and wakes up
decides nothing any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.config.node import NodeConfig
from lifl.core.config.store_url import parse_store
from lifl.core.errors import Refused, ResourceFault
from lifl.core.fields import Address, Bits64, Incarnation
from lifl.core.ids import is_hosted
from lifl.core.protocol import commands as o
from lifl.node.cluster.bridge import Bridge
from lifl.node.driver import Driver
from lifl.node.durable_rows import DurableRows, LocalRows, RowsBesideSessions, write_now
from lifl.node.etcd.client import Etcd, StoreFault, TlsFiles
from lifl.node.etcd.cluster_rows import Cluster, ClusterRows, meet
from lifl.node.etcd.keys import Keys
from lifl.node.etcd.leadership import FAILOVER_S, RETRY_S, Leadership
from lifl.node.etcd.mirror import Mirror
from lifl.node.resume import known_jobs
from lifl.node.store import NodeStore
from lifl.node.tasks import start

log = logging.getLogger("lifl.succession")

COPY = "cluster.db"
"""In the state folder: the node's copy of the cluster's rows."""
MEET_S = 30.0
"""How long a node that starts waits for a store that does not answer."""


class Leader(msgspec.Struct, frozen=True):
    """What a node says of itself in the leader's key."""

    node: Bits64
    incarnation: Incarnation
    control: Address


class Store(NamedTuple):
    """A store that was reached, and whose rows are in it."""

    etcd: Etcd
    keys: Keys
    cluster: Cluster


async def open_store(config: NodeConfig) -> Store:
    """Return the store of a node's cluster, as soon as it answers.  Raise `ResourceFault` when it does not."""
    url = parse_store(config.store)
    tls = TlsFiles(Path(config.store_ca), Path(config.store_cert), Path(config.store_key)) if config.store_ca else None
    etcd, keys = Etcd(url.endpoints, tls), Keys(url.name)
    until_s = time.monotonic() + MEET_S
    while True:
        try:
            return Store(etcd, keys, await meet(etcd, keys))
        except StoreFault as fault:
            if time.monotonic() > until_s:
                await etcd.close()
                text = f"the store {config.store} does not answer: {fault}; see to etcd, and start the node again"
                raise ResourceFault(text) from fault
        except BaseException:
            await etcd.close()
            raise
        await asyncio.sleep(RETRY_S)


def open_rows(
    store: NodeStore, folder: Path, node: int, shared: Store | None
) -> tuple[DurableRows, NodeStore, Succession | None]:
    """Return what writes the rows of jobs, what they are read from, and the node's part in who coordinates.

    Raise `ResourceFault` when jobs run in the node's own database, and its cluster has a store.
    """
    if shared is None:
        return LocalRows(store, node), store, None
    own = [row.name for row in store.jobs() if row.status == "running" and not is_hosted(row.number)]
    if own:
        text = f"job {own[0]} runs in this node's own database: move it to the store with `lifl store migrate`"
        raise ResourceFault(f"{text}, or let it end with `lifl up` without --store")
    mirror = Mirror(folder / COPY)
    try:
        succession = Succession(shared, mirror, node, folder)
    except BaseException:
        mirror.close()
        raise
    return RowsBesideSessions(succession.rows, store), mirror, succession


class Succession:
    """This node's part in it (`leadership.LeadershipHandler`)."""

    def __init__(self, store: Store, mirror: Mirror, node: int, folder: Path) -> None:
        self._folder = folder
        self._store = store
        self._mirror = mirror
        self._node = node
        self._driver: Driver | None = None
        self._bridge: Bridge | None = None
        self.on_unreadable: Callable[[dict[str, str]], None] = lambda _unreadable: None
        self.leader: Leader | None = None
        """Who leads, as was seen last."""
        self._promoted = False
        self._demoted = asyncio.Event()
        self._waits = ""  # why it is elected and does not coordinate yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._taking_over: asyncio.Task[None] | None = None
        self.rows = ClusterRows(store.etcd, store.keys, store.cluster, mirror, self._no_more)
        self.leadership = Leadership(store.etcd, store.keys, self._said, self)

    @property
    def cluster(self) -> str:
        """The cluster's id."""
        return self._store.cluster.id

    def begin(self, bridge: Bridge, driver: Driver) -> None:
        """Take part from now on."""
        self._bridge, self._driver = bridge, driver
        driver.lapsed = self.leadership.lapsed
        self.leadership.stands_back = lambda: driver.engine.agent.drains
        driver.on_lapsed = self._no_more
        start(self._tasks, self.leadership.run(), "the cluster's leadership")

    @property
    def _ours(self) -> Leader:
        """What this node says of itself."""
        assert self._bridge is not None
        return Leader(self._node, self._bridge.incarnation, self._bridge.control)

    def _said(self) -> bytes:
        return msgspec.json.encode(self._ours)

    # ---- leadership.LeadershipHandler ------------------------------------------------------------------------------

    def elected(self, term: int) -> None:
        """Coordinate, as soon as what other terms have left is read."""
        self.leader = self._ours
        self._taking_over = start(self._tasks, self._take_over(term), "to coordinate")

    def deposed(self) -> None:
        """Coordinate no longer."""
        if self._taking_over is not None:
            self._taking_over.cancel()
        self._taking_over = None
        self._waits = ""
        self.rows.end()
        if self._promoted:
            self._promoted = False
            self._demoted.set()
            assert self._bridge is not None and self._driver is not None
            self._bridge.follow()
            self._driver.demote()
            log.warning("coordinator.demoted")

    def _no_more(self) -> None:
        """Stop at once: this node's time is over, and that was noticed here first."""
        self.deposed()
        self.leadership.stop()

    def led_by(self, value: bytes, term: int) -> bool:
        """Dial whoever leads; return whether it is an earlier life of this node."""
        assert self._bridge is not None
        try:
            leader = msgspec.json.decode(value, type=Leader)
        except msgspec.DecodeError as error:
            log.error("leadership.unreadable %s", error)
            return False
        if leader.node == self._node and leader.incarnation < self._bridge.incarnation:
            return True
        self.leader = leader
        self._bridge.peers.point(leader.control, term)
        return False

    # ---- to coordinate ---------------------------------------------------------------------------------------------

    async def _take_over(self, term: int) -> None:
        began_s = time.monotonic()
        while True:
            try:
                await self.rows.begin(term)
                break
            except StoreFault as fault:
                if self._waits != str(fault):
                    log.warning("coordinator.waits for the store: %s", fault)
                self._waits = str(fault)
                await asyncio.sleep(RETRY_S)
        self._waits = ""
        known = known_jobs(self._mirror, self.rows.owner, self._folder, claimed=True)
        running, over = [], list(known.over)
        for facts, history, reason in known.running:
            if not history.is_all_of(facts.config):
                running.append((facts, history, reason))
                continue
            await write_now(self.rows, fx.SaveJob(facts.config.job.name, "finished", ""))  # nobody could say so
            over.append((facts, history, "finished", ""))
        assert self._bridge is not None and self._driver is not None
        self._bridge.lead(term)
        self._promoted = True
        self._demoted.clear()
        numbers = tuple(facts.number for facts, _, _ in running)
        try:
            self._driver.handle(ev.Promoted(term, self._store.cluster.seed, numbers))
            for facts, history, status, reason in over:
                self._driver.handle(ev.JobRecalled(facts, history, status, reason))
            for facts, history, reason in running:
                self._driver.handle(ev.JobResumed(facts, history, reason=reason))
        except Refused:
            if self._promoted:
                raise
        if not self._promoted:  # the lease has ended within these lines, and the engine does not coordinate (any more)
            return
        self.on_unreadable(known.unreadable)
        for name, why in known.unreadable.items():
            log.error("job.unreadable job=%s %s; `lifl cancel %s` ends it", name, why, name)
        took_s = time.monotonic() - began_s
        log.info("coordinator.promoted term=%d jobs=%d took_s=%.3f", term, len(running), took_s)

    async def check_seen(self, folder: Path, number: int) -> None:
        """Ask the nodes that may come to coordinate whether they see a job's folder.

        Raise `Refused` when one does not.
        """
        assert self._bridge is not None
        await self._bridge.check_seen(folder, self.rows.owner, number)

    # ---- what is shown ---------------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Return whether this node coordinates."""
        return self._promoted

    @property
    def elsewhere(self) -> tuple[str, str] | None:
        """Status and reason of a job that runs, where this node does not coordinate; None where it does."""
        if self._promoted:
            return None
        if self.trouble:
            return "paused", self.trouble
        leader = self.leader
        if leader is None or leader.node == self._node:
            return "paused", "no node coordinates now; one of them will"
        return (
            "elsewhere",
            f"node {leader.node:016x} coordinates, at {leader.control}; this is what was known here last",
        )

    @property
    def trouble(self) -> str:
        """Why rounds wait, as far as the store is the reason; empty when it is not."""
        text = self.leadership.trouble or self.rows.trouble
        if text:
            return f"the store does not answer, rounds wait: {text}"
        return f"rounds wait: {self._waits}" if self._waits else ""

    def shown(self) -> dict[str, Any]:
        """Return what `lifl top` shows of it."""
        leader = f"{self.leader.node:016x}" if self.leader is not None else ""
        return {
            "leads": self.leads,
            "leader": leader,
            "term": self.leadership.term,
            "failover_s": self.leadership.failover_s,
            "trouble": self.trouble,
        }

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def hand_over(self) -> None:
        """Let another node coordinate, if one lives, and wait until this one is an agent of it."""
        assert self._bridge is not None
        if not self._promoted:
            self.leadership.withdraw()
            return
        if not self._bridge.peers.gateways():
            return
        self.leadership.withdraw()
        if not await self._handed_over():
            log.warning("coordinator.handed-over to nobody within %g s", FAILOVER_S)

    async def drain(self) -> None:
        """Let another node coordinate, and be an agent of it that takes no clients.  Raise `Refused` where none does.

        Nothing is lost: what is sealed here stays, and goes from here to wherever the round's top is then.
        """
        assert self._bridge is not None and self._driver is not None
        if not self._bridge.peers.gateways():
            raise Refused("no-other-node", "node", "no other node takes part: none could coordinate (lifl nodes)")
        self._driver.handle(o.DrainNode())
        if not await self._handed_over():
            self._driver.handle(o.DrainNode(undo=True))
            text = (
                f"no other node has begun to coordinate within {FAILOVER_S:g} s: look at the store and at `lifl nodes`"
            )
            raise Refused("not-handed-over", "node", f"{text}; this one takes part as before")

    async def _handed_over(self) -> bool:
        """Step down; return whether this node is another's agent in time."""
        assert self._bridge is not None
        await self.leadership.step_down()
        try:
            async with asyncio.timeout(FAILOVER_S):
                await self._demoted.wait()  # the task that leads says so
                await self._bridge.peers.until_connected()
        except TimeoutError:
            return False
        return True

    async def end(self) -> None:
        """Take no part any more."""
        await self.leadership.resign()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.etcd.close()
