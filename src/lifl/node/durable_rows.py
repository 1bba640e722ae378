"""Where the rows of jobs and rounds are kept, so that whoever coordinates next goes on from them.

`LocalRows` are those of a node that coordinates alone, in its own database: a row is durable when the call returns.  In
a cluster whose coordinator moves they are in a store that all nodes reach (`etcd/cluster_rows.py`): a row is on its way
for a while, `RowPending` says so, and the same row is performed once more when it is there.  Either way what is read
comes from a `NodeStore`; that of such a cluster is this node's copy.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

from lifl.core import effects as fx
from lifl.core.config.job import JobConfig
from lifl.core.ids import is_hosted
from lifl.core.schema import TensorSpec
from lifl.node.database import DatabaseFault
from lifl.node.store import NodeStore, add_to_round, removed_copies, save_config

Row = fx.SaveJob | fx.SaveConfig | fx.DropJob | fx.SaveRound | fx.SaveEvaluation | fx.SetAside


class RowPending(DatabaseFault):
    """The row is on its way.

    `written` ends when it is there, and with what went wrong (`DatabaseFault`) when it will not be; in either case the
    same effect is to be performed again.
    """

    def __init__(self, written: asyncio.Future[DatabaseFault | None]) -> None:
        super().__init__("a row is on its way to the store")
        self.written = written


class DurableRows(Protocol):
    """What writes rows."""

    owner: int
    """Whose the folders of checkpoints are: the node's number, or one of the cluster's."""
    beside: NodeStore | None
    """Where the rows are that are not with these: of the sessions that the node hosts by itself."""

    def write(self, row: Row) -> None:
        """Make a row durable.

        Raise `RowPending`, or `DatabaseFault` when it cannot be written now; `sqlite3.IntegrityError` for a second
        commit of a round.
        """
        ...

    async def new_job(
        self, config: JobConfig, tensors: tuple[TensorSpec, ...], states: tuple[str, ...], folder: str
    ) -> int:
        """Return the number of a new job, which no other has had; its row stands when it is saved as running.

        Raise `DatabaseFault`.
        """
        ...

    async def forget_job(self, name: str, number: int) -> bool:
        """Forget a job that was refused after all; return False when it may run all the same."""
        ...

    @property
    def removed_copies(self) -> list[tuple[int, str]]:
        """Number and name of the last jobs that were forgotten with their models, the last one last.

        Raises `DatabaseFault`.
        """
        ...

    async def have_job(self, name: str) -> None:
        """Have the rows of a job that is over be where those of jobs that run are.  Raise `DatabaseFault`."""
        ...


class LocalRows:
    """The rows of one node, in its own database."""

    beside: NodeStore | None = None

    def __init__(self, store: NodeStore, owner: int) -> None:
        self.owner = owner
        self._store = store

    def write(self, row: Row) -> None:
        """Make a row durable.  Raise `DatabaseFault`; `sqlite3.IntegrityError` for a second commit of a round."""
        put(self._store, row)

    async def new_job(
        self, config: JobConfig, tensors: tuple[TensorSpec, ...], states: tuple[str, ...], folder: str
    ) -> int:
        """Add a row for a new job; return its number."""
        return self._store.add_job(config, tensors, states, folder)

    async def forget_job(self, _name: str, number: int) -> bool:
        """Forget a job; return False when its row stays."""
        with suppress(DatabaseFault):
            self._store.drop_job(number)
            return True
        return False

    @property
    def removed_copies(self) -> list[tuple[int, str]]:
        """Number and name of the last jobs that were forgotten with their models, the last one last."""
        return removed_copies(self._store)

    async def have_job(self, _name: str) -> None:
        """Do nothing: all rows are in one database."""


class RowsBesideSessions:
    """The rows of a cluster's store, and in the node's own database those of the sessions that it hosts by itself."""

    def __init__(self, rows: DurableRows, own: NodeStore) -> None:
        self.owner = rows.owner
        self.beside: NodeStore | None = own
        self._rows = rows
        self.new_job, self.forget_job, self.have_job = rows.new_job, rows.forget_job, rows.have_job

    @property
    def removed_copies(self) -> list[tuple[int, str]]:
        """Number and name of the last jobs of the cluster that were forgotten with their models, the last one last."""
        return self._rows.removed_copies

    def write(self, row: Row) -> None:
        """Make a row durable.  Raise as both do."""
        if self.beside is not None and isinstance(row, fx.DropJob) and is_hosted(row.number):
            put(self.beside, row)
        else:
            self._rows.write(row)


def put(store: NodeStore, row: Row, at_unix_s: float | None = None) -> None:
    """Put a row into a database; that of a round as it was saved `at_unix_s`."""
    match row:
        case fx.SaveJob():
            store.save_job(row.job, row.status, row.reason)
        case fx.SaveConfig():
            save_config(store, row.job, row.config)
        case fx.SaveRound():
            store.save_round(row.job, row.round, row.attempt, row.status, row.fields, at_unix_s)
        case fx.DropJob():
            store.drop_job(row.number, row.copies)
        case fx.SaveEvaluation():
            add_to_round(store, row.job, row.round, row.attempt, row.fields)
        case fx.SetAside():
            store.set_aside(row.job, row.above, row.reason)


async def write_now(rows: DurableRows, row: Row) -> None:
    """Write a row, and wait until it is there.  Raise `DatabaseFault`."""
    while True:
        try:
            rows.write(row)
        except RowPending as pending:
            fault = await asyncio.shield(pending.written)
            if fault is not None:
                raise fault from None
        else:
            return
