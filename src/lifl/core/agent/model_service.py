"""The models of all jobs on a node, as its gateway asks for them and brings them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.model_slot import over_budget, unpin_sent
from lifl.core.agent.quota import Quota
from lifl.core.errors import ArenaFull, RemoteFault
from lifl.core.ids import Key
from lifl.core.limits import OLD_MODEL_GRACE_S, OLD_MODELS_PARTS
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import small_models as sm
from lifl.core.protocol.contribution import Contribution, pack_contribution
from lifl.core.turn import Turn

LOAN = 0
"""Stands for the connection where a loan ends: it may outlive the one that it was asked for over."""
PUT_RETRY_S = 0.2
"""How long after the arena was full for its model a host asks again."""
FETCH_RETRY_S = 1.0
"""How long after a failed fetch it is tried again."""


class ModelService:
    """Serves models to clients and to other nodes, and fetches them from there."""

    def __init__(self, replicas: Mapping[int, JobReplica], turn: Turn, quota: Quota) -> None:
        self._replicas = replicas
        self._turn = turn
        self._quota = quota
        self._put: dict[Key, tuple[int, o.TakeModel]] = {}  # what hosts of sessions write: the job, and the order
        self._unwanted: Counter[Key] = Counter()  # what the gateway sends or fetches still, though the job is over
        self._retry_at_s = math.inf
        self._read_late: dict[int, JobReplica] = {}  # by number: jobs of which old models are being read
        self._away_at_s = math.inf

    def want(self, event: gm.WantModel) -> None:
        """Serve the model that a round starts from to a client, or to another node."""
        replica = next((each for each in self._replicas.values() if each.spec.name == event.job), None)
        if replica is not None and event.part is not None:
            self._want_part(replica, event, event.part)
            return
        if replica is None or not replica.slot.open or replica.slot.round != event.round - 1:
            self._refuse(event.conn, event.job, event.round)
            return
        if replica.spec.fold and replica.slot.model is None:
            self._refuse(event.conn, event.job, event.round)
            return
        self._turn.touch(replica.spec.number)
        replica.slot.wanting[event.conn] = event.round
        lend = event.lend and not replica.spec.fold
        if lend:
            replica.slot.borrowing.add(event.conn)
        replica.slot.is_lent |= event.direct or lend
        with self._turn.share(replica.spec.number):
            replica.slot.serve()

    # ---- models that hosts put ---------------------------------------------------------------------------------------

    def take(self, order: o.TakeModel) -> None:
        """Give the host of a session a slot for the model that the next fold starts from."""
        replica = self._replicas.get(order.number)
        if replica is None or replica.slot.putting is not None:
            return  # it is over; or its host has sent two at once, which the gateway does not let it
        name = replica.spec.name
        try:
            key = replica.slot.begin_put(order.round, order.state)
        except ArenaFull:
            self._turn.emit(gm.TellClient(order.conn, cm.packed(cm.Busy(name, order.round, PUT_RETRY_S))))
            return
        self._put[key] = (replica.spec.number, order)
        if order.direct:
            self._quota.lend(key)
        member = pack_contribution(Contribution(order.state, 1.0, {})) if order.state else b""
        self._turn.emit(gm.Granted(order.conn, key.pack(), member))

    def has_put(self, key: Key) -> bool:
        """Return whether the object is a model that a host may write."""
        return key in self._put

    def put(self, key: Key) -> None:
        """Take a model that its host has written, if its session is still there."""
        number, order = self._put.pop(key)
        replica = self._replicas.get(number)
        if replica is None or replica.slot.putting != key:
            self._quota.free(key)
            return
        with self._turn.share(number):
            replica.slot.put(order.state)
            self._turn.emit(gm.TellClient(order.conn, cm.packed(cm.Accepted(replica.spec.name, order.round))))
            for runner in replica.runners.values():
                runner.consider_all()
            self._turn.touch(number)

    def putting(self) -> list[Key]:
        """Return what hosts of sessions write now."""
        return list(self._put)

    def put_ended(self, key: Key) -> bool:
        """Note that a host will not write the model; return whether it may still write to the slot."""
        number, order = self._put.pop(key)
        replica = self._replicas.get(number)
        if replica is not None and replica.slot.putting == key:
            replica.slot.putting = None
        return order.direct

    def _want_part(self, replica: JobReplica, event: gm.WantModel, part: int) -> None:
        """Serve the model of a round, or one of the rule's states, to a node that keeps a copy."""
        key = replica.copies.part(event.round - 1, part)
        if key is None:
            self._refuse(event.conn, event.job, event.round)
            return
        replica.slot.pin([key])
        replica.slot.readers[event.conn] = key
        self._turn.emit(gm.ModelGranted(event.conn, event.job, event.round, key.pack()))

    def _refuse(self, conn: int, job: str, round_: int) -> None:
        text = f"the model of round {round_} is not here any more; wait for the next selection"
        refusal = cm.Refusal("round-over", "round", text, job, round_)
        self._turn.emit(gm.TellClient(conn, cm.packed(refusal)))

    def sent(self, event: gm.ModelSent) -> None:
        """End one reading of a model, or a loan."""
        key = Key.unpack(event.key)
        if event.conn == LOAN:
            self._quota.loans.end(key)
        if self._through(key):
            return
        for replica in self._replicas.values():
            if replica.slot.sent(event.conn, key):
                self._turn.touch(replica.spec.number)
                _count_sent(replica, event.sent_bytes)
                break

    def served(self, event: sm.ModelServed) -> None:
        """Count what went to clients from the gateway's copy of a small model."""
        for replica in self._replicas.values():
            if replica.spec.name == event.job:
                _count_sent(replica, event.sent_bytes)

    def fetch_ended(self, event: gm.FetchEnded) -> None:
        """Use a fetched model, or try again if it is still wanted."""
        key = Key.unpack(event.key)
        if self._through(key):
            return
        copying = next((each for each in self._replicas.values() if each.copies.has(key)), None)
        if copying is not None:
            with self._turn.share(copying.spec.number):
                copying.act(copying.copies.fetched(key, event.error))
            return
        replica = next((each for each in self._replicas.values() if each.slot.fetching == key), None)
        if replica is None:
            raise RemoteFault(f"the gateway speaks of {key}, which is not being fetched")
        late = replica.slot.is_late
        with self._turn.share(replica.spec.number):
            replica.fetched(event.error, event.received_bytes)
        if replica.wants_model and not late:  # what came late is fetched anew at once, from where it is
            self._retry_at_s = self._turn.now + FETCH_RETRY_S

    def _through(self, key: Key) -> bool:
        """Note that the gateway is through with an object; return whether it is one of a job that is over."""
        if key not in self._unwanted:
            return False
        self._unwanted[key] -= 1
        self._unwanted += Counter()  # without those at 0
        self._quota.free(key)
        return True

    def close(self, replica: JobReplica) -> None:
        """End a job here; what the gateway sends or fetches of it is freed when the gateway is through with it."""
        for conn, round_ in replica.slot.wanting.items():
            self._refuse(conn, replica.spec.name, round_)
        self._unwanted.update(replica.close())
        if self._read_late.pop(replica.spec.number, None) is not None:
            self._set_away()

    def client_left(self, conn: int) -> None:
        """Forget what a connection waits for."""
        for replica in self._replicas.values():
            replica.slot.wanting.pop(conn, None)
            replica.slot.borrowing.discard(conn)

    def adopt_lent(self, key: Key) -> None:
        """Keep a model that an earlier life has lent until it is given back."""
        self._quota.loans.adopt(key)
        self._unwanted[key] += 1

    def gateway_lost(self) -> None:
        """End all fetches and all readings but the loans: the gateway's process has ended."""
        lent = Counter({key: self._quota.loans.of(key) for key in self._unwanted})
        for key in (self._unwanted - lent).elements():
            self._quota.free(key)
        self._unwanted &= lent
        self._retry_at_s = math.inf
        for replica in self._replicas.values():
            if replica.slot.fetching is not None:
                replica.fetched("the gateway ended", 0)
            replica.act(replica.copies.gateway_lost())
            unpin_sent(replica.slot, replica.files.written() + replica.copies.pinned())
            replica.slot.wanting = {}
            replica.slot.borrowing.clear()

    @property
    def may_fetch(self) -> bool:
        """False while a fetch that failed waits for its next try."""
        return self._retry_at_s == math.inf

    def tick(self) -> None:
        """Allow the next try of a fetch, and send slow readers away, when that is due."""
        if self._turn.now >= self._retry_at_s:
            self._retry_at_s = math.inf
            for number in self._replicas:
                self._turn.touch(number)
        if self._turn.now >= self._away_at_s:
            for replica in list(self._read_late.values()):
                slot = replica.slot
                since_s = self._turn.now - OLD_MODEL_GRACE_S
                slot.send_away(key for key in over_budget(slot, self._budget_bytes) if slot.doomed[key] <= since_s)
                self.look_at(replica)

    def next_timer(self) -> float:
        """Return when `tick` is due; infinity: not before a fetch fails."""
        return min(self._retry_at_s, self._away_at_s)

    # ---- slow readers ----------------------------------------------------------------------------------------------

    @property
    def _budget_bytes(self) -> int:
        return self._quota.total_bytes // OLD_MODELS_PARTS

    def look_at(self, replica: JobReplica) -> None:
        """Note whether old models of the job are still read, and when they have been for too long."""
        number, slot = replica.spec.number, replica.slot
        if slot.doomed and slot.readers:
            self._read_late[number] = replica
        elif self._read_late.pop(number, None) is None:
            return
        self._set_away()

    def _set_away(self) -> None:
        """Find out when the first reader of an old model is to be sent away."""
        slots = [each.slot for each in self._read_late.values()]
        over = [slot.doomed[key] for slot in slots for key in over_budget(slot, self._budget_bytes)[:1]]
        self._away_at_s = min(over, default=math.inf) + OLD_MODEL_GRACE_S

    def make_room(self) -> None:
        """Send all away who read old models: somebody waits for the room."""
        for replica in list(self._read_late.values()):
            replica.slot.send_away(replica.slot.old_models())
            self.look_at(replica)

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the books, a sentence each."""
        for replica in self._replicas.values():
            wanted = {replica.slot.fetching, replica.slot.model, *replica.slot.pins} & self._unwanted.keys()
            if wanted:
                yield f"models are both wanted and unwanted: {wanted}"


def _count_sent(replica: JobReplica, sent_bytes: int) -> None:
    """Count what went to clients as a cost of the rounds that are open."""
    for branch in replica.branches():
        if not branch.sealed:
            branch.cost.sent_bytes += sent_bytes
