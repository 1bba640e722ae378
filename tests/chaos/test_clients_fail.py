"""Clients that vanish, come twice, come late or send nonsense: they harm nobody, and what counts counts once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from fleet import WAIT_S, Fleet, OneHot, Watch, arena_use, ask, deadlines, fleet, name_of, objects, submit, until
from nodes import Node

from lifl import Client
from lifl.client import JobFailed, Refused, RoundEnded
from lifl.client.client import Round
from lifl.core.errors import LiflError
from lifl.core.ids import Kind
from lifl.core.protocol import cli as om
from lifl.shm.layout import ObjectState

N = 6


def now(node: Node) -> dict:
    """The running round of job j."""
    found: dict = ask(node, om.JobStatus("j"))["now"]
    return found


def finished(node: Node, job: str, team: Fleet, oracle: OneHot) -> list[dict]:
    """The job ends well, everybody was told the truth, and nothing is left in the arena."""
    team.join()
    lines = oracle.check(node, job, team)
    assert ask(node, om.JobStatus(job))["job"]["status"] == "finished"
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))
    return lines


HALF = """
import sys
import numpy as np
from lifl import Client

def progress(sent, total):
    if sent < total:
        print("half", flush=True)
        sys.stdin.read()

with Client(sys.argv[1], job="j", client="half") as client:
    for round_ in client.rounds():
        round_.submit({k: np.zeros_like(a) for k, a in round_.model.items()}, 1.0, progress=progress)
"""


@pytest.mark.parametrize("way", ["killed", "raises"])
def test_an_upload_that_breaks_halfway_leaves_no_trace(start_node: Callable[..., Node], way: str) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(2, ballast_bytes=6 << 20)
    submit(node, "j", oracle.model(), selection__over_provision=1.5)
    with fleet(node.address, "j", 2, oracle.update, held=[(0, 1), (1, 1)]) as team:
        until("both clients", lambda: ask(node, om.JobStatus("j"))["job"]["clients"] == 2)
        if way == "killed":
            half = subprocess.Popen(
                [sys.executable, "-c", HALF, node.address], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
            )
            with half:
                assert half.stdout is not None
                assert half.stdout.readline() == "half\n"
                held = arena_use(node)
                assert now(node)["uploading"] == 1
                half.kill()
        else:
            held = break_off(node, oracle)
        until("the slot to be free", lambda: now(node)["uploading"] == 0)
        objects, used_bytes = arena_use(node)
        # The slot, and the room that was opened for its leaf's path.
        assert objects < held[0]
        assert used_bytes <= held[1] - oracle.data_bytes
        assert until("its absence", lambda: ask(node, om.JobStatus("j"))["job"]["clients"] == 2)
        team.release()
        finished(node, "j", team, oracle)


FAR = """
import sys
import numpy as np
from lifl import Client

def progress(sent, total):
    if total // 2 < sent < total:
        print("far", flush=True)
        sys.stdin.read()

with Client(sys.argv[1], job="j", client="far") as client:
    for round_ in client.rounds():
        round_.submit({k: np.zeros_like(a) for k, a in round_.model.items()}, 1.0, progress=progress)
"""


def ballast_being_made(node: Node) -> set[float]:
    """What stands in the first megabyte of a model that is being made, zeros aside."""
    for entry in objects(node):
        if entry.kind == Kind.MODEL and entry.state == ObjectState.WRITING:
            with node.segments[entry.segment].open("rb") as segment:
                segment.seek(entry.offset)
                return set(np.frombuffer(segment.read(1 << 20), np.float32).tolist()) - {0.0}
    return set()


def test_what_was_made_of_an_update_that_broke_off_is_made_anew(start_node: Callable[..., Node]) -> None:
    """The top has gone along with an update, and its client dies: nothing of it is in the model."""
    node, oracle = start_node("--redirector", "unix", "--arena-bytes", "512MiB"), OneHot(2, ballast_bytes=48 << 20)
    submit(node, "j", oracle.model(), selection__over_provision=1.5)
    with fleet(node.address, "j", 2, oracle.update, held=[(0, 1), (1, 1)]) as team:
        until("both clients", lambda: ask(node, om.JobStatus("j"))["job"]["clients"] == 2)
        far = subprocess.Popen(
            [sys.executable, "-c", FAR, node.address], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        with far:
            assert far.stdout is not None
            assert far.stdout.readline() == "far\n"
            team.release(0)
            # The mean of its zeros and of the ones of the update that is all there.
            until("the model's first part", lambda: ballast_being_made(node) == {0.5})
            far.kill()
        until("the slot to be free", lambda: now(node)["uploading"] == 0)
        team.release()
        finished(node, "j", team, oracle)


STRAGGLER = """
import sys
import numpy as np
from lifl import Client

def progress(sent, total):
    if sent < total and not waited:
        waited.append(True)
        print("half", flush=True)
        sys.stdin.readline()

waited = []
with Client(sys.argv[1], job="j", client="straggler") as client:
    round_ = next(client.rounds())
    done = round_.submit({k: np.zeros_like(a) for k, a in round_.model.items()}, 1.0, progress=progress)
    print(round_.number, done.accepted, done.reason, flush=True)
"""


def test_who_still_sends_when_the_round_is_committed_is_told_so(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(2, ballast_bytes=6 << 20)
    submit(node, "j", oracle.model(), job__rounds=2, selection__over_provision=1.5)
    watch = Watch(node, "j")
    held = [(index, number) for index in (0, 1) for number in (1, 2)]
    with fleet(node.address, "j", 2, oracle.update, held=held) as team:
        until("both clients", lambda: ask(node, om.JobStatus("j"))["job"]["clients"] == 2)
        straggler = subprocess.Popen(
            [sys.executable, "-c", STRAGGLER, node.address], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        with straggler:
            try:
                assert straggler.stdout is not None
                assert straggler.stdout.readline() == "half\n"
                for index in (0, 1):
                    team._gates[index, 1].set()
                watch.wait("round.committed", round=1)
                told, _ = straggler.communicate("\n", timeout=WAIT_S)
                assert told == "1 False the round closed before this update was complete\n"
            finally:
                straggler.kill()
        team.release()
        finished(node, "j", team, oracle)


class Broken(Exception):
    """What the trainer's own progress bar raises."""


def break_off(node: Node, oracle: OneHot) -> tuple[int, int]:
    seen: list[tuple[int, int]] = []

    def progress(sent: int, total: int) -> None:
        if sent < total:
            seen.append(arena_use(node))
            raise Broken

    with Client(node.address, job="j", client="half") as client:
        round_ = next(client.rounds())
        with pytest.raises(Broken):
            round_.submit(oracle.update(0, 1)[0], 1.0, None, progress)
    return seen[0]


def test_a_second_submission_gets_the_first_ones_answer(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "j", oracle.model(), job__rounds=3)
    answers = []

    def play(trainer, round_: Round) -> None:
        first = trainer.fleet.submit(trainer, round_)
        tensors, _, _ = oracle.update((trainer.index + 1) % N, round_.number)  # would be another's unit vector
        answers.append((first, round_.submit(tensors, 5.0)))

    team = Fleet([node.address, str(node.state_dir)], "j", N, oracle.update, play).start()
    try:
        lines = finished(node, "j", team, oracle)
    finally:
        team.close()
    assert len(answers) == 3 * N
    assert all(first.accepted and second.accepted for first, second in answers)
    assert [line["receipt"]["bytes_in"] for line in lines] == [N * oracle.data_bytes] * 3
    assert [line["receipt"]["weight"] for line in lines] == [N] * 3


def test_a_client_that_starts_again_does_not_count_twice(start_node: Callable[..., Node]) -> None:
    """Its process died after ACCEPTED: the new one has no memory of it and takes part from the next round on."""
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "j", oracle.model(), job__rounds=2, aggregation__timing="lazy")
    watch = Watch(node, "j")
    with fleet(node.address, "j", N, oracle.update, held=[(5, 1)]) as team:
        watch.wait("update.accepted", N - 1, round=1)
        again = Fleet(node.address, "j", 1, oracle.update).start()
        team.trainers[0].join(WAIT_S)
        # Who joins under a name that is taken takes its place; the one before is told.
        assert isinstance(team.trainers[0].error, Refused)
        assert "another connection" in str(team.trainers[0].error)
        team.release()
        watch.over()
        again.join()
    assert [round_.number for round_ in again.trainers[0].rounds] == [2]
    for line in oracle.check(node, "j"):
        assert line["receipt"]["counted"] == N
        assert line["receipt"]["bytes_in"] == N * oracle.data_bytes


@pytest.mark.parametrize("timing", ["eager", "lazy"])
def test_at_the_deadline_a_quorum_commits_without_stragglers(start_node: Callable[..., Node], timing: str) -> None:
    node = start_node()
    for deadline_s in deadlines(0.1):
        if quorum_commits_at_the_deadline(node, f"j{deadline_s:g}", deadline_s, timing):
            return


def quorum_commits_at_the_deadline(node: Node, job: str, deadline_s: float, timing: str) -> bool:
    """False when those that are no stragglers did not come before the deadline either."""
    oracle = OneHot(N)
    selection = {"selection__quorum": 3, "selection__deadline_s": deadline_s}
    submit(node, job, oracle.model(), job__rounds=2, aggregation__timing=timing, **selection)
    watch = Watch(node, job)
    with fleet(node.address, job, N, oracle.update, held=[(1, 1), (4, 1), (2, 2)]) as team:
        for number, late in ((1, (1, 4)), (2, (2,))):
            ended = watch.wait_any("round.committed", "round.failed", "job.over", round=number)
            in_time = sum(e.name == "update.accepted" and e.fields["round"] == number for e in watch.events)
            selected = [e.fields["selected"] for e in watch.events if e.name == "round.opened"]
            if in_time < N - len(late) or selected[-1] < N:
                team.release()
                with suppress(LiflError):  # it may be over
                    ask(node, om.CancelJob(job))
                team.join(well=False)
                return False
            assert ended.name == "round.committed"
            team.release(*late)  # too late for this round; then they are in time for the next one
        lines = finished(node, job, team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [4, 5]
    assert [line["receipt"]["expired"] for line in lines] == [2, 1]
    for index in (1, 4):
        answer = team.trainers[index].submissions[1]
        assert not answer.accepted and "over" in answer.reason
        assert team.trainers[index].submissions[2].accepted
    return True


def test_without_a_quorum_the_round_fails_with_the_reason_and_is_tried_again(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    for deadline_s in deadlines(0.1):
        if round_fails_at_the_deadline(node, f"j{deadline_s:g}", deadline_s):
            return


def round_fails_at_the_deadline(node: Node, job: str, deadline_s: float) -> bool:
    """False when fewer than two updates came before the deadline, in either attempt."""
    oracle = OneHot(3)
    submit(node, job, oracle.model(), selection__deadline_s=deadline_s, selection__attempts=2)
    watch = Watch(node, job)
    with fleet(node.address, job, 3, oracle.update, held=[(0, 1)]) as team:
        watch.over()
        team.release()
        team.join(well=False)
    assert arena_use(node) == (0, 0)
    status = ask(node, om.JobStatus(job))
    if sum(event.name == "update.accepted" for event in watch.events) < 4:
        return False
    reason = (
        f"deadline of {deadline_s:g} s passed with 2 updates accepted; the quorum is 3: raise selection.deadline_s"
        " above the time that training takes, or lower selection.quorum"
    )
    assert [(line["attempt"], line["status"], line["reason"]) for line in status["rounds"]] == [
        (1, "failed", reason),
        (2, "failed", reason),
    ]
    assert status["job"]["status"] == "failed"
    assert "round 1 failed 2 times" in status["job"]["reason"]
    for trainer in team.trainers:
        assert isinstance(trainer.error, JobFailed) and reason in str(trainer.error)
    return True


def test_a_round_that_failed_succeeds_at_the_next_attempt_without_what_it_had(start_node: Callable[..., Node]) -> None:
    node = start_node()
    for deadline_s in deadlines(0.1):
        if round_succeeds_at_the_next_attempt(node, f"j{deadline_s:g}", deadline_s):
            return


def round_succeeds_at_the_next_attempt(node: Node, job: str, deadline_s: float) -> bool:
    """False when not all updates of the second attempt came before the deadline."""
    oracle = OneHot(3)
    submit(node, job, oracle.model(), selection__deadline_s=deadline_s)
    watch = Watch(node, job)
    with fleet([node.address, str(node.state_dir)], job, 3, oracle.update, held=[(0, 1)]) as team:
        watch.wait("round.failed", round=1)
        team.release()
        watch.wait_any("round.committed", "job.over")
        if [event.name for event in watch.events].count("round.failed") > 1:
            team.join(well=False)
            return False
        (line,) = finished(node, job, team, oracle)
    assert line["attempt"] == 2
    assert line["receipt"]["counted"] == 3
    assert line["receipt"]["bytes_in"] == 3 * oracle.data_bytes
    return True


def test_over_provisioning_commits_at_the_goal(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(8)
    selection = {"selection__clients_per_round": 4, "selection__over_provision": 1.5, "selection__seed": 7}
    submit(node, "j", oracle.model(), job__rounds=6, **selection)
    with fleet([node.address, str(node.state_dir)], "j", 8, oracle.update) as team:
        lines = finished(node, "j", team, oracle)
    for line in lines:
        receipt = line["receipt"]
        assert receipt["counted"] == 4
        assert receipt["selected"] >= 4 and receipt["expired"] == receipt["selected"] - 4
    chosen = [{t.index for t in team.trainers if line["round"] in [r.number for r in t.rounds]} for line in lines]
    assert len({frozenset(these) for these in chosen}) > 1, "the draw never changes"


def test_another_takes_the_place_of_one_who_left(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(4)
    submit(node, "j", oracle.model(), selection__clients_per_round=3)
    watch = Watch(node, "j")
    with fleet(node.address, "j", 2, oracle.update) as team:
        with Client(node.address, job="j", client=name_of(3)) as leaving:
            selected = next(leaving.rounds())
            watch.wait("update.accepted", 2)
            assert selected.number == 1 and selected.model["w"].shape == (4,)
        with fleet(node.address, "j", 3, oracle.update) as other:
            for index in (0, 1):  # the names are taken: these two take over, and wait for the end
                team.trainers[index].join(WAIT_S)
            watch.over()
            other.join()
    (line,) = oracle.check(node, "j")
    assert line["receipt"]["counted"] == 3
    assert oracle.counts(line["path"], 1, 3) == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("spoil", "weight", "says"),
    [
        (lambda t: t | {"w": np.full_like(t["w"], np.nan)}, 1.0, "tensor 'w' contains NaN;"),
        (
            lambda t: t | {"half": np.full_like(t["half"], np.inf)},
            1.0,
            "of tensor 'half' (flattened) is NaN or infinite",
        ),
        (lambda t: t | {"w": np.zeros(4, np.float32)}, 1.0, "'w'"),
        (lambda t: t | {"w": t["w"].astype(np.float64)}, 1.0, "float64"),
        (lambda t: {k: a for k, a in t.items() if k != "steps"}, 1.0, "'steps'"),
        (lambda t: t | {"more": t["w"]}, 1.0, "'more'"),
        (lambda t: t, 0.0, "from 1e-300 to 1e+300"),
        (lambda t: t, -1.0, "from 1e-300 to 1e+300"),
        (lambda t: t, float("nan"), "from 1e-300 to 1e+300"),
    ],
)
def test_bad_updates_are_refused_and_the_round_goes_on(shared_node: Node, spoil, weight, says, request) -> None:
    job = f"j{abs(hash(request.node.name))}"
    oracle = OneHot(3)
    submit(shared_node, job, oracle.model())
    refused = []

    def play(trainer, round_: Round) -> None:
        if trainer.index == 1:
            tensors, _, metrics = oracle.update(1, round_.number)
            with pytest.raises(Refused) as caught:
                round_.submit(spoil(tensors), weight, metrics)
            refused.append(caught.value)
        trainer.fleet.submit(trainer, round_)

    team = Fleet(shared_node.address, job, 3, oracle.update, play).start()
    try:
        finished(shared_node, job, team, oracle)
    finally:
        team.close()
    assert says in str(refused[0])
    assert refused[0].field


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory):
    node = Node(tmp_path_factory.mktemp("n"), ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB"))
    node.up()
    yield node
    node.down()


def test_an_unknown_job_and_a_bad_name_are_told_to_the_trainer(shared_node: Node) -> None:
    with (
        pytest.raises(Refused, match="no job 'nope'") as caught,
        Client(shared_node.address, job="nope", client="c1", give_up_after_s=0.5) as client,
    ):
        next(client.rounds())
    assert caught.value.code == "unknown-job"


def test_a_model_that_came_too_late_ends_its_round_only(start_node: Callable[..., Node]) -> None:
    """The round commits while a selected client has not even fetched the model."""
    node, oracle = start_node("--redirector", "unix"), OneHot(3)
    submit(node, "j", oracle.model(), job__rounds=2, selection__clients_per_round=2, selection__over_provision=1.5)
    watch = Watch(node, "j")
    selected, go_on = threading.Event(), threading.Event()
    ended = []

    def play(trainer, round_: Round) -> None:
        if trainer.index < 2:
            assert selected.wait(WAIT_S)
            trainer.fleet.submit(trainer, round_)
            return
        selected.set()
        assert go_on.wait(WAIT_S)
        with pytest.raises(RoundEnded) as caught:
            round_.model  # noqa: B018
        ended.append(caught.value)

    team = Fleet(node.address, "j", 3, oracle.update, play, models=False).start()
    try:
        watch.wait("round.committed", round=2)
        go_on.set()
        lines = finished(node, "j", team, oracle)
    finally:
        selected.set()
        go_on.set()
        team.close()
    assert [line["receipt"]["counted"] for line in lines] == [2, 2]
    assert ended
