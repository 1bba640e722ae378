"""A node's copy of a cluster's rows, in SQLite: what it answers from, and what a node that leads goes on from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lifl.node.rows import JOB_COLUMNS, ROUND_COLUMNS
from lifl.node.store import NodeStore

_JOBS = ", ".join(JOB_COLUMNS)
_PLACES = ", ".join("?" * len(JOB_COLUMNS))


class Mirror(NodeStore):
    """The copy; its rows are those of the cluster `cluster`, or of none."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.node_id()  # the row that names the cluster

    def belongs_to(self, cluster: str) -> None:
        """Forget all rows of another cluster."""
        if not self.meets(cluster):
            with self._told(), self._db:
                self._db.execute("BEGIN")
                for table in ("rounds", "jobs", "plans"):
                    self._db.execute(f"DELETE FROM {table}")

    def add_numbered(self, number: int, row: Sequence[Any]) -> None:
        """Add a job that is new, under the number that the cluster gave it; `row` has config, tensors and states."""
        name, folder, *packed = row
        with self._told(), self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM jobs WHERE name = ? AND status = 'new'", (name,))
            row = (number, name, folder, "new", "", time.time(), *packed)
            self._db.execute(f"INSERT INTO jobs ({_JOBS}) VALUES ({_PLACES})", row)

    def columns_of(self, name: str) -> dict[str, Any] | None:
        """Return a job's row as it is."""
        found = self._all(f"SELECT {_JOBS} FROM jobs WHERE name = ?", (name,))
        return dict(zip(JOB_COLUMNS, found[0], strict=True)) if found else None

    def replace(self, jobs: Iterable[Sequence[Any]], rounds: Iterable[Sequence[Any]]) -> None:
        """Take the cluster's rows in the place of those that are here, in one step.

        `jobs` have all `JOB_COLUMNS`, `rounds` a job's name before their `ROUND_COLUMNS`.  What the cluster keeps no
        longer stays: jobs that are over, and rounds before the first of theirs.
        """
        jobs, rounds = list(jobs), list(rounds)
        first: dict[str, int] = {}
        for name, number, *_ in rounds:
            first[name] = min(number, first.get(name, number))
        with self._told(), self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM jobs WHERE status IN ('new', 'running')")
            for row in jobs:
                self._db.execute("DELETE FROM jobs WHERE number = ? OR name = ?", (row[0], row[1]))
                self._db.execute(f"INSERT INTO jobs ({_JOBS}) VALUES ({_PLACES})", row)
                self._db.execute("DELETE FROM rounds WHERE job = ? AND round >= ?", (row[1], first.get(row[1], 0)))
            insert = f"INSERT OR REPLACE INTO rounds (job, {', '.join(ROUND_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?)"
            self._db.executemany(insert, rounds)
            self._db.execute("DELETE FROM rounds WHERE job NOT IN (SELECT name FROM jobs)")
