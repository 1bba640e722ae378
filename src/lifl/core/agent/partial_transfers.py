"""Partials that go from node to node: those that come to a top here, and those that a branch here sends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lifl.core.agent.branch_runner import BranchRunner, room_for_partial
from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.quota import Quota
from lifl.core.agent.uploads import BUSY_RETRY_S
from lifl.core.errors import ArenaFull
from lifl.core.fields import Message
from lifl.core.ids import Key, round_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.turn import Turn

CARRY_RETRY_S = 1.0
"""How long after a failed transfer between nodes it is tried again."""


class Coming(NamedTuple):
    """A partial on its way: the top that takes it, and the branch that it is of."""

    replica: JobReplica
    top: BranchRunner
    number: int


class PartialTransfers:
    """Takes the partials of other nodes in, and has those brought again that did not get to the top's node."""

    def __init__(self, replicas: Mapping[int, JobReplica], turn: Turn, quota: Quota) -> None:
        self._replicas = replicas
        self._turn = turn
        self._quota = quota
        self._coming: dict[Key, Coming] = {}
        self._retry_at_s = math.inf

    def offered(self, event: gm.Offered) -> None:
        """Give another node's partial a slot, or answer that it is here, is not wanted, or must wait."""
        replica = self._replicas.get(event.number)
        top = replica.top_of(event.epoch) if replica is not None else None
        if replica is None or top is None:
            self.refuse(event.conn)
            return
        name, round_ = replica.spec.name, round_of(event.epoch)
        coming = [at.number for at in self._coming.values() if at.top is top]
        if event.branch in top.branch.arrived:
            self._tell(event.conn, cm.Accepted(name, round_))
        elif event.branch not in top.branch.awaited:
            self.refuse(event.conn)
        elif event.branch in coming or event.data_bytes != replica.spec.accumulator_bytes:
            self._tell(event.conn, cm.Busy(name, round_, BUSY_RETRY_S))
        else:
            try:
                key = room_for_partial(top, event.data_bytes, event.meta_bytes, len(coming))
            except ArenaFull:
                self._tell(event.conn, cm.Busy(name, round_, BUSY_RETRY_S))
                return
            self._coming[key] = Coming(replica, top, event.branch)
            self._turn.emit(gm.Granted(event.conn, key.pack(), b""))

    def has(self, key: Key) -> bool:
        """Return whether a key is that of a partial on its way."""
        return key in self._coming

    def sealed(self, conn: int, key: Key, received_bytes: int) -> None:
        """Take a sealed partial into the top, if it still wants it."""
        replica, top, number = self._coming.pop(key)
        epoch = top.branch.epoch
        with self._turn.share(replica.spec.number):
            if replica.top_of(epoch) is top and replica.arrived(top, number, key, received_bytes):
                self._tell(conn, cm.Accepted(replica.spec.name, round_of(epoch)))
            else:
                self._quota.free(key)
                self._refuse(conn, "the round goes on without that partial")

    def aborted(self, key: Key) -> None:
        """Free the slot of a partial that will not come."""
        del self._coming[key]
        self._quota.free(key)

    def gateway_lost(self) -> None:
        """Free the slots of all partials on their way: the gateway's process has ended."""
        for key in list(self._coming):
            self.aborted(key)
        self._retry_at_s = self._turn.now

    def carry_ended(self, event: gm.CarryEnded) -> None:
        """Note that a partial is at the top's node, or must be brought again."""
        key = Key.unpack(event.key)
        for replica in self._replicas.values():
            for branch in replica.branches():
                if branch.sealed and not branch.top and branch.tree.root.output == key:
                    branch.carried = not event.error
                    if event.error:
                        self._retry_at_s = self._turn.now + CARRY_RETRY_S

    def tick(self) -> None:
        """Have partials brought again, when that is due."""
        if self._turn.now >= self._retry_at_s:
            self._retry_at_s = math.inf
            for replica in self._replicas.values():
                replica.carry_again()

    def next_timer(self) -> float:
        """Return when `tick` is due; infinity: not before a transfer fails."""
        return self._retry_at_s

    def _tell(self, conn: int, message: Message) -> None:
        self._turn.emit(gm.TellClient(conn, cm.packed(message)))

    def refuse(self, conn: int) -> None:
        """Answer that nothing here takes what is offered."""
        self._refuse(conn, "no round of this node takes that partial")

    def _refuse(self, conn: int, text: str) -> None:
        self._tell(conn, cm.Refusal("round-over", "epoch", text))

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the books, a sentence each."""
        seen = [(id(at.top), at.number) for at in self._coming.values()]
        if len(set(seen)) != len(seen):
            yield "a partial is on its way twice"
