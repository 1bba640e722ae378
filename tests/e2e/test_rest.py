"""Nothing at rest, and ends that leave nothing: idle, signals, `lifl down`; also in the middle of rounds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fleet import WAIT_S, OneHot, Watch, arena_use, ask, fleet, gated, name_of, submit, until
from nodes import LIFL, Node
from stops import Stops

from lifl import Client, failpoints
from lifl.client import Round
from lifl.core.protocol import cli as om

N = 8
REST_S = 3.0
"""Longer than any period with which something could look whether there is work."""


def family(node: Node) -> dict[int, str]:
    """lifld and all processes below it; one that has just ended may be gone before it is looked at."""
    root = psutil.Process(node.pid)
    found = {}
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found[process.pid] = " ".join(process.cmdline())
    return found


@pytest.mark.parametrize("redirector", ["auto", "unix"])
def test_an_idle_node_has_no_aggregator_and_takes_no_cpu(start_node: Callable[..., Node], redirector: str) -> None:
    node, oracle = start_node("--redirector", redirector, "--idle-timeout-s", "0.2"), OneHot(N)
    standing = set(family(node))
    assert len(standing) == 3, f"lifld, gateway and zygote; found {family(node)}"
    submit(node, "j", oracle.model(), job__rounds=2)
    with fleet([node.address, str(node.state_dir)], "j", N, oracle.update) as team:
        team.join()
    oracle.check(node, "j", team)
    until("the workers' end", lambda: set(family(node)) == standing)
    assert ask(node, om.Snapshot())["workers"] == []
    assert arena_use(node) == (0, 0)
    # A job whose clients wait for others costs nothing either.
    submit(node, "waiting", oracle.model())
    until("the job", lambda: ask(node, om.JobStatus("waiting"))["job"]["status"] == "waiting")
    with fleet([node.address, str(node.state_dir)], "waiting", N - 1, oracle.update) as team:
        until("its clients", lambda: ask(node, om.JobStatus("waiting"))["job"]["clients"] == N - 1)
        until("the workers' end", lambda: set(family(node)) == standing)
        pids = sorted(standing)
        # What ended last may be heard of only now.  A node that wakes up again and again never rests so long.
        until(f"{REST_S:g} s at rest", lambda: at_rest(pids))
        ask(node, om.CancelJob("waiting"))
        team.join(well=False)
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))


def test_warm_workers_are_kept_until_their_time_is_over(start_node: Callable[..., Node]) -> None:
    """How long that is depends on no clock but the node's: here it would be hours."""
    node, oracle = start_node("--redirector", "unix", "--idle-timeout-s", "9999"), OneHot(N)
    standing = set(family(node))
    submit(node, "j", oracle.model(), job__rounds=2)
    with fleet(node.address, "j", N, oracle.update) as team:
        team.join()
    oracle.check(node, "j", team)
    warm = set(family(node)) - standing
    assert warm
    assert {worker["pid"] for worker in ask(node, om.Snapshot())["workers"]} == warm


def lives(pid: int) -> bool:
    """A zombie does not: that its new parent (pid 1) is slow to take note is not the node's fault."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def time_slices(pids: list[int]) -> dict[str, int]:
    """How often each thread has been put on a core: it need not be for long, a poll shows however cheap it is."""
    return {
        str(file.parent): int(file.read_text().split()[2])
        for pid in pids
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat")
    }


def at_rest(pids: list[int]) -> bool:
    """Whether none of them runs for `REST_S`."""
    before = time_slices(pids)
    threading.Event().wait(REST_S)
    return time_slices(pids) == before


@pytest.mark.parametrize("redirector", ["auto", "unix"])
def test_down_in_the_middle_of_a_round_leaves_nothing(start_node: Callable[..., Node], redirector: str) -> None:
    """And the job goes on at the next start: what was ACCEPTED has expired with a reason, and is sent again."""
    node, oracle = start_node("--redirector", redirector), OneHot(N)
    submit(node, "j", oracle.model(), job__rounds=2)
    watch = Watch(node, "j")
    held = [(index, 1) for index in (0, 5)]
    with fleet([node.address, str(node.state_dir)], "j", N, oracle.update, held=held) as team:
        watch.wait("update.accepted", N - 2)
        processes, segment, address = family(node), node.segment, node.address
        assert any("lifl-worker" in Path(f"/proc/{pid}/comm").read_text() for pid in processes)
        node.down()
        assert not [pid for pid in processes if lives(pid)]
        assert not segment.exists()
        left = {path.name for path in node.state_dir.iterdir()}
        assert left <= {
            "lifl.db",
            "lifld.log",
            "lifld.lock",
            "children.lock",
            "keep.lock",
            "jobs",
            "audit",
            "identity",
            "cookie",
            "format.json",
            "configs",
            "models",
        }
        node.up("--listen", address)
        assert node.info["adopted"] == {"jobs": 1, "updates": 0}
        team.release()
        team.join()
        lines = oracle.check(node, "j", team)
    assert [line["receipt"]["counted"] for line in lines] == [N, N]
    # Those whose update expired were selected again for round 1, and sent what they had kept.
    assert [[round_.number for round_ in trainer.rounds] for trainer in team.trainers] == [[1, 2]] * N


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_round_commit_whose_updates_are_all_in(state_dir: Path, number: int) -> None:
    """`lifl up` in the foreground, a round held in its top: it commits, its clients are told, the exit code is 0."""
    node, oracle = Node(state_dir, ()), OneHot(N)
    command = [*LIFL, "up", "--state", str(state_dir), "--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--json"]
    with (
        Stops("lifld.drain.before") as stops,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, failpoints.VARIABLE: stops.variable},
        ) as lifld,
        gated(node, "finish") as (keys, (gate,)),
    ):
        try:
            assert lifld.stdout is not None
            assert lifld.stderr is not None
            node.info = json.loads(lifld.stdout.readline())
            submit(node, "j", oracle.model(), job__rounds=2, **keys)
            told: dict[int, bool] = {}

            def play(trainer, round_: Round) -> None:
                if round_.number == 1:
                    trainer.fleet.submit(trainer, round_)
                    told[trainer.index] = trainer.client.wait_committed(round_)

            with fleet([node.address, str(state_dir)], "j", N, oracle.update, play):
                gate.reached()
                draining = stops.hold("lifld.drain.before")
                lifld.send_signal(number)
                draining.reached().go()  # it has heard the signal; it does not end before the round has
                gate.open()
                assert lifld.wait(timeout=WAIT_S) == 0
                until("their answers", lambda: len(told) == N)
            assert told == dict.fromkeys(range(N), True)
            assert lifld.stderr.read() == ""
        finally:
            lifld.kill()
    assert not node.segment.exists()
    with sqlite3.connect(state_dir / "lifl.db") as database:
        rows = database.execute("SELECT round, status FROM rounds ORDER BY round").fetchall()
    assert (1, "committed") in rows
    assert (2, "committed") not in rows
    database.close()
    assert oracle.counts(state_dir / "jobs" / "j" / "round-00001.safetensors", 1, N) == [1] * N


def test_a_node_starts_again_many_times_and_keeps_its_jobs(start_node: Callable[..., Node]) -> None:
    """One round for each life of the node; models and receipts of all of them are there at the end."""
    node, oracle = start_node("--redirector", "unix"), OneHot(3)
    submit(node, "j", oracle.model(), job__rounds=4)
    for number in range(1, 5):
        watch = Watch(node, "j")
        clients = [Client(node.address, job="j", client=name_of(index)) for index in range(3)]
        threads = [
            threading.Thread(target=one_round, args=(client, oracle, index)) for index, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        watch.wait("round.committed", round=number)
        for thread in threads:
            thread.join(WAIT_S)
        node.down()
        node.up()
    lines = oracle.check(node, "j")
    assert [line["receipt"]["counted"] for line in lines] == [3] * 4
    assert node.json("jobs")["jobs"][0]["status"] == "finished"


def one_round(client: Client, oracle: OneHot, index: int) -> None:
    with client:
        round_ = next(client.rounds())
        round_.submit(*oracle.update(index, round_.number))
        client.wait_committed(round_)


def test_the_capacity_is_measured_after_the_start_and_nothing_of_it_stays(start_node: Callable[..., Node]) -> None:
    node = start_node("--capacity", "0")
    assert node.info["capacity_given"] is False
    log = node.state_dir / "lifld.log"
    until("the measurement", lambda: "node.calibrated" in log.read_text())
    measured = float(log.read_text().partition("node.calibrated capacity=")[2].split()[0])
    shown = ask(node, om.Snapshot())["node"]["capacity"]
    assert shown == pytest.approx(measured, rel=1e-4)
    assert 1.0 <= shown <= 8.0, "as many folds at a time as there may be workers (conftest.py), however fast they are"
    until("its process's end", lambda: len(family(node)) == 3)


def test_a_capacity_that_is_given_is_not_measured(start_node: Callable[..., Node]) -> None:
    node = start_node("--capacity", "5")
    assert (node.info["capacity"], node.info["capacity_given"]) == (5.0, True)
    node.down()
    assert "calibrated" not in (node.state_dir / "lifld.log").read_text()
