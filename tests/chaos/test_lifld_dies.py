"""kill -9 of `lifld` at every kind of moment: the next one goes on, and every ACCEPTED update counts exactly once.

Trainers are shared between TCP and the node's socket (where they write to the arena themselves).  That nobody sends
again what was ACCEPTED is seen in the receipt, whose bytes count from the new daemon's start.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import (
    WAIT_S,
    WITH_MIDDLES,
    Fleet,
    Gate,
    OneHot,
    Watch,
    arena_use,
    ask,
    fleet,
    gated,
    name_of,
    note_busy,
    objects,
    restart,
    seeded,
    submit,
    until,
    workers,
)
from nodes import Node
from stops import Stops

from lifl import Client
from lifl.client import JobCancelled
from lifl.core.ids import Kind
from lifl.core.protocol import cli as om
from lifl.shm.layout import ObjectState

N = 8


def both(node: Node) -> list[str]:
    """Addresses: by TCP, and by the node's folder."""
    return [node.address, str(node.state_dir)]


def finished(node: Node, job: str, team: Fleet, oracle: OneHot) -> list[dict]:
    """The job ends well, everybody was told the truth, and nothing is left in the arena."""
    team.join()
    lines = oracle.check(node, job, team)
    assert ask(node, om.JobStatus(job))["job"]["status"] == "finished"
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))
    return lines


@pytest.mark.parametrize("timing", ["lazy", "eager"])
@pytest.mark.parametrize("accepted", [1, 5, N - 1])
def test_while_updates_come_in(start_node: Callable[..., Node], accepted: int, timing: str) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "j", oracle.model(), aggregation__timing=timing)
    watch = Watch(node, "j")
    late = [(index, 1) for index in range(accepted, N)]
    with fleet(both(node), "j", N, oracle.update, held=late) as team:
        watch.wait("update.accepted", accepted)
        restart(node)
        assert node.info["adopted"] == {"jobs": 1, "updates": accepted}
        team.release()
        (line,) = finished(node, "j", team, oracle)
    assert line["receipt"]["counted"] == N
    assert line["receipt"]["bytes_in"] == (N - accepted) * oracle.data_bytes
    assert line["attempt"] == 1


@pytest.mark.parametrize("place", ["fold", "merge", "finish"])
def test_while_aggregators_work(start_node: Callable[..., Node], place: str) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    with gated(node, place) as (keys, (gate,)):
        submit(node, "j", oracle.model(), **keys, **WITH_MIDDLES)
        watch = Watch(node, "j")
        with fleet(both(node), "j", N, oracle.update) as team:
            gate.reached()
            watch.wait("update.accepted", N)
            node.kill()
            gate.open()
            node.up("--listen", node.address)
            (line,) = finished(node, "j", team, oracle)
    assert line["receipt"]["counted"] == N
    assert line["receipt"]["bytes_in"] == 0


def test_after_the_seal_that_it_never_heard_of(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    with gated(node, "finish") as (keys, (gate,)):
        submit(node, "j", oracle.model(), **keys)
        with fleet(both(node), "j", N, oracle.update) as team:
            gate.reached()
            os.kill(node.pid, 19)  # SIGSTOP: the top seals, and nobody hears it
            gate.open()
            epochs = {entry.round for entry in objects(node) if entry.kind == Kind.PARTIAL}
            until(
                "the top's seal",
                lambda: any(
                    entry.kind == Kind.MODEL and entry.state == ObjectState.SEALED and entry.round in epochs
                    for entry in objects(node)
                ),
            )
            restart(node)
            (line,) = finished(node, "j", team, oracle)
    assert line["receipt"]["counted"] == N
    assert line["receipt"]["bytes_in"] == 0


@pytest.mark.parametrize("next_accepted", [0, 3, N])
def test_between_seal_and_commit(start_node: Callable[..., Node], next_accepted: int) -> None:
    """The checkpoint of round 1 is being written; round 2 takes updates already, or is complete itself."""
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    folder = node.state_dir / "models"
    rounds = 2 if next_accepted else 1
    submit(node, "j", oracle.model(), job__rounds=rounds, checkpoint__folder=str(folder))
    watch = Watch(node, "j")
    gate = Gate(folder / ".round-00001.safetensors.tmp")  # no reader comes: the writer waits for ever
    late = [(index, 2) for index in range(next_accepted, N)]
    with fleet(both(node), "j", N, oracle.update, held=late) as team:
        watch.wait("update.accepted", N, round=1)
        if next_accepted:
            watch.wait("update.accepted", next_accepted, round=2)
        else:
            until("the checkpoint's start", lambda: ask(node, om.JobStatus("j"))["now"]["phase"] == "saving")
        assert ask(node, om.JobStatus("j"))["job"]["committed"] == 0
        node.kill()
        gate.open()
        node.up("--listen", node.address)
        team.release()
        lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * rounds
    assert lines[0]["receipt"]["bytes_in"] == 0
    if rounds == 2:
        assert lines[1]["receipt"]["bytes_in"] == (N - next_accepted) * oracle.data_bytes


def test_in_the_middle_of_uploads(start_node: Callable[..., Node]) -> None:
    """What was not ACCEPTED leaves no trace; the client sends it again by itself."""
    node, oracle = start_node("--redirector", "unix", "--arena-bytes", "128MiB"), OneHot(3, ballast_bytes=6 << 20)
    submit(node, "j", oracle.model())
    halfway, go_on = threading.Semaphore(0), threading.Event()

    def play(trainer, round_) -> None:
        tensors, weight, metrics = oracle.update(trainer.index, round_.number)

        def progress(sent: int, total: int) -> None:
            if sent < total and not go_on.is_set():
                halfway.release()
                assert go_on.wait(WAIT_S)

        round_.submit(tensors, weight, metrics, progress if trainer.index else None)

    watch = Watch(node, "j")
    with fleet(node.address, "j", 3, oracle.update, play) as team:
        watch.wait("update.accepted", 1)
        for _ in range(2):
            assert halfway.acquire(timeout=WAIT_S)
        node.kill()
        go_on.set()
        node.up("--listen", node.address)
        assert node.info["adopted"] == {"jobs": 1, "updates": 1}
        (line,) = finished(node, "j", team, oracle)
    assert line["receipt"]["bytes_in"] == 2 * oracle.data_bytes


POINTS = [
    *("lifld.round_row.before", "lifld.round_row.after", "lifld.plan_row.before", "lifld.plan_row.after"),
    *("lifld.route.before", "lifld.route.after", "lifld.keys.before", "lifld.keys.after"),
    *("lifld.task.before", "lifld.task.after"),
]
"""What lifld passes in each round on a node that is alone."""
FORK_POINTS = ["lifld.fork.before", "lifld.fork.after", "lifld.child.before", "lifld.child.after"]
"""What it passes when there is no worker yet."""


@pytest.mark.parametrize("redirector", ["auto", "unix"])
def test_at_random_points(start_node: Callable[..., Node], redirector: str) -> None:
    draw = seeded("test_at_random_points")
    kills, rounds = (
        6,
        8,
    )  # the plan's row of a round is written as the one before ends: there are more rounds than kills
    timing = draw.choice(["eager", "lazy"])
    with Stops(*POINTS) as stops:
        node, oracle = start_node("--redirector", redirector, points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), job__rounds=rounds, aggregation__timing=timing)
        held = [(index, number) for index in range(N) for number in range(1, rounds + 1)]
        with fleet(both(node), "j", N, oracle.update, held=held) as team:
            for kill in range(1, kills + 1):
                place = stops.hold(draw.choice(POINTS))  # before anyone submits in the round that is to pass it
                team.release_round(kill)
                visit = place.reached()
                assert visit.pid == node.pid
                visit.kill()
                node.up("--listen", node.address)
            team.release()
            lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * rounds


@pytest.mark.parametrize("point", FORK_POINTS)
def test_where_a_worker_is_forked(start_node: Callable[..., Node], point: str) -> None:
    with Stops(point) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), job__rounds=2)
        place = stops.hold(point)
        with fleet(both(node), "j", N, oracle.update) as team:
            visit = place.reached()
            assert visit.pid == node.pid
            visit.kill()
            node.up("--listen", node.address)
            lines = finished(node, "j", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N, N]


@pytest.mark.parametrize("point", ["lifld.round_row.before", "lifld.round_row.after", "lifld.job_row.before"])
def test_on_both_sides_of_a_commits_row(start_node: Callable[..., Node], point: str) -> None:
    """Either no client has heard of the commit, or it is on the disk."""
    with Stops(point) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), aggregation__timing="lazy")
        watch = Watch(node, "j")
        with fleet(both(node), "j", N, oracle.update, held=[(0, 1)]) as team:
            watch.wait("update.accepted", N - 1)
            commit = stops.hold(point)  # the next row: the round's commit, or the job's end
            team.release()
            visit = commit.reached()
            assert not any(team.fate(index, 1) for index in range(N)) or "job" in point
            visit.kill()
            node.up("--listen", node.address)
            (line,) = finished(node, "j", team, oracle)
    assert (line["receipt"]["counted"], line["attempt"]) == (N, 1)


def test_clients_wait_while_the_next_daemon_loads_the_model(start_node: Callable[..., Node]) -> None:
    """They come back before the job runs again: nothing of theirs is refused for that."""
    node, oracle = start_node("--redirector", "unix"), OneHot(3)
    folder = node.state_dir / "models"
    submit(node, "j", oracle.model(), checkpoint__folder=str(folder), aggregation__timing="lazy")
    first = folder / "round-00000.safetensors"
    models, told_busy, asked = [], Counter(), threading.Event()

    def play(trainer, round_) -> None:
        if trainer.index == 0:
            answer = trainer.client._home.answer
            trainer.client._home.answer = lambda *arguments: asked.set() or answer(*arguments)
            models.append(round_.model)
        trainer.fleet.submit(trainer, round_)

    team = Fleet(both(node), "j", 3, oracle.update, play, models=False)
    team.hold(0)
    team.hold(1)
    note_busy(team.trainers[1], told_busy)
    watch = Watch(node, "j")
    team.start()
    try:
        watch.wait("update.accepted", 1)
        until("the initial checkpoint", first.exists)
        node.kill()
        first.rename(folder / "aside")
        os.mkfifo(first)  # who loads it waits for ever
        node.up("--listen", node.address)
        assert ask(node, om.JobStatus("j"))["job"]["status"] == "loading"
        team.release()
        until("the clients", lambda: ask(node, om.JobStatus("j"))["job"]["clients"] == 3 or team.errors())
        assert asked.wait(WAIT_S), "the first one wants the model"
        already = told_busy[1]
        until("the second one to be told to wait, twice", lambda: told_busy[1] >= already + 2 or team.errors())
        assert not team.errors()
        assert all(not trainer.submissions for trainer in team.trainers[:2])
        first.unlink()
        (folder / "aside").rename(first)
        for pid in workers(node):
            os.kill(pid, 9)
        (line,) = finished(node, "j", team, oracle)
    finally:
        team.close()
    assert line["receipt"]["bytes_in"] == 2 * oracle.data_bytes
    answers = [trainer.submissions[1] for trainer in team.trainers]
    assert all(answer.accepted for answer in answers), answers
    (model,) = models
    assert (model["w"] == 0).all()


def damage_header(segment: Path, draw: random.Random) -> None:
    with segment.open("r+b") as file:
        file.seek(draw.randrange(64))
        file.write(bytes(draw.randrange(256) for _ in range(8)))
        file.seek(0)
        file.write(b"\xff" * draw.choice([8, 64]))


@pytest.mark.parametrize("what", ["gone", "damaged", "short"])
def test_with_its_memory(start_node: Callable[..., Node], what: str) -> None:
    """The machine was off, or the segment is unusable: clients still hold what was not COMMITTED, and send it again."""
    draw = seeded("test_with_its_memory")
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "j", oracle.model(), aggregation__timing="lazy")
    watch = Watch(node, "j")
    with fleet(both(node), "j", N, oracle.update, held=[(0, 1)]) as team:
        watch.wait("update.accepted", N - 1)
        node.kill()
        if what == "gone":
            node.remove_arena()
        elif what == "short":
            os.truncate(node.segment, 100_000)
        else:
            damage_header(node.segment, draw)
        node.up("--listen", node.address)
        assert node.info["adopted"] == {"jobs": 1, "updates": 0}
        assert node.info["arena_bytes"] == 64 << 20
        if what != "gone":
            (warning,) = node.info["warnings"]
            assert "could not be adopted" in warning
        team.release()
        (line,) = finished(node, "j", team, oracle)
        # Nobody trained twice: what was kept was sent again.
        assert [len(trainer.rounds) for trainer in team.trainers[1:]] == [1] * (N - 1)
    assert line["receipt"]["bytes_in"] == N * oracle.data_bytes


def test_clients_of_a_job_that_is_over_are_told_so_by_the_next_daemon(start_node: Callable[..., Node]) -> None:
    """They had not heard of the end when the node died."""
    node, oracle = start_node("--redirector", "unix"), OneHot(2)
    for job in ("done", "stopped"):
        submit(node, job, oracle.model())
    ask(node, om.CancelJob("stopped"))
    with fleet(node.address, "done", 2, oracle.update) as team:
        team.join()
    for end in (node.kill, node.down):
        end()
        node.up()
        with Client(node.address, job="done", client=name_of(0)) as client:
            assert list(client.rounds()) == []
        with Client(node.address, job="stopped", client=name_of(0)) as client, pytest.raises(JobCancelled):
            list(client.rounds())


def test_between_the_last_commit_and_the_end_of_the_job(start_node: Callable[..., Node]) -> None:
    """The two rows of the database are two writes: the moment between them is made here."""
    node, oracle = start_node("--redirector", "unix"), OneHot(2)
    submit(node, "j", oracle.model(), job__rounds=2)
    with fleet(node.address, "j", 2, oracle.update) as team:
        team.join()
    node.kill()
    database = sqlite3.connect(node.state_dir / "lifl.db")
    with database:
        database.execute("UPDATE jobs SET status = 'running'")
    database.close()
    node.up()
    with fleet(node.address, "j", 2, oracle.update) as team:
        team.join()
    assert len(oracle.check(node, "j")) == 2
    assert ask(node, om.JobStatus("j"))["job"]["status"] == "finished"


def test_without_a_job_the_old_segment_is_taken_over_or_replaced(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    segment = node.segment
    restart(node)
    assert node.segment == segment
    assert node.info["warnings"] == []
    assert arena_use(node) == (0, 0)
    node.kill()
    node.up("--arena-bytes", "32MiB")
    assert {path.stat().st_size for path in node.segments.values()} == {32 << 20}
    node.down()
    assert not segment.exists()


def test_its_children_die_with_it(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node(), OneHot(2)
    with gated(node, "fold") as (keys, (gate,)):
        submit(node, "j", oracle.model(), **keys)
        with fleet(node.address, "j", 2, oracle.update) as team:
            gate.reached()
            shown = ask(node, om.Snapshot())
            children = [shown["node"]["gateway"]["pid"], shown["node"]["zygote_pid"]]
            children += workers(node)
            assert len(children) >= 3 and all(os.path.exists(f"/proc/{pid}") for pid in children)
            node.kill()
            until("the children's end", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))
            gate.open()
            node.up("--listen", node.address)
            finished(node, "j", team, oracle)
