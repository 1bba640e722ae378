"""A round's books: what is kept by node and by branch, against a look at all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lifl.core.config.job import SelectionSection
from lifl.core.coordinator.branch_record import BranchRecord, BranchState
from lifl.core.coordinator.round import Round

NODES, CLIENTS, BRANCHES = 4, 9, 6
STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(0, BRANCHES - 1), st.integers(0, NODES - 1), st.integers(0, 4)),
    st.tuples(st.just("discard"), st.integers(0, BRANCHES - 1)),
    st.tuples(st.just("take_out"), st.integers(0, BRANCHES - 1)),
    st.tuples(st.just("close"), st.integers(0, BRANCHES - 1)),
    st.tuples(st.just("assign"), st.integers(0, CLIENTS - 1), st.integers(0, NODES)),
    st.tuples(st.just("place"), st.integers(0, CLIENTS - 1), st.integers(0, BRANCHES - 1)),
    st.tuples(st.just("unassign"), st.integers(0, CLIENTS - 1)),
    st.tuples(st.just("remove"), st.integers(0, CLIENTS - 1)),
)


def room(round_: Round, node: int) -> int:
    """What the branches at a node can still be granted, with no other book than `branches` and `places`."""
    records = [record for record in round_.branches.values() if record.node == node and record.open]
    return sum(record.updates - list(round_.places.values()).count(record.number) for record in records)


def unclaimed(round_: Round, node: int) -> int:
    waiting = [client for client, at in round_.assigned.items() if at == node and client not in round_.places]
    return room(round_, node) - len(waiting)


def apply(round_: Round, step: tuple) -> None:
    """One step, where it can be taken."""
    kind, first, *rest = step
    client = f"c{first}"
    if kind == "add":
        if first in round_.branches:
            round_.discard(round_.branches[first])
        round_.add(BranchRecord(first, *rest))
    elif kind == "unassign":
        round_.unassign(client)
    elif kind == "remove":
        round_.remove(client)
    elif kind in ("discard", "take_out", "close") and first in round_.branches:
        record = round_.branches[first]
        if kind == "close":
            record.state = BranchState.CLOSED
        elif kind == "discard":
            round_.discard(record)
        else:
            whose = {client for client, number in round_.places.items() if number == first}
            assert set(round_.take_out(record)[0]) == whose
            assert not whose & round_.places.keys()
    elif kind == "place" and rest[0] in round_.branches:
        round_.place(client, round_.branches[rest[0]])
    elif kind == "assign" and round_.branches and client not in round_.places:
        round_.unassign(client)
        best = {node: unclaimed(round_, node) for node in round_.nodes}
        round_.assign(client, rest[0])
        at = round_.assigned[client]
        assert at in best
        if best.get(rest[0], 0) > 0:
            assert at == rest[0]  # where it is already
        elif max(best.values()) > 0:
            assert best[at] == max(best.values())


@given(st.lists(STEPS, max_size=60))
def test_the_books_by_node_and_by_branch_are_those_of_all_branches(steps: list[tuple]) -> None:
    """A book that is not kept grants more than a tree has leaves for, or sends clients where nothing is free."""
    round_ = Round(1, 1, SelectionSection(clients_per_round=CLIENTS), 0.0)
    for step in steps:
        apply(round_, step)
        assert set(round_.nodes) == {record.node for record in round_.branches.values()}
        for record in round_.branches.values():
            whose = [client for client, number in round_.places.items() if number == record.number]
            assert sorted(round_.clients_of(record)) == sorted(whose)
            assert round_.placed(record) == len(whose)
        for node in range(NODES):
            assert round_.room_at(node) == room(round_, node)
            record = round_.branch_for(node)
            if len(round_.branches) > 1:
                assert (record is not None) == any(
                    each.node == node and round_.room(each) > 0 for each in round_.branches.values()
                )
