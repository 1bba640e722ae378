"""`lifl doctor --repair`: a state folder that no node can start on is made one that it can.

Nothing is deleted: what cannot be used is *set aside*, under another name beside it.  Each damage says first what would
be set aside; only then it is done.  `lifl doctor` alone says the same and does nothing.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click

from lifl.core.errors import LiflError, ResourceFault
from lifl_cli.render.figures import printable_lines

DATABASE = "lifl.db"
FILES = (DATABASE, "lifld.log", "lifld.lock", "children.lock")
SOCKETS = ("lifld.sock", "gateway.sock")
FOLDERS = ("jobs", "audit", "updates")
FOLDERS_SHOWN = 32


@dataclass(frozen=True)
class Damage:
    """What keeps a node, or a job, from starting: what it is, what would be done, and how."""

    what: str
    would: str
    mend: Callable[[], None]


def repair(state_dir: Path) -> None:
    """Say what is to be done for a state folder, and do it.  Raise `ResourceFault` when a node runs there."""
    from lifl.node.locks import StateLocks

    if not state_dir.is_dir():
        raise ResourceFault(f"there is no state folder {state_dir}; `lifl up` makes it")
    for damage in _misplaced(state_dir):  # among them may be the locks
        _mend(damage)
    locks = StateLocks(state_dir)
    try:
        found = list(damages(state_dir))
        for damage in found:
            _mend(damage)
    finally:
        locks.close()
    click.echo(f"{state_dir}: {'repaired' if found else 'nothing to repair'}; `lifl up --state {state_dir}` starts it")


def _mend(damage: Damage) -> None:
    click.echo(printable_lines(f"{damage.what}\n  -> {damage.would}"))
    try:
        damage.mend()
    except (OSError, LiflError) as error:
        raise ResourceFault(f"that could not be done: {error}; do it by hand") from error
    click.echo("     done")


def damages(state_dir: Path) -> Iterator[Damage]:
    """Yield what keeps a node from starting on the folder, or a job of it from going on; nothing is changed."""
    yield from _open_folders(state_dir)
    yield from _misplaced(state_dir)
    database = state_dir / DATABASE
    if not database.is_file():
        return
    fault = _database_fault(database)
    if fault:
        yield _damaged_database(state_dir, database, fault)
    else:
        yield from _unreadable_jobs(database)


def _open_folders(state_dir: Path) -> Iterator[Damage]:
    from lifl.node.modes import FOLDER_MODE, OTHERS_WRITE

    for folder in (state_dir, *(state_dir / name for name in FOLDERS)):
        if folder.is_dir() and folder.stat().st_mode & OTHERS_WRITE:
            mode = stat.S_IMODE(folder.stat().st_mode)
            would = f"chmod {FOLDER_MODE:o} {folder}; look first whether all that is in it is yours"
            yield Damage(f"{folder} has mode {mode:04o}: others can write to it", would, _closer(folder, FOLDER_MODE))


def _closer(folder: Path, mode: int) -> Callable[[], None]:
    return lambda: folder.chmod(mode)


def _misplaced(state_dir: Path) -> Iterator[Damage]:
    """Yield what stands where a file, a socket or a folder of the node has to be, and is something else."""
    kinds = [(FILES, stat.S_ISREG, "file"), (SOCKETS, stat.S_ISSOCK, "socket"), (FOLDERS, stat.S_ISDIR, "folder")]
    for names, is_right, kind in kinds:
        for path in (state_dir / name for name in names):
            try:
                mode = path.stat().st_mode
            except OSError:
                if not path.is_symlink():
                    continue
                mode = 0  # a link to nothing, or to itself
            if not is_right(mode):
                yield _aside(f"{path} is no {kind}", [path])


def _aside(what: str, paths: list[Path], more: str = "") -> Damage:
    suffix = f".aside-{time.strftime('%Y%m%d-%H%M%S')}"
    there = [path for path in paths if os.path.lexists(path)]
    named = ", ".join(f"{path} to {path.name}{suffix}" for path in there)

    def mend() -> None:
        for path in there:
            os.rename(path, path.with_name(path.name + suffix))

    return Damage(what, f"set aside: {named}{more}", mend)


# ---- the database ----------------------------------------------------------------------------------------------------


def _database_fault(database: Path) -> str:
    """Return why the database cannot be used; empty: it can."""
    from lifl.node.store import SCHEMA_VERSION, NodeStore

    try:
        with closing(sqlite3.connect(database, timeout=1.0)) as opened:
            (version,) = opened.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA_VERSION):
                return f"it has version {version}, this lifl reads {SCHEMA_VERSION}"
            (answer,) = opened.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if version and not {"node", "jobs", "rounds"} <= tables:
                return "tables are missing"
            if answer != "ok":
                return str(answer)
    except sqlite3.OperationalError as error:  # locked, no rights, a full disk: no damage
        raise ResourceFault(f"{database} cannot be looked at: {error}") from error
    except sqlite3.DatabaseError as error:
        return str(error)
    if not version:
        return ""
    with closing(NodeStore(database)) as store:
        try:
            store.node_id()
            store.seed()
        except ResourceFault as fault:
            return str(fault)
    return ""


def _damaged_database(state_dir: Path, database: Path, fault: str) -> Damage:
    """Set the database aside: with it goes what was known of jobs; their models stay in their folders."""
    folders = sorted({*_known_folders(database), *(str(path.parent) for path in state_dir.glob("jobs/*/.lifl-job"))})
    listed = "".join(f"\n     models are in {folder}" for folder in folders[:FOLDERS_SHOWN])
    if len(folders) > FOLDERS_SHOWN:
        listed += f"\n     and in {len(folders) - FOLDERS_SHOWN} more"
    beside = [database.with_name(f"{database.name}{end}") for end in ("", "-wal", "-shm")]
    more = f"; the next node on this folder is a new one and knows no jobs; their models stay{listed}"
    return _aside(f"{database} is damaged: {fault}", beside, more)


def _known_folders(database: Path) -> list[str]:
    """Return the checkpoint folders that can still be read out of a database."""
    found: list[str] = []
    try:
        with closing(sqlite3.connect(database, timeout=1.0)) as opened:
            for (folder,) in opened.execute("SELECT folder FROM jobs"):
                found.append(str(folder))
    except sqlite3.DatabaseError:
        pass  # what was read until then is what there is
    return found


def _unreadable_jobs(database: Path) -> Iterator[Damage]:
    from lifl.node.resume import known_jobs
    from lifl.node.store import NodeStore

    with closing(NodeStore(database)) as store:
        unreadable = known_jobs(store, store.node_id()).unreadable
    for name, why in unreadable.items():
        would = f"set aside: job {name} becomes cancelled; its models stay in its folder"
        yield Damage(f"job {name} cannot be taken up: {why}", would, _canceller(database, name, why))


def _canceller(database: Path, name: str, why: str) -> Callable[[], None]:
    from lifl.node.store import NodeStore

    def cancel() -> None:
        with closing(NodeStore(database)) as store:
            store.save_job(name, "cancelled", f"set aside by lifl doctor --repair: {why}")

    return cancel
