"""A disk that is full, read-only or worn, under a real node: it waits, says so, goes on; no wrong number is served."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgpack
import pytest
from fleet import OneHot, Watch, arena_use, ask, fleet, submit, until
from nodes import Node, run_lifl
from stops import Stops, Visit

from lifl.core.limits import STATUS_ROUNDS
from lifl.core.planning.plan import NodeFacts, PlanRequest
from lifl.core.planning.planner import make_plan
from lifl.core.protocol import cli as om
from lifl.node.store import NodeStore

N = 4


class FullDisk:
    """What comes to a point is refused with this errno until there is room."""

    def __init__(self, code: str) -> None:
        self.code, self.full = code, threading.Event()

    def __call__(self, _visit: Visit) -> str:
        return f"raise:{self.code}" if self.full.is_set() else ""


def job_of(node: Node, name: str = "j") -> dict:
    line: dict = ask(node, om.JobStatus(name))["job"]
    return line


def check_ends_well(node: Node, oracle: OneHot, rounds: int) -> None:
    lines = oracle.check(node, "j")
    assert [line["receipt"]["counted"] for line in lines] == [N] * rounds
    assert job_of(node)["status"] == "finished"
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))


@pytest.mark.parametrize("code", ["ENOSPC", "EIO", "EROFS"])
def test_a_checkpoint_that_cannot_be_written_pauses_the_job_until_it_can(
    start_node: Callable[..., Node], code: str
) -> None:
    disk = FullDisk(code)
    with Stops("worker.file_fsync.before", decide=disk) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), job__rounds=3)
        watch = Watch(node, "j")
        with fleet(node.address, "j", N, oracle.update, held=[(0, 1)]) as team:
            until("the initial checkpoint", lambda: stops.visits["worker.file_fsync.before"])
            disk.full.set()
            team.release()
            (paused,) = watch.wait("job.paused")
            path = str(node.state_dir / "jobs" / "j" / "round-00001.safetensors")
            assert path in paused.fields["reason"]
            folder = str(Path(path).parent)  # the next round's checkpoint may wait, too: what is said is the last one's
            assert (job_of(node)["status"], folder in job_of(node)["reason"]) == ("paused", True)
            assert "job j is paused: " in node.lifl("status", "j")
            assert "paused" in node.lifl("top", "--once")
            assert (
                f"job.paused job=j reason=the checkpoint could not be written: {path}"
                in (node.state_dir / "lifld.log").read_text()
            )
            disk.full.clear()
            watch.wait("job.goes_on")
            team.join()
        check_ends_well(node, oracle, 3)


@pytest.mark.parametrize("code", ["ENOSPC", "EROFS"])
def test_a_database_that_cannot_be_written_pauses_the_node_until_it_can(
    start_node: Callable[..., Node], code: str
) -> None:
    disk = FullDisk(code)
    with Stops("lifld.round_row.before", decide=disk) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), job__rounds=3)
        watch = Watch(node, "j")
        with fleet(node.address, "j", N, oracle.update, held=[(0, 1)]) as team:
            watch.wait("update.accepted", N - 1)
            disk.full.set()
            team.release()
            until("the pause", lambda: job_of(node)["status"] == "paused")
            path = str(node.state_dir / "lifl.db")
            assert path in job_of(node)["reason"]
            assert path in node.lifl("top", "--once")
            assert any(path in text for text in node.snapshot()["node"]["warnings"])
            done = run_lifl("cancel", "j", "--state", str(node.state_dir))
            assert done.returncode == 1 and "paused" in done.stderr and path in done.stderr
            assert not any(team.fate(index, 1) for index in range(N)), "COMMITTED was told before its row was written"
            assert f"database.paused database {path}" in (node.state_dir / "lifld.log").read_text()
            disk.full.clear()
            team.join()
        check_ends_well(node, oracle, 3)


def test_a_node_that_ends_in_a_pause_goes_on_from_its_arena(start_node: Callable[..., Node]) -> None:
    disk = FullDisk("ENOSPC")
    with Stops("lifld.round_row.before", decide=disk) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), aggregation__timing="lazy")
        watch = Watch(node, "j")
        with fleet(node.address, "j", N, oracle.update, held=[(0, 1)]) as team:
            watch.wait("update.accepted", N - 1)
            disk.full.set()
            team.release()
            until("the pause", lambda: job_of(node)["status"] == "paused")
            node.down()
            disk.full.clear()
            node.up("--listen", node.address)
            assert node.info["adopted"]["jobs"] == 1
            team.join()
        check_ends_well(node, oracle, 1)


def test_a_node_starts_though_its_disk_is_still_full(start_node: Callable[..., Node]) -> None:
    disk = FullDisk("ENOSPC")
    with Stops("lifld.round_row.before", "gateway.ready.before", decide=disk) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), aggregation__timing="lazy")
        watch = Watch(node, "j")
        with fleet(node.address, "j", N, oracle.update, held=[(0, 1)]) as team:
            watch.wait("update.accepted", N - 1)
            disk.full.set()
            team.release()
            until("the pause", lambda: job_of(node)["status"] == "paused")
            node.down()
            hold, log = stops.hold("gateway.ready.before"), node.state_dir / "lifld.log"
            paused = log.read_text().count("database.paused")
            with ThreadPoolExecutor(1) as other:
                starting = other.submit(node.up, "--listen", node.address)
                gateway = hold.reached()  # a row is refused while it starts
                until("the next pause", lambda: log.read_text().count("database.paused") > paused)
                gateway.go()
                starting.result()
            path = str(node.state_dir / "lifl.db")
            assert any(path in text and "make room" in text for text in node.info["warnings"])
            assert job_of(node)["status"] == "paused"
            disk.full.clear()
            team.join()
        check_ends_well(node, oracle, 1)


FULL = "ENOSPC"


def test_a_job_whose_row_is_not_written_is_refused_and_leaves_nothing(start_node: Callable[..., Node]) -> None:
    disk = FullDisk(FULL)
    with Stops("lifld.job_row.before", decide=disk) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        disk.full.set()
        with pytest.raises(AssertionError, match=f"database {node.state_dir / 'lifl.db'} .*make room"):
            submit(node, "j", oracle.model())
        assert node.json("jobs")["jobs"] == []
        assert list((node.state_dir / "jobs").iterdir()) == [], "the folder of a refused job stays"
        disk.full.clear()
        submit(node, "j", oracle.model())
        node.down()
        node.up("--listen", node.address)
        with fleet(node.address, "j", N, oracle.update) as team:
            team.join()
        check_ends_well(node, oracle, 1)


def test_a_cancel_whose_row_is_not_written_is_refused_and_the_job_goes_on(start_node: Callable[..., Node]) -> None:
    disk = FullDisk(FULL)
    with Stops("lifld.job_row.before", decide=disk) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        for name in ("j", "k"):
            submit(node, name, oracle.model())
        disk.full.set()
        done = run_lifl("cancel", "j", "--state", str(node.state_dir))
        assert done.returncode == 1 and "make room" in done.stderr and str(node.state_dir / "lifl.db") in done.stderr
        until("the job goes on", lambda: job_of(node)["status"] == "waiting")
        disk.full.clear()
        assert node.json("cancel", "k") == {"job": "k", "status": "cancelled"}
        assert job_of(node, "k")["status"] == "cancelled"
        node.kill()
        node.up("--listen", node.address)
        assert {line["name"]: line["status"] == "cancelled" for line in node.json("jobs")["jobs"]} == {
            "j": False,
            "k": True,
        }
        with fleet(node.address, "j", N, oracle.update) as team:
            team.join()
        check_ends_well(node, oracle, 1)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def test_a_checkpoint_with_a_flipped_byte_is_not_served_and_the_older_one_is_used(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "j", oracle.model(), job__rounds=4)
    watch = Watch(node, "j")
    with fleet(node.address, "j", N, oracle.update, held=[(0, 3)]) as team:
        watch.wait("round.committed", round=2)
        watch.wait("update.accepted", N - 1, round=3)
        node.kill()
        folder = node.state_dir / "jobs" / "j"
        flip(folder / "round-00002.safetensors")
        node.up("--listen", node.address)
        until("the older model", lambda: job_of(node)["status"] not in ("loading", "paused"))
        log = (node.state_dir / "lifld.log").read_text()
        assert "model.damaged job=j round=2 used=1" in log and str(folder / "round-00002.safetensors") in log
        team.release()
        team.join()
    lines = ask(node, om.JobStatus("j"))["rounds"]
    found = [(line["round"], line["attempt"], line["status"]) for line in lines]
    assert (2, 1, "damaged") in found and (2, 2, "committed") in found
    assert job_of(node)["status"] == "finished"
    oracle.check(node, "j")
    # The command that copies models finds it too.
    flip(folder / "round-00001.safetensors")
    done = run_lifl("model", "j", "--round", "1", "-o", str(tmp_path / "m"), "--state", str(node.state_dir))
    assert done.returncode == 1 and "is damaged" in done.stderr
    assert list(tmp_path.glob("*m*")) == []
    node.lifl("model", "j", "--round", "2", "-o", str(tmp_path / "m"))
    assert (tmp_path / "m").read_bytes() == (folder / "round-00002.safetensors").read_bytes()


def test_a_folder_of_another_job_is_refused_before_anything_is_stored(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "a", oracle.model(), checkpoint__folder=str(tmp_path / "models"))
    with pytest.raises(AssertionError, match=r"holds the models of job 'a'.*checkpoint.folder"):
        submit(node, "b", oracle.model(), checkpoint__folder=str(tmp_path / "models"))
    assert [job["name"] for job in node.json("jobs")["jobs"]] == ["a"]
    # What can never fit leaves neither a folder nor a row.
    big = {"selection__clients_per_round": 10_000, "aggregation__fan_in": 64}
    with pytest.raises(AssertionError, match="arena"):
        submit(node, "c", OneHot(N, ballast_bytes=48 << 20).model(), checkpoint__folder=str(tmp_path / "c"), **big)
    assert not (tmp_path / "c").exists()
    submit(node, "c", oracle.model(), checkpoint__folder=str(tmp_path / "c"))


def test_jobs_that_cannot_be_read_keep_no_other_and_can_be_cancelled(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    for name in ("config", "tensors", "rounds", "folder", "submitting", "good"):
        submit(node, name, oracle.model(), job__rounds=1)
        until("its initial checkpoint", lambda name=name: job_of(node, name)["status"] == "waiting")
    node.kill()
    with closing(sqlite3.connect(node.state_dir / "lifl.db")) as database, database:
        database.execute("UPDATE jobs SET config = x'c1' WHERE name = 'config'")
        database.execute("UPDATE jobs SET tensors = x'c1' WHERE name = 'tensors'")
        database.execute("UPDATE rounds SET fields = x'c1' WHERE job = 'rounds'")
        database.execute("UPDATE jobs SET folder = (SELECT folder FROM jobs WHERE name = 'good') WHERE name = 'folder'")
        database.execute("UPDATE jobs SET status = 'new' WHERE name = 'submitting'")
        database.execute("DELETE FROM rounds WHERE job = 'submitting'")
    (node.state_dir / "jobs" / "submitting" / "round-00000.safetensors").unlink()  # it had not come so far
    node.up()
    bad = {"config", "tensors", "rounds", "folder"}
    lines = {line["name"]: line for line in node.json("jobs")["jobs"]}
    assert {name for name, line in lines.items() if line["status"] == "unreadable"} == bad
    assert all(lines[name]["reason"] for name in bad) and "submitting" not in lines
    assert all(any(f"job {name} could not be taken up" in text for text in node.info["warnings"]) for name in bad)
    for name in bad:
        assert "unreadable" in node.lifl("status", name)
        assert node.json("cancel", name) == {"job": name, "status": "cancelled"}
    with fleet(node.address, "good", N, oracle.update) as team:
        team.join()
    oracle.check(node, "good", team)
    submit(node, "submitting", oracle.model())  # its name and its folder are free again
    node.kill()
    node.up()
    assert {line["name"]: line["status"] for line in node.json("jobs")["jobs"]} == {
        **dict.fromkeys(bad, "cancelled"),
        "good": "finished",
        "submitting": "waiting",
    }
    assert tmp_path.exists()


ROUNDS = 6_000
RECEIPT_BYTES = 3_000
"""Together far more than a frame."""


def test_thousands_of_rounds_are_shown_page_by_page_and_each_model_by_its_number(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "j", oracle.model())
    with fleet(node.address, "j", N, oracle.update) as team:
        team.join()
    (line,) = oracle.check(node, "j")
    node.kill()
    fields = {"metrics": {}, "path": line["path"], "receipt": line["receipt"] | {"filling": "x" * RECEIPT_BYTES}}
    packed = msgpack.packb(fields)
    with closing(sqlite3.connect(node.state_dir / "lifl.db")) as database, database:
        rows = (("j", number, 1, "committed", packed, 0.0) for number in range(2, ROUNDS + 1))
        database.executemany("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?)", rows)
    node.up()
    shown = node.json("status", "j")["rounds"]
    assert [line["round"] for line in shown] == list(range(ROUNDS - STATUS_ROUNDS + 1, ROUNDS + 1))
    shown = node.json("status", "j", "--last", str(ROUNDS + 10))["rounds"]
    assert [line["round"] for line in shown] == list(range(1, ROUNDS + 1))
    assert [line["round"] for line in node.json("status", "j", "--last", "2")["rounds"]] == [ROUNDS - 1, ROUNDS]
    for number in (1, 2, ROUNDS // 2, ROUNDS):
        target = tmp_path / f"{number}"
        node.lifl("model", "j", "--round", str(number), "-o", str(target))
        assert target.read_bytes() == Path(line["path"]).read_bytes()
    done = run_lifl("model", "j", "--round", str(ROUNDS + 1), "-o", "x", "--state", str(node.state_dir))
    assert "it has: 0-1" in done.stderr
    assert node.json("jobs")["jobs"][0]["committed"] == ROUNDS


DECISIONS = 150
"""About one round of a hundred nodes: together more than a frame."""


def test_many_decisions_about_a_round_are_shown_page_by_page(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "j", oracle.model())
    node.kill()
    nodes = tuple(NodeFacts(f"{number:016x}", 10.0, 1 << 30, execution_s=0.1) for number in range(100))
    request = PlanRequest(1 << 20, 1_000, 1_200, nodes, model_node=nodes[0].node, policy="round-robin")
    with closing(NodeStore(node.state_dir / "lifl.db")) as store:
        for attempt in range(1, DECISIONS + 1):
            store.save_plan("j", 1, attempt, request, make_plan(request))
    node.up()
    page = ask(node, om.PlansOfRound("j", 1))
    assert 0 < len(page["decisions"]) < DECISIONS and page["more"], "all in one answer"
    found = node.json("plan", "--round", "j", "1")["decisions"]
    assert [decision["attempt"] for decision in found] == list(range(1, DECISIONS + 1))
    assert all(decision["same"] for decision in found)


def test_many_jobs_are_listed_page_by_page(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix", "--jobs-kept", "10000"), OneHot(N)
    submit(node, "j", oracle.model())
    node.lifl("cancel", "j")
    node.kill()
    with closing(sqlite3.connect(node.state_dir / "lifl.db")) as database, database:
        columns = "name, config, tensors, states, folder, status, reason, submitted_unix_s"
        for number in range(2_500):
            values = "'k' || ?, config, tensors, states, folder, status, ?, submitted_unix_s"
            copy = f"INSERT INTO jobs ({columns}) SELECT {values} FROM jobs WHERE name = 'j'"
            database.execute(copy, (number, "x" * 4_000))
    node.up()
    assert [line["name"] for line in node.json("jobs")["jobs"]] == ["j", *(f"k{number}" for number in range(2_500))]
    node.snapshot()
