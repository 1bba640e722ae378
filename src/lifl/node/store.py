"""What a node knows after the machine's death: jobs, rounds and how they were planned, in SQLite.

WAL with synchronous=FULL: when a call returns, it is on the disk.  The unique index on committed rounds is the last
fence against a second commit of (job, round).
"""

from __future__ import annotations

import secrets
import sqlite3
import time
import zlib
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from lifl import failpoints
from lifl.core.config.job import JobConfig
from lifl.core.errors import ResourceFault
from lifl.core.planning.plan import Plan, PlanRequest
from lifl.core.schema import TensorSpec

SCHEMA_VERSION = 2
PLANS_MAX = 1_000
"""Decisions of the planner that are kept, the newest ones; each takes some kilobytes, packed."""
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
    tensors: tuple[TensorSpec, ...]
    states: tuple[str, ...]
    folder: str
    status: str
    reason: str
    submitted_unix_s: float


class RoundRow(msgspec.Struct, frozen=True):
    """One attempt at one round: ``open``, ``committed`` or ``failed``."""

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


class NodeStore:
    """The node's database file; one process opens it."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise ResourceFault(
                    f"{path} has version {version}, this lifld reads {SCHEMA_VERSION}: use the lifld that wrote it, "
                    "or another state folder"
                )
            self._db.executescript(_PLANS)
            self._db.execute(_SEED)
        except sqlite3.DatabaseError as error:
            raise ResourceFault(f"{path} cannot be used: {error}; move it away or use another state folder") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def node_id(self) -> int:
        """Return the node's 64-bit id, drawn once."""
        self._db.execute("INSERT OR IGNORE INTO node (id, node) VALUES (1, ?)", (secrets.token_hex(8),))
        (node,) = self._db.execute("SELECT node FROM node").fetchone()
        return int(node, 16)

    def seed(self) -> bytes:
        """Return what this node's secrets are made from, drawn once."""
        self._db.execute("INSERT OR IGNORE INTO seed (id, seed) VALUES (1, ?)", (secrets.token_bytes(32),))
        (seed,) = self._db.execute("SELECT seed FROM seed").fetchone()
        return bytes(seed)

    def next_incarnation(self, above: int = 0) -> int:
        """Return the number of this life of the daemon, greater than all before it and than `above`."""
        self._db.execute("UPDATE node SET incarnation = max(incarnation, ?) + 1", (above,))
        (incarnation,) = self._db.execute("SELECT incarnation FROM node").fetchone()
        return int(incarnation)

    def meets(self, coordinator: str) -> bool:
        """Return whether this coordinator is the one that the node had last; note it as the last one."""
        (before,) = self._db.execute("SELECT coordinator FROM node").fetchone()
        if before != coordinator:
            self._db.execute("UPDATE node SET coordinator = ?", (coordinator,))
        return bool(before == coordinator)

    def add_job(self, config: JobConfig, tensors: tuple[TensorSpec, ...], states: tuple[str, ...], folder: str) -> int:
        """Add a row for a new job, with status ``new``; return its number in the arena."""
        cursor = self._db.execute(
            "INSERT INTO jobs (name, config, tensors, states, folder, status, reason, submitted_unix_s)"
            " VALUES (?, ?, ?, ?, ?, 'new', '', ?)",
            (config.job.name, _pack(config), _pack(tensors), _pack(states), folder, time.time()),
        )
        return int(cursor.lastrowid or 0)

    def drop_job(self, name: str) -> None:
        """Forget a job that was refused after all."""
        self._db.execute("DELETE FROM jobs WHERE name = ? AND status = 'new'", (name,))

    def save_job(self, name: str, status: str, reason: str) -> None:
        """Keep what became of a job."""
        failpoints.hit("lifld.job_row.before")
        self._db.execute("UPDATE jobs SET status = ?, reason = ? WHERE name = ?", (status, reason, name))
        failpoints.hit("lifld.job_row.after")

    def save_round(self, job: str, number: int, attempt: int, status: str, fields: dict[str, Any]) -> None:
        """Keep one attempt at a round.  Raise `sqlite3.IntegrityError` for a second commit."""
        failpoints.hit("lifld.round_row.before")
        self._db.execute(
            "INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (job, round, attempt) DO UPDATE SET"
            " status = excluded.status, fields = excluded.fields, saved_unix_s = excluded.saved_unix_s"
            " WHERE status != 'committed'",
            (job, number, attempt, status, msgpack.packb(fields), time.time()),
        )
        failpoints.hit("lifld.round_row.after")

    def jobs(self) -> list[JobRow]:
        """Return all jobs, in the order of their submission; rows of jobs that were never accepted are left out."""
        rows = self._db.execute("SELECT * FROM jobs WHERE status != 'new' ORDER BY number")
        return [
            JobRow(
                number,
                name,
                _unpack(config, JobConfig),
                _unpack(tensors, tuple[TensorSpec, ...]),
                _unpack(states, tuple[str, ...]),
                *rest,
            )
            for number, name, config, tensors, states, *rest in rows
        ]

    def rounds(self, job: str) -> list[RoundRow]:
        """Return the job's rounds and their attempts, in order."""
        rows = self._db.execute(
            "SELECT round, attempt, status, fields, saved_unix_s FROM rounds WHERE job = ? ORDER BY round, attempt",
            (job,),
        )
        return [
            RoundRow(number, attempt, status, msgpack.unpackb(fields, strict_map_key=False), at)
            for number, attempt, status, fields, at in rows
        ]

    def save_plan(self, job: str, number: int, attempt: int, request: PlanRequest, plan: Plan) -> None:
        """Keep a decision of the planner; those before the last `PLANS_MAX` are forgotten."""
        row = (job, number, attempt, zlib.compress(_pack((request, plan))), time.time())
        failpoints.hit("lifld.plan_row.before")
        with self._db:
            self._db.execute("BEGIN")
            inserted = "INSERT INTO plans (job, round, attempt, decision, decided_unix_s) VALUES (?, ?, ?, ?, ?)"
            last = self._db.execute(inserted, row).lastrowid or 0
            self._db.execute("DELETE FROM plans WHERE number <= ?", (last - PLANS_MAX,))
        failpoints.hit("lifld.plan_row.after")

    def plans(self, job: str, number: int) -> list[PlanRow]:
        """Return the decisions about a round that are kept, in order."""
        rows = self._db.execute(
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
