"""The rows of a cluster's jobs and rounds in etcd, as the node that leads writes them (`durable_rows.DurableRows`).

A round takes two transactions, whatever the number of its clients: one when it opens, one when it commits; each branch
that is lost or taken over takes one more, and each part of a row beyond `STORE_VALUE_BYTES_MAX`.  What the store keeps
is bounded: of each job the last `ROUNDS_REMEMBERED` committed rounds and what is after them, and the last `OVER_KEPT`
jobs that are over.  What is older is in the copies of the nodes that led then.

Nothing here is told twice: a row is written, then put into this node's copy, then what follows from it is done.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import msgpack
import msgspec

from lifl.core import effects as fx
from lifl.core.config.job import JobConfig
from lifl.core.errors import Refused, ResourceFault
from lifl.core.fields import Count, Name
from lifl.core.limits import COUNT_MAX, REMOVED_COPIES_MAX, ROUNDS_REMEMBERED
from lifl.core.schema import TensorSpec
from lifl.node.database import DatabaseFault
from lifl.node.durable_rows import Row, RowPending, put
from lifl.node.etcd import keys as k
from lifl.node.etcd.client import Etcd, StoreFault
from lifl.node.etcd.fenced import Deposed, FencedWriter
from lifl.node.etcd.mirror import Mirror
from lifl.node.rows import UNREADABLE, JobRow
from lifl.node.store import NodeStore

log = logging.getLogger("lifl.store")

FORMAT = 1
OVER_KEPT = 64
"""Jobs that are over of which the store keeps the rows, the last ones."""
REMOVED_KEPT = 1_024
"""Jobs that were forgotten whose numbers the store keeps, the last ones: other nodes' copies have their rows still."""


class Cluster(msgspec.Struct, frozen=True):
    """What a cluster is, for all its life: made by the first node that comes."""

    id: str
    seed: bytes
    format: int = FORMAT


async def meet(etcd: Etcd, keys: k.Keys) -> Cluster:
    """Return what the cluster is; make it if it is new.  Raise `StoreFault`, `ResourceFault`."""
    made = msgspec.to_builtins(Cluster(secrets.token_hex(8), secrets.token_bytes(32)), builtin_types=(bytes,))
    put = etcd.pb.RequestOp(request_put=etcd.pb.PutRequest(key=keys.cluster, value=k.pack(made)[0]))
    absent = etcd.pb.Compare(target=etcd.pb.Compare.CREATE, key=keys.cluster, create_revision=0)
    found, _revision = await etcd.range(keys.cluster)
    if not found:
        await etcd.txn(etcd.pb.TxnRequest(compare=[absent], success=[put]))  # whoever was first
        found, _revision = await etcd.range(keys.cluster)
    try:
        cluster = msgspec.convert(k.unpack(found[0].value), Cluster)
    except UNREADABLE as error:
        raise ResourceFault(f"{keys.cluster.decode()} in etcd is no cluster of LIFL: {error}") from error
    if cluster.format != FORMAT:
        text = f"the cluster's rows in etcd have format {cluster.format}, this lifld reads {FORMAT}: use that version"
        raise ResourceFault(text)
    return cluster


class Pending(NamedTuple):
    """A row that is on its way."""

    row: Row
    written: asyncio.Future[DatabaseFault | None]
    at_unix_s: float


class ClusterRows:
    """Rows of one cluster.  `on_deposed` is told when a write finds that this node does not lead any more."""

    beside: NodeStore | None = None

    def __init__(
        self, etcd: Etcd, keys: k.Keys, cluster: Cluster, mirror: Mirror, on_deposed: Callable[[], None]
    ) -> None:
        mirror.belongs_to(cluster.id)
        self.owner = int(cluster.id, 16)
        self.mirror = mirror
        self._etcd = etcd
        self._keys = keys
        self._writer = FencedWriter(etcd, keys.leader)
        self._on_deposed = on_deposed
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pending: dict[int, Pending] = {}  # by the identity of a row: those that are on their way
        self._numbers: dict[str, int] = {}  # of the jobs whose rows are in the store
        self._over: list[int] = []  # of those that are over, in the order of their numbers
        self._removed: list[int] = []  # of those that were forgotten, in that order
        self.removed_copies: list[tuple[int, str]] = []  # those of them whose models go, also elsewhere
        self._last = 0
        self.moving: dict[str, Any] = {}
        """Of a move to or from another store that is not done: its `command`, and whether all is `copied`."""

    @property
    def trouble(self) -> str:
        """Why a row that is on its way does not get there."""
        return self._writer.trouble

    # ---- a term ------------------------------------------------------------------------------------------------------

    async def begin(self, term: int, moving: bool = False) -> None:
        """Take the rows over that other terms have left, into this node's copy.

        Raise `StoreFault`; also, but for who is `moving` rows, while those of another store are not all here.
        """
        writer, keys = self._writer, self._keys
        found, _revision = await self._etcd.range(keys.root, k.after(keys.root))
        values = {kv.key: kv.value for kv in found}
        self.moving = _read(keys, values, keys.moving) if keys.moving in values else {}
        if keys.moving in values and not moving:
            raise StoreFault(f"a move of its rows was not finished; do it again: {self.moving.get('command')}")
        writer.term, writer.trouble = term, ""
        writer.revisions = {kv.key: kv.mod_revision for kv in found}
        table = Table(keys, values)
        self._numbers, self._over, self._last = table.numbers, table.over, table.last
        self._removed, self.removed_copies = table.removed, table.copies
        self.mirror.replace(table.jobs, table.rounds, table.removed)
        self._pending.clear()

    def end(self) -> None:
        """Write nothing more: this node leads no longer."""
        for task in list(self._tasks):
            task.cancel()
        for pending in self._pending.values():
            if not pending.written.done():
                pending.written.set_result(StoreFault("this node does not coordinate any more (lifl nodes)"))
        self._pending.clear()
        self._writer.term, self._writer.trouble = 0, ""

    # ---- rows --------------------------------------------------------------------------------------------------------

    def write(self, row: Row) -> None:
        """Make a row durable.  Raise `RowPending` until it is; `DatabaseFault` when it cannot be written now."""
        pending = self._pending.get(id(row))
        if pending is not None:
            if not pending.written.done():
                raise RowPending(pending.written)
            if pending.written.result() is None:
                put(self.mirror, row, pending.at_unix_s)
                del self._pending[id(row)]
                return
        if not self._writer.term:
            raise StoreFault("this node does not coordinate any more (lifl nodes)")
        if not self._stands(row):
            return
        pending = Pending(row, asyncio.get_running_loop().create_future(), time.time())
        self._pending[id(row)] = pending
        self._start(self._written(pending))
        raise RowPending(pending.written)

    def _stands(self, row: Row) -> bool:
        """Return whether the row changes anything: a commit is not taken back.  Raise for a second one."""
        if isinstance(row, fx.SaveJob):
            kept = self.mirror.columns_of(row.job) if row.job in self._numbers else None
            return kept is None or (kept["status"], kept["reason"]) != (row.status, row.reason)
        if isinstance(row, fx.SaveConfig | fx.SetAside | fx.SaveEvaluation | fx.DropJob):  # (no session is in a store)
            return True
        committed = [each.attempt for each in self.mirror.round(row.job, row.round) if each.status == "committed"]
        if committed and row.status == "committed":
            raise sqlite3.IntegrityError(
                f"round {row.round} of job {row.job!r} is committed, by attempt {committed[0]}"
            )
        return row.attempt not in committed

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _written(self, pending: Pending) -> None:
        fault: DatabaseFault | None = None
        row = pending.row
        try:
            match row:
                case fx.SaveJob():
                    await self._save_job(row)
                case fx.SaveConfig():
                    await self._save_config(row)
                case fx.SaveRound():
                    await self._put_round(self._numbers[row.job], row, pending.at_unix_s)
                case fx.SaveEvaluation():
                    await self._add_to_round(row)
                case fx.SetAside():
                    await self._set_aside(row)
                case fx.DropJob():
                    await self._remove(row.job, row.number, row.copies)
        except StoreFault as refused:
            fault = refused
        except Deposed as deposed:
            log.warning("store.deposed %s", deposed)
            self._on_deposed()
            return
        if not pending.written.done():
            pending.written.set_result(fault)

    async def new_job(
        self, config: JobConfig, tensors: tuple[TensorSpec, ...], states: tuple[str, ...], folder: str
    ) -> int:
        """Return the number of a new job.  Raise `StoreFault`; `Refused` when this node leads no longer."""
        number = self._last + 1
        value, _digest, _parts = k.pack({"number": number, "term": self._writer.term})
        try:
            await self._writer.write({self._keys.last_job: value})
        except Deposed as deposed:
            self._on_deposed()
            raise Refused("not-coordinator", "node", "this node does not coordinate any more (lifl nodes)") from deposed
        self._last = number
        packed = [msgpack.packb(msgspec.to_builtins(value)) for value in (config, tensors, states)]
        self.mirror.add_numbered(number, (config.job.name, folder, *packed))
        return number

    async def forget_job(self, name: str, number: int) -> bool:
        """Forget a job that was refused after all; return False when it may run all the same: another node leads."""
        with suppress(DatabaseFault, Deposed):
            if self._numbers.pop(name, None) is not None:
                await self._writer.write({}, self._keys.of_job(number))
            self.mirror.drop_job(number)
            return True
        return False

    async def _remove(self, name: str, number: int, copies: bool) -> None:
        """Forget a job that is over; nodes that lead later drop it from their copies."""
        removed = [*self._removed, number][-REMOVED_KEPT:]
        gone = [*self.removed_copies, *([(number, name)] if copies else [])][-REMOVED_COPIES_MAX:]
        value = self._value({"numbers": removed, "copies": gone})
        await self._writer.write({self._keys.removed: value}, self._keys.of_job(number))
        self._removed, self.removed_copies = removed, gone
        self._over = [each for each in self._over if each != number]
        self._numbers.pop(name, None)

    async def have_job(self, name: str) -> None:
        """Write a job that is over to the store again, if that has forgotten it, with its last rounds.

        Raise `StoreFault`; `Refused` when this node leads no longer.
        """
        job = self.mirror.job(name)
        if name in self._numbers or not isinstance(job, JobRow):
            return
        try:
            await self.take_in(job)
        except Deposed as deposed:
            self._on_deposed()
            raise Refused("not-coordinator", "node", "this node does not coordinate any more (lifl nodes)") from deposed

    async def _save_job(self, row: fx.SaveJob) -> None:
        columns = _columns_of(self.mirror, row.job)
        number, keys = columns["number"], self._keys
        puts = {keys.status(number): self._value({"status": row.status, "reason": row.reason})}
        if row.job not in self._numbers:
            puts[keys.job(number)] = await self._long(keys.job(number), _submitted(columns))
        over = [each for each in self._over if each != number] + [number] * (row.status != "running")
        dropped = sorted(over)[:-OVER_KEPT]
        await self._writer.write(puts, [each for gone in dropped for each in keys.of_job(gone) if gone != number])
        self._numbers[row.job] = number
        self._numbers = {name: each for name, each in self._numbers.items() if each not in dropped or each == number}
        self._over = sorted(over)[-OVER_KEPT:]

    async def _save_config(self, row: fx.SaveConfig) -> None:
        config = msgpack.packb(msgspec.to_builtins(row.config))
        columns = _columns_of(self.mirror, row.job) | {"config": config}
        key = self._keys.job(columns["number"])
        value = await self._long(key, _submitted(columns))
        begin, here = self._keys.parts(key), self._keys.parts(key, k.parts_of(value)[0])
        stale = [(begin, k.after(begin))] if here == begin else [(begin, here), (k.after(here), k.after(begin))]
        await self._writer.write({key: value}, stale)

    async def _put_round(self, number: int, row: fx.SaveRound, at_unix_s: float) -> None:
        keys = self._keys
        key = keys.round(number, row.round, row.attempt)
        fields = msgpack.packb(row.fields)
        value = {"status": row.status, "fields": fields, "saved_unix_s": at_unix_s}
        puts = {key: await self._long(key, value)}
        deletes: list[tuple[bytes, bytes]] = []
        if row.status == "committed":
            puts[keys.commit(number, row.round)] = self._value({"attempt": row.attempt})
            kept = row.round + 1 - ROUNDS_REMEMBERED
            if kept > 0:
                deletes = [
                    (keys.round(number, 0), keys.round(number, kept)),
                    (keys.parts(keys.round(number, 0)), keys.parts(keys.round(number, kept))),
                    (keys.commit(number, 0), keys.commit(number, kept)),
                ]
        await self._writer.write(puts, deletes)

    async def _add_to_round(self, row: fx.SaveEvaluation) -> None:
        number = self._numbers[row.job]
        for kept in self.mirror.round(row.job, row.round):
            if (kept.attempt, kept.status) == (row.attempt, "committed"):
                key = self._keys.round(number, row.round, row.attempt)
                fields = msgpack.packb(msgspec.to_builtins(kept.fields) | row.fields)
                value = {"status": kept.status, "fields": fields, "saved_unix_s": kept.saved_unix_s or 0.0}
                await self._writer.write({key: await self._long(key, value)})

    async def _set_aside(self, row: fx.SetAside) -> None:
        number, keys = self._numbers[row.job], self._keys
        puts: dict[bytes, bytes] = {}
        deletes: list[tuple[bytes, bytes]] = []
        for kept in self.mirror.rounds(row.job, above=row.above):
            if kept.status in ("committed", "open"):
                key = keys.round(number, kept.round, kept.attempt)
                fields = msgpack.packb(msgspec.to_builtins(kept.fields) | {"reason": row.reason})
                value = {"status": "damaged", "fields": fields, "saved_unix_s": kept.saved_unix_s or 0.0}
                puts[key] = await self._long(key, value)
            if kept.status == "committed":
                commit = keys.commit(number, kept.round)
                deletes.append((commit, commit + b"\0"))
        if puts:
            await self._writer.write(puts, deletes)

    # ---- another store -----------------------------------------------------------------------------------------------

    @property
    def jobs(self) -> dict[str, int]:
        """Return the number of each job by its name."""
        return dict(self._numbers)

    @property
    def last_number(self) -> int:
        """Return the greatest number that a job ever had."""
        return self._last

    async def move(self, command: str, copied: bool = False) -> None:
        """Note that a command moves rows to or from another store.  Raise `StoreFault`, `Deposed`."""
        self.moving = {"command": command, "copied": copied}
        await self._writer.write({self._keys.moving: self._value(self.moving)})

    async def moved(self, last: int) -> None:
        """Note that it is done; no later job gets a number up to `last`.  Raise `StoreFault`, `Deposed`."""
        self._last = max(self._last, last)
        number = {self._keys.last_job: self._value({"number": self._last})}
        await self._writer.write(number, [(self._keys.moving, self._keys.moving + b"\0")])
        self.moving = {}

    async def clear(self) -> None:
        """Forget all jobs.  Raise `StoreFault`, `Deposed`."""
        await self._writer.write({}, self._keys.of_jobs())
        self._numbers, self._over = {}, []

    async def take_in(self, job: JobRow) -> None:
        """Write a job that this node's copy has, and its last rounds.  Raise `StoreFault`, `Deposed`."""
        committed = self.mirror.committed(job.name, ROUNDS_REMEMBERED)
        above = committed[0].round - 1 if committed else -1
        for row in self.mirror.rounds(job.name, above=above):
            fields = msgspec.to_builtins(row.fields)
            kept = fx.SaveRound(job.name, row.round, row.attempt, row.status, fields)
            await self._put_round(job.number, kept, row.saved_unix_s or 0.0)
        await self._save_job(fx.SaveJob(job.name, job.status, job.reason))

    # ---- values ------------------------------------------------------------------------------------------------------

    def _value(self, value: dict[str, Any]) -> bytes:
        return k.pack(value | {"term": self._writer.term})[0]

    async def _long(self, key: bytes, value: dict[str, Any]) -> bytes:
        """Return a value for a key; the parts of one that is too long are written first."""
        packed, digest, parts = k.pack(value | {"term": self._writer.term})
        for index, part in enumerate(parts):
            at = self._keys.parts(key, digest) + b"%06d" % index
            if at not in self._writer.revisions:
                await self._writer.write({at: part})
        return packed


async def take_removed(rows: ClusterRows, copies: Iterable[tuple[int, str]]) -> None:
    """Note jobs that another store has forgotten with their models; not those that are here.

    Raise `StoreFault`, `Deposed`.
    """
    here = {(number, name) for name, number in rows._numbers.items()}
    known = [each for each in dict.fromkeys([*copies, *rows.removed_copies]) if each not in here]
    if known != rows.removed_copies:
        known = known[-REMOVED_COPIES_MAX:]
        value = rows._value({"numbers": rows._removed, "copies": known})
        await rows._writer.write({rows._keys.removed: value})
        rows.removed_copies = known


class Table:
    """What the keys of a cluster say, as rows of SQLite; of a value that cannot be read the row says so when read."""

    def __init__(self, keys: k.Keys, values: dict[bytes, bytes]) -> None:
        self._keys = keys
        self._values = values
        self.numbers: dict[str, int] = {}
        self.over: list[int] = []
        self.jobs: list[tuple[Any, ...]] = []
        self.rounds: list[tuple[Any, ...]] = []
        self.last = 0
        self.removed: list[int] = []
        self.copies: list[tuple[int, str]] = []
        names: dict[int, str] = {}
        for key in sorted(values):
            kind, numbers = keys.named(key)
            if kind == "status" and len(numbers) == 1:
                names[numbers[0]] = self._job(numbers[0], self._read(key))
            elif kind == "last-job":
                found = self._read(key).get("number")
                self.last = max(self.last, found if isinstance(found, int) else 0)
            elif kind == "removed":
                value = self._read(key)
                kept = value.get("numbers")
                self.removed = [each for each in kept if isinstance(each, int)] if isinstance(kept, list) else []
                self.copies = _copies(value.get("copies"))
        for key in sorted(values):
            kind, numbers = keys.named(key)
            if kind == "rounds" and len(numbers) == 3 and numbers[0] in names:
                value = self._read(key)
                row = [_plain(value.get(column)) for column in ("status", "saved_unix_s", "fields")]
                self.rounds.append((names[numbers[0]], numbers[1], numbers[2], *row))
        self.last = max([self.last, *names])

    def _job(self, number: int, status: dict[str, Any]) -> str:
        """Add the row of a job, and return its name."""
        job = self._read(self._keys.job(number))
        name = job.get("name")
        name = name if isinstance(name, str) else f"#{number}"
        said = status.get("status", "running")
        row = (job.get("folder"), said, status.get("reason"), job.get("submitted_unix_s"))
        packed = (job.get(column) for column in ("config", "tensors", "states"))
        self.jobs.append((number, name, *map(_plain, (*row, *packed))))
        self.numbers[name] = number
        if said != "running":
            self.over.append(number)
        return name

    def _read(self, key: bytes) -> dict[str, Any]:
        return _read(self._keys, self._values, key)


def _submitted(columns: dict[str, Any]) -> dict[str, Any]:
    """Return what the key of a job says, out of its row."""
    return {name: columns[name] for name in ("name", "folder", "submitted_unix_s", "config", "tensors", "states")}


def _columns_of(mirror: Mirror, name: str) -> dict[str, Any]:
    columns = mirror.columns_of(name)
    if columns is None:
        raise StoreFault(f"job {name!r} is not in {mirror.path}")
    return columns


def _read(keys: k.Keys, values: dict[bytes, bytes], key: bytes) -> dict[str, Any]:
    """Return what a value says; nothing when it cannot be read."""
    value = values.get(key, b"")
    digest, count = k.parts_of(value)
    if digest:
        prefix = keys.parts(key, digest)
        value = b"".join(values.get(prefix + b"%06d" % index, b"") for index in range(count))
    try:
        return k.unpack(value)
    except UNREADABLE as error:
        log.error("store.unreadable key=%s %s", key.decode(errors="replace"), error)
        return {}


def _copies(value: Any) -> list[tuple[int, str]]:
    """Return the jobs that a value of removed ones names; none where it cannot be read."""
    with suppress(msgspec.ValidationError):
        return list(msgspec.convert(value, tuple[tuple[Count, Name], ...], strict=True))[-REMOVED_COPIES_MAX:]
    return []


def _plain(value: Any) -> Any:
    """Return a value that a column can have; nothing in the place of any other."""
    fits = isinstance(value, str | bytes | float) or (isinstance(value, int) and abs(value) <= COUNT_MAX)
    return value if fits else b""
