"""Quotas on a real node: a job within its share, and an operator who always gets in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import OneHot, Watch, ask, fleet, submit, write_job
from nodes import Node, run_lifl

from lifl.core import limits
from lifl.core.protocol import cli as om

N = 12


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    return start_node("--redirector", "unix")


def test_a_job_keeps_within_its_quotas_and_ends_well(node: Node) -> None:
    oracle, share = OneHot(N, ballast_bytes=700_000), 0.25
    keys = {"quota__arena_share": share, "quota__workers": 1, "quota__updates_in_flight": 3}
    submit(node, "j", oracle.model(), job__rounds=2, aggregation__middle_fan_in=2, **keys)
    with fleet([node.address, str(node.state_dir)], "j", N, oracle.update) as team:
        team.join()
    for line in oracle.check(node, "j", team):
        receipt = line["receipt"]
        assert receipt["counted"] == N
        assert receipt["arena_peak_bytes"] <= share * node.info["arena_bytes"]
        leaves = {task["pid"] for task in receipt["tree"]}
        assert len(leaves) == 1


def test_a_share_that_holds_no_round_is_refused_by_its_key(node: Node, tmp_path: Path) -> None:
    path = write_job(tmp_path, "k", OneHot(N, ballast_bytes=700_000).model(), quota__arena_share=0.01)
    done = run_lifl("submit", str(path), "--state", str(node.state_dir))
    assert done.returncode == 1
    assert "quota.arena_share = 0.01" in done.stderr
    assert "raise it to 0." in done.stderr


def test_a_rate_of_bytes_slows_a_job_and_not_the_one_beside_it(node: Node) -> None:
    """The slow job's second update would take three years: it waits, and the other job has all its rounds meanwhile."""
    oracle = OneHot(2, ballast_bytes=100_000)
    submit(node, "slow", oracle.model(), quota__bytes_per_s=1)
    submit(node, "quick", oracle.model(), job__rounds=3)
    watch = Watch(node, "slow")
    with (
        fleet(node.address, "slow", 2, oracle.update, models=False),
        fleet(node.address, "quick", 2, oracle.update) as team,
    ):
        team.join()
        oracle.check(node, "quick", team)
        watch.wait("round.opened")
        assert ask(node, om.JobStatus("slow"))["job"]["committed"] == 0
        node.lifl("cancel", "slow")


def test_an_operator_gets_in_however_many_watch(node: Node) -> None:
    submit(node, "j", OneHot(N).model())
    watches = [Watch(node, "j") for _ in range(limits.CLI_FOLLOWERS_MAX)]
    done = run_lifl("submit", str(node.state_dir / "configs" / "j.toml"), "--watch", "--state", str(node.state_dir))
    assert done.returncode == 1
    assert "watch jobs of this node already" in done.stderr
    assert len(node.json("jobs")["jobs"]) == 1
    node.lifl("cancel", "j")
    for watch in watches:
        watch.over()
        watch.join()
