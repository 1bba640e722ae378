"""What a plan is made from, what it says, and the sentences that explain it.

Requests and plans are kept in a node's database (`lifl plan --round`), so these structures read what an earlier version
has written: a field that is gone is left out when it is read, one that is new has a default.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from lifl.core.config.aggregation import Policy
from lifl.core.config.node import Reached
from lifl.core.fields import Count, Name, NotNegative, Real
from lifl.core.limits import COUNT_MAX, REAL_MAX

Positive = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
Seconds = NotNegative
Rate = Annotated[float, msgspec.Meta(gt=0, le=REAL_MAX)]


class Costs(msgspec.Struct, frozen=True):
    """What a node's work costs: constants that were measured, for the prediction of the time.

    `ingest_bytes_per_s` is a gateway's into the arena, `link_bytes_per_s` a node's link each way, to clients and to
    other nodes, `tls_bytes_per_s` a gateway's under TLS (both gateways as in bench/results/tls.md, of two cores; a link
    of 10 Gb/s is taken); `fold_bytes_per_s` the input of one worker; `cold_s` and `warm_s` start a worker.
    """

    ingest_bytes_per_s: Rate = 5.0e9
    link_bytes_per_s: Rate = 1.25e9
    tls_bytes_per_s: Rate = 1.7e9
    fold_bytes_per_s: Rate = 7.0e9
    cold_s: Seconds = 0.0022
    warm_s: Seconds = 0.00006


class NodeFacts(msgspec.Struct, frozen=True):
    """A node as the planner sees it.

    `residual` is RC in updates at a time (`capacity.py`), `arena_bytes` what this job may use of the arena (what
    it uses already included), `execution_s` is E (0: not measured, `Costs` decide), `warm` its idle workers.  One that
    has not the labels which the job asks for (`placement.nodes`) does not take updates, nor does one that `is_full`: it
    has no room for a branch more beside those that it has of the round.
    """

    node: Name
    residual: Real
    arena_bytes: Count
    workers_max: Positive = 8
    warm: Count = 0
    execution_s: Seconds = 0.0
    takes_updates: bool = True
    is_full: bool = False
    reached: Reached = "local"

    def incoming(self, costs: Costs) -> tuple[float, str]:
        """Return how many bytes of updates the node receives per second, and what bounds that."""
        bounds = [(costs.ingest_bytes_per_s, "its gateway receives")]
        if self.reached != "local":
            bounds.append((costs.link_bytes_per_s, "its link carries"))
        if self.reached == "tls":
            bounds.append((costs.tls_bytes_per_s, "its gateway deciphers"))
        return min(bounds)

    def between(self, costs: Costs) -> float:
        """Return how many bytes of partials the node receives per second from others."""
        return min(costs.link_bytes_per_s, costs.tls_bytes_per_s) if self.reached == "tls" else costs.link_bytes_per_s


class PlanRequest(msgspec.Struct, frozen=True):
    """Everything that a plan depends on.

    The round counts `updates` updates of `model_bytes` each; a partial takes `partial_bytes` with its members' records,
    the rule's state `state_bytes`.  `arrival_s` is the expected time between the first and the last update (0: all at
    once).  `model_node` has the model that the round starts from, the rule's state and the checkpoints, and so the top;
    empty, or naming a node that is not among them: any node may have it.
    """

    updates: Positive
    model_bytes: Positive
    partial_bytes: Positive
    nodes: tuple[NodeFacts, ...]
    policy: Policy = "best-fit"
    timing: Literal["eager", "lazy"] = "eager"
    fan_in: Positive = 2
    middle_fan_in: Annotated[int, msgspec.Meta(ge=2, le=COUNT_MAX)] = 8
    state_bytes: Count = 0
    arrival_s: Seconds = 0.0
    model_node: str = ""
    costs: Costs = Costs()


class NodePlan(msgspec.Struct, frozen=True):
    """One node's part.

    `updates` come by this node's gateway; `spilled` of these are beyond its capacity.  `leaves` run at a time, for
    `leaf_tasks` tasks.  `queue` is Q, `ready_s` when its one partial is there, `peak_bytes` what its arena holds at
    the worst.
    """

    node: Name
    updates: Count = 0
    spilled: Count = 0
    leaves: Count = 0
    leaf_tasks: Count = 0
    middle: bool = False
    top: bool = False
    queue: Real = 0.0
    peak_bytes: Count = 0
    ready_s: Real = 0.0
    reasons: tuple[str, ...] = ()


class Transfer(msgspec.Struct, frozen=True):
    """Bytes that go from one node to another."""

    source: Name
    target: Name
    what: Literal["model", "partial"]
    nbytes: Count


class Plan(msgspec.Struct, frozen=True):
    """The whole plan; `nodes` are in the order of their names, those without a part included.

    `completion_s` is when the model is sealed, counted from the first update.
    """

    policy: Policy
    updates: Positive
    top: Name
    nodes: tuple[NodePlan, ...]
    transfers: tuple[Transfer, ...]
    completion_s: Real

    @property
    def used(self) -> tuple[str, ...]:
        """The nodes that have a part in the round."""
        return tuple(n.node for n in self.nodes if n.updates or n.top)

    @property
    def transfer_bytes(self) -> int:
        """All bytes between nodes."""
        return sum(transfer.nbytes for transfer in self.transfers)

    def explain(self) -> tuple[str, ...]:
        """Return one line for each thing decided, and why."""
        spilled = sum(n.spilled for n in self.nodes)
        beyond = f", {spilled} of them beyond any node's capacity" if spilled else ""
        head = (
            f"{self.updates} updates on {len(self.used)} of {len(self.nodes)} nodes by {self.policy}{beyond}; "
            f"{self.transfer_bytes} bytes between nodes; the model is there after {self.completion_s:.3f} s"
        )
        return (head, *(f"{n.node}: {reason}" for n in self.nodes for reason in n.reasons))
