"""A sample of what `make chaos` does by hand: each fault of a process or a node at some failpoint, under one job."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos import ALL, FAULTS, POINTS, ROLES, Trial, bad, make_all, trials
from netns import Keeper, SharedCluster, kept
from stops import Stops

SAMPLE = (
    Trial("process killed", "agent", "worker.seal.after"),
    Trial("process killed", "coordinator", "gateway.ack.before"),
    Trial("node killed", "coordinator", "lifld.txn.after"),
)


@pytest.fixture(scope="module")
def stops() -> Iterator[Stops]:
    with Stops(*{trial.point for trial in SAMPLE}) as made:
        yield made


@pytest.fixture(scope="module")
def keeper(stops: Stops) -> Iterator[Keeper]:
    with kept(3, "--redirector", "unix", points=stops.variable, shared=True) as made:
        yield made


def test_nothing_is_lost_or_doubled_wherever_they_die(keeper: Keeper, stops: Stops) -> None:
    with keeper.whole(lambda: 0) as cluster:
        assert isinstance(cluster, SharedCluster)
        lines = make_all(cluster, stops, "chaos", SAMPLE, disk=False, jobs=1)
    assert [line["recover_s"] is not None for line in lines] == [True] * len(SAMPLE), "somebody came to each point"
    assert bad(lines) == []
    assert sum(line["counted"] for line in lines) >= sum(line["accepted"] for line in lines) > 0
    assert [line["unseen"] for line in lines] == [0] * len(SAMPLE)


def test_each_step_has_both_sides_in_each_role_under_each_fault() -> None:
    one_side = {"journal.write", "worker.start", "worker.done"}
    assert len(ALL) == len(set(ALL)) == 2 * sum(map(len, POINTS.values())) - len(one_side)
    assert len(trials()) == len(ALL) * len(ROLES) * len(FAULTS)
