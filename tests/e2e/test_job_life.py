"""A job's life on a real node, by the command line: removed, replaced, paused, resumed, changed, queued."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import OneHot, Watch, all_rounds, arena_use, ask, fleet, submit, until, write_job
from nodes import FOLDERS, LIFL, Node, run_lifl, running
from safetensors.numpy import load_file

from lifl import Client
from lifl.core.errors import Refused
from lifl.core.protocol import cli as om

BALLAST = 6_000_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    import tempfile

    with tempfile.TemporaryDirectory(dir=FOLDERS, prefix="lifl-") as folder, running(Path(folder) / "state") as node:
        yield node


def refused(node: Node, *command: str) -> str:
    done = run_lifl(*command, "--state", str(node.state_dir))
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def run(node: Node, job: str, oracle: OneHot) -> list[dict[str, Any]]:
    """Its clients train until the job is over; the lines of its committed rounds."""
    with fleet([node.address], job, oracle.clients, oracle.update) as team:
        team.join()
    return oracle.check(node, job)


def test_a_job_that_is_over_is_forgotten_and_its_name_used_again(node: Node) -> None:
    oracle = OneHot(2)
    submit(node, "gone", oracle.model())
    assert "lifl cancel gone" in refused(node, "rm", "gone")
    run(node, "gone", oracle)
    path = str(node.state_dir / "configs" / "gone.toml")
    assert "--replace" in refused(node, "submit", path)
    kept = node.json("rm", "gone")
    assert (kept["files"], len(list(Path(kept["folder"]).glob("round-*")))) == (0, 2)
    assert "no job 'gone'" in refused(node, "status", "gone")
    again = node.json("submit", path)
    assert again["folder"] == f"{kept['folder']}.2"
    (line,) = run(node, "gone", oracle)
    assert line["path"].startswith(again["folder"])
    removed = node.json("rm", "gone", "--models")
    assert removed["files"] == 2 and removed["bytes"] > 0
    assert not Path(again["folder"]).exists()
    assert "gone" not in {job["name"] for job in node.json("jobs")["jobs"]}
    events = [note["event"] for note in node.json("audit", "--last", "9") if note.get("job") == "gone"]
    assert events.count("job.removed") == 2


def test_replace_ends_what_runs_and_takes_its_name(node: Node) -> None:
    oracle = OneHot(2)
    before = submit(node, "again", oracle.model(), job__rounds=3)
    path = str(node.state_dir / "configs" / "again.toml")
    assert "--replace" in refused(node, "submit", path)
    # What can refuse the new one comes first: then the old one goes on.
    assert "model.path" in refused(node, "submit", path, "--replace", "--set", "model.path=nothing.safetensors")
    assert node.json("status", "again")["job"]["rounds"] == 3
    # Who watches the new one hears of that alone: the word that the old one is over comes before the answer.
    command = [*LIFL, "submit", path, "--replace", "--watch", "--json", "--set", "job.rounds=1"]
    with subprocess.Popen([*command, "--state", str(node.state_dir)], stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        after = json.loads(watch.stdout.readline())
        assert after["folder"] != before["folder"]
        (job,) = [job for job in node.json("jobs")["jobs"] if job["name"] == "again"]
        assert (job["rounds"], job["committed"]) == (1, 0)
        run(node, "again", oracle)
        events = [json.loads(line) for line in watch.stdout]
    assert (watch.returncode, events[-1]["status"]) == (0, "finished")


def test_paused_and_queued_jobs_are_so_after_a_restart_and_clients_wait(node: Node) -> None:
    oracle, big = OneHot(2), OneHot(2, ballast_bytes=BALLAST)
    submit(node, "rest", oracle.model(), job__rounds=3, client__options={"lr": 1})
    watch = Watch(node, "rest")
    with fleet(str(node.state_dir), "rest", 2, oracle.update, held=[(1, 1)]) as team:
        watch.wait("update.accepted", 1, round=1)
        assert node.json("pause", "rest") == {"job": "rest", "finishing": 1}
        assert node.json("status", "rest")["job"]["status"] == "pausing"
        assert "paused already" in refused(node, "pause", "rest")
        assert node.json("edit", "rest", "--set", "client.options.lr=2")["from_round"] == 2
        team.release()
        watch.wait("round.committed", round=1)
        watch.wait("job.rests")
        until("the room that it gives back", lambda: arena_use(node) == (0, 0))
        assert node.json("status", "rest")["job"]["status"] == "paused"
        # Of an arena of 64 MiB one of these takes more than a half.
        assert submit(node, "a", big.model(), aggregation__middle_fan_in=2)["queue"] is None
        told = submit(node, "b", big.model(), aggregation__middle_fan_in=2)
        assert (told["status"], told["queue"]["position"]) == ("queued", 1)
        first = submit(node, "c", big.model(), job__priority=90, aggregation__middle_fan_in=2)
        assert first["queue"]["position"] == 1
        node.kill()
        node.up()
        lines = {job["name"]: job for job in node.json("jobs")["jobs"]}
        assert (lines["rest"]["status"], lines["rest"]["committed"]) == ("paused", 1)
        assert "its room in the arena is given back; `lifl resume rest`" in lines["rest"]["reason"]
        assert (lines["b"]["status"], lines["c"]["status"]) == ("queued", "queued")
        assert "MiB of the arena, free" in lines["b"]["reason"] and "2 of 2 in line" in lines["b"]["reason"]
        node.lifl("edit", "b", "--set", "job.priority=99")
        assert node.json("status", "b")["job"]["queue"]["position"] == 1
        node.lifl("cancel", "c")
        run(node, "a", big)
        run(node, "b", big)
        # The paused one's clients are here by now, and it has begun nothing.
        until("its clients", lambda: node.json("status", "rest")["job"]["clients"] == 2)
        assert node.json("status", "rest")["job"]["committed"] == 1
        assert node.json("resume", "rest", "--rounds", "+1")["rounds"] == 4
        team.join()
    assert {round_.options["lr"] for trainer in team.trainers for round_ in trainer.rounds[1:]} == {2}
    assert len(oracle.check(node, "rest", team)) == 4


def test_a_job_that_is_over_goes_on_from_its_last_model(node: Node) -> None:
    oracle = OneHot(2)
    submit(node, "more", oracle.model(), job__rounds=2, aggregation__rule="fedavgm")
    with fleet([node.address], "more", 2, oracle.update) as team:
        team.join()
    assert "--rounds" in refused(node, "resume", "more")
    assert node.json("resume", "more", "--rounds", "+2") == {
        "job": "more",
        "status": "loading",
        "committed": 2,
        "rounds": 4,
    }
    assert "lifl edit more" in refused(node, "resume", "more")
    with fleet([node.address], "more", 2, oracle.update) as team:
        team.join()
    rounds = [line for line in all_rounds(node, "more") if line["status"] == "committed"]
    assert [line["round"] for line in rounds] == [1, 2, 3, 4]
    assert all(Path(line["path"]).exists() for line in rounds)
    # The rule's state went on, too: a job of four rounds comes to the same model.
    submit(node, "whole", oracle.model(), job__rounds=4, aggregation__rule="fedavgm")
    with fleet([node.address], "whole", 2, oracle.update) as team:
        team.join()
    whole = [line for line in all_rounds(node, "whole") if line["status"] == "committed"]
    first, second = load_file(rounds[-1]["path"]), load_file(whole[-1]["path"])
    assert {name: tensor.tobytes() for name, tensor in first.items()} == {
        name: tensor.tobytes() for name, tensor in second.items()
    }


def test_a_job_that_was_cancelled_in_a_round_begins_that_anew(node: Node) -> None:
    oracle = OneHot(2)
    submit(node, "back", oracle.model(), job__rounds=2)
    watch = Watch(node, "back")
    with fleet([node.address], "back", 2, oracle.update, held=[(1, 2)]) as team:
        watch.wait("update.accepted", 1, round=2)
        node.lifl("cancel", "back")
        team.release()
        team.join(well=False)
    until("an empty arena", lambda: arena_use(node) == (0, 0))
    assert "goes on: 1 of 2" in node.lifl("resume", "back")
    with fleet([node.address], "back", 2, oracle.update) as team:
        team.join()
    assert len(oracle.check(node, "back")) == 2


def test_an_edit_counts_from_the_next_round_on_and_stays(node: Node) -> None:
    oracle = OneHot(1)
    submit(node, "tuned", oracle.model(), job__rounds=3, client__options={"lr": 0.1, "epochs": 2})
    seen = []
    with Client(node.address, job="tuned", client="c") as client:
        for round_ in client.rounds():
            seen.append((round_.number, round_.options))
            if round_.number == 1:
                told = node.json("edit", "tuned", "--set", "client.options.lr=0.01", "--set", "job.rounds=4")
                assert told == {
                    "job": "tuned",
                    "changes": {"client.options.lr": 0.01, "job.rounds": 4},
                    "from_round": 2,
                }
                assert node.json("status", "tuned")["job"]["pending"] == told["changes"]
            round_.submit(oracle.update(0, round_.number)[0], weight=1)
    wrong = refused(node, "edit", "tuned", "--set", "aggregation.rule=fedadam")
    assert "aggregation.rule" in wrong and "the rule's state, were made by it" in wrong
    first, after = {"lr": 0.1, "epochs": 2}, {"lr": 0.01, "epochs": 2}
    assert seen == [(1, first), (2, after), (3, after), (4, after)]
    edited = {line["round"]: line["receipt"].get("edited") for line in all_rounds(node, "tuned")}
    assert edited == {1: None, 2: {"client.options.lr": 0.01, "job.rounds": 4}, 3: None, 4: None}
    status = node.json("status", "tuned")
    assert status["config"]["client"]["options"] == after


def test_a_job_from_standard_input_starts_from_another_ones_model(node: Node) -> None:
    oracle = OneHot(2)
    submit(node, "first", oracle.model(), job__rounds=2)
    first = run(node, "first", oracle)
    for source, line in (("first", first[1]), ("first@1", first[0])):
        text = f'[job]\nname="next"\nrounds=1\n[model]\nfrom="{source}"\n[selection]\nclients_per_round=2\n'
        command = [*LIFL, "submit", "-", "--replace", "--json", "--state", str(node.state_dir)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        folder = Path(json.loads(done.stdout)["folder"])
        assert (folder / "initial.safetensors").read_bytes() == Path(line["path"]).read_bytes()
    node.lifl("rm", "first", "--models")
    run(node, "next", oracle)
    path = write_job(node.state_dir / "configs", "lost", oracle.model(), model__path="", model__from="first")
    assert "no job 'first'" in refused(node, "submit", str(path))


def test_a_capacity_that_is_given_is_not_found_anew(node: Node) -> None:
    assert "capacity-given" in refused(node, "calibrate")
    with pytest.raises(Refused, match="is given"):
        ask(node, om.KeepCapacity(1.0))
