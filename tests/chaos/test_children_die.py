"""kill -9 of workers, of the zygote and of the gateway: the round goes on, and every ACCEPTED update counts once."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager

import psutil
import pytest
from conftest import Node
from fleet import Fleet, Gate, OneHot, Watch, arena_use, ask, fleet, gated, seeded, submit, until

from lifl.client import JobCancelled
from lifl.core.protocol import cli as om

N = 16


def kill(pid: int) -> None:
    """kill -9; it may have ended just before."""
    try:
        psutil.Process(pid).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        pass


def child(node: Node, module: str) -> psutil.Process:
    """The daemon's gateway or zygote."""

    def look() -> psutil.Process | None:
        for process in psutil.Process(node.pid).children():
            try:
                if module in process.cmdline():
                    return process
            except psutil.NoSuchProcess:
                continue
        return None

    return until(f"a {module}", look)


def workers(node: Node) -> list[int]:
    """The aggregators' pids, as the kernel knows them: also those that the daemon has not heard of yet."""
    try:
        return [process.pid for process in child(node, "lifl.worker.zygote").children()]
    except psutil.NoSuchProcess:
        return []


def finished(node: Node, job: str, team: Fleet, oracle: OneHot) -> list[dict]:
    """The job ends well, everybody was told the truth, and nothing is left in the arena."""
    team.join()
    lines = oracle.check(node, job, team)
    assert ask(node, om.JobStatus(job))["job"]["status"] == "finished"
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))
    return lines


@contextmanager
def chaos(draw: random.Random, pause_max_s: float, strike: Callable[[], None]):
    """`strike` is called again and again, after random pauses, while the block runs; yields the number of calls."""
    over, count = threading.Event(), [0]

    def run() -> None:
        while not over.wait(draw.uniform(0, pause_max_s)):
            strike()
            count[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield count
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("redirector", ["auto", "unix"])
@pytest.mark.parametrize("timing", ["eager", "lazy"])
def test_workers_at_random_moments(start_node: Callable[..., Node], timing: str, redirector: str) -> None:
    draw = seeded("test_workers_at_random_moments")
    node, oracle = start_node("--redirector", redirector), OneHot(N)
    killed = []

    def strike() -> None:
        living = workers(node)
        if living:
            killed.append(draw.choice(living))
            kill(killed[-1])

    submit(node, "j", oracle.model(), job__rounds=12, aggregation__timing=timing)
    with fleet([node.address, str(node.state_dir)], "j", N, oracle.update) as team, chaos(draw, 0.04, strike):
        lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * 12
    assert [line["attempt"] for line in lines] == [1] * 12, "the death of a worker must not fail a round"
    assert len(killed) >= 5


@pytest.mark.parametrize("place", ["fold", "merge", "finish"])
def test_a_worker_at_work(start_node: Callable[..., Node], place: str) -> None:
    """Those that are within a leaf's, the middle's or the top's work die; others take their place."""
    node, oracle = start_node(), OneHot(N)
    role = {"fold": "leaf", "merge": "middle", "finish": "top"}[place]
    with gated(node, place) as (keys, (gate,)):
        submit(node, "j", oracle.model(), **keys)
        watch = Watch(node, "j")
        with fleet(node.address, "j", N, oracle.update) as team:
            gate.reached()
            watch.wait("update.accepted", N)
            tree = ask(node, om.JobStatus("j"))["now"]["tree"]
            victims = {task["pid"] for task in tree if task["role"] == role and task["state"] == "running"}
            assert victims
            for pid in victims:
                kill(pid)
            gate.open()
            (line,) = finished(node, "j", team, oracle)
    assert line["receipt"]["bytes_in"] == N * oracle.data_bytes, "nobody sent anything twice"
    assert any(task["attempt"] > 1 for task in line["receipt"]["tree"] if task["role"] == role)


def test_a_worker_that_writes_a_checkpoint(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    draw = seeded("test_a_worker_that_writes_a_checkpoint")
    submit(node, "j", oracle.model(), job__rounds=3)
    watch = Watch(node, "j")
    with fleet(node.address, "j", N, oracle.update) as team:
        for number in (1, 2, 3):
            watch.wait("update.accepted", N, round=number)
            threading.Event().wait(draw.uniform(0, 0.01))
            for pid in workers(node):
                kill(pid)
        finished(node, "j", team, oracle)


def test_the_zygote_at_random_moments(start_node: Callable[..., Node]) -> None:
    draw = seeded("test_the_zygote_at_random_moments")
    node, oracle = start_node("--idle-timeout-s", "0"), OneHot(N)
    submit(node, "j", oracle.model(), job__rounds=5)
    watch = Watch(node, "j")
    with fleet(node.address, "j", N, oracle.update) as team:
        for number in range(1, 5):  # more within a minute would end the node: it takes a zygote that dies so for broken
            watch.wait("update.accepted", draw.randint(1, N), round=number)
            child(node, "lifl.worker.zygote").kill()
        lines = finished(node, "j", team, oracle)
    assert [line["attempt"] for line in lines] == [1] * 5


def test_a_zygote_that_always_dies_ends_the_node_with_a_reason(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(2)
    submit(node, "j", oracle.model())
    process = psutil.Process(node.pid)
    with fleet([str(node.state_dir)], "j", 2, oracle.update, held=[(1, 1)]) as team:
        Watch(node, "j").wait("update.accepted", 1)
        until("the node's end", lambda: not node.is_up() or (kill_zygote(process) and False))
        log = (node.state_dir / "lifld.log").read_text()
        assert "lifl.worker.zygote ended 8 times within 60 s" in log
        # Its arena stays, for it holds an ACCEPTED update; the next daemon goes on from it.
        node.up()
        assert node.info["adopted"] == {"jobs": 1, "updates": 1}
        team.release()
        finished(node, "j", team, oracle)


def kill_zygote(lifld: psutil.Process) -> bool:
    try:
        for process in lifld.children():
            if "lifl.worker.zygote" in process.cmdline():
                process.kill()
    except psutil.NoSuchProcess:
        pass
    return True


@pytest.mark.parametrize("accepted", [0, 5, N - 1])
def test_the_gateway_while_updates_come_in(start_node: Callable[..., Node], accepted: int) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "j", oracle.model(), aggregation__timing="lazy")
    watch = Watch(node, "j")
    late = [(index, 1) for index in range(accepted, N)]
    with fleet([node.address, str(node.state_dir)], "j", N, oracle.update, held=late) as team:
        watch.wait("update.accepted", accepted) if accepted else watch.wait("round.opened")
        child(node, "lifl.node.gateway.main").kill()
        team.release()
        (line,) = finished(node, "j", team, oracle)
    assert line["receipt"]["bytes_in"] == N * oracle.data_bytes, "what was ACCEPTED was not sent again"
    assert line["attempt"] == 1


def test_the_gateway_in_the_middle_of_uploads(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix", "--arena-bytes", "128MiB"), OneHot(4, ballast_bytes=6 << 20)
    submit(node, "j", oracle.model())
    halfway, go_on = threading.Semaphore(0), threading.Event()

    def play(trainer, round_) -> None:
        tensors, weight, metrics = oracle.update(trainer.index, round_.number)

        def progress(sent: int, total: int) -> None:
            if sent < total and not go_on.is_set():
                halfway.release()
                assert go_on.wait(40)

        round_.submit(tensors, weight, metrics, progress)

    with fleet(node.address, "j", 4, oracle.update, play) as team:
        for _ in range(4):
            assert halfway.acquire(timeout=40)
        assert ask(node, om.JobStatus("j"))["now"]["uploading"] == 4
        child(node, "lifl.node.gateway.main").kill()
        until("free slots", lambda: ask(node, om.JobStatus("j"))["now"]["uploading"] == 0)
        go_on.set()
        finished(node, "j", team, oracle)


def test_the_gateway_at_random_moments(start_node: Callable[..., Node]) -> None:
    draw = seeded("test_the_gateway_at_random_moments")
    node, oracle = start_node(), OneHot(N)
    submit(node, "j", oracle.model(), job__rounds=6)
    watch = Watch(node, "j")
    with fleet([node.address, str(node.state_dir)], "j", N, oracle.update) as team:
        for number in range(1, 6):
            watch.wait("update.accepted", draw.randint(1, N), round=number)
            threading.Event().wait(draw.uniform(0, 0.01))
            child(node, "lifl.node.gateway.main").kill()
        lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * 6


def test_clients_learn_of_all_rounds_that_were_committed_while_they_were_away(start_node: Callable[..., Node]) -> None:
    """They hold the updates of two rounds; both are committed between two gateways.  Else they would wait for ever."""
    node, oracle = start_node("--redirector", "unix"), OneHot(4)
    folder = node.state_dir / "models"
    submit(node, "j", oracle.model(), job__rounds=4, checkpoint__folder=str(folder))
    watch = Watch(node, "j")
    gate = Gate(folder / ".round-00001.safetensors.tmp")  # no reader comes: the writer waits for ever
    with fleet([node.address, str(node.state_dir)], "j", 4, oracle.update) as team:
        watch.wait("update.accepted", 4, round=2)
        until("two rounds to save", lambda: ask(node, om.JobStatus("j"))["now"]["round"] == 3)
        child(node, "lifl.node.gateway.main").kill()
        gate.open()
        for pid in workers(node):
            kill(pid)
        lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [4] * 4


def test_a_client_that_waits_long_outlives_two_gateways(start_node: Callable[..., Node]) -> None:
    """`give_up_after_s` is how long the node may be away at a stretch, not since the first break."""
    node, oracle = start_node("--redirector", "unix"), OneHot(2)
    submit(node, "j", oracle.model())
    with fleet(node.address, "j", 1, oracle.update) as team:
        team.trainers[0].client.give_up_after_s = 1.5

        def is_back() -> bool:
            return bool(ask(node, om.JobStatus("j"))["job"]["clients"] or team.errors())

        for _ in range(2):
            until("the client's return", is_back)
            child(node, "lifl.node.gateway.main").kill()
            threading.Event().wait(1.6)
        until("the client's return", is_back)
        assert not team.errors()
        ask(node, om.CancelJob("j"))
        team.join(well=False)
        assert isinstance(team.errors()[0], JobCancelled)
