"""kill -9 of workers, of the zygote and of the gateway: the round goes on, and every ACCEPTED update counts once."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest
from fleet import WAIT_S, Fleet, Gate, OneHot, Watch, arena_use, ask, fleet, gated, seeded, submit, until
from nodes import Node
from stops import Stops, Visit

from lifl import Client
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


class Strikes:
    """Kills the processes that come to some failpoints, at `count` visits drawn from the first `among`.

    Between the rounds of a test there are at least so many visits; who dies comes again, so each strike is made.
    """

    def __init__(self, draw: random.Random, count: int, among: int) -> None:
        self._at = set(draw.sample(range(among), count))
        self._visits = 0
        self.made: list[str] = []

    def __call__(self, visit: Visit) -> str:
        self._visits += 1
        if self._visits - 1 not in self._at:
            return ""
        self.made.append(visit.point)
        return "kill"


WORKERS_POINTS = (
    "worker.start.before",
    "worker.seal.before",
    "worker.seal.after",
    "worker.keys.before",
    "worker.keys.after",
    "worker.done.after",
    "worker.file_fsync.before",
    "worker.file_fsync.after",
    "worker.folder_fsync.before",
    "worker.folder_fsync.after",
)


@pytest.mark.parametrize("redirector", ["auto", "unix"])
@pytest.mark.parametrize("timing", ["eager", "lazy"])
def test_workers_at_random_points(start_node: Callable[..., Node], timing: str, redirector: str) -> None:
    draw, rounds = seeded("test_workers_at_random_points"), 12
    # Each round's model alone is sealed, told and written by a worker that passes seven of the points.
    strikes = Strikes(draw, count=10, among=7 * rounds)
    with Stops(*WORKERS_POINTS, decide=strikes) as stops:
        node, oracle = start_node("--redirector", redirector, points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), job__rounds=rounds, aggregation__timing=timing)
        with fleet([node.address, str(node.state_dir)], "j", N, oracle.update) as team:
            lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * rounds
    assert [line["attempt"] for line in lines] == [1] * rounds, "the death of a worker must not fail a round"
    assert len(strikes.made) == 10


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


@pytest.mark.parametrize("point", [point for point in WORKERS_POINTS if "fsync" in point])
def test_a_worker_that_writes_a_checkpoint(start_node: Callable[..., Node], point: str) -> None:
    """The file is not there, half there, there without its name, or there and not told of: it is there in the end."""
    with Stops(point) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        writer = stops.hold(point)  # of the initial model
        submit(node, "j", oracle.model(), job__rounds=2)
        writer.reached().kill()
        with fleet(node.address, "j", N, oracle.update) as team:
            for _ in range(2):
                writer = stops.hold(point)
                writer.reached().kill()
            lines = finished(node, "j", team, oracle)
    assert [line["attempt"] for line in lines] == [1] * 2, "the death of a worker must not fail a round"


@pytest.mark.parametrize("point", ["zygote.fork.before", "zygote.fork.after", "worker.start.before"])
def test_the_zygote_at_a_fork(start_node: Callable[..., Node], point: str) -> None:
    rounds = 5
    with Stops(point) as stops:
        node = start_node("--idle-timeout-s", "0", points=stops.variable)
        oracle = OneHot(N)
        submit(node, "j", oracle.model(), job__rounds=rounds)
        with fleet(node.address, "j", N, oracle.update) as team:
            for _ in range(rounds - 1):  # more within a minute would end the node: it takes it for broken
                fork = stops.hold(point)
                visit = fork.reached()
                child(node, "lifl.worker.zygote").kill()
                visit.go()
            lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * rounds
    assert [line["attempt"] for line in lines] == [1] * rounds


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
                assert go_on.wait(WAIT_S)

        round_.submit(tensors, weight, metrics, progress)

    with fleet(node.address, "j", 4, oracle.update, play) as team:
        for _ in range(4):
            assert halfway.acquire(timeout=WAIT_S)
        assert ask(node, om.JobStatus("j"))["now"]["uploading"] == 4
        child(node, "lifl.node.gateway.main").kill()
        until("free slots", lambda: ask(node, om.JobStatus("j"))["now"]["uploading"] == 0)
        go_on.set()
        finished(node, "j", team, oracle)


GATEWAYS_POINTS = ("gateway.seal.before", "gateway.seal.after", "gateway.ack.before", "gateway.ack.after")


def test_the_gateway_at_random_points(start_node: Callable[..., Node]) -> None:
    draw, rounds = seeded("test_the_gateway_at_random_points"), 6
    strikes = Strikes(draw, count=6, among=len(GATEWAYS_POINTS) * N)
    with Stops(*GATEWAYS_POINTS, decide=strikes) as stops:
        node, oracle = start_node(points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), job__rounds=rounds)
        with fleet([node.address, str(node.state_dir)], "j", N, oracle.update) as team:
            lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * rounds
    assert len(strikes.made) == 6


@pytest.mark.parametrize(
    ("point", "direct"), [*((point, False) for point in GATEWAYS_POINTS), (GATEWAYS_POINTS[1], True)]
)
def test_the_gateway_between_two_steps_of_an_update(start_node: Callable[..., Node], point: str, direct: bool) -> None:
    """Whether it was sealed, or the client told so: it counts once."""
    with Stops(point) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(3)
        submit(node, "j", oracle.model())
        last = stops.hold(point)
        with fleet(str(node.state_dir) if direct else node.address, "j", 3, oracle.update) as team:
            last.reached().kill()
            (line,) = finished(node, "j", team, oracle)
    assert (line["receipt"]["counted"], line["attempt"]) == (3, 1)


def test_clients_learn_of_all_rounds_that_were_committed_while_they_were_away(start_node: Callable[..., Node]) -> None:
    """They hold the updates of two rounds; both are committed between two gateways.  Else they would wait for ever."""
    node, oracle = start_node("--redirector", "unix"), OneHot(4)
    folder = node.state_dir / "models"
    submit(node, "j", oracle.model(), job__rounds=4, checkpoint__folder=str(folder))
    watch = Watch(node, "j")
    gate = Gate(folder / ".round-00001.safetensors.tmp")  # no reader comes: the writer waits for ever
    with fleet([node.address, str(node.state_dir)], "j", 4, oracle.update) as team:
        watch.wait("update.accepted", 4, round=2)
        until("two rounds to save", lambda: now(node) == (2, "saving"))
        child(node, "lifl.node.gateway.main").kill()
        gate.open()
        for pid in workers(node):
            kill(pid)
        lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [4] * 4


def now(node: Node) -> tuple[int, str]:
    """The round that runs, or the last one that is being saved, and how far it is."""
    told = ask(node, om.JobStatus("j"))["now"]
    return told["round"], told["phase"]


def test_a_client_that_waits_long_outlives_two_gateways(
    start_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`give_up_after_s` is how long the node may be away at a stretch, not since the first break.

    Between the breaks the client's clock jumps by more than that.
    """
    jumped_s = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + jumped_s[0], time_ns=time.time_ns)
    monkeypatch.setattr("lifl.client.home.time", clock)
    node, oracle = start_node("--redirector", "unix"), OneHot(2)
    submit(node, "j", oracle.model())
    with fleet(node.address, "j", 1, oracle.update) as team:
        client = team.trainers[0].client
        before = None
        for _ in range(2):
            before = until("the client's return", lambda: team.errors() or returned(client, before))  # noqa: B023
            jumped_s[0] += 2 * client.give_up_after_s
            child(node, "lifl.node.gateway.main").kill()
        until("the client's return", lambda: team.errors() or returned(client, before))
        assert not team.errors()
        ask(node, om.CancelJob("j"))
        team.join(well=False)
        assert isinstance(team.errors()[0], JobCancelled)


def returned(client: Client, before: object) -> object:
    """The client's connection, if it has another one than before and it is greeted there."""
    return client._home.stream if client._home.stream is not before else None
