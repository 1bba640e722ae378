"""One node's part of a round: its tree, the updates that are on their way into it, and what it cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec

from lifl.core.config.job import expected_of
from lifl.core.ids import Key
from lifl.core.planning.chain import Chain
from lifl.core.planning.tree import Task, TaskState, Tree
from lifl.core.protocol.commands import BranchFailed, Contributions, Grant, OpenBranch, UpdateSealed
from lifl.core.protocol.contribution import Contribution, with_digest
from lifl.core.protocol.journal import Stored
from lifl.core.turn import Turn

SHOWN = {
    TaskState.PLANNED: "waiting",
    TaskState.OPEN: "waiting",
    TaskState.PLACING: "waiting",
    TaskState.RUNNING: "running",
    TaskState.DONE: "sealed",
}


class Cost:
    """What a branch cost, in bytes and seconds."""

    def __init__(self) -> None:
        self.worker_cpu_s = 0.0
        self.busy_s = 0.0
        self.sent_bytes = 0
        self.fetched_bytes = 0
        self.peak_bytes = 0
        self.task_cpu_s: dict[int, float] = {}  # of the tasks that are done, by number
        self.began_s: dict[int, float] = {}  # since the branch was opened: of each task that has (had) a worker
        self.ended_s: dict[int, float] = {}
        self.starts = {"cold": 0, "warm": 0, "promoted": 0, "shared": 0}

    def add(self, task: int, cpu_s: float, busy_s: float) -> None:
        """Add a task that is done."""
        self.worker_cpu_s += cpu_s
        self.busy_s += busy_s
        self.task_cpu_s[task] = cpu_s

    def times_of(self, task: int) -> dict[str, float]:
        """Return when a task began and ended, as far as it has."""
        times = (("began_s", self.began_s), ("ended_s", self.ended_s))
        return {name: of[task] for name, of in times if task in of}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for the wire and the receipt."""
        return {
            "worker_cpu_s": self.worker_cpu_s,
            "busy_s": self.busy_s,
            "sent_bytes": self.sent_bytes,
            "fetched_bytes": self.fetched_bytes,
            "peak_bytes": self.peak_bytes,
            "starts": dict(self.starts),
        }


class Branch:
    """The books of one branch; `branch_runner.py` acts on them.

    An update is *in flight* from its grant, *accepted* when it is sealed, and stored where that is wanted.  `unfed`
    holds what is accepted (and adopted or arrived partials, with the task that takes them) and waits for room for its
    task's output.

    The top's branch *awaits* the partials of others; each is named by its branch's number.
    """

    def __init__(
        self,
        order: OpenBranch,
        members_max: int,
        fan_in: int,
        middle_fan_in: int,
        adopted: int = 0,
        is_fold: bool = False,
        opened_s: float = 0.0,
    ) -> None:
        self.epoch = order.epoch
        self.number = order.branch
        self.parent = order.parent
        self.opened_s = opened_s
        self.secret = order.secret
        self.members_max = members_max
        self.adopted = adopted  # partials of an earlier life of the node: they fill the tree's first places
        partials = adopted + len(order.others) + order.spare
        self.tree = (
            Chain(order.updates, fan_in, partials, expected_of(order.updates))
            if is_fold
            else Tree(order.updates, fan_in, middle_fan_in, partials, self.top)
        )
        self.awaited = set(order.others)
        self.arrived: dict[int, Contributions] = {}  # in the order of their coming
        self._in_arrived: set[str] = set()  # the clients in them
        self.carried = False
        self.final = not (order.others or order.spare)  # how many partials come is known
        self.in_flight: dict[Key, Grant] = {}
        self.followed: dict[Key, int] = {}  # of those in flight: what is there of them, if the top waits for it
        self.accepted: dict[str, Contribution] = {}
        self.unfed: deque[tuple[Key, Task | None]] = deque()
        self.stored: deque[Stored] = deque()  # accepted, on the disk, and in no object
        self.loading: dict[Key, Stored] = {}  # of these, what is being read into an object
        self.given = 0  # updates that were given to their tasks
        self.takers_opened = 0  # of the tree's takers, in order: these are open, with their paths
        self.closed = False
        self.sealed = False  # the top (or the root) is done
        self.failed: BranchFailed | None = None  # what was reported, though perhaps to nobody
        self.cost = Cost()

    @property
    def top(self) -> bool:
        """True for the branch that makes the model."""
        return self.number == 0

    def land(self, key: Key) -> Grant:
        """Take an update out of those in flight."""
        self.followed.pop(key, None)
        return self.in_flight.pop(key)

    def accept(self, key: Key, digest: int) -> Grant:
        """Move an update from in flight to accepted; it waits for its task in `unfed`."""
        grant = self.land(key)
        self.accepted[grant.client] = with_digest(contribution_of(grant), digest)
        self.unfed.append((key, None))
        return grant

    def take(self, number: int, members: Contributions) -> None:
        """Note that the partial of another branch is here, with these members."""
        self.arrived[number] = members
        self._in_arrived.update(client for client, *_ in members)

    def has(self, client: str) -> bool:
        """Return whether the client's update is sealed here, by itself or in a partial that came."""
        return client in self.accepted or client in self._in_arrived

    @property
    def to_take(self) -> int:
        """How many of the accepted updates the tree is to take."""
        return self._coming + len(self.stored)

    @property
    def _coming(self) -> int:
        """How many of the accepted updates were given to tasks, or are in objects."""
        return self.given + sum(task is None for _, task in self.unfed) + len(self.loading)

    @property
    def takers_needed(self) -> int:
        """How many of the tree's takers the updates that are accepted or in flight can come to fill."""
        return self.takers_needed_for(0)

    def takers_needed_for(self, more: int) -> int:
        """Return how many of the tree's takers these updates and so many `more` can come to fill."""
        return self.tree.takers_of(self._coming + len(self.in_flight) + more)

    def takers_unplaced(self, most: int) -> int:
        """Return how many of these have no worker yet; `most`: more need not be known."""
        waiting = (TaskState.PLANNED, TaskState.OPEN)
        begin = max(self.tree.takers_of(self.given) - 1, 0)  # those before have all their updates
        takers = (self.tree.takers[place] for place in range(begin, self.takers_needed))
        return sum(1 for _ in islice((task for task in takers if task.state in waiting), most))

    def lines(self) -> list[dict[str, Any]]:
        """Return the tree as it is shown, a line for each task."""
        return [
            {
                "address": task.address,
                "role": task.role,
                "parent": task.parent.address if task.parent else 0,
                "branch": self.number,
                "number": task.number,
                "parent_number": task.parent.number if task.parent else None,
                "state": SHOWN[task.state],
                "inputs": len(task.inputs),
                "expect": task.expect,
                "updates": task.taken,
                "updates_expect": task.updates,
                "pid": task.pid or None,
                "attempt": task.attempt,
                "cpu_s": self.cost.task_cpu_s.get(task.number, 0.0),
                **self.cost.times_of(task.number),
            }
            for task in self.tree.tasks
            if task.state is not TaskState.DROPPED
        ]

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the books, a sentence each."""
        clients = [grant.client for grant in self.in_flight.values()]
        if len(set(clients)) != len(clients):
            yield f"a client has two updates in flight: {clients}"
        if set(clients) & self.accepted.keys():
            yield f"updates are accepted and in flight: {sorted(set(clients) & self.accepted.keys())}"
        if not self.followed.keys() <= self.in_flight.keys():
            yield "an update is followed that is not in flight"
        on_disk = {stored.client for stored in (*self.stored, *self.loading.values())}
        if not on_disk <= self.accepted.keys():
            yield f"updates are to be loaded that are not accepted: {sorted(on_disk - self.accepted.keys())}"
        if self._in_arrived & self.accepted.keys():
            yield f"updates are here twice: {sorted(self._in_arrived & self.accepted.keys())}"
        if self.arrived.keys() & self.awaited:
            yield f"partials have arrived and are awaited: {sorted(self.arrived.keys() & self.awaited)}"
        taken = sum(task.taken for task in self.tree.takers)
        if taken != self.given:
            yield f"{self.given} updates were given to tasks, which took {taken}"
        for task in self.tree.tasks:
            if len(task.inputs) > task.expect and task.state not in (TaskState.DROPPED, TaskState.DONE):
                yield f"{task!r} has more inputs than it expects"
        if self.sealed and self.tree.root.state is not TaskState.DONE:
            yield f"the branch is sealed but its root is {self.tree.root!r}"


def contribution_of(grant: Grant) -> Contribution:
    """Return what a granted update contributes."""
    return Contribution(grant.client, grant.weight, grant.metrics)


def digests_of(members: Iterable[Contribution]) -> tuple[int, ...]:
    """Return the digest of each update, 0 where it is not known; none at all where none is."""
    digests = tuple(0 if isinstance(member.digest, msgspec.UnsetType) else member.digest for member in members)
    return digests if any(digests) else ()


def tell_digests(turn: Turn, number: int, order: OpenBranch | Branch, members: Iterable[Contribution]) -> None:
    """Tell the digests of updates that an earlier life of the node has sealed, as far as they are known."""
    at = (number, order.epoch, order.branch if isinstance(order, OpenBranch) else order.number)
    members = tuple(members)
    for member, digest in zip(members, digests_of(members), strict=False):
        if digest:
            turn.report(UpdateSealed(*at, member.client, 0, digest))


def told(members: Iterable[Contribution]) -> Contributions:
    """Return contributions as they are told to the coordinator."""
    return tuple((member.client, member.weight, member.metrics) for member in members)
