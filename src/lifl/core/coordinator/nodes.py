"""The nodes that take part, as the coordinator knows them: what they have, how loaded they are, where they listen.

`membership.py` decides who is in the cluster; this table has those that are connected or expected back, and answers
what the rest of the coordinator asks about a node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from lifl.core.config.node import Reached
from lifl.core.config.placement import fits
from lifl.core.coordinator.offer_secrets import OfferSecrets
from lifl.core.planning.capacity import NodeLoad
from lifl.core.planning.plan import NodeFacts
from lifl.core.protocol.cluster import KNOWS, SECRETS


class Node:
    """One node of the cluster."""

    def __init__(
        self, number: int, gateway: str, capacity: float, arena_bytes: int, workers_max: int, incarnation: int = 0
    ) -> None:
        self.number = number
        self.incarnation = incarnation
        self.suspect = False  # silent: it gets nothing new
        self.leaving = False  # it goes down
        self.drains: bool | None = None  # it is to get nothing new; None: this coordinator has not said, nor heard
        self.knows: frozenset[str] = frozenset()  # words of `protocol/cluster.KNOWS`
        self.labels: Mapping[str, str] = {}
        self.reached: Reached = "local"  # of a cluster's nodes all are as home is
        self.known = False  # it has said what it has, since its connection was made: the books are right
        self.gateway = gateway
        self.arena_bytes = arena_bytes
        self.workers_max = workers_max
        self.hosted_bytes = 0  # of its arena: for folds that it decides on itself, and what its clients have as loans
        self.load = NodeLoad(capacity=capacity, at_s=0.0)

    @property
    def takes_new(self) -> bool:
        """Whether new work may go to it, as long as it is heard."""
        return self.known and not self.goes

    @property
    def goes(self) -> bool:
        """Whether it is to finish what it has, and get nothing new."""
        return self.leaving or bool(self.drains)

    @property
    def name(self) -> str:
        """The node's id as people see it."""
        return f"{self.number:016x}"


class NodeTable:
    """All nodes by number; the coordinator's own, `home`, is always among them.

    `moves`: another node may coordinate after this one, and go on with the jobs.
    """

    def __init__(self, home: Node, seed: bytes = b"", moves: bool = False) -> None:
        home.known = True
        self.moves = moves
        home.knows = frozenset(KNOWS) - {SECRETS}  # its own partials do not travel
        self.secrets = OfferSecrets(seed)
        self.home = home.number
        self._nodes: dict[int, Node] = {home.number: home}
        self.promised: dict[int, Mapping[int, int]] = {}
        """By job that has begun, and node: bytes of its arena, which no other job's plan has."""

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def __contains__(self, number: int) -> bool:
        return number in self._nodes

    def get(self, number: int) -> Node | None:
        """Return the node, or None for one that is gone."""
        return self._nodes.get(number)

    def put(self, node: Node) -> None:
        """Let the node take part, in the place of its life before."""
        self._nodes[node.number] = node

    def remove(self, number: int) -> bool:
        """Let the node take part no longer; return False when it did not."""
        return self._nodes.pop(number, None) is not None

    def told(self, number: int, load: NodeLoad, hosted_bytes: int = 0) -> bool:
        """Note the load that a node tells of itself; return whether its own folds, or loans, have given room back."""
        node = self._nodes.get(number)
        if node is None:
            return False
        before, node.hosted_bytes, node.load = node.hosted_bytes, hosted_bytes, load
        return hosted_bytes < before

    def others(self) -> list[int]:
        """Return all nodes but the coordinator's own."""
        return [number for number in self._nodes if number != self.home]

    @property
    def home_name(self) -> str:
        """The coordinator's own node as people see it."""
        return self._nodes[self.home].name

    def gateway_of(self, number: int) -> str:
        """Return where a node's gateway listens; empty for one that is gone."""
        node = self._nodes.get(number)
        return node.gateway if node is not None else ""

    def secret_for(self, node: int, number: int, epoch: int, branch: int) -> str:
        """Return what a node is told with its branch; nothing for one that does not know of secrets."""
        return self.secrets.of(number, epoch, branch) if self.knows(node, SECRETS) else ""

    def knows(self, number: int, word: str) -> bool:
        """Return whether a node takes part that knows of something beyond the first version."""
        node = self._nodes.get(number)
        return node is not None and word in node.knows

    def has_room(self, nbytes: int, job: int | None = None) -> bool:
        """Return True when the arena at home is so large; what others are promised there is not this `job`'s."""
        return nbytes <= self._arena_bytes(self._nodes[self.home], job)

    def _arena_bytes(self, node: Node, job: int | None) -> int:
        if job is None:
            return node.arena_bytes
        others = sum(rooms.get(node.number, 0) for of, rooms in self.promised.items() if of != job)
        return max(0, node.arena_bytes - others - node.hosted_bytes)

    @property
    def hosted_at_home(self) -> int:
        """Bytes of the arena at home that its own folds have, and loans."""
        return self._nodes[self.home].hosted_bytes

    def takes_grants(self, number: int) -> bool:
        """Return True when a grant would reach the node, and be in its books when it says what it has."""
        node = self._nodes.get(number)
        return node is not None and node.known and not node.leaving

    def goes(self, number: int) -> bool:
        """Return whether the node is to finish what it has, and get nothing new."""
        node = self._nodes.get(number)
        return node is not None and node.goes

    def drains(self, number: int) -> bool:
        """Return whether the node goes at its leisure: what is planned with it may still come."""
        node = self._nodes.get(number)
        return node is not None and bool(node.drains) and not node.leaving

    def has_labels(self, wanted: Mapping[str, str]) -> bool:
        """Return whether any node is here that has these labels, whether it can take something now or not."""
        return any(fits(wanted, node.labels) for node in self._nodes.values())

    def fits(self, number: int, wanted: Mapping[str, str]) -> bool:
        """Return whether a node is here, and has these labels."""
        node = self._nodes.get(number)
        return node is not None and fits(wanted, node.labels)

    def facts(
        self,
        now: float,
        words: Collection[str] = (),
        job: int | None = None,
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[NodeFacts, ...]:
        """Return the nodes that can take something, as the planner sees them at `now`: those that know of `words`.

        Of their arenas a `job` has what others are not promised, and the nodes' own folds have not.  A node without the
        `labels` takes no updates.
        """
        return tuple(
            NodeFacts(
                node=node.name,
                residual=node.load.residual(now),
                arena_bytes=self._arena_bytes(node, job),
                workers_max=node.workers_max,
                execution_s=node.load.execution_s,
                takes_updates=fits(labels, node.labels),
                reached=self._nodes[self.home].reached,
            )
            for node in self._nodes.values()
            if node.takes_new and not node.suspect and node.knows.issuperset(words)
        )

    def faults(self) -> Iterator[str]:
        """Yield what cannot be."""
        for number, node in self._nodes.items():
            if node.number != number:
                yield f"node {node.name} stands under the number {number:016x}"
        home = self._nodes.get(self.home)
        if home is None or not home.takes_new or home.suspect:
            yield "the coordinator's own node is not in its books, not known, suspect, leaving or drained"
