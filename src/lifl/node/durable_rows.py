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
from lifl.core.schema import TensorSpec
from lifl.node.database import DatabaseFault
from lifl.node.store import NodeStore

Row = fx.SaveJob | fx.DropJob | fx.SaveRound | fx.SetAside


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

    async def forget_job(self, name: str, number: int) -> None:
        """Forget a job that was refused after all, if that can be done now."""
        ...


class LocalRows:
    """The rows of one node, in its own database."""

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

    async def forget_job(self, _name: str, number: int) -> None:
        """Forget a job; one whose row stays, and says that it was never accepted, is gone with the next start."""
        with suppress(DatabaseFault):
            self._store.drop_job(number)


def put(store: NodeStore, row: Row, at_unix_s: float | None = None) -> None:
    """Put a row into a database; that of a round as it was saved `at_unix_s`."""
    match row:
        case fx.SaveJob():
            store.save_job(row.job, row.status, row.reason)
        case fx.SaveRound():
            store.save_round(row.job, row.round, row.attempt, row.status, row.fields, at_unix_s)
        case fx.DropJob():
            store.drop_job(row.number)
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
