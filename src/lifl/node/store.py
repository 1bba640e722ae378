"""What a node knows after the machine's death: jobs, rounds and how they were planned, in SQLite.

WAL with synchronous=FULL: when a call returns, it is on the disk.  The unique index on committed rounds is the last
fence against a second commit of (job, round).
"""

from __future__ import annotations

import re
import secrets
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from lifl import failpoints
from lifl.core.config.job import JobConfig
from lifl.core.errors import ResourceFault
from lifl.core.planning.plan import Plan, PlanRequest
from lifl.core.schema import TensorSpec
from lifl.node.database import Database

SCHEMA_VERSION = 2
PLANS_MAX = 1_000
"""Decisions of the planner that are kept, the newest ones; each takes some kilobytes, packed."""
NAMES_SHOWN = 8
"""Jobs that a message names when another one is asked for."""
_TABLES = """
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
_SEED = "CREATE TABLE IF NOT EXISTS seed (id INTEGER PRIMARY KEY CHECK (id = 1), seed BLOB NOT NULL)"


class JobRow(msgspec.Struct, frozen=True):
    """A job as it was submitted, and what became of it."""

    number: int
    name: str
    config: JobConfig
    packed_tensors: bytes
    states: tuple[str, ...]
    folder: str
    status: str
    reason: str
    submitted_unix_s: float

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The model's tensors.  Raise `ValueError` when they cannot be read."""
        found: tuple[TensorSpec, ...] = _unpack(self.packed_tensors, tuple[TensorSpec, ...])
        return found


class UnreadableJob(msgspec.Struct, frozen=True):
    """A job whose row cannot be read: damaged, or written by another version.  `fault` tells."""

    number: int
    name: str
    folder: str
    status: str
    reason: str
    submitted_unix_s: float
    fault: str


AnyJob = JobRow | UnreadableJob


class RoundRow(msgspec.Struct, frozen=True):
    """One attempt at one round: ``open``, ``committed``, ``failed``, or ``damaged`` (it was committed, or open)."""

    round: int
    attempt: int
    status: str
    fields: dict[str, Any]
    saved_unix_s: float


class PlanRow(msgspec.Struct, frozen=True):
    """A decision of the planner, and what it was made from."""

    round: int
    attempt: int
    request: PlanRequest
    plan: Plan
    decided_unix_s: float


STATUSES = ("new", "running", "finished", "failed", "cancelled")
"""What a job's row may say."""


class NodeStore(Database):
    """The node's database file; one process opens it.

    Every method raises `DatabaseFault` when the database cannot be used now, and `ResourceFault` when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._told():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise ResourceFault(
                    f"{path} has version {version}, this lifld reads {SCHEMA_VERSION}: use the lifld that wrote it, "
                    "or another state folder; `lifl doctor --repair` sets it aside"
                )
            self._db.executescript(_PLANS)
            self._db.execute(_SEED)

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
        self._write("UPDATE node SET incarnation = max(incarnation, ?) + 1", (above,))
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
        """Add a row for a new job, with status ``new``; return its number in the arena."""
        return self._write(
            "INSERT INTO jobs (name, config, tensors, states, folder, status, reason, submitted_unix_s)"
            " VALUES (?, ?, ?, ?, ?, 'new', '', ?)",
            (config.job.name, _pack(config), _pack(tensors), _pack(states), folder, time.time()),
        )

    def drop_job(self, name: str) -> None:
        """Forget a job that was refused after all."""
        self._write("DELETE FROM jobs WHERE name = ? AND status = 'new'", (name,))

    def unaccepted(self) -> list[tuple[str, int, str]]:
        """Return name, number and folder of the jobs that were being submitted when an earlier life ended."""
        return self._all("SELECT name, number, folder FROM jobs WHERE status = 'new'")

    def save_job(self, name: str, status: str, reason: str) -> None:
        """Keep what became of a job."""
        with self._told():
            failpoints.hit("lifld.job_row.before")
        self._write("UPDATE jobs SET status = ?, reason = ? WHERE name = ?", (status, reason, name))
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
        return next(self._jobs("name = ? AND status != 'new'", name), None)

    def _jobs(self, where: str, value: object) -> Iterator[AnyJob]:
        columns = "number, name, folder, status, reason, submitted_unix_s, config, tensors, states"
        for *row, config, tensors, states in self._all(f"SELECT {columns} FROM jobs WHERE {where}", (value,)):
            number, name, folder, status, reason, at = row
            known = status in STATUSES
            try:
                if not known:
                    raise ValueError(f"there is no status {status!r:.40}")
                unpacked = (_unpack(config, JobConfig), tensors, _unpack(states, tuple[str, ...]))
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                fault = f"its row in the database cannot be read: {error!r}"
                yield UnreadableJob(number, name, folder, status if known else "running", reason, at, fault)
            else:
                yield JobRow(number, name, *unpacked, folder, status, reason, at)

    def known_names(self) -> list[str]:
        """Return the names of the last jobs."""
        rows = self._all("SELECT name FROM jobs WHERE status != 'new' ORDER BY number DESC LIMIT ?", (NAMES_SHOWN,))
        return [name for (name,) in reversed(rows)]

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def save_round(self, job: str, number: int, attempt: int, status: str, fields: dict[str, Any]) -> None:
        """Keep one attempt at a round.  Raise `sqlite3.IntegrityError` for a second commit."""
        with self._told():
            failpoints.hit("lifld.round_row.before")
        self._write(
            "INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (job, round, attempt) DO UPDATE SET"
            " status = excluded.status, fields = excluded.fields, saved_unix_s = excluded.saved_unix_s"
            " WHERE status != 'committed'",
            (job, number, attempt, status, msgpack.packb(fields), time.time()),
        )
        failpoints.hit("lifld.round_row.after")

    def set_aside(self, job: str, above: int, reason: str) -> None:
        """Let no round after `above` stand any more: committed and open rows become ``damaged``, and say why."""
        select = (
            "SELECT round, attempt, fields FROM rounds WHERE job = ? AND round > ? AND status IN ('committed', 'open')"
        )
        update = "UPDATE rounds SET status = 'damaged', fields = ? WHERE job = ? AND round = ? AND attempt = ?"
        with self._told(), self._db:
            failpoints.hit("lifld.set_aside.before")
            self._db.execute("BEGIN")
            for number, attempt, fields in self._db.execute(select, (job, above)).fetchall():
                packed = msgpack.packb(msgpack.unpackb(fields, strict_map_key=False) | {"reason": reason})
                self._db.execute(update, (packed, job, number, attempt))
        failpoints.hit("lifld.set_aside.after")

    def rounds(self, job: str, above: int = -1) -> list[RoundRow]:
        """Return the job's rounds after `above` and their attempts, in order."""
        return self._rounds("job = ? AND round > ? ORDER BY round, attempt", job, above)

    def committed(self, job: str, most: int) -> list[RoundRow]:
        """Return the job's last committed rounds, at most so many, in order."""
        where = "job = ? AND status = 'committed' ORDER BY round DESC LIMIT ?"
        return self._rounds(where, job, most)[::-1]

    def round(self, job: str, number: int) -> list[RoundRow]:
        """Return the attempts at one round, in order."""
        return self._rounds("job = ? AND round = ? ORDER BY attempt", job, number)

    def rounds_before(self, job: str, before: tuple[int, int], most: int) -> list[RoundRow]:
        """Return the attempts that are over before (round, attempt), the last one first, at most so many."""
        where = "job = ? AND round > 0 AND status != 'open' AND (round, attempt) < (?, ?)"
        return self._rounds(f"{where} ORDER BY round DESC, attempt DESC LIMIT ?", job, *before, most)

    def _rounds(self, where: str, *given: Any) -> list[RoundRow]:
        """Raise `ValueError` when a row cannot be read."""
        rows = self._all(f"SELECT round, attempt, status, fields, saved_unix_s FROM rounds WHERE {where}", given)
        return [
            RoundRow(number, attempt, status, msgpack.unpackb(fields, strict_map_key=False), at)
            for number, attempt, status, fields, at in rows
        ]

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

    def plans(self, job: str, number: int) -> list[PlanRow]:
        """Return the decisions about a round that are kept, in order."""
        rows = self._all(
            "SELECT attempt, decision, decided_unix_s FROM plans WHERE job = ? AND round = ? ORDER BY number",
            (job, number),
        )
        found = []
        for attempt, packed, at in rows:
            request, plan = _unpack(zlib.decompress(packed), tuple[PlanRequest, Plan])
            found.append(PlanRow(number, attempt, request, plan, at))
        return found


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(msgspec.to_builtins(value))
    return packed


def _unpack(data: bytes, kind: Any) -> Any:
    return msgspec.convert(msgpack.unpackb(data), kind)
