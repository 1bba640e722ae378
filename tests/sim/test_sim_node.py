"""A hundred random lives of a node, and of a cluster of three whose coordinator stays, or moves: see `simulator.py`.

A failing seed is named.

`make sim-long LIVES=100000` lives more of them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from lives import STEPS, live, make
from sim_gateway import Gateways
from sim_host import Host

from lifl.core.config.job import CheckpointSection
from lifl.core.config.keep import KeepSection
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm

CHUNK = 50
LIVES = 100
DRAINED = 50
STALE = {"a leader that stands still is stale", "Accepted is lost", "Committed is lost", "Selected is lost"}
STALLED = 100
KEPT = 12
CHANGED = 15
RETURNED = 12


@pytest.mark.parametrize(("hosts", "moves"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("first", range(0, LIVES, CHUNK))
def test_random_lives(first: int, hosts: int, moves: bool) -> None:
    for seed in range(first, first + CHUNK):
        live(seed, hosts, moves)


@pytest.mark.parametrize("first", range(0, DRAINED, CHUNK))
def test_random_lives_of_nodes_that_are_drained_and_taken_back(first: int) -> None:
    """Nothing new goes to them, nothing that they have is lost, and all jobs end."""
    for seed in range(first, first + CHUNK):
        live(seed, 3, moves=bool(seed % 2), drains=True)


@pytest.mark.parametrize(("hosts", "moves"), [(1, False), (3, True)])
@pytest.mark.parametrize("first", range(0, STALLED, CHUNK))
def test_random_lives_of_nodes_that_stand_still_and_clients_that_leave_unnoticed(
    first: int, hosts: int, moves: bool
) -> None:
    """What one says that wakes up late harms nothing, nor what is asked twice because its answer was lost."""
    for seed in range(first, first + CHUNK):
        live(seed, hosts, moves, stalls=True)


def test_random_lives_whose_models_go_as_soon_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever dies, what the next life goes on from is there."""
    monkeypatch.setattr(CheckpointSection, "kept", property(lambda _section: KeepSection(last=1)))
    removed = 0
    for seed in range(KEPT):
        removed += len(live(seed, 3, moves=bool(seed % 2)).disk.removed)
    assert removed, "nothing was removed"


@pytest.mark.parametrize(("hosts", "moves"), [(1, False), (3, False), (3, True)])
def test_random_lives_of_jobs_that_are_paused_and_changed(hosts: int, moves: bool) -> None:
    """No round of a paused one opens; all end, with as many rounds as they were given last."""
    for seed in range(CHANGED):
        live(seed, hosts, moves, changes=True)


@pytest.mark.parametrize(("hosts", "moves"), [(1, False), (3, True)])
def test_random_lives_of_jobs_that_come_back_when_they_are_over(hosts: int, moves: bool) -> None:
    """They are resumed, or removed and submitted anew; those that stand in line begin in their order."""
    found: Counter[str] = Counter()
    for seed in range(RETURNED):
        cluster = live(seed, hosts, moves, returns=True)
        rows = [fields for job in cluster.jobs.values() for _status, fields in job.rounds.values()]
        found.update(cluster.returns.done)
        found.update(evaluated=sum("evaluation" in fields for fields in rows), gone=len(cluster.disk.removed))
    assert all(found[each] for each in ("resumed", "removed", "replaced", "in line", "evaluated", "gone")), found


def test_in_some_lives_who_coordinates_stands_still_and_another_goes_on() -> None:
    """What the lives with stalls are to prove holds only if that happens in them, and answers are lost."""
    found = set()

    class Noted(Gateways):
        def effect(self, host: Host, effect: Any) -> None:
            if isinstance(effect, gm.TellClient) and effect.conn in host.ended:
                found.add(f"{type(cm.unpacked(effect.message)).__name__} is lost")
            super().effect(host, effect)

    for seed in range(STALLED):
        cluster = make(seed, 3, moves=True, stalls=True)
        cluster.gateways = Noted(cluster)
        while cluster.steps < STEPS and not cluster.over:
            sleeps = [host for host in cluster.others() if cluster.asleep(host) and host.engine is not None]
            if any(host.engine.coordinator is not None for host in sleeps):
                found.add("a leader that stands still is stale")
            if not cluster.step():
                break
        if found >= STALE:
            return
    raise AssertionError(f"not all came: {found}")


def test_in_some_lives_a_top_is_told_of_updates_on_their_way() -> None:
    """What the random lives are to prove of that holds only if it happens in them."""

    def told(seed: int) -> bool:
        cluster = make(seed, 1 + 2 * (seed % 2))
        cluster.run(STEPS)
        return cluster.workers.announced > 0

    assert any(told(seed) for seed in range(LIVES))
