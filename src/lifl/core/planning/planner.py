"""The plan of one round on a cluster: which node takes which updates, how many leaves, where middles and the top stand.

`make_plan` is a pure function of a `PlanRequest`: no clock, nothing drawn at random, and the order in which nodes are
listed does not matter.  So the daemon, the simulator and `lifl plan` decide alike, and a decision is replayed from its
logged request.  It goes in four steps:

1. *Updates to nodes* by the policy on residual capacity (`placement.py`).  An update counts with the share of an
   worker that it occupies, execution time / arrival window, so a node's updates are its Q = k * E; when all come
   at once that is 1 each.  Within a window a node takes no more than its gateway, its link and TLS let in.  Best-fit
   first narrows the nodes to the fewest that hold everything, the one that has the model (and so the top) first;
   without that, unequal capacities would make it fill every small node.
   A node whose arena cannot hold the least that a leaf and its path need takes none.
2. *Leaves*: ceil(Q / fan_in) workers at a time, bounded by the node's leaf tasks, its workers and its arena.
   Where more partials come together than the top takes itself (elsewhere: more than one) there is a middle.
3. *The top* stands on the node that has the model: there the rule's state is, and there the checkpoint is written, so
   a top elsewhere would have both brought to it and its result brought back.  Where no node has the model (any can
   read it) the top goes where most bytes of partials are, or will be.  Each other node sends one partial.
4. *Figures*: bytes between nodes, peak of each arena, the time until the model is sealed, and sentences that say why.

Source: LIFL (MLSys 2024), section 5; for what an arena must hold, `planning/tree.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lifl.core.errors import LocalFault, Refused
from lifl.core.planning.placement import CLIENTS_MAX, NODES_MAX, UNITS_PER_UPDATE, Placer, fewest
from lifl.core.planning.plan import NodeFacts, NodePlan, Plan, PlanRequest, Transfer
from lifl.core.planning.tree import middles_of, tail_of, top_partials_max


class _Node:
    """A node while its part is being worked out."""

    def __init__(self, facts: NodeFacts, request: PlanRequest) -> None:
        self.facts = facts
        self.request = request
        self.name = facts.node
        self.execution_s = facts.execution_s or request.model_bytes / request.costs.fold_bytes_per_s
        share = min(1.0, self.execution_s / request.arrival_s) if request.arrival_s else 1.0
        self.demand = max(1, round(share * UNITS_PER_UPDATE))
        self.takes = False
        self.updates = 0
        self.spilled = 0
        self.remote = 0  # partials that come from other nodes: the top's
        self.is_top = False
        self.has_model = facts.node == request.model_node
        self.leaves = 0
        self.reasons: list[str] = []

    @property
    def leaf_tasks(self) -> int:
        return -(-self.updates // self.request.fan_in)

    @property
    def inputs(self) -> int:
        """Partials that come together here."""
        return self.leaf_tasks + self.remote

    @property
    def has_middle(self) -> bool:
        return self.inputs > _left_by_middles(self.request.middle_fan_in, self.is_top)

    @property
    def works(self) -> bool:
        return self.inputs > 0

    @property
    def queue_units(self) -> int:
        return self.updates * self.demand

    def leaves_wanted(self) -> int:
        """Return ceil(Q / fan_in), at least one where there is something to fold, at most one for each leaf task."""
        wanted = max(1, -(-self.queue_units // (self.request.fan_in * UNITS_PER_UPDATE)))
        return min(wanted, self.leaf_tasks, self.facts.workers_max)

    def need_bytes(self, leaves: int, updates: int, inputs: int, top: bool) -> int:
        """Return what the arena must hold for so many leaves at a time; the round cannot end with less than for one."""
        r = self.request
        models = 2 * (r.model_bytes + r.state_bytes) if top else r.model_bytes * bool(updates)
        tail = tail_of(updates, r.fan_in) if top else 0  # leaves take the others
        inputs -= -(-updates // r.fan_in) + (tail - updates) // r.fan_in
        waiting = max(0, leaves - r.middle_fan_in)
        partials = partials_held_max(inputs, r.middle_fan_in, top) + waiting + (2 if top else 1)
        at_a_time = max(leaves * min(r.fan_in, updates - tail), tail)
        return models + partials * r.partial_bytes + at_a_time * r.model_bytes

    def leaf_bytes(self, updates: int) -> int:
        """Return the least that the arena must hold to fold so many updates here, with the top where the model is."""
        return self.need_bytes(1, updates, -(-updates // self.request.fan_in), self.has_model)

    def remote_max(self, updates: int, others: int) -> int:
        """Return for how many `others` the top may stand here, with so many updates to fold; -1: not even for none."""
        inputs = -(-updates // self.request.fan_in)
        for remote in range(others, -1, -1):
            if self.need_bytes(min(1, updates), updates, inputs + remote, True) <= self.facts.arena_bytes:
                return remote
        return -1

    def top_bytes(self, working: int) -> int:
        """Return what goes between nodes for a top here when so many nodes work, beyond what clients' gateways need."""
        r = self.request
        partials = (working - self.works) * r.partial_bytes
        if self.has_model:
            return partials
        model = 0 if self.updates else r.model_bytes
        return partials + model + r.state_bytes + r.model_bytes + r.state_bytes

    def peak_bytes(self) -> int:
        """Return the need, and as many of the other updates as the arena has room for: further senders are slowed."""
        if not (self.works or self.is_top):
            return 0
        need = self.need_bytes(self.leaves, self.updates, self.inputs, self.is_top)
        size = self.request.model_bytes
        others = max(0, self.updates - self.leaves * self.request.fan_in)
        return need + min(others, max(0, self.facts.arena_bytes - need) // size) * size

    def ready_s(self) -> float:
        """Return when the one partial of this node is sealed (without those of other nodes)."""
        if not self.leaf_tasks:
            return 0.0
        r = self.request
        lazy = r.timing == "lazy"
        ready = 0.0
        if self.updates:
            received = max(r.arrival_s, self.received_s())
            start = r.costs.warm_s if self.facts.warm >= self.leaves else r.costs.cold_s
            after_last = self.execution_s * (min(r.fan_in, self.updates) if lazy else 1)
            ready = start + max(received, self.updates * self.execution_s / self.leaves) + after_last
        left_max = _left_by_middles(r.middle_fan_in, self.is_top)
        levels = middles_of(self.leaf_tasks, r.middle_fan_in, left_max)
        merges = sum((r.middle_fan_in if whole else rest) if lazy else 1 for whole, rest in levels)
        return ready + merges * r.partial_bytes / r.costs.fold_bytes_per_s

    def received_s(self) -> float:
        """Return how long this node's own updates take to come in, all at once."""
        return self.updates * self.request.model_bytes / self.facts.incoming(self.request.costs)[0]

    def linked_s(self) -> float:
        """Return how long all that the top's node receives over its link takes at the least: updates and partials."""
        own = self.received_s() if self.facts.reached != "local" else 0.0
        return own + self.remote * self.request.partial_bytes / self.facts.between(self.request.costs)

    def plan(self) -> NodePlan:
        return NodePlan(
            node=self.name,
            updates=self.updates,
            spilled=self.spilled,
            leaves=self.leaves,
            leaf_tasks=self.leaf_tasks,
            middle=self.has_middle,
            top=self.is_top,
            queue=self.queue_units / UNITS_PER_UPDATE,
            peak_bytes=self.peak_bytes(),
            ready_s=self.ready_s(),
            reasons=tuple(self.reasons),
        )


def partials_held_max(inputs: int, middle_fan_in: int, top: bool) -> int:
    """Return the most partials that a path of the tree over so many holds (`planning/tree.Tree` of the same shape)."""
    held = 0
    for whole, rest in middles_of(inputs, middle_fan_in, _left_by_middles(middle_fan_in, top)):
        held += middle_fan_in if whole else rest
        inputs -= whole * (middle_fan_in - 1) + max(0, rest - 1)
    return held + inputs


def _left_by_middles(middle_fan_in: int, top: bool) -> int:
    """Return how many partials of a node need no more middles: the top takes them, or the one goes there."""
    return top_partials_max(middle_fan_in) if top else 1


def make_plan(request: PlanRequest) -> Plan:
    """Return the plan of a round that begins.

    Raise `Refused` (code ``too-large``, with the numbers) when no arena holds what the round needs at the least, and
    ``no-node`` when no node may take its updates;
    `LocalFault` when the request makes no sense.
    """
    _check(request)
    nodes = [_Node(facts, request) for facts in sorted(request.nodes, key=lambda facts: facts.node)]
    holder = next((node for node in nodes if node.has_model), None)
    _find_takers(nodes, holder)
    _place(request, nodes, holder)
    top = _choose_top(nodes) if holder is None else _top_with_model(nodes, holder)
    for node in nodes:
        _choose_leaves(node)
    _explain_rest(nodes, top)
    return Plan(
        policy=request.policy,
        updates=request.updates,
        top=top.name,
        nodes=tuple(node.plan() for node in nodes),
        transfers=_transfers(request, nodes, top),
        completion_s=_completion_s(request, nodes, top),
    )


def _find_takers(nodes: list[_Node], holder: _Node | None) -> None:
    """Mark the nodes whose arena could fold all updates one leaf at a time.

    The node with the model takes part only if that does not leave its top room for fewer nodes' partials.
    """
    for node in nodes:
        need = node.leaf_bytes(node.request.updates)
        node.takes = node.facts.takes_updates and not node.facts.is_full and node.facts.arena_bytes >= need
        if not node.facts.takes_updates:
            node.reasons.append("takes no updates: it has not the labels that the job asks for (placement.nodes)")
        elif node.facts.is_full:
            node.reasons.append("takes no updates: its arena has no room for a branch beside what it has of the round")
        elif not node.takes:
            have = node.facts.arena_bytes
            what = "a leaf and its path with the top" if node.has_model else "a leaf and its path"
            node.reasons.append(f"takes no updates: {what} need {need} bytes, the arena has {have}")
    if holder is None:
        return
    others = [node for node in nodes if node.takes and node is not holder]
    remote = holder.remote_max(holder.request.updates, len(others)) if holder.takes else -1
    without = holder.remote_max(0, len(others))
    if holder.takes and without > remote + 1:
        holder.takes = False
        holder.reasons.append(f"takes no updates: so its arena has room for the partials of {without} other nodes")
    room = without if not holder.takes else remote
    others.sort(key=lambda node: -node.facts.residual)
    for node in others[max(room, 0) :]:
        node.takes = False
        node.reasons.append(f"takes no updates: the top's arena on {holder.name} has no room for one more partial")


def _check(request: PlanRequest) -> None:
    if not 1 <= request.updates <= CLIENTS_MAX:
        raise LocalFault(f"a round counts 1 to {CLIENTS_MAX} updates, not {request.updates}")
    if not 1 <= len(request.nodes) <= NODES_MAX:
        raise LocalFault(f"a plan takes 1 to {NODES_MAX} nodes, not {len(request.nodes)}")
    if request.fan_in < 1 or request.middle_fan_in < 2:
        raise LocalFault(f"fan-in {request.fan_in} and {request.middle_fan_in} (of a middle) build no tree")
    if not any(facts.takes_updates for facts in request.nodes):
        raise Refused(
            "no-node", "placement.nodes", "no node that takes updates now has the labels that the job asks for"
        )
    if len({facts.node for facts in request.nodes}) < len(request.nodes):
        raise LocalFault("two nodes have the same name")
    for facts in request.nodes:
        if not math.isfinite(facts.residual):
            raise LocalFault(f"the residual capacity of node {facts.node} is {facts.residual}")


def _too_large(nodes: Sequence[_Node], need: int, what: str) -> Refused:
    widest = max(nodes, key=lambda node: node.facts.arena_bytes)
    r = widest.request
    which = "that of the node with the model" if widest.has_model and len(nodes) == 1 else "the largest"
    return Refused(
        "too-large",
        "model",
        f"{what} needs {need} bytes of an arena (model {r.model_bytes}, partial {r.partial_bytes}, fan-in {r.fan_in}), "
        f"{which}, on node {widest.name}, has {widest.facts.arena_bytes} for this job; start it with a larger "
        "arena (lifl up --arena-bytes) or lower aggregation.fan_in",
    )


def _place(request: PlanRequest, nodes: list[_Node], holder: _Node | None) -> None:
    """Give the updates to nodes."""
    asked = request.updates
    # Of equal nodes the first takes it: the one that has the model need not be sent it.
    takers = [node for node in nodes if node.takes]
    takers.sort(key=lambda node: node.name != request.model_node)
    if not takers:
        if holder is not None and holder.remote_max(0, 1) < 1:
            raise _too_large([holder], holder.need_bytes(0, 0, 1, True), "the top")
        fit = [node for node in nodes if node.facts.takes_updates and not node.facts.is_full]
        if not fit:
            text = "no node has room for a branch beside what it has of the round; start one with a larger arena"
            raise Refused("no-room", "node", f"{text} (lifl up --arena-bytes)")
        raise _too_large(fit, min(node.leaf_bytes(asked) for node in fit), "a leaf and its path")
    demand = max(node.demand for node in takers)
    units = {node.name: math.floor(node.facts.residual * UNITS_PER_UPDATE) for node in takers}
    for node in takers:
        if request.arrival_s:
            received = math.floor(request.arrival_s * node.facts.incoming(request.costs)[0] / request.model_bytes)
            units[node.name] = min(units[node.name], received * demand)
    able = len(takers)
    if request.policy == "best-fit":
        takers = _narrow(takers, units, demand, asked)
    fitted, spilled = Placer(request.policy, [units[node.name] for node in takers]).place(demand, asked)
    beyond = spilled.counts() if spilled else [0] * len(takers)
    for node, fits, spills in zip(takers, fitted.counts(), beyond, strict=True):
        node.updates, node.spilled = fits + spills, spills
        if node.updates:
            node.reasons.append(
                f"takes {node.updates} of {asked} updates by {request.policy} among {len(takers)} of {able} nodes: "
                f"it has room for {max(0, units[node.name]) / demand:.1f}"
            )
        if spills:
            node.reasons.append(f"{spills} of these fit no node; they spill to the least loaded")


def _narrow(takers: list[_Node], units: dict[str, int], demand: int, asked: int) -> list[_Node]:
    """Return the fewest nodes that hold all that is asked, the one that has the model (and so the top) first."""
    used = [node for node in takers if node.has_model]
    left = asked - sum(max(0, units[node.name] // demand) for node in used)
    if left <= 0:
        return used
    others = [node for node in takers if not node.has_model]
    chosen = {others[i].name for i in fewest([units[node.name] for node in others], demand, left)}
    return [node for node in takers if node.has_model or node.name in chosen]


def _top_with_model(nodes: list[_Node], holder: _Node) -> _Node:
    """Put the top on the node that has the model; return it."""
    working = sum(node.works for node in nodes)
    holder.is_top, holder.remote = True, working - holder.works
    need = holder.need_bytes(min(1, holder.leaf_tasks), holder.updates, holder.inputs, True)
    if need > holder.facts.arena_bytes:
        raise _too_large([holder], need, f"the top over the partials of {working} nodes")
    bytes_here = holder.top_bytes(working)
    reason = f"has the top: the model, the rule's state and the checkpoints are here; {bytes_here} bytes come for it"
    others = [node for node in nodes if node is not holder]
    if others:
        best, name = min((node.top_bytes(working), node.name) for node in others)
        reason += f", a top on {name}, the best other node, would move {best}"
    holder.reasons.append(reason)
    return holder


def _choose_top(nodes: list[_Node]) -> _Node:
    """Put the top on the node with most bytes of partials whose arena holds them all and two models; return it."""
    working = sum(node.works for node in nodes)
    refused: list[tuple[_Node, int]] = []

    def order(node: _Node) -> tuple[int, bool, str]:
        return -node.inputs, node.name != node.request.model_node, node.name

    for node in sorted(nodes, key=order):
        remote = working - node.works
        leaves = min(1, node.leaf_tasks)
        need = node.need_bytes(leaves, node.updates, node.inputs + remote, True)
        if need > node.facts.arena_bytes:
            refused.append((node, need))
            node.reasons.append(f"cannot be the top: that needs {need} bytes of its {node.facts.arena_bytes}")
            continue
        here = node.inputs
        node.is_top, node.remote = True, remote
        size = here * node.request.partial_bytes
        most = "the most that any node has" if not refused else "the most of the nodes whose arena has room"
        node.reasons.append(f"has the top: {here} partials ({size} bytes) are or will be here, {most}")
        return node
    raise _too_large([node for node, _need in refused], min(need for _node, need in refused), "the top")


def _choose_leaves(node: _Node) -> None:
    """Give the node ceil(Q / fan_in) leaves, or as many of them as the arena holds."""
    if not node.updates:
        return
    wanted = node.leaves_wanted()
    low, high = 1, wanted  # the need grows with the leaves
    while low < high:
        middle = (low + high + 1) // 2
        if node.need_bytes(middle, node.updates, node.inputs, node.is_top) <= node.facts.arena_bytes:
            low = middle
        else:
            high = middle - 1
    node.leaves = low
    queue = node.queue_units / UNITS_PER_UPDATE
    bound = f", {wanted} wanted but the arena holds no more" if low < wanted else ""
    if wanted == node.facts.workers_max:
        bound += f", {wanted} workers at most"
    node.reasons.append(
        f"{low} leaves at a time for {node.leaf_tasks} leaf tasks: "
        f"Q = {queue:.2f} at fan-in {node.request.fan_in}{bound}"
    )


def _explain_rest(nodes: list[_Node], top: _Node) -> None:
    for node in nodes:
        if node.has_middle:
            node.reasons.append(f"has a middle: {node.inputs} partials come together here")
        rate, what = node.facts.incoming(node.request.costs)
        if node.updates and node.facts.reached != "local":
            node.reasons.append(
                f"its updates come in within {node.received_s():.3f} s: {what} {rate:.3g} bytes a second"
            )
        if node is top and node.remote and node.facts.reached != "local":
            node.reasons.append(f"its link has {node.remote} partials to carry, too: {node.linked_s():.3f} s in all")
        if node.works and node is not top:
            node.reasons.append(f"sends one partial of {node.request.partial_bytes} bytes to the top on {top.name}")
        if not node.reasons:
            node.reasons.append("is not needed")


def _transfers(request: PlanRequest, nodes: list[_Node], top: _Node) -> tuple[Transfer, ...]:
    """Return what goes between nodes: the model to each that takes updates, one partial from each to the top."""
    source = next((node for node in nodes if node.has_model), None)
    found = []
    if source is not None:
        for node in nodes:
            if node.updates and node is not source:
                found.append(Transfer(source.name, node.name, "model", request.model_bytes))
    for node in nodes:
        if node.works and node is not top:
            found.append(Transfer(node.name, top.name, "partial", request.partial_bytes))
    return tuple(found)


def _completion_s(request: PlanRequest, nodes: list[_Node], top: _Node) -> float:
    """Return when the model is sealed.

    Partials of other nodes come one after the other over the top's link, which its own clients' updates need, too.
    """
    costs = request.costs
    received = 0.0
    for ready in sorted(node.ready_s() for node in nodes if node.works and node is not top):
        received = max(received, ready) + request.partial_bytes / top.facts.between(costs)
    if top.remote:
        received = max(received, top.linked_s())
    own = 1 if top.leaf_tasks else 0
    merges = 0 if not top.remote else top.remote + own if request.timing == "lazy" else 1
    folded_bytes = merges * request.partial_bytes + request.partial_bytes + request.model_bytes
    return max(received, top.ready_s()) + folded_bytes / costs.fold_bytes_per_s
