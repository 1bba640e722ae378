"""A node's database as a file: opened for its user alone, written durably, and what is said when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lifl.core import effects as fx
from lifl.core.errors import ResourceFault
from lifl.node.modes import open_private, remedy


class DatabaseFault(ResourceFault):
    """The database cannot be written or read now: its disk is full or read-only, or another process holds it.

    The same may work later.  `rest` are the effects that are still to be performed, the row's the first of them.
    """

    rest: Sequence[fx.Effect] = ()


class Database:
    """The file; one process opens it.  Every method raises `DatabaseFault` when it cannot be used now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            for part in parts(path):  # SQLite makes the others as the first is
                if part == path or os.path.lexists(part):
                    os.close(open_private(part, os.O_RDWR))
        except OSError as error:
            raise ResourceFault(f"{error.filename} cannot be opened: {error.strerror}; {_advice(path)}") from error
        with self._told():
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.text_factory = _text
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what is wrong with the database, and what to do.  `sqlite3.IntegrityError` passes."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except (sqlite3.OperationalError, OSError) as error:
            text = getattr(error, "strerror", None) or str(error)
            raise DatabaseFault(f"database {self.path} cannot be used now: {text}; {_advice(self.path)}") from error
        except sqlite3.DatabaseError as error:
            text = f"{self.path} is damaged ({error}): `lifl doctor --repair` sets it aside"
            raise ResourceFault(text) from error

    def _all(self, select: str, given: tuple[Any, ...] = ()) -> list[Any]:
        with self._told():
            return self._db.execute(select, given).fetchall()

    def _write(self, statement: str, given: tuple[Any, ...] = ()) -> int:
        """Perform one statement, durably; return the number of a row that it inserted."""
        with self._told():
            return int(self._db.execute(statement, given).lastrowid or 0)


def parts(path: Path) -> list[Path]:
    """Return the files that a database may have, itself the first."""
    return [path.with_name(f"{path.name}{end}") for end in ("", "-wal", "-shm", "-journal")]


def tables_fault(db: sqlite3.Connection, script: str, optional: bool = False) -> str:
    """Return what is wrong with the tables that `script` makes; empty: nothing.  `optional` ones may be missing."""
    select = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND type IN ('table', 'index')"
    with closing(sqlite3.connect(":memory:")) as right:
        right.executescript(script)
        for kind, name in right.execute(select).fetchall():
            found = db.execute("SELECT type FROM sqlite_master WHERE name = ?", (name,)).fetchone()
            if found is None and kind == "table" and not optional:
                return f"it has no table {name}"
            if found is not None and found != (kind,):
                return f"{name} is a {found[0]}, not a {kind}"
            if found is not None and kind == "table" and _columns(db, name) != _columns(right, name):
                return f"table {name} has other columns than those of this lifld"
    trigger = db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchone()
    return f"it has a trigger {trigger[0]!r:.80}, which lifld has not made" if trigger else ""


def _columns(db: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    """Return name, whether it may be missing, and place in the key of each column."""
    return [(name, notnull, key) for _, name, _, notnull, _, key in db.execute(f"PRAGMA table_info({table})")]


def _text(data: bytes) -> str | bytes:
    """Return the text that a column has; as it is, when it is none: the database can still be used."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _advice(path: Path) -> str:
    """Return what to do about a database that cannot be used: it depends on the disk, as it is now."""
    try:
        disk = os.statvfs(path.parent)
    except OSError as error:
        return f"its folder cannot be looked at ({error.strerror}): mount its disk, or make it accessible"
    if disk.f_flag & os.ST_RDONLY:
        return "its disk is read-only: mount it for writing"
    there = [part for part in parts(path) if os.path.lexists(part)]
    usable = os.access(path.parent, os.W_OK | os.X_OK) and all(os.access(part, os.R_OK | os.W_OK) for part in there)
    if not usable or not all(map(Path.is_file, there)):
        return remedy(path.parent)
    return f"{disk.f_bavail * disk.f_frsize} bytes are free there: make room, and let no other program hold it"
