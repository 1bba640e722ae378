"""What a round needs of an arena at the least."""

from __future__ import annotations

from lifl.core.config.job import AggregationSection
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.planning.tree import TAIL_MAX, Tree
from lifl.core.schema import Layout

PAGE_BYTES = 4096


def round_bytes_min(layout: Layout, aggregation: AggregationSection, goal: int, states: int, partials: int = 0) -> int:
    """Return the bytes that a round needs of an arena at the least, pages rounded up: `lifl submit` refuses beyond it.

    The old and the new model with the rule's states, the partial of a round that is being saved, the partials of
    one path of the tree (which has places for `partials` of other nodes), the updates of one leaf or of the top.
    """
    tree = Tree(goal, aggregation.fan_in, aggregation.middle_fan_in, partials)
    meta = goal * CONTRIBUTION_BYTES_MAX
    model = 2 * (layout.data_bytes + states * layout.state_bytes + PAGE_BYTES)
    held = (tree.partials_held_max() + 2) * (layout.accumulator_bytes + meta + PAGE_BYTES)
    taken = min(goal, max(aggregation.fan_in, TAIL_MAX))
    return model + held + taken * (layout.data_bytes + CONTRIBUTION_BYTES_MAX + PAGE_BYTES)
