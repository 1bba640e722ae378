"""A user's way through a node by the command line, with 16 trainers: submit, watch, status, top, model, cancel."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fleet import Fleet, OneHot, Watch, arena_use, ask, fleet, gated, submit, until, write_job
from nodes import LIFL, Node, run_lifl
from safetensors.numpy import load_file

from lifl.client import JobCancelled
from lifl.core.protocol import cli as om

N, ROUNDS = 16, 3
RECEIPT = {
    "selected": int,
    "accepted": int,
    "counted": int,
    "expired": int,
    "weight": float,
    "bytes_in": int,
    "bytes_out": int,
    "cpu_s": dict,
    "arena_peak_bytes": int,
    "duration_s": float,
    "last_accepted_to_sealed_s": float,
    "last_accepted_to_commit_s": float,
    "redirector": str,
    "workers_cold": int,
    "workers_warm": int,
    "tree": list,
}


@pytest.mark.parametrize("redirector", ["auto", "unix"])
def test_a_job_from_submit_to_its_models(start_node: Callable[..., Node], redirector: str, tmp_path: Path) -> None:
    node, oracle = start_node("--redirector", redirector), OneHot(N, ballast_bytes=100_000)
    path = write_job(tmp_path, "walk", oracle.model())
    command = [*LIFL, "submit", str(path), "--watch", "--json", "--set", f"job.rounds={ROUNDS}"]
    began_s = time.monotonic()
    with (
        subprocess.Popen([*command, "--state", str(node.state_dir)], stdout=subprocess.PIPE, text=True) as watch,
    ):
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["job"] == "walk"
        # Half of the trainers write to the arena themselves.
        with fleet([node.address, str(node.state_dir)], "walk", N, oracle.update) as team:
            events = [json.loads(line) for line in watch.stdout]
            team.join()
    assert watch.returncode == 0
    assert [event["round"] for event in events if event["event"] == "round.committed"] == list(range(1, ROUNDS + 1))
    assert events[-1]["event"] == "job.over"
    assert events[-1]["status"] == "finished"
    took_s = time.monotonic() - began_s
    lines = oracle.check(node, "walk", team)
    assert lines == node.json("status", "walk")["rounds"]
    for line in lines:
        check_receipt(line["receipt"], node, oracle, took_s)
    # The first ones were prepared when updates were granted; a task that came before its worker ran counts as cold.
    assert sum(lines[0]["receipt"][f"workers_{how}"] for how in ("cold", "warm")) >= 1
    assert sum(lines[-1]["receipt"][f"workers_{how}"] for how in ("warm", "promoted", "shared")) >= 1
    assert [line["metrics"] for line in lines] == [{"index": pytest.approx((N - 1) / 2)}] * ROUNDS
    (job,) = node.json("jobs")["jobs"]
    assert (job["status"], job["committed"], job["clients"]) == ("finished", ROUNDS, 0)
    for number in range(ROUNDS + 1):
        target = tmp_path / "model.safetensors"
        node.lifl("model", "walk", "--round", str(number), "-o", str(target))
        assert load_file(target)["w"] == pytest.approx(np.full(N, number / N))
    assert "finished" in node.lifl("status", "walk")


def check_receipt(receipt: dict, node: Node, oracle: OneHot, most_s: float) -> None:
    assert {key: type(receipt[key]) for key in RECEIPT} == RECEIPT
    assert [receipt[key] for key in ("selected", "accepted", "counted", "expired")] == [N, N, N, 0]
    assert receipt["weight"] == N
    assert receipt["bytes_in"] == N * oracle.data_bytes
    assert receipt["bytes_out"] == N * oracle.data_bytes  # each round's model is there when its trainer gets the round
    assert receipt["redirector"] == node.info["redirector"]
    assert set(receipt["cpu_s"]) == {"workers", "lifld", "gateway", "zygote"}
    cores = os.cpu_count() or 1
    assert all(0 <= value <= cores * most_s for value in receipt["cpu_s"].values()), "more than there was"
    assert receipt["cpu_s"]["workers"] > 0
    # At least two updates, the partials of a path, and both models; never more than the arena.
    assert 6 * oracle.data_bytes < receipt["arena_peak_bytes"] <= node.info["arena_bytes"]
    sealed_s, commit_s = receipt["last_accepted_to_sealed_s"], receipt["last_accepted_to_commit_s"]
    assert 0 <= sealed_s <= commit_s <= receipt["duration_s"] <= most_s
    roles = [task["role"] for task in receipt["tree"]]
    assert [roles.count(role) for role in ("leaf", "middle", "top")] == [6, 1, 1]
    assert all(task["state"] == "sealed" and task["pid"] for task in receipt["tree"])


def test_top_shows_leaf_middle_and_top_as_processes(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node(), OneHot(N, ballast_bytes=1 << 20)
    with gated(node, "finish") as (keys, (gate,)):
        submit(node, "tree", oracle.model(), **keys)
        watch = Watch(node, "tree")
        with fleet(node.address, "tree", N, oracle.update, held=[(index, 1) for index in range(5, N)]) as team:
            watch.wait("update.accepted", 5)
            running = until(
                "2 sealed leaves at the middle, and one that runs",
                lambda: tree_of(node, sealed_leaves=2, at_middle=2, running_leaves=1),
            )
            # One that is held back is for a leaf, which waits for it as the middle does, each in a process of its own;
            # the others are for the three leaves after it and the top.
            (leaf,) = [task for task in running if task["role"] == "leaf" and task["state"] == "running"]
            (middle,) = [task for task in running if task["role"] == "middle"]
            (top,) = [task for task in running if task["role"] == "top"]
            assert (leaf["inputs"], leaf["expect"]) == (1, 2)
            assert (middle["inputs"], middle["expect"], middle["state"]) == (2, 3, "running")
            assert (top["inputs"], top["expect"], top["state"]) == (0, 8, "waiting")
            assert leaf["pid"] != middle["pid"]
            check_views(node, {"leaf": leaf["pid"], "middle": middle["pid"]})
            team.release()
            gate.reached()
            # The keys go from worker to worker: lifld may hear of them after the top has begun to finish.
            tree = until("6 sealed leaves, all at the top", lambda: tree_of(node, sealed_leaves=6, at_top=8))
            (top,) = [task for task in tree if task["role"] == "top"]
            assert (top["inputs"], top["expect"], top["state"]) == (8, 8, "running")
            check_views(node, {"top": top["pid"]})
            gate.open()
            team.join()
    oracle.check(node, "tree", team)


def tree_of(
    node: Node, sealed_leaves: int, at_middle: int = 0, at_top: int = 0, running_leaves: int = 0
) -> list[dict] | None:
    tree: list[dict] = ask(node, om.JobStatus("tree"))["now"]["tree"]
    leaves = Counter(task["state"] for task in tree if task["role"] == "leaf")
    inputs = {role: sum(task["inputs"] for task in tree if task["role"] == role) for role in ("middle", "top")}
    arrived = inputs["middle"] >= at_middle and inputs["top"] >= at_top
    return tree if leaves["sealed"] == sealed_leaves and leaves["running"] >= running_leaves and arrived else None


def check_views(node: Node, roles: dict[str, int]) -> None:
    """`lifl top --json` has these processes at work; `lifl top --once` shows role, pid and job."""
    sample = node.snapshot()
    busy = {worker["role"]: worker for worker in sample["workers"] if worker["state"] == "busy"}
    shown = node.lifl("top", "--once")
    for role, pid in roles.items():
        assert busy[role]["pid"] == pid
        assert Path(f"/proc/{pid}/comm").read_text().startswith("lifl-worker")
        assert str(pid) in sample["processes"]
        (line,) = [line for line in shown.splitlines() if line.split()[:2] == [role, str(pid)]]
        assert "tree round 1 " in line


def test_jobs_at_the_same_time_do_not_see_each_other(start_node: Callable[..., Node]) -> None:
    node, oracles = start_node(), {f"j{i}": OneHot(3 + 2 * i) for i in range(4)}
    teams = {}
    for number, (job, oracle) in enumerate(oracles.items()):
        timing = "lazy" if number % 2 else "eager"
        submit(node, job, oracle.model(), job__rounds=4, aggregation__timing=timing, selection__seed=number)
        # The clients' names are the same in all jobs.
        teams[job] = Fleet([node.address, str(node.state_dir)], job, oracle.clients, oracle.update)
    try:
        for team in teams.values():
            team.start()
        for team in teams.values():
            team.join()
    finally:
        for team in teams.values():
            team.close()
    for job, oracle in oracles.items():
        lines = oracle.check(node, job, teams[job])
        assert [line["receipt"]["counted"] for line in lines] == [oracle.clients] * 4
        assert [line["receipt"]["bytes_in"] for line in lines] == [oracle.clients * oracle.data_bytes] * 4
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))
    assert {job["name"]: job["status"] for job in node.json("jobs")["jobs"]} == dict.fromkeys(oracles, "finished")


def test_one_trainer_process_takes_part_in_two_jobs(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(2)
    for job in ("a", "b"):
        submit(node, job, oracle.model(), job__rounds=2)
    with fleet(node.address, "a", 2, oracle.update) as first, fleet(node.address, "b", 2, oracle.update) as second:
        first.join()
        second.join()
    assert len(oracle.check(node, "a", first)) == len(oracle.check(node, "b", second)) == 2


def test_cancel_ends_the_job_and_frees_everything(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node, oracle = start_node(), OneHot(4)
    submit(node, "j", oracle.model(), job__rounds=5)
    watch = Watch(node, "j")
    held = [(index, 2) for index in (1, 3)]
    with fleet([node.address, str(node.state_dir)], "j", 4, oracle.update, held=held) as team:
        watch.wait("round.committed", round=1)
        watch.wait("update.accepted", 2, round=2)
        assert node.json("cancel", "j") == {"job": "j", "status": "cancelled"}
        team.release()
        team.join(well=False)
    assert all(isinstance(error, JobCancelled) for error in team.errors().values())
    assert len(team.errors()) == 4
    assert watch.over()["status"] == "cancelled"
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))
    (line,) = oracle.check(node, "j")
    node.lifl("model", "j", "-o", str(tmp_path / "m.safetensors"))
    assert (tmp_path / "m.safetensors").read_bytes() == Path(line["path"]).read_bytes()
    done = run_lifl("cancel", "j", "--state", str(node.state_dir))
    assert done.returncode == 1
    assert "cancelled already" in done.stderr
    # Also after a restart it stays cancelled.
    node.down()
    node.up()
    assert node.info["adopted"] == {"jobs": 0, "updates": 0}
    assert node.json("status", "j")["job"]["status"] == "cancelled"


def test_watch_ends_with_code_1_and_the_reason_when_the_job_fails(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(2)
    path = write_job(
        node.state_dir / "configs",
        "bad",
        oracle.model(),
        aggregation__rule="broken:Broken",
    )
    (path.parent / "broken.py").write_text(
        "from lifl.rules import Rule\n"
        "class Broken(Rule):\n"
        "    def finish(self, model, mean, state):\n"
        "        return mean[1:]\n"
    )
    command = [*LIFL, "submit", str(path), "--watch", "--state", str(node.state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        watch.stdout.readline()
        with fleet(node.address, "bad", 2, oracle.update) as team:
            said = watch.stdout.read()
            team.join(well=False)
    assert watch.returncode == 1
    assert "job bad failed: the top task of round 1 failed" in said
    assert "Broken.finish must return an array of shape" in said
    assert all("Broken.finish" in str(error) for error in team.errors().values())
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))


def test_how_a_round_was_planned_is_shown_and_made_again(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node(), OneHot(4)
    submit(node, "told", oracle.model(), job__rounds=2)
    with fleet([node.address], "told", 4, oracle.update) as team:
        team.join()
    oracle.check(node, "told", team)
    (decision,) = node.json("plan", "--round", "told", "2")["decisions"]
    assert decision["same"] is True
    assert (decision["round"], decision["attempt"], decision["used"]) == (2, 1, [node.info["node"]])
    shown = node.lifl("plan", "--round", "told", "2", "--explain")
    assert "round 2 of job told, attempt 1, decided" in shown
    assert "made again from what it was decided on: the same" in shown
    assert "has the top: the model" in shown
    unknown = run_lifl("plan", "--round", "told", "3", "--state", str(node.state_dir))
    assert unknown.returncode == 1
    assert "no plan of round 3 of job 'told' is here" in unknown.stderr
    wrong = run_lifl("plan", "--round", "told", "2", "--set", "job.rounds=1", "--state", str(node.state_dir))
    assert wrong.returncode == 2
