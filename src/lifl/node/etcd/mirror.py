"""A node's copy of a cluster's rows, in SQLite: what it answers from, and what a node that leads goes on from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lifl.core.errors import Refused
from lifl.core.limits import REMOVED_COPIES_MAX
from lifl.node.rows import JOB_COLUMNS, ROUND_COLUMNS
from lifl.node.store import NodeStore, removed_copies

_JOBS = ", ".join(JOB_COLUMNS)
_PLACES = ", ".join("?" * len(JOB_COLUMNS))
_ROUNDS = ", ".join(("job", *ROUND_COLUMNS))
_FORGET_ANOTHERS = "DELETE FROM rounds WHERE job = (SELECT name FROM jobs WHERE name = ? AND number != ?)"
_PUT_ROUND = f"INSERT OR REPLACE INTO rounds ({_ROUNDS}) VALUES (?, ?, ?, ?, ?, ?)"


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

    def replace(
        self, jobs: Iterable[Sequence[Any]], rounds: Iterable[Sequence[Any]], removed: Iterable[int] = ()
    ) -> None:
        """Take the cluster's rows in the place of those that are here, in one step.

        `jobs` have all `JOB_COLUMNS`, `rounds` a job's name before their `ROUND_COLUMNS`.  What the cluster keeps no
        longer stays: jobs that are over, and rounds before the first of theirs; but for the jobs that were `removed`,
        by number, and the rounds of another job that had the name.
        """
        jobs, rounds = list(jobs), list(rounds)
        first: dict[str, int] = {}
        for name, number, *_ in rounds:
            first[name] = min(number, first.get(name, number))
        with self._told(), self._db:
            self._db.execute("BEGIN")
            for row in jobs:
                self._db.execute(_FORGET_ANOTHERS, (row[1], row[0]))
            self._db.execute("DELETE FROM jobs WHERE status IN ('new', 'running')")
            self._db.executemany("DELETE FROM jobs WHERE number = ?", [(number,) for number in removed])
            for row in jobs:
                self._db.execute("DELETE FROM jobs WHERE number = ? OR name = ?", (row[0], row[1]))
                self._db.execute(f"INSERT INTO jobs ({_JOBS}) VALUES ({_PLACES})", row)
                self._db.execute("DELETE FROM rounds WHERE job = ? AND round >= ?", (row[1], first.get(row[1], 0)))
            self._db.executemany(_PUT_ROUND, rounds)
            self._db.execute("DELETE FROM rounds WHERE job NOT IN (SELECT name FROM jobs)")

    # ---- another store -----------------------------------------------------------------------------------------------

    def whole(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Return all jobs (`JOB_COLUMNS`) that were accepted, and their rounds (name, `ROUND_COLUMNS`), as they are."""
        jobs = self._all(f"SELECT {_JOBS} FROM jobs WHERE status != 'new' ORDER BY number")
        return jobs, self._all(f"SELECT {_ROUNDS} FROM rounds WHERE job IN (SELECT name FROM jobs) ORDER BY job, round")

    def last_number(self) -> int:
        """Return the greatest number that a job here ever had."""
        found = self._all("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'")
        return int(found[0][0]) if found else 0

    def take_in(
        self,
        jobs: Iterable[Sequence[Any]],
        rounds: Iterable[Sequence[Any]],
        last: int,
        removed: Sequence[tuple[int, str]] = (),
    ) -> None:
        """Add what another store has, in one step; no later job gets a number up to `last`.

        A job that is here already was taken in before, or was over when it left, and stays.  `removed` are those that
        the other store has forgotten with their models.  Raise `Refused` when a name or a number is that of another
        one.
        """
        rounds = list(rounds)
        with self._told(), self._db:
            self._db.execute("BEGIN")
            for row in jobs:
                if self._has(dict(zip(JOB_COLUMNS, row, strict=True))):
                    continue
                self._db.execute(f"INSERT INTO jobs ({_JOBS}) VALUES ({_PLACES})", row)
                self._db.executemany(_PUT_ROUND, [each for each in rounds if each[0] == row[1]])
            noted = dict.fromkeys([*removed_copies(self), *removed])
            here = set(self._db.execute("SELECT number, name FROM jobs").fetchall())
            known = [each for each in noted if each not in here][-REMOVED_COPIES_MAX:]
            self._db.execute("DELETE FROM removed")
            self._db.executemany("INSERT INTO removed (number, name) VALUES (?, ?)", known)
            last = max(last, self.last_number())
            self._db.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
            self._db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', ?)", (last,))

    def _has(self, job: dict[str, Any]) -> bool:
        """Return whether a job is here.  Raise `Refused` when another one is in its place."""
        number, name, submitted = job["number"], job["name"], job["submitted_unix_s"]
        self._db.execute("DELETE FROM jobs WHERE name = ? AND status = 'new'", (name,))
        select = "SELECT number, name, submitted_unix_s FROM jobs WHERE number = ? OR name = ?"
        found = self._db.execute(select, (number, name)).fetchall()
        for here in found:
            if here != (number, name, submitted):
                text = f"{self.path} has another job {here[1]!r}, number {here[0]}: use an empty state folder (--state)"
                raise Refused("job-exists", "job.name", text)
        return bool(found)

    def give_up(self, numbers: Iterable[int]) -> None:
        """Forget jobs that are in another store now, and their rounds, in one step."""
        with self._told(), self._db:
            self._db.execute("BEGIN")
            for number in numbers:
                self._db.execute("DELETE FROM rounds WHERE job = (SELECT name FROM jobs WHERE number = ?)", (number,))
                self._db.execute("DELETE FROM jobs WHERE number = ?", (number,))
