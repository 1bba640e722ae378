"""What a soak holds to be growing, and what not."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from soak import KINDS, ONCE, SPARE, WARM_LAPS, Deck, grown
from stretch import ALLOWED, EDGE, WARM, Edges, edges, faults, risen

FLAT = {"pss_bytes": 100e6, "descriptors": 80.0, "processes": 4.0, "bpf": 6.0, "round_s": 0.4}
LAPS = 20


def laps(**slopes: float) -> list[dict[str, float]]:
    rng, found = random.Random(1), []
    for number in range(LAPS):
        lap = {kind: value * rng.uniform(0.97, 1.03) for kind, value in FLAT.items()} | {"processes": 4.0, "bpf": 6.0}
        lap |= {kind: lap[kind] + slope * number for kind, slope in slopes.items() if kind in lap}
        rows = slopes.get("database_bytes", 3000.0)
        lap["led"] = 0.0
        found.append(lap | {"rounds": 10.0, "database_bytes": 50_000.0 + rows * 10 * number})
    for lap in found[:WARM_LAPS]:
        lap["pss_bytes"] /= 2
    return found


def test_noise_is_no_growth_nor_what_fills_at_first() -> None:
    assert grown(laps()) == []


@pytest.mark.parametrize(
    ("kind", "slope"),
    [("pss_bytes", 3e6), ("descriptors", 2.0), ("processes", 0.2), ("bpf", 0.2), ("round_s", 0.05)],
)
def test_what_grows_from_lap_to_lap_is_found(kind: str, slope: float) -> None:
    (found,) = grown(laps(**{kind: slope}))
    assert found.startswith(f"{kind} grows by ") and kind in SPARE


def once(at: int, nbytes: float, **slopes: float) -> list[dict[str, float]]:
    """Laps from one of which on the node has coordinated, and takes so much more."""
    found = laps(**slopes)
    for lap in found[at:]:
        lap["led"] = 1.0
        lap["pss_bytes"] += nbytes
    return found


@pytest.mark.parametrize("at", [3, 10, 17])
def test_what_a_node_takes_once_to_coordinate_is_no_growth(at: int) -> None:
    assert grown(once(at, ONCE["led"])) == []


@pytest.mark.parametrize(("nbytes", "slope"), [(2.5 * ONCE["led"], 0.0), (ONCE["led"], 3e6), (0.0, 3e6)])
def test_too_much_of_that_is_and_so_is_what_grows_beside(nbytes: float, slope: float) -> None:
    (found,) = grown(once(10, nbytes, pss_bytes=slope))
    assert found.startswith("pss_bytes grows by ")


def test_databases_may_have_rows_and_no_more() -> None:
    (found,) = grown(laps(database_bytes=30_000.0))
    assert found.startswith("the databases grow by ")


def test_each_kind_is_drawn_once_before_one_is_drawn_twice() -> None:
    deck = Deck(KINDS, random.Random(1))
    laps = [[deck.draw() for _ in KINDS] for _ in range(3)]
    assert all(sorted(lap) == sorted(KINDS) for lap in laps)
    assert len({*map(tuple, laps)}) == len(laps), "the order is the same each time"


def rounds(slope: float, level: float = 0.4) -> list[float]:
    """Figures of rounds of a stretch, the warm-up of which is twice as slow, and each tenth."""
    rng = random.Random(1)
    values = [level * rng.uniform(0.8, 1.2) * (1 + (i < WARM)) * (1 + (not i % 10)) for i in range(WARM + 1000)]
    return [value + slope * number for number, value in enumerate(values)]


def test_single_slow_rounds_are_no_slowdown_nor_is_the_warm_up() -> None:
    assert not risen("round_s", edges(rounds(0.0), WARM, EDGE))


def test_a_slowdown_of_a_third_of_a_millisecond_a_round_is_found() -> None:
    found = {"round_s": edges(rounds(0.0003), WARM, EDGE)}
    (said,) = faults(found, Counter())
    assert said.startswith("round_s rises from ")


@pytest.mark.parametrize("kind", ALLOWED)
def test_a_figure_may_rise_by_what_is_allowed_and_no_more(kind: str) -> None:
    share, spare = ALLOWED[kind]
    most = 1000 * (1 + share) + spare
    assert not risen(kind, Edges(1000, most))
    assert faults({f"agent {kind}": Edges(1000, most + 0.001)}, Counter())


def test_updates_of_a_stretch_that_are_lost_or_were_never_looked_at_are_told() -> None:
    assert len(faults({}, Counter(lost=1, doubled=2, unseen=3))) == 3
