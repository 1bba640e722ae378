"""The updates of clients on their way into a node: granted, waiting for room, in flight, given up.

A granted update gets a slot at once when the arena has room; else its grant waits in the line of its job, and its
sender is slowed until then.  When the line is full the client is told BUSY and asks again.  No job waits behind
another: when there is room each gets some of it in turn.

A direct client writes to its slot of the arena itself.  When the gateway (or all of `lifld`) dies under it, nothing
can stop it but itself: it looks between pieces whether its connection still stands.  So the slot *rests* for
`DIRECT_GRACE_S` before its bytes may become another object's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from lifl.core.agent.branch import Branch, contribution_of
from lifl.core.agent.branch_runner import BranchRunner
from lifl.core.agent.job_replica import JobReplica, lives
from lifl.core.agent.journal import Journal
from lifl.core.agent.outcomes import Outcome
from lifl.core.agent.quota import NO_JOB, Quota
from lifl.core.errors import ArenaFull, RemoteFault
from lifl.core.ids import Key, round_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution
from lifl.core.turn import Turn

BUSY_RETRY_S = 1.0
DIRECT_GRACE_S = 5.0
"""How long a slot rests that a direct client may still write to: far longer than a piece takes it (milliseconds, see
`FILL_BYTES` in client/tensors.py), also on a busy machine.  A client that is stopped within a piece for longer than
this can still do harm."""


class Uploads:
    """All updates that clients of this node's gateway have been granted, and that are not sealed."""

    def __init__(
        self, replicas: Mapping[int, JobReplica], turn: Turn, quota: Quota, journal: Journal, wait_queue_max: int
    ) -> None:
        self._journal = journal
        self._storing: dict[Key, gm.Sealed] = {}  # of those in flight: sealed, and not on the disk yet
        self._replicas = replicas
        self._turn = turn
        self._quota = quota
        self._wait_queue_max = wait_queue_max
        self._lines: dict[int, dict[int, o.Grant]] = {}  # by job and connection: who waits for room, in order
        self._in_flight: dict[Key, BranchRunner] = {}  # the branch has the rest; it may be dropped before its updates
        self._resting: deque[tuple[float, Key]] = deque()  # when it ends, in order

    # ---- grants ----------------------------------------------------------------------------------------------------

    def grant(self, order: o.Grant) -> None:
        """Give a granted update a slot, or a place in the line for one; or tell its client to ask again."""
        line = self._lines.get(order.number, {})
        if (not line or self._taker(order) is None) and self._admit(order):
            return
        if len(line) < self._wait_queue_max and order.conn not in line:
            self._lines.setdefault(order.number, line)[order.conn] = order
        else:
            self._give_up(order)
            busy = cm.Busy(self._replicas[order.number].spec.name, round_of(order.epoch), BUSY_RETRY_S)
            self._turn.emit(gm.TellClient(order.conn, cm.packed(busy)))

    def has(self, key: Key) -> bool:
        """Return whether the update has been granted, and is neither sealed nor given up."""
        return key in self._in_flight

    def _give_up(self, order: o.Grant) -> None:
        self._turn.report(o.UpdateAborted(order.number, order.epoch, order.branch, order.client))

    def _taker(self, order: o.Grant) -> BranchRunner | None:
        """Return the branch that takes the granted update; None: it is gone or closed."""
        replica = self._replicas.get(order.number)
        runner = replica.runners.get((order.epoch, order.branch)) if replica is not None else None
        return runner if runner is not None and not runner.branch.closed else None

    def _admit(self, order: o.Grant) -> bool:
        """Return whether the grant is done with: it has its slot, or its branch takes nothing more."""
        runner = self._taker(order)
        if runner is None:
            self._give_up(order)
            replica = self._replicas.get(order.number)
            if replica is not None:  # else it was refused when that was closed
                _refuse(self._turn, order, replica.spec.name)
            return True
        with self._turn.share(runner.job):
            try:
                key, packed = runner.admit(order)
            except ArenaFull:
                return False
            self._in_flight[key] = runner
            if order.direct:
                self._quota.lend(key)
            self._turn.emit(gm.Granted(order.conn, key.pack(), packed))
            runner.prepare()
        return True

    def close(self, replica: JobReplica) -> None:
        """Answer the updates of a job that ends here, and wait for room."""
        for order in self._lines.pop(replica.spec.number, {}).values():
            self._give_up(order)
            _refuse(self._turn, order, replica.spec.name)

    @property
    def waiting(self) -> list[o.Grant]:
        """The grants that wait for room."""
        return [order for line in self._lines.values() for order in line.values()]

    @property
    def waits(self) -> bool:
        """True while a grant waits for room."""
        return bool(self._lines)

    def settle(self, jobs: Iterable[int], room: bool) -> None:
        """Give those that wait what there is: of these jobs, or (when there may be `room`) of all, each in turn."""
        ready = list(self._lines) if room else [number for number in jobs if number in self._lines]
        first = ready[:1]
        while ready:
            ready = [number for number in ready if self._admit_first(number)]
        for number in first:
            if number in self._lines:
                self._lines[number] = self._lines.pop(number)  # another one is the first the next time

    def _admit_first(self, number: int) -> bool:
        """Return whether the first of a job's line is done with, and more wait behind it."""
        line = self._lines[number]
        conn, order = next(iter(line.items()))
        if not self._admit(order):
            return False
        self._leave(number, conn)
        return bool(line)

    def _leave(self, number: int, conn: int) -> o.Grant:
        line = self._lines[number]
        order = line.pop(conn)
        if not line:
            del self._lines[number]
        return order

    def asked(self, number: int, branch: Branch) -> list[Contribution]:
        """Return what a branch was granted and has not sealed."""
        at = (number, branch.epoch, branch.number)
        line = self._lines.get(number, {}).values()
        waiting = [order for order in line if (order.number, order.epoch, order.branch) == at]
        return [contribution_of(order) for order in (*branch.in_flight.values(), *waiting)]

    # ---- what the gateway says of them -----------------------------------------------------------------------------

    def _landed(self, key: Key) -> BranchRunner:
        runner = self._in_flight.pop(key, None) if key not in self._storing else None
        if runner is None:
            raise RemoteFault(f"the gateway speaks of {key}, which is not in flight")
        return runner

    def sealed(self, key: Key, event: gm.Sealed) -> list[Outcome]:
        """Take a sealed update into its branch, when it is stored if that is wanted."""
        runner = self._landed(key)
        if runner.durable:
            self._in_flight[key] = runner
            self._storing[key] = event
            self._journal.store(runner.job, runner.branch.epoch, key)
            return []
        with self._turn.share(runner.job):
            return runner.sealed(key, event)
        return []

    def stored(self, key: Key, place: int | None) -> list[Outcome]:
        """Take an update into its branch that is on the disk; without a `place` its branch is gone.

        Raise `RemoteFault` when none was to be stored.
        """
        if key not in self._storing:
            raise RemoteFault(f"the journal speaks of {key}, which is not being stored")
        event = self._storing.pop(key)
        runner = self._landed(key)
        at = (runner.job, runner.branch.epoch)
        with self._turn.share(runner.job):
            if place is not None and lives(self._replicas, runner):
                self._journal.note(*at, contribution_of(runner.branch.in_flight[key]), place)
                return runner.sealed(key, event)
            if place is not None:
                self._journal.drop_place(*at, place)
            runner.aborted(key)
            self._quota.free(key)
        return []

    def aborted(self, key: Key, writing: bool) -> None:
        """Give up an update that will not come; its client may be `writing` to the slot still."""
        runner = self._landed(key)
        with self._turn.share(runner.job):
            runner.aborted(key)
        self.give_back(key, writing)

    def progress(self, event: gm.Progress) -> None:
        """Note how far a followed update is; it may have landed meanwhile."""
        key = Key.unpack(event.key)
        runner = self._in_flight.get(key)
        if runner is not None:
            runner.last_updates.progress(key, event.received_bytes)

    def client_left(self, conn: int, job: str) -> None:
        """Take the updates of a connection (or of its part in `job`) out of the line for room."""
        for number in [number for number, line in self._lines.items() if conn in line]:
            replica = self._replicas.get(number)
            if not job or replica is None or replica.spec.name == job:
                self._give_up(self._leave(number, conn))

    def gateway_lost(self) -> None:
        """Give up all that was on its way: the gateway's process has ended."""
        for order in self.waiting:
            self._give_up(order)
        self._lines.clear()
        for key, runner in list(self._in_flight.items()):
            if key in self._storing:  # it is all there
                continue
            direct = runner.branch.in_flight[key].direct
            with self._turn.share(runner.job):
                runner.aborted(key)
            self.give_back(key, writing=direct and not self._quota.sealed(key))
        self._in_flight = {key: runner for key, runner in self._in_flight.items() if key in self._storing}

    # ---- slots that rest -------------------------------------------------------------------------------------------

    def give_back(self, key: Key, writing: bool) -> None:
        """Free an object that was not sealed; a direct client may be `writing` to it still."""
        if writing:
            self.rest(key)
        else:
            self._quota.free(key)

    def rest(self, key: Key) -> None:
        """Free an object that a direct client may still write to, once it has had the time to notice."""
        self._quota.adopt(key, NO_JOB)
        self._resting.append((self._turn.now + DIRECT_GRACE_S, key))

    def tick(self) -> None:
        """Free the slots that have rested."""
        while self._resting and self._resting[0][0] <= self._turn.now:
            self._quota.free(self._resting.popleft()[1])

    def next_timer(self) -> float:
        """Return when `tick` is due; infinity: not before something rests."""
        return self._resting[0][0] if self._resting else math.inf

    # ---- invariants ------------------------------------------------------------------------------------------------

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the books, a sentence each."""
        for number, line in self._lines.items():
            if number not in self._replicas:
                yield f"updates of job {number}, which is not open, wait for room"
            if not 0 < len(line) <= self._wait_queue_max:
                yield f"{len(line)} updates of job {number} wait for room, at most {self._wait_queue_max} may"
        if not self._storing.keys() <= self._in_flight.keys():
            yield f"{self._storing.keys() - self._in_flight.keys()} are being stored, and not in flight"
        for key, runner in self._in_flight.items():
            if key not in runner.branch.in_flight:
                yield f"{key} is in flight, but not in its branch {runner.branch.number}"
        for replica in self._replicas.values():
            for branch in replica.branches():
                lost = branch.in_flight.keys() - self._in_flight.keys()
                if lost:
                    yield f"branch {branch.number} of job {replica.spec.name!r} waits for {lost}, which no client sends"


def _refuse(turn: Turn, order: o.Grant, job: str) -> None:
    """Answer a grant that comes to nothing: the gateway takes nothing else from its connection before that."""
    number = round_of(order.epoch)
    text = f"round {number} of job {job!r} takes no more updates; wait for the next selection"
    refusal = cm.Refusal("round-over", "round", text, job, number)
    turn.emit(gm.TellClient(order.conn, cm.packed(refusal)))
