"""A job goes on while a node hangs or is cut off, however long that lasts: nothing is lost, doubled or waited for.

How long it takes is measured by hand (`gaps.py`, docs/failures.md); here the bound is one that only a failing test
comes to.
"""

from __future__ import annotations

import pytest
from gaps import FAULTS, measure
from netns import Cluster

GAP_MAX_S = 60.0
FELT = [
    "SIGSTOP of `lifld`",
    "SIGSTOP of the gateway",
    "SIGSTOP of its workers",
    "cut off from clients",
    "cut off from the other nodes",
]


@pytest.mark.parametrize("number", range(len(FELT)), ids=[name.replace("`", "").replace(" ", "-") for name in FELT])
def test_rounds_are_committed_while_it_lasts(three: Cluster, number: int) -> None:
    found = measure(three, f"g{number}", FAULTS[FELT[number]])
    print(f"{FELT[number]}: {found}")
    assert found.gap_s < GAP_MAX_S
    assert (found.lost, found.attempts_failed) == (0, 0)
