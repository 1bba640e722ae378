"""The simulator can fail: each check finds the bug that is planted for it, within a bounded number of lives.

A planted bug may break other things first; only a life that its own check ends counts.
"""

from __future__ import annotations

import pytest
from lives import MODES, STEPS, make
from plants import PLANTS, Plant
from sim_checks import CHECKS, Broken


def test_each_check_has_a_planted_bug() -> None:
    assert {plant.check for plant in PLANTS} == CHECKS.keys()


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.bug.__name__ + "-stalls" * plant.stalls)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        plant.bug(patch)
        seeds = range(plant.begin, plant.begin + plant.lives)
        found = next((seed for seed in seeds if broken(seed, plant) == plant.check), None)
    assert found is not None, f"{plant.lives} lives did not break {plant.check!r}"
    print(f"seed {found} found it")
    assert not broken(found, plant), "it was the planted bug that it found"


def broken(seed: int, plant: Plant) -> str:
    """Return the name of the check that a life broke, or what else ended it; nothing when all was well."""
    try:
        modes = {name: getattr(plant, name) for name in MODES}
        make(seed, plant.hosts, plant.style, plant.durable, **modes).run(STEPS)
    except Broken as error:
        return error.name
    except Exception as error:  # noqa: BLE001 - a planted bug may show in any way
        return repr(error)
    return ""
