"""From a job's config to the request that its rounds are planned by: one way for the daemon and for `lifl plan`.

An update takes the model's bytes.  A partial takes those of the accumulators, and a record for each member that the
round may have: that is what is allocated, so what is sent between nodes is at most this.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lifl.core.config.job import JobConfig
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.plan import Costs, NodeFacts, PlanRequest
from lifl.core.schema import Layout


def with_share(node: NodeFacts, share: float) -> NodeFacts:
    """Return a node as a job sees it that has a share of its arena."""
    return node if share == 1.0 else msgspec.structs.replace(node, arena_bytes=int(share * node.arena_bytes))


def plan_request(
    config: JobConfig,
    layout: Layout,
    states: int,
    nodes: Sequence[NodeFacts],
    updates: int = 0,
    *,
    model_node: str = "",
    arrival_s: float = 0.0,
    costs: Costs | None = None,
) -> PlanRequest:
    """Return the request for `updates` (0: all) of one round of the job; its rule has `states` state vectors.

    Of each node's arena the job has its share (`quota.arena_share`).  `model_node` has the current model (empty: any
    node can read it), `arrival_s` is the expected time between the first and the last update (0: all come at once).
    """
    aggregation, goal = config.aggregation, config.selection.clients_per_round
    return PlanRequest(
        updates=updates or goal,
        model_bytes=layout.data_bytes,
        partial_bytes=layout.accumulator_bytes + goal * CONTRIBUTION_BYTES_MAX,
        nodes=tuple(with_share(node, config.quota.arena_share) for node in nodes),
        policy=aggregation.placement,
        timing=aggregation.timing,
        fan_in=aggregation.leaf_fan_in,
        middle_fan_in=aggregation.middle_fan_in,
        state_bytes=states * layout.state_bytes,
        arrival_s=arrival_s,
        model_node=model_node,
        costs=costs or Costs(),
    )
