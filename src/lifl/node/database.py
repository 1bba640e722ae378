"""A node's database as a file: opened for its user alone, written durably, and what is said when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lifl.core import effects as fx
from lifl.core.errors import ResourceFault
from lifl.node.modes import open_private


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
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):  # SQLite makes the others as the first is
                if name == path.name or path.with_name(name).exists():
                    os.close(open_private(path.with_name(name), os.O_RDWR))
        except OSError as error:
            raise ResourceFault(f"{path} cannot be opened: {error.strerror}; {_advice(path)}") from error
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
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        return "give lifld's user the right to read and write it"
    return f"{disk.f_bavail * disk.f_frsize} bytes are free there: make room, and let no other program hold it"
