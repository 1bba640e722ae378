"""Rows of the database that somebody has changed by hand: each column, each field, with each kind of value.

Whatever a row says, no command that reads it ends in a traceback, other jobs are shown as before, the node lives, and
a node that starts on it comes up.  They are taken in an order drawn at random, for some seconds: LIFL_FUZZ_S=600 for
all of them; LIFL_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import lifl_cli.top
import msgpack
import pytest
from click.testing import CliRunner
from fleet import OneHot, Trainer, ask, fleet, seeded, submit, until
from lifl_cli.main import cli
from nodes import Node

from lifl.client import Round
from lifl.core.errors import Refused
from lifl.core.protocol import cli as om
from lifl.node import folders

N = 2
FUZZ_S = float(os.environ.get("LIFL_FUZZ_S", "2"))
STARTS = 60
"""Damaged jobs that one node starts on."""
PLAIN: tuple[Any, ...] = (
    -1,
    0,
    5,
    (1 << 63) - 1,
    1.5,
    -1e308,
    1e308,
    math.inf,
    "",
    "text",
    "nul\0",
    b"",
    b"\xc1",
    "TOO LONG",
)
"""What a column of SQLite can hold; beside it texts that are not UTF-8."""
TOO_LONG = "x" * 100_000
NOT_UTF8 = object()
PACKED: tuple[Any, ...] = (
    None,
    -1,
    1.5,
    1e308,
    math.nan,
    "text",
    b"\xff",
    [],
    [[]],
    {},
    {"a": b"b"},
    {1: 2},
    (1 << 64) - 1,
)
"""What a field of a packed column can be."""
OPENED = {"parts": [[0, "00000000000000aa", 1], [2, "00000000000000bb", 1]], "next_part": 3}
"""What the row of a round has that is open on three nodes."""
KEYS = {"jobs": "name = 'j'", "rounds": "job = 'j' AND round = 2", "plans": "job = 'j' AND round = 2"}
COMMANDS = {
    "jobs": (("jobs",), ("jobs", "--json")),
    "status": (("status", "j"), ("status", "j", "--json")),
    "model": (("model", "j", "-o", "OUT"), ("model", "j", "--round", "2", "-o", "OUT")),
    "plan": (("plan", "--round", "j", "2"), ("plan", "--round", "j", "2", "--json")),
    "top": (("top", "--once"), ("top", "--json")),
}
READ_BY = {
    "jobs": ("jobs", "status", "model", "plan", "top"),
    "rounds": ("jobs", "status", "model", "top"),
    "plans": ("plan",),
}
"""The commands that read a table."""

Damage = tuple[str, str, Any]
"""A table, a column of it, and what is in it."""


def whole(column: Any, table: str) -> Any:
    """What a packed column says."""
    return msgpack.unpackb(zlib.decompress(column) if table == "plans" else column, strict_map_key=False)


def packed(value: Any, table: str) -> bytes:
    """A packed column that says this."""
    data: bytes = msgpack.packb(value)
    return zlib.compress(data) if table == "plans" else data


def damaged(value: Any, deep: int) -> Iterator[Any]:
    """`value` with each of its parts, as deep as that, replaced by each of `PACKED`, and without it."""
    yield from PACKED
    if not deep or not isinstance(value, (dict, list)):
        return
    for key in value if isinstance(value, dict) else range(min(2, len(value))):
        for other in damaged(value[key], deep - 1):
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = other
            yield copy
        if isinstance(value, dict):
            yield {name: kept for name, kept in value.items() if name != key}


def damages(database: sqlite3.Connection) -> Iterator[Damage]:
    for table, where in KEYS.items():
        row = database.execute(f"SELECT * FROM {table} WHERE {where}").fetchone()
        for column in tuple(row.keys()):
            if (table, column) != ("jobs", "number"):  # what SQLite itself holds to be a number
                yield from ((table, column, TOO_LONG if value == "TOO LONG" else value) for value in PLAIN)
                yield table, column, NOT_UTF8
            if isinstance(row[column], bytes):
                deep = {"fields": 2, "config": 2}.get(column, 3)
                for value in damaged(whole(row[column], table), deep):
                    yield table, column, packed(value, table)
                yield table, column, packed(whole(row[column], table), table)[:-1]
    yield "plans", "decision", zlib.compress(b"\xc0" * (64 << 20))


def write(database: sqlite3.Connection, damage: Damage, where: Mapping[str, str]) -> None:
    table, column, value = damage
    given, marks = ((), "CAST(x'6aff' AS TEXT)") if value is NOT_UTF8 else ((value,), "?")
    with database:
        database.execute(f"UPDATE {table} SET {column} = {marks} WHERE {where[table]}", given)


def two_rounds(trainer: Trainer, round_: Round) -> None:
    """Takes part in two rounds, and leaves in the third."""
    if round_.number > 2:
        trainer.client.close()
    else:
        trainer.fleet.submit(trainer, round_)


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    """A node with the jobs j and k, each of which runs and has committed two rounds."""
    started, oracle = start_node("--redirector", "unix"), OneHot(N)
    for name in ("k", "j"):
        submit(started, name, oracle.model(), job__rounds=3, selection__deadline_s=36_000.0)
        with fleet(started.address, name, N, oracle.update, two_rounds) as team:
            team.join()
        until("two rounds", lambda name=name: ask(started, om.JobStatus(name))["job"]["committed"] == 2)
    return started


@pytest.fixture
def database(node: Node) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(node.state_dir / "lifl.db", timeout=60.0)) as opened:
        opened.row_factory = sqlite3.Row
        opened.execute("PRAGMA synchronous = OFF")
        yield opened


def test_no_row_gives_a_command_a_traceback(
    node: Node,
    database: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(lifl_cli.top, "ONCE_WINDOW_S", 0.0)
    runner, out = CliRunner(), str(tmp_path / "model")

    def shown(command: tuple[str, ...]) -> str:
        given = [out if word == "OUT" else word for word in command]
        done = runner.invoke(cli, [*given, "--state", str(node.state_dir)])
        assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)
        assert done.exit_code in (0, 1)
        assert "lifld's log tells more" not in done.output, (command, done.output)
        return done.output

    def of_the_other_job() -> dict[str, Any]:
        said: dict[str, Any] = json.loads(shown(("status", "k", "--json")))
        return said | {"now": None}

    other = of_the_other_job()
    rows = {
        table: database.execute(f"SELECT rowid AS at, * FROM {table} WHERE {where}").fetchone()
        for table, where in KEYS.items()
    }
    at = {table: f"rowid = {row['at']}" for table, row in rows.items()}
    found = list(damages(database))
    seeded(request.node.name).shuffle(found)
    deadline = time.monotonic() + FUZZ_S
    for damage in found:
        if time.monotonic() > deadline:
            break
        table, column, _value = damage
        try:
            write(database, damage, at)
        except sqlite3.IntegrityError:
            continue  # SQLite itself holds this
        for kind in READ_BY[table]:
            for command in COMMANDS[kind]:
                try:
                    shown(command)
                except AssertionError as error:
                    raise AssertionError(f"{table}.{column} = {damage[2]!r:.200}") from error
        assert of_the_other_job() == other
        write(database, (table, column, rows[table][column]), at)
    assert node.is_up()


def test_a_node_comes_up_on_any_rows(node: Node, database: sqlite3.Connection, request: pytest.FixtureRequest) -> None:
    found = [(damage, True) for damage in damages(database) if damage[0] in ("jobs", "rounds")]
    found += [(("rounds", "fields", packed(value, "rounds")), False) for value in damaged(OPENED, 3)]
    seeded(request.node.name).shuffle(found)
    node.kill()
    for number, (damage, committed) in enumerate(found[:STARTS]):
        name = f"d{number}"
        copy_job(database, node.state_dir / "jobs", name, committed)
        try:
            write(database, damage, {"jobs": f"name = '{name}'", "rounds": f"job = '{name}' AND round = 2"})
        except sqlite3.IntegrityError:
            continue  # SQLite itself holds this
    node.up()
    lines = node.json("jobs")["jobs"]
    (count,) = database.execute("SELECT count(*) FROM jobs WHERE status != 'new'").fetchone()
    assert len(lines) == count, "each is shown"
    assert next(line for line in lines if line["name"] == "k")["status"] == "waiting"
    over = {"finished", "failed", "cancelled"}
    for line in lines:
        with contextlib.suppress(Refused):  # it is over by now
            if line["status"] not in over:
                assert ask(node, om.CancelJob(line["name"]))["status"] == "cancelled"
    assert {line["status"] for line in node.json("jobs")["jobs"]} <= over
    node.kill()
    node.up()


def copy_job(database: sqlite3.Connection, folder: Path, name: str, committed: bool) -> None:
    """Make a job like j, with rows and files of its own; or (not `committed`) one that was in its second round."""
    shutil.copytree(folder / "j", folder / name)
    (folder / name / folders.CLAIM).unlink()
    with database:
        row = dict(database.execute("SELECT * FROM jobs WHERE name = 'j'").fetchone())
        config = whole(row["config"], "jobs")
        config["job"]["name"] = name
        row |= {"number": None, "name": name, "config": packed(config, "jobs"), "folder": str(folder / name)}
        database.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
        rows = [tuple(each)[1:] for each in database.execute("SELECT * FROM rounds WHERE job = 'j'")]
        if not committed:  # it begins with the user's own model: no file says that it is of j
            rows = [(number, 1, "open", packed(OPENED, "rounds"), 0.0) for number in (1, 2)]
        for each in rows:
            database.execute("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?)", (name, *each))
