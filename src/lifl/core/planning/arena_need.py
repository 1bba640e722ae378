"""What a round needs of an arena at the least, and what a job whose rounds are spread over nodes needs of each one."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from lifl.core.config.aggregation import FAN_IN, AggregationSection
from lifl.core.config.job import JobConfig
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.chain import PARTIALS
from lifl.core.planning.plan import Plan
from lifl.core.planning.tree import TAIL_MAX, Tree
from lifl.core.schema import Layout

PAGE_BYTES = 4096
ARENA_MORE_BYTES = 8 << 20
"""What an arena has beside objects, and a little more: its table, above all."""
FAN_IN_SMALL = 32
LEAF_BYTES = 4 << 20
"""How many small updates a leaf takes where the job does not say, and the bytes that they may hold of the arena: a task
costs a node more than to fold what it saves by being one of many."""


def round_bytes_min(
    layout: Layout,
    aggregation: AggregationSection,
    goal: int,
    states: int,
    partials: int = 0,
    members: int = 0,
    coming: int | None = None,
) -> int:
    """Return the bytes that a round needs of an arena at the least, pages rounded up: `lifl submit` refuses beyond it.

    The old and the new model with the rule's states, the partial of a round that is being saved, the partials of
    one path of the tree (which has places for `partials` of other nodes), the updates of one leaf or of the top.
    `goal` updates come here, and up to `members` (0: as many) are in a partial.  Only `coming` of the partials come
    (None: all).
    """
    meta = max(goal, members) * CONTRIBUTION_BYTES_MAX
    model = 2 * (layout.data_bytes + states * layout.state_bytes + PAGE_BYTES)
    partials_held = _partials_held(goal, aggregation.leaf_fan_in, aggregation.middle_fan_in, partials, coming=coming)
    held = (partials_held + 2) * (layout.accumulator_bytes + meta + PAGE_BYTES)
    taken = min(goal, max(aggregation.leaf_fan_in, TAIL_MAX))
    return model + held + taken * update_bytes(layout)


@lru_cache(maxsize=1024)
def _partials_held(
    updates: int, fan_in: int, middle_fan_in: int, partials: int = 0, top: bool = True, coming: int | None = None
) -> int:
    """Return how many partials of such a tree are there at a time, at the most: it is asked for at each event."""
    tree = Tree(updates, fan_in, middle_fan_in, partials, top)
    if coming is not None:
        tree.close_partials(coming)
    return tree.partials_held_max()


def branch_bytes_min(layout: Layout, aggregation: AggregationSection, updates: int, members: int) -> int:
    """Return the bytes that a branch beside the top's node needs of its arena at the least, pages rounded up.

    The model for its clients, the partials of one path of its tree and its own, the updates of one leaf.
    """
    partials_held = _partials_held(max(updates, 1), aggregation.leaf_fan_in, aggregation.middle_fan_in, top=False)
    partial = layout.accumulator_bytes + max(updates, members) * CONTRIBUTION_BYTES_MAX + PAGE_BYTES
    held = (partials_held + 1) * partial
    return model_bytes(layout) + held + min(updates, aggregation.leaf_fan_in) * update_bytes(layout)


def beside_bytes_min(layout: Layout, aggregation: AggregationSection, updates: int, members: int) -> int:
    """Return what a branch needs of an arena beside another one of its round: the model for its clients is there."""
    return branch_bytes_min(layout, aggregation, updates, members) - model_bytes(layout)


def model_bytes(layout: Layout) -> int:
    """Return the bytes that a model takes of an arena, pages rounded up."""
    return layout.data_bytes + PAGE_BYTES


def rooms_of(plan: Plan, layout: Layout, aggregation: AggregationSection, goal: int, states: int) -> dict[str, int]:
    """Return the bytes that a plan's round needs of the arena of each node that has part in it, at the least."""
    others = sum(node.updates > 0 and not node.top for node in plan.nodes)
    return {
        node.node: round_bytes_min(layout, aggregation, node.updates, states, others, goal)
        if node.top
        else branch_bytes_min(layout, aggregation, node.updates, goal)
        for node in plan.nodes
        if node.top or node.updates
    }


def fold_bytes_min(layout: Layout, aggregation: AggregationSection, most: int, states: int) -> int:
    """Return the bytes that a fold of at most so many updates needs of an arena at the least, pages rounded up.

    The old and the new model with the rule's states, the partials that a chain has at a time (`planning/chain.py`), the
    updates of one link: of these no more with more updates, for those that come meanwhile wait.
    """
    meta = (most + 1) * CONTRIBUTION_BYTES_MAX
    model = layout.data_bytes + meta + PAGE_BYTES + states * (layout.state_bytes + CONTRIBUTION_BYTES_MAX + PAGE_BYTES)
    held = min(PARTIALS, (most + 1) // aggregation.leaf_fan_in) * (layout.accumulator_bytes + meta + PAGE_BYTES)
    return 2 * model + held + min(most, aggregation.leaf_fan_in) * update_bytes(layout)


def update_bytes(layout: Layout) -> int:
    """Return the bytes that an update takes of an arena, pages rounded up."""
    return layout.data_bytes + CONTRIBUTION_BYTES_MAX + PAGE_BYTES


def with_fan_in(config: JobConfig, layout: Layout) -> JobConfig:
    """Return a new job's `config` with `aggregation.fan_in` given: by the size of an update where it is not said."""
    if not isinstance(config.aggregation.fan_in, msgspec.UnsetType):
        return config
    fan_in = min(max(FAN_IN, LEAF_BYTES // update_bytes(layout)), FAN_IN_SMALL)
    return msgspec.structs.replace(config, aggregation=msgspec.structs.replace(config.aggregation, fan_in=fan_in))
