"""The coordinator is killed, frozen, cut off or taken down in the middle of a round; etcd loses members: rounds go on.

After each test all that the cluster ever wrote is looked at in etcd's own history (`store_history.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builds import release, written_by
from fleet import OneHot, ask, submit, until
from lifl_cli.store import look
from netns import Keeper, Machine, SharedCluster, kept
from nodes import run_lifl

import lifl
from lifl.aggregator import FoldFailed
from lifl.core.protocol import cli as om

N = 9
OF_A_JOB = 5
"""Writes of a job beside its rounds': its number, that it enters the line, that it runs, its first model, its end."""
HELD = [(index, 1) for index in range(5, N)]


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with kept(3, "--redirector", "unix", shared=True) as made:
        yield made


def begin(shared: SharedCluster, job: str, oracle: OneHot, rounds: int = 2) -> Machine:
    """The job is submitted; the node that coordinates it."""
    coordinator = shared.coordinator
    submit(coordinator, job, oracle.model(), job__rounds=rounds, **shared.job(job))
    return coordinator


def committed(machine: Machine, job: str, number: int) -> None:
    until(f"round {number}", lambda: ask(machine, om.JobStatus(job))["job"]["committed"] >= number)


@pytest.mark.parametrize("accepted", [2, N - 1])
def test_the_coordinator_is_killed_in_a_round(shared: SharedCluster, job: str, accepted: int) -> None:
    oracle = OneHot(N)
    first = begin(shared, job, oracle)
    watch = shared.watch(job)
    with shared.fleet(job, N, oracle.update, held=[(i, 1) for i in range(accepted, N)]) as team:
        watch.wait("update.accepted", accepted)
        killed_s = time.monotonic()
        first.kill()
        second = shared.next_coordinator(first)
        moved_s = time.monotonic() - killed_s
        team.release()
        committed(second, job, 1)
        print(
            f"FAILOVER killed: another coordinates after {moved_s:.2f} s, commits {time.monotonic() - killed_s:.2f} s"
        )
        lines = shared.finished(job, team, oracle)
    assert [(line["attempt"], line["receipt"]["counted"]) for line in lines] == [(1, N), (1, N)]


def test_one_that_stood_still_writes_nothing_when_it_wakes_up_and_becomes_an_agent(
    shared: SharedCluster, job: str
) -> None:
    oracle = OneHot(N)
    first = begin(shared, job, oracle, rounds=3)
    watch = shared.watch(job)
    with shared.fleet(job, N, oracle.update, held=[*HELD, (0, 3)]) as team:
        watch.wait("update.accepted", 5)
        first.stop()
        second = shared.next_coordinator(first)
        team.release(*range(5, N))
        committed(second, job, 1)
        first.go_on()
        until("it is an agent", lambda: not first.store()["leads"] and first.states().get(second.name) == "alive")
        assert shared.coordinator is second
        team.release()
        lines = shared.finished(job, team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N, N, N]
    shared.settled()


def test_one_that_is_cut_off_stops_by_itself_and_what_it_has_counts(shared: SharedCluster, job: str) -> None:
    """It is cut off from the other nodes, and with its member of etcd from the others of that."""
    oracle = OneHot(N)
    first = begin(shared, job, oracle)
    watch = shared.watch(job)
    others = [machine.host for machine in shared.machines if machine is not first]
    with shared.fleet(job, N, oracle.update, held=HELD) as team:
        watch.wait("update.accepted", 5)
        for other in others:
            shared.network.cut(first.host, other)
            shared.network.cut(other, first.host)
        second = until(
            "another coordinator",
            lambda: next((m for m in shared.machines if m is not first and m.store()["leads"]), None),
        )
        until("it stops by itself", lambda: not first.store()["leads"])
        team.release()
        committed(second, job, 1)
        for other in others:
            shared.network.mend(first.host, other)
            shared.network.mend(other, first.host)
        lines = shared.finished(job, team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N, N]
    shared.settled()


def test_one_that_goes_down_hands_over_first(shared: SharedCluster, job: str) -> None:
    oracle = OneHot(N)
    first = begin(shared, job, oracle)
    watch = shared.watch(job)
    with shared.fleet(job, N, oracle.update, held=HELD) as team:
        watch.wait("update.accepted", 5)
        first.down()
        shared.next_coordinator(first)
        team.release()
        lines = shared.finished(job, team, oracle)
    assert [(line["attempt"], line["receipt"]["counted"]) for line in lines] == [(1, N), (1, N)]


def test_the_coordinator_is_drained_and_all_nodes_are_upgraded_one_by_one(
    shared: SharedCluster, job: str, next_release: Path
) -> None:
    """Each is drained, ended and started as the next release in a round of its own; the first is the one that leads.

    Updates that a drained node has accepted count, and no client is asked again.
    """
    oracle = OneHot(N)
    first = begin(shared, job, oracle, rounds=4)
    watch = shared.watch(job)
    machines = [first, *shared.agents]
    with shared.fleet(job, N, oracle.update, held=[(0, 1), (0, 2), (0, 3)]) as team:
        for number, machine in enumerate(machines, 1):
            watch.wait("update.accepted", N - 1, round=number)
            assert shared.coordinator.json("drain", machine.name)["drain"] == "drained"
            assert shared.coordinator is not machine
            machine.down()
            machine.build = next_release
            machine.up()
            shared.settled()
            watch = shared.watch(job)
            team.release_round(number)
        team.release()
        lines = shared.finished(job, team, oracle)
    assert [(line["attempt"], line["receipt"]["counted"]) for line in lines] == [(1, N)] * 4
    assert written_by(lines)[-1] == release(1)
    shared.back_to_this_release()


def test_folds_at_any_node_go_on_whoever_coordinates_and_over_their_lifld(shared: SharedCluster) -> None:
    """One where the cluster's coordinator is, until it hands over and is killed, and one at another node."""
    first, agent = shared.coordinator, shared.agents[0]
    model = {"w": np.zeros(3, np.float32)}
    with lifl.Aggregator(first.state_dir) as here, lifl.Aggregator(agent.state_dir) as there:
        folds = here.open(model, expected=2), there.open(model, expected=2)
        for fold in folds:
            fold.add({"w": np.full(3, 2, np.float32)}, 1, client="a")
        assert first.json("drain", first.name)["drain"] == "drained"
        assert shared.coordinator is not first
        first.kill()
        first.up()
        for machine, fold in zip((first, agent), folds, strict=True):
            fold.add({"w": np.full(3, 4, np.float32)}, 1, client="b")
            shown = {line["name"]: line["status"] for line in machine.json("jobs")["jobs"]}
            assert shown.get(fold.job) == "running"
            np.testing.assert_array_equal(fold.result()["w"], np.full(3, 3))
        fold = there.open(model, expected=2)
        agent.lifl("cancel", fold.job)
        with pytest.raises(FoldFailed, match="cancelled"):
            fold.wait(["c"])
    for machine, ours in ((first, here), (agent, there)):
        assert not [line for line in machine.json("jobs")["jobs"] if line["name"].startswith(ours._name)]
    shared.coordinator.lifl("drain", first.name, "--undo")


def test_one_that_no_other_can_follow_is_not_drained(shared: SharedCluster) -> None:
    coordinator, others = shared.coordinator, shared.agents
    for other in others:
        other.down()
    done = run_lifl("drain", coordinator.name, "--state", str(coordinator.state_dir))
    assert done.returncode == 1 and "no other node takes part" in done.stderr, done.stderr
    assert shared.coordinator is coordinator and coordinator.nodes()[coordinator.name]["drain"] == ""


def test_losing_a_minority_of_the_store_is_not_noticed(shared: SharedCluster, job: str) -> None:
    oracle = OneHot(N)
    coordinator = begin(shared, job, oracle)
    term = coordinator.store()["term"]
    watch = shared.watch(job)
    follower = next(member for member in shared.store.members if member is not shared.store_leader())
    with shared.fleet(job, N, oracle.update, held=HELD) as team:
        watch.wait("update.accepted", 5)
        follower.kill()
        ((level, _, text, _),) = look(coordinator.state_dir)
        assert (level, f"this node, in term {term}" in text) == ("ok", True)
        team.release()
        shared.finished(job, team, oracle)
    assert coordinator.store()["term"] == term
    shared.store.revive(follower)


def test_losing_the_majority_of_the_store_pauses_rounds_and_they_go_on(shared: SharedCluster, job: str) -> None:
    oracle = OneHot(N)
    coordinator = begin(shared, job, oracle)
    watch = shared.watch(job)
    with shared.fleet(job, N, oracle.update, held=HELD) as team:
        watch.wait("update.accepted", 5)
        lost = shared.store.members[:2]
        for member in lost:
            member.kill()
        line = until(
            "a pause that is told",
            lambda: (found := ask(coordinator, om.JobStatus(job))["job"])["status"] == "paused" and found,
        )
        assert "the store does not answer" in line["reason"]
        assert "the store does not answer" in coordinator.lifl("top", "--once")
        ((level, _, text, fix),) = look(coordinator.state_dir)
        assert (level, "the store does not answer" in text, "etcdctl" in fix) == ("warn", True, True)
        shared.store.revive(*lost)
        team.release()
        shared.finished(job, team, oracle)


def test_all_nodes_lose_their_lifld_and_the_round_goes_on(shared: SharedCluster, job: str) -> None:
    oracle = OneHot(N)
    begin(shared, job, oracle)
    watch = shared.watch(job)
    with shared.fleet(job, N, oracle.update, held=HELD) as team:
        watch.wait("update.accepted", 5)
        for machine in shared.machines:
            machine.kill()
        for machine in shared.machines:
            machine.up()
        team.release()
        lines = shared.finished(job, team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N, N]


def test_an_undisturbed_round_is_two_writes_whatever_the_number_of_its_clients(shared: SharedCluster, job: str) -> None:
    """By the store's own revision, which each transaction that writes raises by one."""
    rounds, written = 5, []
    for clients in (2, N):
        name, oracle = f"{job}-{clients}", OneHot(clients)
        before = shared.revision()
        more = shared.job(name) | {"aggregation__placement": "best-fit"}
        submit(shared.coordinator, name, oracle.model(), job__rounds=rounds, **more)
        with shared.fleet(name, clients, oracle.update) as team:
            shared.finished(name, team, oracle)
        written.append(shared.revision() - before)
    assert written == [2 * rounds + OF_A_JOB] * 2
