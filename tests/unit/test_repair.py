"""`lifl doctor --repair`: what keeps a node from starting is said, set aside, and the node starts."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from accounts import NOBODY, common_python
from click.testing import CliRunner
from lifl_cli import doctor
from nodes import Node, run_lifl

from lifl.core.config.job import parse_job
from lifl.core.schema import TensorSpec
from lifl.node import folders
from lifl.node.store import NodeStore

FLAGS = ("--listen", "127.0.0.1:0", "--arena-bytes", "32MiB", "--capacity", "1", "--redirector", "unix")


TENSORS = (TensorSpec("w", "float32", (4,)),)


def with_job(folder: Path, name: str = "j", tensors: tuple[TensorSpec, ...] = TENSORS) -> None:
    """A state folder with a job that runs, and its folder with a model."""
    (folder / "jobs" / name).mkdir(parents=True, exist_ok=True)
    selection = {"clients_per_round": 1}
    config = parse_job({"job": {"name": name, "rounds": 1}, "model": {"path": "/m"}, "selection": selection})
    with closing(NodeStore(folder / "lifl.db")) as store:
        number = store.add_job(config, tensors, (), str(folder / "jobs" / name))
        store.save_job(name, "running", "")
        folders.claim(folder / "jobs" / name, store.node_id(), number, name)


def execute(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "lifl.db")) as database, database:
        for statement in statements:
            database.execute(statement)


def garbage(folder: Path) -> None:
    (folder / "lifl.db").write_bytes(b"no database " * 1000)


def torn(folder: Path) -> None:
    """Pages in the middle are overwritten: the head is good."""
    with (folder / "lifl.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def replaced(name: str, folder: Path) -> None:
    path = folder / name
    if path.is_dir():
        path.rename(folder / "moved")
        path.write_text("a file")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()


def linked(name: str, folder: Path) -> None:
    path = folder / name
    path.rename(folder / "moved")
    path.symlink_to(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": garbage,
    "torn": torn,
    "of no release": lambda folder: execute(folder, "PRAGMA user_version = 1"),
    "no format": lambda folder: (folder / "format.json").write_text("{"),
    "a folder as format": lambda folder: replaced("format.json", folder),
    "no tables": lambda folder: execute(folder, "DROP TABLE rounds"),
    "a folder as database": lambda folder: replaced("lifl.db", folder),
    "a file as jobs": lambda folder: replaced("jobs", folder),
    "a folder as lock": lambda folder: replaced("lifld.lock", folder),
    "a folder as socket": lambda folder: replaced("gateway.sock", folder),
    "no id": lambda folder: execute(folder, "UPDATE node SET node = '../../x'"),
    "no seed": lambda folder: execute(folder, "INSERT OR REPLACE INTO seed VALUES (1, 'x')"),
    "a pipe as log": lambda folder: os.mkfifo(folder / "lifld.log"),
    "a pipe as lock": lambda folder: os.mkfifo(folder / "children.lock"),
    "a folder as write-ahead log": lambda folder: replaced("lifl.db-wal", folder),
    "a folder as its index": lambda folder: replaced("lifl.db-shm", folder),
    "a folder as journal": lambda folder: replaced("lifl.db-journal", folder),
    "a renamed column": lambda folder: execute(folder, "ALTER TABLE jobs RENAME COLUMN folder TO f2"),
    "a view as plans": lambda folder: execute(
        folder, "DROP TABLE plans", "CREATE VIEW plans AS SELECT number, name AS job FROM jobs"
    ),
    "a trigger": lambda folder: execute(
        folder, "CREATE TRIGGER t BEFORE INSERT ON node BEGIN SELECT RAISE(ABORT, 'no'); END"
    ),
    "another program's": lambda folder: execute(folder, "PRAGMA user_version = 0"),
    "no rights": lambda folder: (folder / "lifl.db").chmod(0),
    "a link to itself as jobs": lambda folder: linked("jobs", folder),
    "a link to itself as database": lambda folder: linked("lifl.db", folder),
    "open to all": lambda folder: folder.chmod(0o777),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_no_node_starts_on_is_repaired(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    with_job(folder)
    DAMAGES[damage](folder)
    state = ("--state", str(folder))
    before = {path.name for path in folder.iterdir()}
    done = run_lifl("up", "-d", *FLAGS, *state)
    assert done.returncode == 1 and str(folder) in done.stderr and "Traceback" not in done.stderr, done.stderr
    found = list(doctor._contents(folder))
    assert any(each.level == "fail" and "--repair" in each.fix for each in found), "doctor alone says it"
    assert before <= {path.name for path in folder.iterdir()}, "and does nothing"
    done = CliRunner().invoke(doctor.doctor, ["--repair", *state])
    assert done.exit_code == 0, done.output
    assert "-> " in done.stdout and "done" in done.stdout
    aside = "lifl.db to lifl.db.aside" in done.stdout
    if aside and "as database" not in damage:
        assert f"models are in {folder / 'jobs' / 'j'}" in done.stdout
    node = Node(folder, FLAGS)
    node.up()
    assert bool(node.json("jobs")["jobs"]) == (not aside), "what is good is kept"
    node.down()
    assert not list(doctor._contents(folder))


def test_what_is_damaged_is_among_all_that_doctor_says(tmp_path: Path) -> None:
    with_job(tmp_path)
    execute(tmp_path, "DROP TABLE rounds")
    found = json.loads(run_lifl("doctor", "--json", "--state", str(tmp_path)).stdout)
    assert any(line["level"] == "fail" and "--repair" in line["fix"] for line in found)


NEWER: dict[str, Callable[[Path], object]] = {
    "database": lambda folder: execute(folder, "PRAGMA user_version = 99", "UPDATE written SET release = '7.8.9'"),
    "folder": lambda folder: (folder / "format.json").write_text('{"format": 99, "release": "7.8.9"}'),
}


@pytest.mark.parametrize("what", NEWER)
def test_a_folder_of_a_newer_release_is_no_damage(tmp_path: Path, what: str) -> None:
    """Else who goes back by mistake sets aside what is good, and all jobs with it."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    with_job(folder)
    NEWER[what](folder)
    before = (folder / "lifl.db").read_bytes()
    for command in (["up", "-d", *FLAGS], ["doctor", "--repair"]):
        done = run_lifl(*command, "--state", str(folder))
        assert done.returncode == 1, done.stdout
        assert "LIFL 7.8.9" in done.stderr and "Traceback" not in done.stderr
    assert "LIFL 7.8.9" in run_lifl("doctor", "--state", str(folder)).stdout
    assert (folder / "lifl.db").read_bytes() == before
    assert not [path for path in folder.iterdir() if "aside" in path.name]


needs_accounts = pytest.mark.skipif(common_python() is None, reason="no interpreter that other accounts can run")


def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(common_python()), "-P", "-m", "lifl_cli.main", *arguments]
    account = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **account)  # type: ignore[call-overload, no-any-return]


FOREIGN = ["lifld.log", "lifld.lock", "lifl.db", "redirect", ""]


@needs_accounts
@pytest.mark.parametrize("name", FOREIGN)
def test_what_root_has_made_in_a_users_folder_is_given_back(state_dir: Path, name: str) -> None:
    """One that only root can mend is named, with the command; and root's own `lifl doctor --repair` does it."""
    os.chown(state_dir, NOBODY, NOBODY)
    state = ("--state", str(state_dir))
    assert as_nobody("up", "-d", *FLAGS, *state).returncode == 0
    assert as_nobody("down", *state).returncode == 0
    path = state_dir / name
    for as_root in (False, True):
        if name == "redirect":  # a killed node leaves it
            path.mkdir()
        os.chown(path, 0, 0)
        path.chmod(0o700 if path.is_dir() else 0o600)
        done = as_nobody("up", "-d", *FLAGS, *state)
        assert "Traceback" not in done.stderr
        assert done.returncode == 1
        if not as_root:
            assert str(path) in done.stderr and ("--repair" in done.stderr or name == "redirect"), done.stderr
        if name == "":
            assert as_root or as_nobody("doctor", "--repair", *state).returncode == 1
            os.chown(path, NOBODY, NOBODY)
        elif as_root:
            assert run_lifl("doctor", "--repair", *state).returncode == 0
        else:
            done = as_nobody("doctor", "--repair", *state)
            command = f"chown -h {NOBODY}:{NOBODY} {path}"
            assert done.returncode == 1 and f"sudo {command}" in done.stderr, done
            subprocess.run(command.split(), check=True)
            assert "nothing to repair" in as_nobody("doctor", "--repair", *state).stdout
        owners = {each.lstat().st_uid for each in (state_dir, *state_dir.rglob("*"))}
        assert owners == {NOBODY}, "a repair makes nothing that is another's"
        assert as_nobody("up", "-d", *FLAGS, *state).returncode == 0
        assert as_nobody("down", *state).returncode == 0


def test_a_job_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    with_job(tmp_path, "bad")
    with_job(tmp_path, "good")
    with_job(tmp_path, "empty", ())
    execute(tmp_path, "UPDATE jobs SET config = x'c1' WHERE name = 'bad'")
    done = run_lifl("doctor", "--repair", "--state", str(tmp_path))
    assert done.returncode == 0 and "job bad becomes cancelled" in done.stdout
    with closing(NodeStore(tmp_path / "lifl.db")) as store:
        assert {row.name: row.status for row in store.jobs()} == {
            "bad": "cancelled",
            "good": "running",
            "empty": "cancelled",
        }


def test_a_folder_on_which_a_node_runs_is_left_alone(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    done = run_lifl("doctor", "--repair", "--state", str(node.state_dir))
    assert done.returncode == 1 and "lifl down" in done.stderr
    assert node.is_up()


def test_what_is_not_damaged_is_not_touched(tmp_path: Path) -> None:
    with_job(tmp_path)
    before = msgspec.json.encode(sorted(str(path) for path in tmp_path.rglob("*") if path.suffix != ".lock"))
    done = run_lifl("doctor", "--repair", "--state", str(tmp_path))
    assert "nothing to repair" in done.stdout
    assert msgspec.json.encode(sorted(str(path) for path in tmp_path.rglob("*") if path.suffix != ".lock")) == before
    assert run_lifl("doctor", "--repair", "--state", str(tmp_path / "none")).returncode == 1


def test_a_job_of_no_known_status_is_cancelled_and_the_node_lives(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    with_job(folder)
    execute(folder, "UPDATE jobs SET status = 'odd'")
    node = Node(folder, FLAGS)
    node.up()
    (line,) = node.json("jobs")["jobs"]
    assert "no status 'odd'" in line["reason"]
    assert node.json("cancel", "j")["status"] == "cancelled"
    node.down()
