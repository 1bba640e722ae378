"""kill -9 at the named points between nodes: on both sides of what is sent, and of what is sealed for another node."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from fleet import OneHot, Trainer, submit
from netns import Cluster, Keeper, kept
from stops import Stops

from lifl.client import Round

N = 6
ROUNDS = 2
NUMBERS = count(1)
POINTS = (
    "gateway.carry.before",
    "gateway.carry.after",
    "gateway.partial_seal.before",
    "gateway.partial_seal.after",
    "gateway.model_seal.before",
    "gateway.model_seal.after",
    "lifld.order.before",
    "lifld.order.after",
    "lifld.report.before",
    "lifld.report.after",
)


@pytest.fixture(scope="module")
def stops() -> Iterator[Stops]:
    with Stops(*POINTS) as made:
        yield made


@pytest.fixture(scope="module")
def keeper(stops: Stops) -> Iterator[Keeper]:
    with kept(3, "--redirector", "unix", points=stops.variable) as made:
        yield made


@pytest.mark.parametrize("point", POINTS)
def test_who_comes_there_dies(three: Cluster, stops: Stops, point: str) -> None:
    """In the first round, and all take part again in the second."""
    oracle, job = OneHot(N), f"j{next(NUMBERS)}"
    asked_first = (
        "model" in point
    )  # the model is fetched when a client asks for it; the rest comes with the last update

    def play(trainer: Trainer, round_: Round) -> None:
        if asked_first:
            assert (round_.model["w"] == 0).all() or round_.number > 1
        trainer.fleet.submit(trainer, round_)

    submit(three.coordinator, job, oracle.model(), job__rounds=ROUNDS, aggregation__placement="worst-fit")
    watch = three.watch(job)
    if asked_first:
        death = stops.hold(point)
    with three.fleet(job, N, oracle.update, play=play, held=[(0, 1)]) as team:
        if not asked_first:
            watch.wait("update.accepted", N - 1)
            death = stops.hold(point)
        team.release()
        visit = death.reached()
        victims = [machine for machine in three.machines if machine.pid == visit.pid]
        visit.kill()
        for machine in victims:  # else it was a gateway, which lifld starts again
            machine.up()
        lines = three.finished(job, team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * ROUNDS
    assert [line["attempt"] for line in lines] == [1] * ROUNDS, "the round goes on: what is not lost is kept"
