"""kill -9 of a node in each role, and lines that are cut while a round runs: every counted update counts once.

The victim's role is made by the plan: with a wide fan-in an agent's branch is one leaf, with a narrow one a middle over
several leaves; the coordinator has the top.  Some updates are in when it happens, the rest is held back until after it.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from builds import release, written_by
from fleet import OneHot, gated, seeded, submit, until
from netns import Cluster
from nodes import run_lifl

N = 9
NUMBERS = count(1)
SPREAD = {"aggregation__placement": "worst-fit", "selection__attempts": 1}
ROLES = {"leaf": {"aggregation__fan_in": 16}, "middle": {"aggregation__fan_in": 1, "aggregation__middle_fan_in": 2}}


@pytest.fixture
def job() -> str:
    """A name that no other test has: they share the cluster."""
    return f"j{next(NUMBERS)}"


def test_an_agent_dies_in_a_round(three: Cluster, job: str) -> None:
    """In four rounds at once, in which it has a leaf or a middle, and little or nearly all is in."""
    oracle, victim = OneHot(N), three.agents[0]
    rounds = {f"{job}-{role}-{accepted}": (role, accepted) for role in ROLES for accepted in (2, N - 1)}
    with ExitStack() as stack:
        teams = {}
        for name, (role, accepted) in rounds.items():
            submit(three.coordinator, name, oracle.model(), job__rounds=2, **SPREAD, **ROLES[role])
            watch = three.watch(name)
            held = [(index, 1) for index in range(accepted, N)]
            teams[name] = stack.enter_context(three.fleet(name, N, oracle.update, held=held))
            watch.wait("update.accepted", accepted)
            (plan,) = three.coordinator.json("plan", "--round", name, "1")["decisions"]
            assert victim.name in plan["used"]
        victim.kill()
        for team in teams.values():
            team.release()
        for name, team in teams.items():
            lines = three.finished(name, team, oracle)
            assert [line["receipt"]["counted"] for line in lines] == [N, N], name
            assert [line["attempt"] for line in lines] == [1, 1], f"{name}: what is not lost is kept"


@pytest.mark.parametrize("accepted", [3, N - 1])
def test_the_coordinator_dies_in_a_round_and_goes_on(three: Cluster, job: str, accepted: int) -> None:
    oracle = OneHot(N)
    submit(three.coordinator, job, oracle.model(), job__rounds=2, **SPREAD)
    watch = three.watch(job)
    with three.fleet(job, N, oracle.update, held=[(i, 1) for i in range(accepted, N)]) as team:
        watch.wait("update.accepted", accepted)
        three.coordinator.kill()
        three.coordinator.up()
        team.release()
        lines = three.finished(job, team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N, N]
    assert [line["attempt"] for line in lines] == [1, 1], "the round goes on: what is not lost is kept"
    three.settled()


def test_the_top_is_at_work_when_its_node_dies(three: Cluster, job: str) -> None:
    oracle = OneHot(N)
    with gated(three.coordinator, "finish") as (keys, (gate,)):
        submit(three.coordinator, job, oracle.model(), **SPREAD, **keys)
        with three.fleet(job, N, oracle.update) as team:
            gate.reached()
            three.coordinator.kill()
            gate.open()
            three.coordinator.up()
            (line,) = three.finished(job, team, oracle)
    assert (line["receipt"]["counted"], line["attempt"]) == (N, 1)


def test_an_agent_dies_while_its_leaf_folds(three: Cluster, job: str) -> None:
    oracle, victim = OneHot(N), three.agents[1]
    with gated(three.coordinator, "fold") as (keys, (gate,)):
        submit(three.coordinator, job, oracle.model(), **SPREAD, **keys)
        watch = three.watch(job)
        with three.fleet(job, N, oracle.update) as team:
            watch.wait("update.accepted", N)
            gate.reached()
            victim.kill()
            gate.open()
            (line,) = three.finished(job, team, oracle)
    assert (line["receipt"]["counted"], line["attempt"]) == (N, 1)


@pytest.mark.parametrize("ways", ["from", "to", "both"])
def test_a_line_is_cut_in_a_round(three: Cluster, job: str, ways: str) -> None:
    """The node behind it may think that it still takes part; what it has must not count twice."""
    oracle, victim = OneHot(N), three.agents[0]
    others = [three.coordinator.host, three.agents[1].host]
    before = three.incarnation(victim)
    submit(three.coordinator, job, oracle.model(), job__rounds=2, **SPREAD)
    watch = three.watch(job)
    with three.fleet(job, N, oracle.update, held=[(i, 1) for i in range(4, N)]) as team:
        watch.wait("update.accepted", 4)
        if ways in ("from", "both"):
            three.network.cut(victim.host, *others)
        if ways in ("to", "both"):
            for other in others:
                three.network.cut(other, victim.host)
        until("its death", lambda: three.coordinator.states()[victim.name] == "dead")
        assert three.coordinator.states()[three.agents[1].name] == "alive"
        team.release()
        watch.wait("round.committed")
        if ways in ("from", "both"):
            three.network.mend(victim.host, *others)
        if ways in ("to", "both"):
            for other in others:
                three.network.mend(other, victim.host)
        three.settled()
        assert three.incarnation(victim) > before, "it comes back as a new life"
        lines = three.finished(job, team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N, N]
    assert [line["attempt"] for line in lines] == [1, 1], "the round goes on: what is not lost is kept"


def test_a_node_that_hangs_is_given_up_and_what_it_says_later_does_not_count(three: Cluster, job: str) -> None:
    oracle, victim = OneHot(N), three.agents[0]
    submit(three.coordinator, job, oracle.model(), job__rounds=3, **SPREAD)
    watch = three.watch(job)
    with three.fleet(job, N, oracle.update, held=[(i, 1) for i in range(5, N)] + [(0, 3)]) as team:
        watch.wait("update.accepted", 5)
        victim.stop()
        until("its death", lambda: three.coordinator.states()[victim.name] == "dead")
        team.release(*range(5, N))
        victim.go_on()
        watch.wait("round.committed", 2)
        team.release()
        lines = three.finished(job, team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * 3
    assert [line["attempt"] for line in lines] == [1] * 3
    three.settled()


@pytest.mark.parametrize("number", range(2))
def test_any_node_dies_at_any_moment(three: Cluster, job: str, number: int) -> None:
    random = seeded(f"test_any_node_dies_at_any_moment[{number}]")
    oracle = OneHot(N, ballast_bytes=1 << 18)
    submit(three.coordinator, job, oracle.model(), job__rounds=6, **SPREAD)
    watch = three.watch(job)
    # Rounds take milliseconds: two updates are held back, so that there is something left for each death to hit.
    with three.fleet(job, N, oracle.update, held=[(0, 3), (1, 6)]) as team:
        for held, victim in enumerate((random.choice(three.agents), three.coordinator)):
            watch.wait("update.accepted", random.randrange(1, 3 * N))
            victim.kill()
            victim.up()
            watch = three.watch(job)
            team.release(held)
        three.finished(job, team, oracle)
    three.settled()


def test_a_node_that_goes_down_brings_its_partial_to_the_top_first(three: Cluster, job: str) -> None:
    """Nothing that was accepted is asked for again."""
    oracle, victim = OneHot(N), three.agents[0]
    submit(three.coordinator, job, oracle.model(), **SPREAD)
    watch = three.watch(job)
    with three.fleet(job, N, oracle.update, held=[(i, 1) for i in range(6, N)]) as team:
        watch.wait("update.accepted", 6)
        victim.lifl("down")
        team.release()
        (line,) = three.finished(job, team, oracle)
    assert (line["receipt"]["counted"], line["attempt"]) == (N, 1)
    accepted = [event.fields["client"] for event in watch.events if event.name == "update.accepted"]
    assert sorted(accepted) == sorted(set(accepted))


def test_a_drained_node_has_nothing_left_to_lose(three: Cluster, job: str) -> None:
    """What it accepted counts though it is killed then; its clients go on elsewhere; taken back it gets work again."""
    oracle, (victim, other) = OneHot(N), three.agents
    submit(three.coordinator, job, oracle.model(), **SPREAD)
    watch = three.watch(job)
    with three.fleet(job, N, oracle.update, held=[(i, 1) for i in range(6, N)]) as team:
        watch.wait("update.accepted", 6)
        (plan,) = three.coordinator.json("plan", "--round", job, "1")["decisions"]
        assert victim.name in plan["used"]
        assert three.coordinator.json("drain", victim.name[:12])["drain"] == "drained"
        rows = {row["node"]: (row["state"], row["drain"]) for row in three.coordinator.json("nodes")["nodes"]}
        assert rows[victim.name] == ("alive", "drained") and rows[other.name] == ("alive", "")
        assert "drained" in three.coordinator.lifl("top", "--once") and "drained" in three.coordinator.lifl("nodes")
        assert victim.name in three.coordinator.lifl("status", job)
        victim.kill()
        team.release()
        (line,) = three.finished(job, team, oracle)
    assert (line["receipt"]["counted"], line["attempt"]) == (N, 1)
    accepted = [event.fields["client"] for event in watch.events if event.name == "update.accepted"]
    assert sorted(accepted) == sorted(set(accepted)), "nobody was asked again"
    victim.up()
    three.settled()
    used = []
    for undo in ([], ["--undo"]):
        three.coordinator.lifl("drain", other.name, *undo)
        name = f"{job}{len(used)}"
        submit(three.coordinator, name, oracle.model(), **SPREAD)
        with three.fleet(name, N, oracle.update) as team:
            three.finished(name, team, oracle)
        (plan,) = three.coordinator.json("plan", "--round", name, "1")["decisions"]
        used.append(set(plan["used"]))
    assert [other.name in nodes for nodes in used] == [False, True] and victim.name in used[0]


def test_nodes_are_upgraded_one_by_one_under_a_running_job(three: Cluster, job: str, next_release: Path) -> None:
    """Each is drained, ended and started as the next release in a round of its own; last the one that coordinates.

    That one has partials.  The clients are of this release all the time.
    """
    oracle = OneHot(N)
    submit(three.coordinator, job, oracle.model(), job__rounds=4, **SPREAD)
    watch = three.watch(job)
    with three.fleet(job, N, oracle.update, held=[(0, 1), (0, 2), (0, 3)]) as team:
        for number, agent in enumerate(three.agents, 1):
            watch.wait("update.accepted", N - 1, round=number)
            three.coordinator.lifl("drain", agent.name)
            agent.down()
            agent.build = next_release
            agent.up()
            three.settled()
            team.release_round(number)
        watch.wait("update.accepted", N - 1, round=3)
        three.coordinator.down()
        three.coordinator.build = next_release
        three.coordinator.up()
        three.settled()
        team.release()
        lines = three.finished(job, team, oracle)
    assert [(line["attempt"], line["receipt"]["counted"]) for line in lines] == [(1, N)] * 4
    assert written_by(lines) == [release(0)] * 2 + [release(1)] * 2
    three.back_to_this_release()


def test_a_node_that_cannot_be_drained_is_named(three: Cluster) -> None:
    nodes = {machine.name: machine for machine in three.machines}
    for at, node, told in [
        (three.coordinator, three.coordinator.name, "coordinates"),
        (three.coordinator, "zz", "; there are: "),
        (three.coordinator, "", "names 3 of the nodes"),
        (three.agents[0], three.agents[1].name, "does not coordinate"),
    ]:
        done = run_lifl("drain", node, "--state", str(nodes[at.name].state_dir))
        assert done.returncode == 1 and told in done.stderr, done.stderr


def test_what_a_silent_node_was_to_take_goes_elsewhere_at_the_next_plan(three: Cluster, job: str) -> None:
    oracle, victim = OneHot(N), three.agents[0]
    submit(three.coordinator, job, oracle.model(), aggregation__replan_interval_s=0.5, **SPREAD)
    watch = three.watch(job)
    with three.fleet(job, N, oracle.update, held=[(i, 1) for i in range(3, N)]) as team:
        watch.wait("update.accepted", 3)
        victim.stop()
        watch.wait("round.replanned")
        victim.go_on()
        team.release()
        (line,) = three.finished(job, team, oracle)
    assert (line["receipt"]["counted"], line["attempt"]) == (N, 1)


@pytest.mark.parametrize("accepted", [5, N - 1])
@pytest.mark.parametrize("role", ["leaf", "middle"])
def test_an_agents_lifld_starts_again_with_what_was_accepted(
    three: Cluster, job: str, role: str, accepted: int
) -> None:
    oracle, victim = OneHot(N), three.agents[0]
    submit(three.coordinator, job, oracle.model(), job__rounds=2, **SPREAD, **ROLES[role])
    watch = three.watch(job)
    with three.fleet(job, N, oracle.update, held=[(i, 1) for i in range(accepted, N)]) as team:
        watch.wait("update.accepted", accepted)
        victim.kill()
        victim.up()
        team.release()
        lines = three.finished(job, team, oracle)
    assert [(line["receipt"]["counted"], line["attempt"]) for line in lines] == [(N, 1), (N, 1)]
    asked = [event.fields["client"] for event in watch.events if event.name == "update.accepted"][: 2 * N]
    assert len(asked) == 2 * N and max(asked.count(client) for client in asked) == 2, "each once in each round"
