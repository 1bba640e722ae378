"""Lives of sessions of folds (`sim_folds.py`), and the bugs that they find when these are planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sim_checks import Broken
from sim_folds import FoldLife

from lifl.core.agent.orphans import Orphans
from lifl.core.coordinator import session
from lifl.core.coordinator.session import Session

LIVES = 30
CHANCES = (0.0, 0.01, 0.05)
STEPS = 300
Patch = pytest.MonkeyPatch


def live(seed: int) -> FoldLife:
    """Live a whole life."""
    life = FoldLife(seed, CHANCES[seed % len(CHANCES)])
    try:
        life.run(STEPS)
    except Broken as broken:
        broken.args = (f"folds, seed {seed}: {broken}",)
        raise
    return life


def test_folds_live() -> None:
    assert sum(live(seed).results for seed in range(LIVES)) > LIVES


def nobody_is_told_that_it_is_late(patch: Patch) -> None:
    """Whose update is on its way when a result is made is told nothing."""
    patch.setattr(session, "_tell_late", lambda *_: None)


def what_was_accepted_is_not_adopted(patch: Patch) -> None:
    """A fold that is opened again after a restart begins with nothing."""
    right = Session._begin_fold

    def begin(self: Session, *given: int) -> None:
        self._adopting = False
        right(self, *given)

    patch.setattr(Session, "_begin_fold", begin)


def who_is_in_what_is_adopted_is_forgotten(patch: Patch) -> None:
    """A fold that is opened again has all that was accepted, and knows of the first: who asks again is folded twice."""
    right = Orphans.take

    def take(self: Orphans, *given: Any) -> Any:
        updates, partials, members = right(self, *given)
        return updates, partials, members[:1]

    patch.setattr(Orphans, "take", take)


PLANTS: dict[Callable[[Patch], None], tuple[str, int]] = {
    nobody_is_told_that_it_is_late: ("told", 0),
    what_was_accepted_is_not_adopted: ("accepted-survives", 0),
    who_is_in_what_is_adopted_is_forgotten: ("counted-once", 0),
}
"""Which check finds a bug, and from which seed on it is looked for."""
WITHIN = 90


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_of_folds_is_found(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    check, begin = PLANTS[plant]
    with monkeypatch.context() as patch:
        plant(patch)
        found = next((seed for seed in range(begin, begin + WITHIN) if _broken(seed) == check), None)
    assert found is not None, f"{WITHIN} lives did not break {check!r}"
    print(f"seed {found} found it")
    assert not _broken(found), "it was the planted bug that it found"


def _broken(seed: int) -> str:
    try:
        live(seed)
    except Broken as broken:
        return broken.name
    except Exception as error:  # noqa: BLE001 - a planted bug may show in any way
        return repr(error)
    return ""
