"""Rounds over several nodes: each counted update once, the fewest nodes or all of them, few bytes between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fleet import OneHot, Update, submit, until, write_job
from netns import Cluster, Machine, cluster
from safetensors.numpy import load_file

N = 12


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    # Room for all updates on each node, however long this machine takes for them.
    with cluster(3, "--capacity", "1000") as made:
        yield made


@contextmanager
def running(made: Cluster, job: str, oracle: OneHot, **keys: Any) -> Iterator[Any]:
    submit(made.coordinator, job, oracle.model(), **keys)
    with made.fleet(job, oracle.clients, oracle.update) as team:
        yield team


def took_updates(made: Cluster, before: dict[str, int], oracle: OneHot) -> list[Machine]:
    """The nodes whose gateways have received a whole update since."""
    return [each for each in made.machines if each.received_bytes() - before[each.name] >= oracle.data_bytes]


@pytest.mark.parametrize("timing", ["eager", "lazy"])
@pytest.mark.parametrize("placement", ["best-fit", "first-fit", "worst-fit", "round-robin"])
def test_three_rounds_count_each_update_once(three: Cluster, placement: str, timing: str) -> None:
    oracle, job = OneHot(N), f"{placement}-{timing}"
    keys = {"aggregation__placement": placement, "aggregation__timing": timing}
    with running(three, job, oracle, job__rounds=3, **keys) as team:
        lines = three.finished(job, team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * 3
    assert [line["attempt"] for line in lines] == [1] * 3


def test_worst_fit_uses_all_nodes_and_best_fit_the_fewest(three: Cluster) -> None:
    oracle = OneHot(6, ballast_bytes=1 << 18)
    used = {}
    for placement in ("worst-fit", "best-fit"):
        before = {machine.name: machine.received_bytes() for machine in three.machines}
        with running(three, f"uses-{placement}", oracle, aggregation__placement=placement) as team:
            three.finished(f"uses-{placement}", team, oracle)
        used[placement] = len(took_updates(three, before, oracle))
    assert used == {"worst-fit": 3, "best-fit": 1}


def test_partials_of_all_nodes_tell_what_their_updates_lack(three: Cluster) -> None:
    """Only the odd clients have `extra`, and nobody has `spare`."""
    oracle = OneHot(N)
    model = oracle.model() | {"extra": np.zeros(5), "spare": np.full(3, 0.5, np.float32)}

    def update(index: int, number: int) -> Update:
        tensors, weight, metrics = oracle.update(index, number)
        return tensors | ({"extra": np.full(5, 0.1)} if index % 2 else {}), weight, metrics

    keys = {"aggregation__placement": "worst-fit", "job__rounds": 2, "job__trainable": ["*"]}
    before = {machine.name: machine.received_bytes() for machine in three.machines}
    submit(three.coordinator, "lacking", model, **keys)
    with three.fleet("lacking", N, update) as team:
        lines = three.finished("lacking", team, oracle)
    assert len(took_updates(three, before, oracle)) == 3
    for line in lines:
        made = load_file(line["path"])
        assert (made["extra"] == 0.1).all() and (made["spare"] == 0.5).all()


def test_a_deep_tree_spreads_over_all_nodes(three: Cluster) -> None:
    oracle = OneHot(N)
    shape = {"aggregation__fan_in": 1, "aggregation__middle_fan_in": 2, "aggregation__placement": "worst-fit"}
    with running(three, "deep", oracle, job__rounds=2, **shape) as team:
        three.finished("deep", team, oracle)


def test_reproducible_sums_are_the_same_on_one_node_and_on_three(three: Cluster) -> None:
    model, models = {"w": np.zeros((N, 500), np.float32)}, set()

    def update(index: int, _number: int) -> Update:
        numbers = np.random.default_rng(index).standard_normal((N, 500)).astype(np.float32)
        return {"w": numbers}, float(index + 1), {}

    for placement, fan_in in (("worst-fit", 1), ("worst-fit", 3), ("best-fit", 2)):
        job = f"same-{placement}-{fan_in}"
        keys = {"aggregation__placement": placement, "aggregation__fan_in": fan_in, "aggregation__middle_fan_in": 2}
        submit(three.coordinator, job, model, aggregation__reproducible=True, **keys)
        with three.fleet(job, N, update) as team:
            team.join()
        (line,) = three.coordinator.json("status", job)["rounds"]
        models.add(load_file(line["path"])["w"].tobytes())
    assert len(models) == 1


def test_a_client_at_any_gateway_is_served(three: Cluster) -> None:
    """All come to one gateway, which the plan does not have them at: they are sent on, none is refused."""
    oracle = OneHot(N)
    submit(three.coordinator, "one-door", oracle.model(), aggregation__placement="worst-fit")
    door = [three.agents[1].gateway]
    with three.fleet("one-door", N, oracle.update, addresses=door) as team:
        three.finished("one-door", team, oracle)


def test_while_a_round_runs_top_shows_each_nodes_branch(three: Cluster) -> None:
    oracle = OneHot(N)
    submit(three.coordinator, "seen", oracle.model(), aggregation__placement="worst-fit")
    with three.fleet("seen", N, oracle.update, held=[(N - 1, 1)]) as team:
        three.watch("seen").wait("update.accepted", N - 1)
        names = {machine.name for machine in three.machines}

        def branches() -> bool:
            (job,) = [job for job in three.coordinator.snapshot()["jobs"] if job["name"] == "seen"]
            return {task.get("node") for task in job["now"]["tree"]} == names

        until("a branch on each node", branches)
        shown = three.coordinator.lifl("top", "--once")
        assert all(f"node {name}" in shown for name in names)
        team.release()
        three.finished("seen", team, oracle)


def test_the_cluster_plans_as_it_decides(three: Cluster) -> None:
    oracle = OneHot(N)
    path = write_job(three.coordinator.state_dir / "configs", "planned", oracle.model(), job__rounds=1)
    found = three.coordinator.json("plan", str(path), "--set", "aggregation.placement=worst-fit")
    assert {part["node"] for part in found["plan"]["nodes"]} == {machine.name for machine in three.machines}
    assert sum(part["updates"] for part in found["plan"]["nodes"]) == N
    assert len(found["used"]) == 3
    assert not [job for job in three.coordinator.json("jobs")["jobs"] if job["name"] == "planned"]


def test_a_job_is_submitted_to_the_coordinator_and_others_say_so(three: Cluster) -> None:
    with pytest.raises(AssertionError, match="does not coordinate"):
        submit(three.agents[0], "elsewhere", OneHot(2).model())
    assert not three.agents[0].json("jobs")["jobs"]


def test_metrics_and_weights_of_all_nodes_are_in_the_receipt(three: Cluster) -> None:
    oracle = OneHot(N)
    with running(three, "receipt", oracle, aggregation__placement="worst-fit") as team:
        (line,) = three.finished("receipt", team, oracle)
    assert line["receipt"]["weight"] == N
    assert line["metrics"]["index"] == pytest.approx(sum(range(N)) / N)
    assert line["receipt"]["bytes_in"] == N * oracle.data_bytes
    # Two nodes send one partial each; the records of members come along.
    assert 0 < line["receipt"]["bytes_between"] < 3 * 2 * (oracle.data_bytes * 4 + N * 1024)


def test_eight_nodes() -> None:
    oracle = OneHot(16)
    with cluster(8, "--redirector", "unix") as made:
        with running(made, "wide", oracle, job__rounds=2, aggregation__placement="worst-fit") as team:
            lines = made.finished("wide", team, oracle)
        assert [line["receipt"]["counted"] for line in lines] == [16, 16]


def test_a_client_whose_home_dies_goes_to_another_gateway(three: Cluster) -> None:
    """Last in this file: it takes a node away."""
    oracle = OneHot(1)
    submit(three.coordinator, "moves", oracle.model(), job__rounds=2)
    victim = three.agents[1]
    rest = ",".join([victim.gateway, three.coordinator.gateway])
    watch = three.watch("moves")
    with three.fleet("moves", 1, oracle.update, addresses=[rest], held=[(0, 2)]) as team:
        watch.wait("round.committed")
        victim.kill()
        team.release()
        three.finished("moves", team, oracle)
        assert team.trainers[0].client.node == three.coordinator.gateway
