"""What the coordinator knows of one branch: the life of it is a literal table."""

from __future__ import annotations

from enum import Enum
from typing import Any

from lifl.core.errors import LocalFault


class BranchState(Enum):
    """The life of a branch in the coordinator's books; `TRANSITIONS` is the whole of it."""

    OPEN = "open"  # it takes updates
    CLOSED = "closed"  # it takes no more: its partial, if it has updates, is on its way to the top
    RECOVERING = "recovering"  # coordinator or node has started again; the node has not said yet what it has
    FORGETTING = "forgetting"  # given up; the top is asked whether it has the partial
    ARRIVED = "arrived"  # the top has its partial: what becomes of its node does not matter any more
    DROPPED = "dropped"  # no branch of the round any more


_S = BranchState
TRANSITIONS: dict[BranchState, frozenset[BranchState]] = {
    _S.OPEN: frozenset({_S.CLOSED, _S.RECOVERING, _S.FORGETTING, _S.ARRIVED, _S.DROPPED}),
    _S.CLOSED: frozenset({_S.RECOVERING, _S.FORGETTING, _S.ARRIVED}),
    _S.RECOVERING: frozenset({_S.OPEN, _S.CLOSED, _S.FORGETTING, _S.ARRIVED}),
    _S.FORGETTING: frozenset({_S.ARRIVED, _S.DROPPED}),
    _S.ARRIVED: frozenset(),
    _S.DROPPED: frozenset(),
}


class BranchRecord:
    """A branch of a round: `updates` are what it takes, of a closed one what it has."""

    def __init__(self, number: int, node: int, updates: int, state: BranchState = BranchState.OPEN) -> None:
        self.number = number
        self.node = node
        self.updates = updates
        self.updates_max = updates  # what its tree has leaves for
        self.state = state
        self.cost: dict[str, Any] = {}
        self.opened_at_s: float | None = None  # None: with its round

    @property
    def open(self) -> bool:
        """True while it takes updates."""
        return self.state is BranchState.OPEN

    @property
    def closed(self) -> bool:
        """True when what is in it is known, and will not change."""
        return self.state in (BranchState.CLOSED, BranchState.ARRIVED)

    @property
    def arrived(self) -> bool:
        """True when the top has its partial."""
        return self.state is BranchState.ARRIVED

    @property
    def sends(self) -> bool:
        """True unless it is closed with nothing in it: then no partial comes of it."""
        return not self.closed or self.updates > 0

    def move(self, state: BranchState) -> None:
        """Raise `LocalFault`, and change nothing, when the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise LocalFault(f"branch {self.number} cannot go from {self.state.value} to {state.value}")
        self.state = state
