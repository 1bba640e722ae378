"""Wall clocks that are set an hour forward or back, on any node, at any time: no lease, round or commit minds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

import pytest
from clocks import Clock
from fleet import OneHot, ask, submit, until
from netns import SharedCluster, cluster

from lifl.core.protocol import cli as om

N = 6
HOUR_S = 3600
NUMBERS = count(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clocks")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[tuple[SharedCluster, dict[str, Clock]]]:
    """A cluster, and the clock of each of its nodes by the node's host."""
    with cluster(3, "--redirector", "unix", shared=True) as made:
        assert isinstance(made, SharedCluster)
        clocks = {machine.host.name: Clock(folder, machine.host.name) for machine in made.machines}
        for machine in made.machines:
            machine.down()
            machine.env = clocks[machine.host.name].env
        made.up()
        yield made, clocks


@pytest.mark.parametrize(
    ("coordinator_s", "agents_s"), [(HOUR_S, (0, 0)), (-HOUR_S, (0, HOUR_S)), (0, (HOUR_S, -HOUR_S))]
)
def test_a_round_a_term_and_a_change_of_the_coordinator_do_not_mind(
    shared: tuple[SharedCluster, dict[str, Clock]], coordinator_s: int, agents_s: tuple[int, int]
) -> None:
    made, clocks = shared
    job, oracle = f"c{next(NUMBERS)}", OneHot(N)
    first = made.coordinator
    term = first.store()["term"]
    submit(first, job, oracle.model(), job__rounds=3, **made.job(job))
    watch = made.watch(job)
    held = [(index, 1) for index in range(3, N)] + [(0, 2), (0, 3)]
    with made.fleet(job, N, oracle.update, held=held) as team:
        watch.wait("update.accepted", 3)
        for machine, ahead_s in zip([first, *made.agents], (coordinator_s, *agents_s), strict=True):
            clocks[machine.host.name].set(ahead_s)
        team.release(*range(3, N))
        watch.wait("round.committed", 1)
        top = first.snapshot()
        saved_unix_s = ask(first, om.JobStatus(job))["rounds"][-1]["committed_unix_s"]
        assert saved_unix_s - time.time() == pytest.approx(coordinator_s, abs=120), "its clock was not set"
        ages_s = [top["node"]["uptime_s"], next(row for row in top["nodes"] if row["coordinator"])["since_s"]]
        assert all(0 < age_s < HOUR_S for age_s in ages_s), ages_s
        assert first.store()["term"] == term, "a clock that was set cost the coordinator its term"
        first.kill()
        second = made.next_coordinator(first)
        first.up()
        for clock, back_s in zip(clocks.values(), cycle((-HOUR_S, 0, HOUR_S)), strict=False):
            clock.set(back_s)
        team.release()
        until("the end", lambda: ask(second, om.JobStatus(job))["job"]["committed"] == 3)
        lines = made.finished(job, team, oracle)
    assert [(line["attempt"], line["receipt"]["counted"]) for line in lines] == [(1, N)] * 3
    for clock in clocks.values():
        clock.set(0)
    made.settled()
    made.history()
