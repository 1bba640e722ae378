"""`lifl drain`: a node gets nothing new, finishes what it has, and sends its clients to others; then it may go down.

The wish lives as long as that life of the node.  Both sides know it: the coordinator plans without the node, the agent
takes no clients, and tells a coordinator that has not heard of it (`Coordinator._inventory`).  Of one that has, the
word counts, since an order to a node that is not connected is lost.
"""

from __future__ import annotations

from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.coordinator import Coordinator, move_work
from lifl.core.coordinator.nodes import Node
from lifl.core.errors import Refused
from lifl.core.protocol import commands as o
from lifl.core.protocol.cluster import DRAIN


def check(coordinator: Coordinator, number: int) -> Node:
    """Return the node to drain.  Raise `Refused` when there is none, or it cannot be."""
    node = coordinator.nodes.get(number)
    if node is None:
        raise Refused("unknown-node", "node", f"node {number:016x} takes no part now; `lifl nodes` lists those that do")
    if number == coordinator.nodes.home:
        text = (
            f"node {node.name} coordinates, and without a store (lifl up --store) no other node can: `lifl down` there"
        )
        told = "commits the rounds that are complete; the running one goes on after its next `lifl up`"
        raise Refused("coordinator", "node", f"{text} {told}, and what other nodes have of it counts")
    if DRAIN not in node.knows:
        text = (
            f"node {node.name} is of an earlier version, which cannot be drained: `lifl down` there moves its work, too"
        )
        raise Refused("earlier-version", "node", text)
    return node


def drain(coordinator: Coordinator, number: int, undo: bool) -> None:
    """Let a node get nothing new, and its clients go; or (`undo`) take part again.  Raise `Refused` as `check` does."""
    node = check(coordinator, number)
    node.drains = not undo
    coordinator._turn.order(number, o.DrainNode(undo))
    if undo:
        coordinator._try_open()
    else:
        move_work(coordinator, number)


def state_of(coordinator: Coordinator, number: int) -> str:
    """Return ``draining`` while a node that is drained has clients, or updates that the top lacks; then ``drained``.

    Empty: it is not drained.
    """
    node = coordinator.nodes.get(number)
    if node is None or not node.drains:
        return ""
    rounds = (round_ for job in coordinator.running.values() for round_ in job.rounds.live())
    records = (record for round_ in rounds for record in round_.branches.values() if record.node == number)
    left = any(record.state is not BranchState.ARRIVED and (record.updates or not record.closed) for record in records)
    return "draining" if left or coordinator.presence.at(number) else "drained"
