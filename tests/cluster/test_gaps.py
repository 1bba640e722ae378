"""A job goes on while a node hangs or is cut off, however long that lasts: nothing is lost, doubled or waited for.

How long it takes is measured by hand (`gaps.py`, docs/failures.md); here the bound is one that only a failing test
comes to.
"""

from __future__ import annotations

import pytest
from gaps import COORDINATORS, FAULTS, measure
from netns import Cluster

from lifl.core.protocol.cluster import DEAD_S

GAP_MAX_S = 60.0
FELT_S, AFTER = DEAD_S + 3.0, 8
"""Long enough to declare a node dead; and rounds after that."""
FELT = [
    "SIGSTOP of `lifld`",
    "SIGSTOP of the gateway",
    "SIGSTOP of its workers",
    "cut off from clients",
    "cut off from the other nodes",
]


COORDINATORS_FELT = ["SIGSTOP of its gateway", "SIGSTOP of its zygote", "database full for 5 s"]


@pytest.mark.parametrize("number", range(len(FELT)), ids=[name.replace("`", "").replace(" ", "-") for name in FELT])
def test_rounds_are_committed_while_it_lasts(three: Cluster, number: int) -> None:
    found = measure(three, f"g{number}", FAULTS[FELT[number]], None, FELT_S, AFTER)
    print(f"{FELT[number]}: {found}")
    assert found.gap_s < GAP_MAX_S
    assert (found.lost, found.attempts_failed) == (0, 0)


@pytest.mark.parametrize(
    "number", range(len(COORDINATORS_FELT)), ids=[name.replace(" ", "-") for name in COORDINATORS_FELT]
)
def test_rounds_are_committed_though_a_part_of_the_coordinator_fails(three: Cluster, number: int) -> None:
    found = measure(three, f"c{number}", COORDINATORS[COORDINATORS_FELT[number]], three.coordinator, FELT_S, AFTER)
    print(f"{COORDINATORS_FELT[number]}: {found}")
    assert found.gap_s < GAP_MAX_S
    assert found.lost == 0
