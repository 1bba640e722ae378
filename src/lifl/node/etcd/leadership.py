"""Who coordinates: the node that holds the leader's key, by a lease.

A node that finds no such key makes one that lives as long as its lease; the transaction is performed for one node only.
The key's create revision is the *term*: it only grows.  The leader lets its lease begin anew every `RENEW_S`.  By its
own clock, which counts while the machine sleeps (CLOCK_BOOTTIME), it leads until `MARGIN_S` before the end of the lease
that it has heard of last, counted from when it asked; then it stops by itself.  No wall clock is looked at.

The arithmetic, at etcd's defaults:

    RENEW_S + 2 * REQUEST_S <= LEASE_S - MARGIN_S   two members that do not answer cost no term
    ELECTION_S + REQUEST_S <= LEASE_S - MARGIN_S    nor does an election of etcd itself
    LEASE_S + EXPIRY_S < FAILOVER_S                 a leader that is gone is replaced in time

When etcd's own leader is lost in the same moment its leases begin anew: FAILOVER_ETCD_S.  etcd gives no lease that is
shorter than 1.5 of its election timeouts; where that is longer than LEASE_S all of this takes longer, and is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from lifl.node.etcd.client import REQUEST_S, Etcd, StoreFault, Uncertain
from lifl.node.etcd.keys import Keys

log = logging.getLogger("lifl.leadership")

LEASE_S = 4
"""How long a leader that is not heard of still is the leader, for etcd."""
RENEW_S = 0.5
MARGIN_S = 0.5
"""How long before the end of its lease a leader stops: more than two clocks may differ by in that time."""
EXPIRY_S = 0.5
"""How often etcd looks for leases that have ended."""
ELECTION_S = 2.0
"""How long an election of etcd takes at most, but for votes that are split."""
FAILOVER_S = LEASE_S + EXPIRY_S
FAILOVER_ETCD_S = ELECTION_S + 1.0 + LEASE_S + EXPIRY_S
"""The same when etcd's leader is lost, too: the next one gives each lease all of its time, and an election timeout
(1 s) more."""
RETRY_S = 0.25
"""Between two looks at a store that does not answer."""


def boottime() -> float:
    """Return the seconds since the machine has started, those included in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeadershipHandler(Protocol):
    """What a node does about it.  All calls come in the event loop."""

    def elected(self, term: int) -> None:
        """Coordinate from now on, as soon as what other terms have left is read."""
        ...

    def deposed(self) -> None:
        """Coordinate no longer; what `elected` began is to end."""
        ...

    def led_by(self, value: bytes, term: int) -> bool:
        """Note which node leads, by what it says of itself in its key; return whether it is this one's earlier life."""
        ...


class Leadership:
    """This node's part in it; `value` is asked what to say of it in the leader's key."""

    def __init__(
        self,
        etcd: Etcd,
        keys: Keys,
        value: Callable[[], bytes],
        handler: LeadershipHandler,
        clock: Callable[[], float] = boottime,
    ) -> None:
        check_arithmetic()
        self._etcd = etcd
        self._key = keys.leader
        self._value = value
        self._handler = handler
        self._clock = clock
        self._until_s = 0.0  # by this clock: until then this node leads
        self._lease = 0
        self._resigned = False
        self._stop = asyncio.Event()  # of the term
        self.stands_back: Callable[[], bool] = lambda: False
        """Whether this node leads only where no other comes to lead within `FAILOVER_S`."""
        self.term = 0
        """This node's, while it leads; 0: it does not."""
        self.lease_s = LEASE_S
        """How long etcd's leases are."""
        self.trouble = ""
        """Why it is not known who leads, or whether this node may."""

    def lapsed(self) -> bool:
        """Return whether this node was elected and its time is over, be that noticed yet or not."""
        return self.term > 0 and self._clock() >= self._until_s

    def stop(self) -> None:
        """Lead no longer: another node does, or this one is to."""
        self._stop.set()

    def withdraw(self) -> None:
        """Come no more to lead: the node goes down."""
        self._resigned = True

    async def resign(self) -> None:
        """Lead no longer, now or later, for the node goes down; as `step_down` does."""
        self.withdraw()
        await self.step_down()

    async def step_down(self) -> None:
        """Lead no longer now; the key is gone when this returns, if that can be."""
        self.stop()
        with contextlib.suppress(StoreFault):
            if self._lease:
                await self._etcd.revoke(self._lease)

    async def run(self) -> None:
        """Lead whenever no other does, for ever."""
        while True:
            try:
                await self._look()
                self.trouble = ""
            except StoreFault as fault:
                if not self.trouble:
                    log.warning("leadership.trouble %s", fault)
                self.trouble = str(fault)
                await asyncio.sleep(RETRY_S)

    async def _look(self) -> None:
        """See who leads, and wait until that changes; with nobody there, lead.  Raise `StoreFault`."""
        found, revision = await self._etcd.range(self._key)
        self.trouble = ""
        if found:
            if self._handler.led_by(found[0].value, found[0].create_revision):
                await self._etcd.revoke(found[0].lease)  # that has ended: its state folder was free
            else:
                await self._etcd.changed(self._key, revision)
        elif self._resigned:
            await self._etcd.changed(self._key, revision)
        elif not (self.stands_back() and await self._comes_another(revision)):
            await self._try_to_lead()

    async def _comes_another(self, revision: int) -> bool:
        """Return whether another node comes to lead in time.  Raise `StoreFault`."""
        try:
            async with asyncio.timeout(FAILOVER_S):
                await self._etcd.changed(self._key, revision)
        except TimeoutError:
            return False
        return True

    async def _try_to_lead(self) -> None:
        asked_s = self._clock()
        self._lease, self.lease_s = await self._etcd.grant(LEASE_S)
        if self.lease_s > LEASE_S:
            told = f"etcd gives no lease below {self.lease_s} s, for its election timeout is long"
            log.warning("leadership.slow %s: a leader that is gone is replaced after %g s", told, self.failover_s)
        try:
            term = await self._make_key(self._lease)
            if term:
                self._until_s = asked_s + self.lease_s - MARGIN_S
                await self._lead(term)
        finally:
            lease, self._lease = self._lease, 0
            with contextlib.suppress(StoreFault):
                await self._etcd.revoke(lease)

    @property
    def failover_s(self) -> float:
        """How long a leader that is gone is missed, at most."""
        return self.lease_s + EXPIRY_S

    async def _make_key(self, lease: int) -> int:
        """Return the term when this node leads now, else 0.  Raise `StoreFault` when that cannot be known."""
        pb, value = self._etcd.pb, self._value()
        absent = pb.Compare(target=pb.Compare.CREATE, key=self._key, create_revision=0)
        put = pb.RequestOp(request_put=pb.PutRequest(key=self._key, value=value, lease=lease))
        try:
            answer = await self._etcd.txn(pb.TxnRequest(compare=[absent], success=[put]))
            return int(answer.header.revision) if answer.succeeded else 0
        except Uncertain as fault:
            log.info("leadership.read_back %s", fault)
        found, _revision = await self._etcd.range(self._key)
        return int(found[0].create_revision) if found and found[0].lease == lease else 0

    async def _lead(self, term: int) -> None:
        """Lead until the lease cannot be renewed in time, or `stop`."""
        self.term = term
        self._stop.clear()
        log.info("leadership.elected term=%d lease_s=%d", term, self.lease_s)
        try:
            self._handler.elected(term)
            renewing = asyncio.create_task(self._renew())
            stopping = asyncio.create_task(self._stop.wait())
            try:
                while not self._stop.is_set() and not renewing.done() and not self.lapsed():
                    left_s = self._until_s - self._clock()
                    await asyncio.wait(
                        [renewing, stopping], timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED
                    )
            finally:
                renewing.cancel()
                stopping.cancel()
        finally:
            self.term = 0
            log.warning("leadership.ended term=%d", term)
            self._handler.deposed()

    async def _renew(self) -> None:
        """Let the lease begin anew, again and again; return when it has ended."""
        while True:
            await asyncio.sleep(RENEW_S)
            asked_s = self._clock()
            try:
                ttl_s = await self._etcd.keep_alive(self._lease)
            except StoreFault as fault:
                self._note(fault)
                continue
            if ttl_s <= 0:
                log.warning("leadership.lease-ended term=%d", self.term)
                return
            self.trouble = ""
            self._until_s = asked_s + ttl_s - MARGIN_S

    def _note(self, fault: StoreFault) -> None:
        if not self.trouble:
            log.warning("leadership.trouble %s", fault)
        self.trouble = str(fault)


def check_arithmetic() -> dict[str, Any]:
    """Return the figures of a failover.  Raise `ValueError` when they contradict each other."""
    lasts_s = LEASE_S - MARGIN_S
    if lasts_s < RENEW_S + 2 * REQUEST_S:
        raise ValueError(f"two attempts of {REQUEST_S} s, {RENEW_S} s apart, do not fit {lasts_s} s")
    if lasts_s < ELECTION_S + REQUEST_S:
        raise ValueError(
            f"an election of etcd of {ELECTION_S} s and an attempt of {REQUEST_S} s do not fit {lasts_s} s"
        )
    return {"lease_s": LEASE_S, "failover_s": FAILOVER_S, "failover_etcd_s": FAILOVER_ETCD_S}
