"""Which node takes which client: four policies, by demand class instead of client by client.

Clients are placed in the order of falling demand, those of one demand in their own order; each goes to one of the
nodes whose residual capacity still fits its demand:

    best-fit      the one with the least residual capacity       (locality: few nodes, partials stay in shared memory)
    first-fit     the first
    worst-fit     the one with the most residual capacity        (what least-connection balancing does)
    round-robin   the next one after the node that took the client before, around the ring

Of equal nodes the first in the list takes it.  Where no node fits, no client is refused: it *spills* to the node
with the most residual capacity, which is then overdrawn, and is flagged.  Capacities and demands are integers
(`UNITS_PER_UPDATE` to an update), so a sum is the same in whatever order it is made.  Nothing is drawn at random.

Equal clients make whole stretches of the sequence known at once.  Best-fit and first-fit fill one node after the
other: the fullest stays the fullest.  Worst-fit and round-robin go around in *passes*.  Think of each node as a
column as high as the clients of this demand that fit on it: round-robin takes the columns' layers from the bottom,
worst-fit from the top, and within a layer the order is the ring's, or that of the remainders
(residual modulo demand, the largest first).  So a class costs a sort of the nodes, whatever the number of its clients.

`Placer` needs nothing but the standard library and says how many clients each node gets.  `assign` gives each client
its node in NumPy arrays; it uses only methods of the arrays that come in, so nothing here loads NumPy.

Source: LIFL (MLSys 2024), section 5, locality-aware placement by BestFit on the residual capacity.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from lifl.core.config.aggregation import Policy
from lifl.core.errors import LocalFault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


UNITS_PER_UPDATE = 1_000_000
NODES_MAX = 10_000
CLASSES_MAX = 1_024
CLIENTS_MAX = 4_000_000


class Stretch(NamedTuple):
    """A stretch of the sequence: the `nodes` (array of C ints) one after the other, `repeats` times."""

    nodes: array[int]
    repeats: int


class Fill(NamedTuple):
    """The clients of one demand, placed in whole passes and a last one that was not finished.

    Node i takes `whole[i]` clients; then those in `rest` one more each.  `order` is that of the nodes within a pass;
    `passes` says which come first: ``one-by-one`` (a node at a time), ``top-down`` or ``bottom-up`` (layers).
    """

    passes: Literal["one-by-one", "top-down", "bottom-up"]
    order: Sequence[int]
    whole: list[int]
    rest: Sequence[int] = ()

    def counts(self) -> list[int]:
        """Return the clients of each node."""
        counts = list(self.whole)
        for node in self.rest:
            counts[node] += 1
        return counts

    def stretches(self) -> Iterator[Stretch]:
        """Yield the sequence of nodes in the order of the clients."""
        if self.passes == "one-by-one":
            yield from (Stretch(array("i", (node,)), self.whole[node]) for node in self.order if self.whole[node])
        elif self.passes == "top-down":
            yield from _layers(self.order, self.whole)
        else:
            yield from reversed(list(_layers(self.order, self.whole)))
        if self.rest:
            yield Stretch(array("i", self.rest), 1)


class Placement(NamedTuple):
    """Where the clients of one demand went: those that fitted, then those that spilled (None: none did)."""

    fitted: Fill
    spilled: Fill | None


class Placer:
    """Places class after class on nodes whose `residual` capacities (in units) fall accordingly.

    Raises `LocalFault` for an unknown policy, no node or too many of them.
    """

    def __init__(self, policy: Policy, residual: Sequence[int]) -> None:
        if policy not in get_args(Policy):
            raise LocalFault(f"there is no placement policy {policy!r}; it is one of {', '.join(get_args(Policy))}")
        if not 1 <= len(residual) <= NODES_MAX:
            raise LocalFault(f"placement takes 1 to {NODES_MAX} nodes, not {len(residual)}")
        self.policy = policy
        self.residual = [int(units) for units in residual]
        self.cursor = 0  # round-robin's: the node whose turn it is

    def place(self, demand: int, count: int) -> Placement:
        """Place `count` clients that need `demand` units each.  Raise `LocalFault` unless these are sensible."""
        if demand < 1 or not 0 <= count <= CLIENTS_MAX:
            text = f"placement takes 0 to {CLIENTS_MAX} clients of at least one unit, not {count} of {demand}"
            raise LocalFault(text)
        room = [max(0, units // demand) for units in self.residual]
        fitting = min(count, sum(room))
        fitted = self._fitted(demand, fitting, room)
        self._draw(demand, fitted)
        if fitting == count:
            return Placement(fitted, None)
        # Nothing fits any more: the columns now reach below the ground, as deep as they are wanted.
        spilled = _top_down(self._by_remainder(demand), [units // demand for units in self.residual], count - fitting)
        self._draw(demand, spilled)
        return Placement(fitted, spilled)

    def _fitted(self, demand: int, count: int, room: list[int]) -> Fill:
        nodes = range(len(room))
        if self.policy == "best-fit":
            return _one_by_one(sorted(nodes, key=self.residual.__getitem__), room, count)
        if self.policy == "first-fit":
            return _one_by_one(nodes, room, count)
        if self.policy == "worst-fit":
            return _top_down(self._by_remainder(demand), room, count)
        ring = [*nodes[self.cursor :], *nodes[: self.cursor]]
        fill = _bottom_up(ring, room, count)
        if count:
            last = fill.rest[-1] if fill.rest else _last(ring, fill.whole)
            self.cursor = (last + 1) % len(room)
        return fill

    def _by_remainder(self, demand: int) -> list[int]:
        return sorted(range(len(self.residual)), key=lambda node: -(self.residual[node] % demand))

    def _draw(self, demand: int, fill: Fill) -> None:
        for node, count in enumerate(fill.counts()):
            self.residual[node] -= demand * count


def _one_by_one(order: Sequence[int], room: list[int], count: int) -> Fill:
    whole = [0] * len(room)
    for node in order:
        if not count:
            break
        whole[node] = min(room[node], count)
        count -= whole[node]
    return Fill("one-by-one", order, whole)


def _top_down(order: Sequence[int], height: list[int], count: int) -> Fill:
    """Cut the highest `count` cells off columns of these heights, which may be negative: they go down for ever."""
    level, total = 0, 0
    falling = sorted(height, reverse=True)
    for columns, top in enumerate(falling, start=1):
        total += top
        below = falling[columns] if columns < len(falling) else None
        if below is None or total - columns * below >= count:
            level = -((count - total) // columns)  # the lowest whole level: at most `count` cells lie above it
            break
    whole = [max(0, top - level) for top in height]
    return _with_rest("top-down", order, whole, [node for node in order if height[node] >= level], count)


def _bottom_up(order: Sequence[int], height: list[int], count: int) -> Fill:
    """Take the lowest `count` cells of columns of these heights, of which there must be as many."""
    level, total = 0, 0
    for shorter, top in enumerate(sorted(height)):
        if total + (len(height) - shorter) * top > count:
            level = (count - total) // (len(height) - shorter)
            break
        total, level = total + top, top
    whole = [min(top, level) for top in height]
    return _with_rest("bottom-up", order, whole, [node for node in order if height[node] > level], count)


def _with_rest(
    passes: Literal["top-down", "bottom-up"], order: Sequence[int], whole: list[int], next_layer: list[int], count: int
) -> Fill:
    return Fill(passes, order, whole, next_layer[: count - sum(whole)])


def _last(order: Sequence[int], whole: list[int]) -> int:
    most = max(whole)
    return next(node for node in reversed(order) if whole[node] == most)


def _layers(order: Sequence[int], height: list[int]) -> Iterator[Stretch]:
    """Yield the layers of columns from the highest down, each with its nodes in `order`; equal ones are one stretch."""
    places: list[int] = []
    nodes = array("i")
    falling = sorted(range(len(order)), key=lambda place: -height[order[place]])
    for position, place in enumerate(falling):
        at = bisect_left(places, place)
        places.insert(at, place)
        nodes.insert(at, order[place])
        below = height[order[falling[position + 1]]] if position + 1 < len(falling) else 0
        if height[order[place]] > below:
            yield Stretch(nodes[:], height[order[place]] - below)


def fewest(residual: Sequence[int], demand: int, count: int) -> list[int]:
    """Return the fewest nodes that hold `count` clients of this demand, in the order of the list; all, if none do.

    The roomiest nodes, except that the last one is the tightest that holds what is left.
    """
    room = {node: units // demand for node, units in enumerate(residual) if units >= demand}
    chosen = []
    for node in sorted(room, key=lambda node: (-room[node], node)):
        if count <= room[node]:
            chosen.append(min((n for n in room if room[n] >= count), key=lambda n: (residual[n], n)))
            return sorted(chosen)
        chosen.append(node)
        count -= room.pop(node)
    return list(range(len(residual)))


class Assignment(NamedTuple):
    """`node` (int32) and `spilled` (bool) of each client; `residual` is what the nodes have left, in units."""

    node: NDArray[np.int32]
    spilled: NDArray[np.bool_]
    residual: list[int]


def assign(
    policy: Policy, demands: Sequence[int], class_of: NDArray[np.integer], residual: Sequence[int]
) -> Assignment:
    """Place each client on a node.

    `demands` are the classes' demands in units; `class_of` (n integers) names each client's class; `residual` are the
    nodes' capacities in units.  Raise `LocalFault` for a class that is not there, and beyond the limits.
    """
    if not 1 <= len(demands) <= CLASSES_MAX:
        raise LocalFault(f"placement takes 1 to {CLASSES_MAX} demand classes, not {len(demands)}")
    if class_of.ndim != 1 or len(class_of) > CLIENTS_MAX:
        raise LocalFault(f"placement takes one row of at most {CLIENTS_MAX} clients, not {class_of.shape}")
    if len(class_of) and not 0 <= class_of.min() <= class_of.max() < len(demands):
        raise LocalFault(f"the clients' classes must be 0 to {len(demands) - 1}")
    placer = Placer(policy, residual)
    small = class_of.astype("uint16")  # whose stable sort is a radix sort
    grouped = small.argsort(kind="stable") if len(demands) > 1 else None
    bounds = small[grouped].searchsorted(range(len(demands) + 1)).tolist() if grouped is not None else [0, len(small)]
    node, spilled = class_of.astype("int32"), class_of.astype("bool")
    for number in sorted(range(len(demands)), key=lambda number: -demands[number]):
        start, end = bounds[number], bounds[number + 1]
        placement = placer.place(demands[number], end - start)
        middle = _write(node, start, placement.fitted)
        spilled[start:middle] = False
        if placement.spilled is not None:
            _write(node, middle, placement.spilled)
            spilled[middle:end] = True
    if grouped is None:
        return Assignment(node, spilled, placer.residual)
    by_client, spilled_by_client = node.copy(), spilled.copy()
    by_client[grouped], spilled_by_client[grouped] = node, spilled
    return Assignment(by_client, spilled_by_client, placer.residual)


def _write(out: NDArray[np.int32], start: int, fill: Fill) -> int:
    for nodes, repeats in fill.stretches():
        end = start + repeats * len(nodes)
        if len(nodes) == 1:
            out[start:end] = nodes[0]
        else:
            out[start:end].reshape(repeats, len(nodes))[:] = nodes
        start = end
    return start
