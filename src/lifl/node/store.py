"""What a node knows after the machine's death: jobs, rounds and how they were planned, in SQLite.

WAL with synchronous=FULL: when a call returns, it is on the disk.  The unique index on committed rounds is the last
fence against a second commit of (job, round).  What is read is looked at by `rows.py`, and by nobody else.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from lifl import failpoints
from lifl.core.config.job import JobConfig
from lifl.core.errors import ResourceFault
from lifl.core.formats import DATABASE_FORMAT, DATABASE_OLDEST, RELEASE, newer_text
from lifl.core.ids import ATTEMPTS_MAX, HOSTED_MAX, HOSTED_MIN
from lifl.core.limits import CAPACITY_MAX, INCARNATION_MAX, REMOVED_COPIES_MAX, ROUNDS_MAX, TRIM_ROUNDS, WORD_CHARS_MAX
from lifl.core.planning.jobs_kept import OverJob
from lifl.core.planning.keeping import Kept
from lifl.core.planning.plan import Plan, PlanRequest
from lifl.core.schema import TensorSpec
from lifl.node.database import Database, tables_fault
from lifl.node.rows import (
    JOB_COLUMNS,
    ROUND_COLUMNS,
    UNREADABLE,
    AnyJob,
    AnyPlan,
    RoundRow,
    job_row,
    number_of,
    plan_row,
    round_row,
    unpack,
    without_costs,
)

PLANS_MAX = 1_000
"""Decisions of the planner that are kept, the newest ones; each takes some kilobytes, packed."""
NAMES_SHOWN = 8
"""Jobs that a message names when another one is asked for."""
TABLES = """
CREATE TABLE node (id INTEGER PRIMARY KEY CHECK (id = 1), node TEXT NOT NULL,
    incarnation INTEGER NOT NULL DEFAULT 0, coordinator TEXT NOT NULL DEFAULT '');
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, config BLOB NOT NULL, tensors BLOB NOT NULL,
    states BLOB NOT NULL, folder TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL,
    submitted_unix_s REAL NOT NULL);
CREATE TABLE rounds (
    job TEXT NOT NULL REFERENCES jobs (name), round INTEGER NOT NULL, attempt INTEGER NOT NULL, status TEXT NOT NULL,
    fields BLOB NOT NULL, saved_unix_s REAL NOT NULL, PRIMARY KEY (job, round, attempt));
CREATE UNIQUE INDEX one_commit ON rounds (job, round) WHERE status = 'committed';
"""
_PLANS = """
CREATE TABLE IF NOT EXISTS plans (
    number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    decision BLOB NOT NULL, decided_unix_s REAL NOT NULL);
CREATE INDEX IF NOT EXISTS plans_of_round ON plans (job, round);
"""
_ODD = (
    f"(typeof(round) != 'integer' OR typeof(attempt) != 'integer'"
    f" OR round NOT BETWEEN 0 AND {ROUNDS_MAX} OR attempt NOT BETWEEN 0 AND {ATTEMPTS_MAX})"
)
"""Of rows that no round or attempt can be told of: an index of its own, mostly empty, finds them."""
_ODD_ROUNDS = f"CREATE INDEX IF NOT EXISTS odd_rounds ON rounds (job) WHERE {_ODD}"
_JOB_COLUMNS = ", ".join(JOB_COLUMNS)
_ROUND_COLUMNS = ", ".join(ROUND_COLUMNS)
_SEED = "CREATE TABLE IF NOT EXISTS seed (id INTEGER PRIMARY KEY CHECK (id = 1), seed BLOB NOT NULL)"
_CAPACITY = "CREATE TABLE IF NOT EXISTS capacity (id INTEGER PRIMARY KEY CHECK (id = 1), capacity REAL NOT NULL)"
_REMOVED = """
CREATE TABLE IF NOT EXISTS removed (at INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER NOT NULL, name TEXT NOT NULL);
"""
_WRITTEN = "CREATE TABLE IF NOT EXISTS written (id INTEGER PRIMARY KEY CHECK (id = 1), release TEXT NOT NULL)"
_MARK = f"""
INSERT OR REPLACE INTO written (id, release) VALUES (1, '{RELEASE}'); PRAGMA user_version = {DATABASE_FORMAT};
"""
"""Of the release that wrote the database first in its format; the format with it."""

_MADE = f"{_PLANS}{_SEED};{_CAPACITY};{_ODD_ROUNDS};{_REMOVED}{_WRITTEN};"
ADDED = f"{TABLES}{_MADE}"
"""All tables; those that are not in `TABLES` are made where they are missing."""


def version_of(db: sqlite3.Connection, path: Path) -> int:
    """Return the format of a database; 0: it says none.

    Raise `ResourceFault` with the release to take when it is newer.
    """
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > DATABASE_FORMAT:
        release = ""
        with suppress(sqlite3.OperationalError, sqlite3.DatabaseError):
            (said,) = db.execute("SELECT release FROM written").fetchone() or ("",)
            release = said if isinstance(said, str) and len(said) <= WORD_CHARS_MAX else ""
        raise ResourceFault(newer_text(f"database {path}", version, DATABASE_FORMAT, release))
    return version


def version_fault(db: sqlite3.Connection, path: Path) -> str:
    """Return why a database is none of lifld's, or an empty one; empty: it is.  Raise as `version_of` does."""
    version = version_of(db, path)
    if version == 0:
        return "it is not empty, and not lifld's" if db.execute("SELECT 1 FROM sqlite_master").fetchone() else ""
    if version < DATABASE_OLDEST:
        return f"it has format {version}, and the first release's was {DATABASE_OLDEST}"
    return tables_fault(db, TABLES) or tables_fault(db, ADDED, optional=True)


class NodeStore(Database):
    """The node's database file; one process opens it.

    Every method raises `DatabaseFault` when the database cannot be used now, and `ResourceFault` when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._make_tables(path)
        except BaseException:
            self.close()
            raise

    def _make_tables(self, path: Path) -> None:
        with self._told():
            if fault := version_fault(self._db, path):
                raise ResourceFault(f"{path} cannot be used: {fault}; `lifl doctor --repair` sets it aside")
            version = version_of(self._db, path)
            self._db.executescript(
                # In one transaction: after a crash it is in the old format, or in the new one.
                f"BEGIN; {'' if version else TABLES}{_MADE}{_MARK if version < DATABASE_FORMAT else ''} COMMIT;"
            )

    # ---- the node ----------------------------------------------------------------------------------------------------

    def node_id(self) -> int:
        """Return the node's 64-bit id, drawn once."""
        if not self._all("SELECT node FROM node"):
            self._write("INSERT OR IGNORE INTO node (id, node) VALUES (1, ?)", (secrets.token_hex(8),))
        ((node,),) = self._all("SELECT node FROM node")
        if not isinstance(node, str) or not re.fullmatch(r"[0-9a-f]{1,16}", node):
            raise self._damaged(f"the node's id is {node!r:.40}")
        return int(node, 16)

    def seed(self) -> bytes:
        """Return what this node's secrets are made from, drawn once."""
        if not self._all("SELECT seed FROM seed"):
            self._write("INSERT OR IGNORE INTO seed (id, seed) VALUES (1, ?)", (secrets.token_bytes(32),))
        ((seed,),) = self._all("SELECT seed FROM seed")
        if not isinstance(seed, bytes) or not seed:
            raise self._damaged("the node's seed is none")
        return seed

    def _damaged(self, what: str) -> ResourceFault:
        return ResourceFault(f"{self.path} is damaged: {what}; `lifl doctor --repair` sets it aside")

    def next_incarnation(self, above: int = 0) -> int:
        """Return the number of this life of the daemon, greater than all before it and than `above`."""
        known = f"typeof(incarnation) = 'integer' AND incarnation BETWEEN 0 AND {INCARNATION_MAX}"  # else it is damaged
        self._write(f"UPDATE node SET incarnation = max(iif({known}, incarnation, 0), ?) + 1", (above,))
        ((incarnation,),) = self._all("SELECT incarnation FROM node")
        return int(incarnation)

    def meets(self, coordinator: str) -> bool:
        """Return whether this coordinator is the one that the node had last; note it as the last one."""
        ((before,),) = self._all("SELECT coordinator FROM node")
        if before != coordinator:
            self._write("UPDATE node SET coordinator = ?", (coordinator,))
        return bool(before == coordinator)

    # ---- jobs --------------------------------------------------------------------------------------------------------

    def add_job(self, config: JobConfig, tensors: tuple[TensorSpec, ...], states: tuple[str, ...], folder: str) -> int:
        """Add a row for a new job, with status ``new``; return its number in the arena.

        One of this name that was refused, and could not be dropped then, makes room.
        """
        row = (config.job.name, _pack(config), _pack(tensors), _pack(states), folder, time.time())
        with self._told(), self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM jobs WHERE name = ? AND status = 'new'", (config.job.name,))
            insert = "INSERT INTO jobs (name, config, tensors, states, folder, status, reason, submitted_unix_s)"
            return int(self._db.execute(f"{insert} VALUES (?, ?, ?, ?, ?, 'new', '', ?)", row).lastrowid or 0)

    def drop_job(self, number: int, copies: bool = False) -> None:
        """Forget a job, with its rounds and their plans, in one step; `copies`: note it for `removed_copies`."""
        name = "job = (SELECT name FROM jobs WHERE number = ? AND status != 'new')"
        with self._told(), self._db:
            failpoints.hit("lifld.job_drop.before")
            self._db.execute("BEGIN")
            for table in ("rounds", "plans"):
                self._db.execute(f"DELETE FROM {table} WHERE {name}", (number,))
            if copies:
                noted = "INSERT INTO removed (number, name) SELECT number, name FROM jobs WHERE number = ?"
                self._db.execute(noted, (number,))
                last = "(SELECT max(at) FROM removed)"
                self._db.execute(f"DELETE FROM removed WHERE at <= {last} - ?", (REMOVED_COPIES_MAX,))
            self._db.execute("DELETE FROM jobs WHERE number = ?", (number,))
        failpoints.hit("lifld.job_drop.after")

    def unaccepted(self) -> list[tuple[int, str]]:
        """Return number and folder of the jobs that were being submitted when an earlier life ended."""
        rows = self._all("SELECT number, folder FROM jobs WHERE status = 'new'")
        return [(number, folder if isinstance(folder, str) else "") for number, folder in rows]

    def save_job(self, name: str, status: str, reason: str) -> None:
        """Keep what became of a job.  What is there already is not written once more: it needs no room."""
        with self._told():
            failpoints.hit("lifld.job_row.before")
        where, value = _named(name)
        update = f"UPDATE jobs SET status = ?, reason = ? WHERE {where} AND (status, reason) != (?, ?)"
        self._write(update, (status, reason, value, status, reason))
        failpoints.hit("lifld.job_row.after")

    def jobs(self, after: int = 0) -> Iterator[AnyJob]:
        """Yield the jobs with numbers greater than `after`, in the order of their submission.

        Rows of jobs that were never accepted are left out.
        """
        select = "SELECT number FROM jobs WHERE status != 'new' AND number > ? ORDER BY number"
        for (number,) in self._all(select, (after,)):
            yield from self._jobs("number = ?", number)

    def job(self, name: str) -> AnyJob | None:
        """Return the job of this name."""
        where, value = _named(name)
        return next(self._jobs(f"{where} AND status != 'new'", value), None)

    def _jobs(self, where: str, value: object) -> Iterator[AnyJob]:
        for row in self._all(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE {where}", (value,)):
            yield job_row(row)

    def known_names(self) -> list[str]:
        """Return the names of the last jobs."""
        rows = self._all("SELECT number FROM jobs WHERE status != 'new' ORDER BY number DESC LIMIT ?", (NAMES_SHOWN,))
        return [row.name for (number,) in reversed(rows) for row in self._jobs("number = ?", number)]

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def save_round(
        self, job: str, number: int, attempt: int, status: str, fields: dict[str, Any], at_unix_s: float | None = None
    ) -> None:
        """Keep one attempt at a round.  Raise `sqlite3.IntegrityError` for a second commit."""
        with self._told():
            failpoints.hit("lifld.round_row.before")
        self._write(
            "INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (job, round, attempt) DO UPDATE SET"
            " status = excluded.status, fields = excluded.fields, saved_unix_s = excluded.saved_unix_s"
            " WHERE status != 'committed'",
            (job, number, attempt, status, msgpack.packb(fields), time.time() if at_unix_s is None else at_unix_s),
        )
        failpoints.hit("lifld.round_row.after")

    def set_aside(self, job: str, above: int, reason: str) -> None:
        """Let no round after `above` stand any more: committed and open rows become ``damaged``, and say why."""
        select = (
            f"SELECT {_ROUND_COLUMNS} FROM rounds WHERE job = ? AND NOT {_ODD} AND round > ?"
            " AND status IN ('committed', 'open')"
        )
        update = "UPDATE rounds SET status = 'damaged', fields = ? WHERE job = ? AND round = ? AND attempt = ?"
        with self._told(), self._db:
            failpoints.hit("lifld.set_aside.before")
            self._db.execute("BEGIN")
            for row in self._db.execute(select, (job, above)).fetchall():
                kept = round_row(job, row)
                packed = msgpack.packb(kept.fields | {"reason": reason})
                self._db.execute(update, (packed, job, kept.round, kept.attempt))
        failpoints.hit("lifld.set_aside.after")

    def rounds(self, job: str, above: int = -1) -> list[RoundRow]:
        """Return the job's rounds after `above` and their attempts, in order."""
        return self._rounds("round > ? ORDER BY round, attempt", job, above)

    def committed(self, job: str, most: int) -> list[RoundRow]:
        """Return the job's last committed rounds, at most so many, in order."""
        return self._rounds("status = 'committed' ORDER BY round DESC LIMIT ?", job, most)[::-1]

    def round(self, job: str, number: int) -> list[RoundRow]:
        """Return the attempts at one round, in order."""
        return self._rounds("round = ? ORDER BY attempt", job, number)

    def rounds_before(self, job: str, before: tuple[int, int], most: int) -> list[RoundRow]:
        """Return the attempts that are over before (round, attempt), the last one first, at most so many."""
        where = "round > 0 AND status != 'open' AND (round, attempt) < (?, ?)"
        return self._rounds(f"{where} ORDER BY round DESC, attempt DESC LIMIT ?", job, *before, most)

    def _rounds(self, where: str, job: str, *given: Any) -> list[RoundRow]:
        select = f"SELECT {_ROUND_COLUMNS} FROM rounds WHERE job = ? AND NOT {_ODD} AND {where}"
        return [round_row(job, row) for row in self._all(select, (job, *given))]

    def odd_rounds(self, job: str, most: int) -> list[RoundRow]:
        """Return rows of which neither round nor attempt can be told, at most so many; the others leave them out."""
        select = f"SELECT {_ROUND_COLUMNS} FROM rounds WHERE job = ? AND {_ODD} LIMIT ?"
        return [round_row(job, row) for row in self._all(select, (job, most))]

    # ---- plans -------------------------------------------------------------------------------------------------------

    def save_plan(self, job: str, number: int, attempt: int, request: PlanRequest, plan: Plan) -> None:
        """Keep a decision of the planner; those before the last `PLANS_MAX` are forgotten."""
        row = (job, number, attempt, zlib.compress(_pack((request, plan))), time.time())
        with self._told(), self._db:
            failpoints.hit("lifld.plan_row.before")
            self._db.execute("BEGIN")
            inserted = "INSERT INTO plans (job, round, attempt, decision, decided_unix_s) VALUES (?, ?, ?, ?, ?)"
            last = self._db.execute(inserted, row).lastrowid or 0
            self._db.execute("DELETE FROM plans WHERE number <= ?", (last - PLANS_MAX,))
        failpoints.hit("lifld.plan_row.after")

    def plans(self, job: str, number: int, after: int = 0) -> Iterator[tuple[int, AnyPlan]]:
        """Yield the decisions about a round that are kept, in order, each with its number: those after `after`."""
        where = "job = ? AND round = ? AND number > ?"
        for (kept,) in self._all(f"SELECT number FROM plans WHERE {where} ORDER BY number", (job, number, after)):
            for row in self._all("SELECT attempt, decision, decided_unix_s FROM plans WHERE number = ?", (kept,)):
                yield kept, plan_row(job, number, row)


def add_to_round(store: NodeStore, job: str, number: int, attempt: int, fields: Mapping[str, Any]) -> None:
    """Add fields to the row of an attempt that is committed, in the place of those of their names."""
    where = "job = ? AND round = ? AND attempt = ? AND status = 'committed'"
    for (packed,) in store._all(f"SELECT fields FROM rounds WHERE {where}", (job, number, attempt)):
        with suppress(*UNREADABLE):  # one that cannot be read stays as it is
            added = msgpack.packb(unpack(packed, dict[str, Any]) | dict(fields))
            store._write(f"UPDATE rounds SET fields = ? WHERE {where}", (added, job, number, attempt))


def kept_capacity(store: NodeStore) -> float:
    """Return the capacity that `lifl calibrate` has found, in updates at a time; 0: none is kept, or none is readable.

    A node does without: it measures one when it starts.
    """
    found = store._all("SELECT capacity FROM capacity")
    capacity = found[0][0] if found else 0.0
    return capacity if isinstance(capacity, float) and 0 <= capacity <= CAPACITY_MAX else 0.0


def keep_capacity(store: NodeStore, capacity: float) -> None:
    """Keep what was found; 0: keep nothing."""
    store._write("INSERT OR REPLACE INTO capacity (id, capacity) VALUES (1, ?)", (float(capacity),))


def removed_copies(store: NodeStore) -> list[tuple[int, str]]:
    """Return number and name of the last jobs that were forgotten with their models, the last one last."""
    return [(number, name) for number, name in store._all("SELECT number, name FROM removed ORDER BY at")]


def over_jobs(store: NodeStore, kept: int) -> list[OverJob]:
    """Return the jobs that are over, each with when it was submitted or its last row of a round was saved.

    None, and at no cost, while there are not more than `kept` jobs in all.
    """
    ((jobs,),) = store._all("SELECT count(*) FROM jobs")
    if jobs <= kept:
        return []
    last = "(SELECT saved_unix_s FROM rounds WHERE job = name ORDER BY round DESC, attempt DESC LIMIT 1)"
    over = "status IN ('finished', 'failed', 'cancelled')"
    found = store._all(f"SELECT number, submitted_unix_s, {last} FROM jobs WHERE {over}")
    return [OverJob(number, max([0.0, *(at for at in ats if isinstance(at, float))])) for number, *ats in found]


def add_session(store: NodeStore, config: JobConfig, tensors: tuple[TensorSpec, ...], states: tuple[str, ...]) -> int:
    """Add a row for a session that the node hosts by itself; return its number, which is none that jobs have."""
    number = HOSTED_MIN + secrets.randbelow(HOSTED_MAX + 1 - HOSTED_MIN)
    row = (number, config.job.name, _pack(config), _pack(tensors), _pack(states), time.time())
    with store._told(), store._db:
        store._db.execute("BEGIN")
        last = store._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
        insert = "INSERT INTO jobs (number, name, config, tensors, states, folder, status, reason, submitted_unix_s)"
        store._db.execute(f"{insert} VALUES (?, ?, ?, ?, ?, '', 'new', '', ?)", row)
        store._db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'jobs'", last or (0,))
    return number


def save_config(store: NodeStore, name: str, config: JobConfig) -> None:
    """Keep what a job's config has become.  Raise as the store's methods do."""
    with store._told():
        failpoints.hit("lifld.job_config.before")
    store._write("UPDATE jobs SET config = ? WHERE name = ?", (_pack(config), name))
    failpoints.hit("lifld.job_config.after")


def _named(name: str) -> tuple[str, str | int]:
    """Return the condition that finds a job, and its value."""
    number = number_of(name)
    return ("number = ?", number) if number is not None else ("name = ?", name)


def trim_rounds(store: NodeStore, job: str, rounds: int, receipts: int, kept: Kept) -> None:
    """Forget the rows of rounds before `rounds` whose models do not stay, and of those before `receipts` the costs.

    Of each the `2 * TRIM_ROUNDS` rounds before it are looked at: those before these were so, earlier.
    """
    select = "SELECT attempt, fields FROM rounds WHERE job = ? AND round = ? AND typeof(fields) = 'blob'"
    # Written anew, behind all others: what a row in the middle gives up of its page is never used again.
    again = (
        "INSERT OR REPLACE INTO rounds SELECT job, round, attempt, status, ?, saved_unix_s FROM rounds"
        " WHERE job = ? AND round = ? AND attempt = ?"
    )
    with store._told(), store._db:
        store._db.execute("BEGIN")
        for number in _window(receipts):
            for attempt, fields in store._db.execute(select, (job, number)).fetchall():
                if (short := without_costs(fields)) is not None:
                    store._db.execute(again, (short, job, number, attempt))
        gone = [(job, number) for number in _window(rounds) if not kept.has(number)]
        store._db.executemany("DELETE FROM rounds WHERE job = ? AND round = ?", gone)


def _window(end: int) -> range:
    """Return the rounds that are looked at when those before `end` are to go; the initial model's row stays."""
    return range(max(1, end - 2 * TRIM_ROUNDS), end)


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(msgspec.to_builtins(value))
    return packed
