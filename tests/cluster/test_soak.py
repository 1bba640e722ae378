"""What a soak holds to be growing, and what not."""

from __future__ import annotations

import random

import pytest
from soak import SPARE, WARM_LAPS, grown

FLAT = {"pss_bytes": 100e6, "descriptors": 80.0, "processes": 4.0, "bpf": 6.0, "round_s": 0.4}
LAPS = 20


def laps(**slopes: float) -> list[dict[str, float]]:
    rng, found = random.Random(1), []
    for number in range(LAPS):
        lap = {kind: value * rng.uniform(0.97, 1.03) for kind, value in FLAT.items()} | {"processes": 4.0, "bpf": 6.0}
        lap |= {kind: lap[kind] + slope * number for kind, slope in slopes.items() if kind in lap}
        rows = slopes.get("database_bytes", 3000.0)
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


def test_databases_may_have_rows_and_no_more() -> None:
    (found,) = grown(laps(database_bytes=30_000.0))
    assert found.startswith("the databases grow by ")
