"""`validate` finds what cannot be: each book is falsified once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from coordinator_scene import CLOSED, HOME, OPEN, B, Scene

from lifl.core.coordinator.branch_record import BranchRecord, BranchState
from lifl.core.coordinator.presence import Connection
from lifl.core.coordinator.round import Phase, Round
from lifl.core.errors import LocalFault
from lifl.core.protocol.contribution import Contribution


def scene_of_all() -> Scene:
    """One with something in each book."""
    scene = Scene(goal=5, nodes=(HOME, B), rounds=9)
    scene.here("c1", "c2", "c3")
    branches = [(HOME, 2, OPEN), (B, 2, OPEN), (B, 1, CLOSED)]
    round_ = scene.has_round(branches=branches, accepted={"c1": 0, "c4": 2}, granted={"c2": 1}, number=4)
    round_.selected["c3"] = None
    round_.assign("c3", B)
    scene.job.rounds.committed, scene.job.rounds.counted = 2, {2: frozenset({"c1"})}
    scene.is_saving(3, ["c1"])
    scene.coordinator.validate()
    return scene


BREAKS: dict[str, Callable[[Scene, Round], object]] = {
    "stands under the number": lambda s, r: setattr(s.coordinator.nodes.get(B), "number", 9),
    "own node is not in its books": lambda s, r: setattr(s.coordinator.nodes.get(HOME), "known", False),
    "stands under Connection": lambda s, r: s.coordinator.presence._of["j"].pop("c1"),
    "no client takes part": lambda s, r: s.coordinator.presence._jobs.update({Connection(B, 9): {}}),
    "those that run are": lambda s, r: s.coordinator.running.clear(),
    "is cancelled, and has": lambda s, r: setattr(s.job, "status", "cancelled"),
    "before its model is there": lambda s, r: setattr(s.job, "status", "loading"),
    "runs, and is saving": lambda s, r: setattr(r, "phase", Phase.SAVING),
    "is being saved, and is waiting": lambda s, r: setattr(s.job.rounds.saving[0], "phase", Phase.WAITING),
    "rounds behind the committed": lambda s, r: setattr(r, "number", 5),
    "the last committed is 2": lambda s, r: s.job.rounds.counted.update({3: frozenset()}),
    "clients of branch": lambda s, r: r._placed[1].clear(),
    "awaited at the nodes": lambda s, r: r._awaited.clear(),
    "granted and accepted at once": lambda s, r: r.granted.update(c1=Contribution("c1", 1.0)),
    "placed but neither": lambda s, r: r.granted.clear(),
    "not selected": lambda s, r: r.selected.clear(),
    "stands under 1 of": lambda s, r: setattr(r.branches[1], "number", 7),
    "stands under 2 of 2": lambda s, r: setattr(r, "next_branch", 2),
    "(dropped) stands under": lambda s, r: setattr(r.branches[1], "state", BranchState.DROPPED),
    "1 placed, it takes 0 of 2": lambda s, r: setattr(r.branches[1], "updates", 0),
    "2 of 1": lambda s, r: setattr(r.branches[1], "updates_max", 1),
    "more are accepted in it": lambda s, r: setattr(r.branches[2], "updates", 0),
    "the branches by node": lambda s, r: r._at.pop(B),
    "which are not there": lambda s, r: r.branches.pop(2),
    "the top takes 1": lambda s, r: setattr(r, "others_max", 1),
}


def test_a_branch_is_not_added_twice() -> None:
    scene = scene_of_all()
    with pytest.raises(LocalFault, match="round 4 has a branch 1 already"):
        scene.round.add(BranchRecord(1, B, 1))
    scene.coordinator.validate()


@pytest.mark.parametrize("what", BREAKS)
def test_books_that_differ_are_found(what: str) -> None:
    scene = scene_of_all()
    BREAKS[what](scene, scene.round)
    with pytest.raises(LocalFault) as fault:
        scene.coordinator.validate()
    assert what in str(fault.value)
