"""`lifl doctor --repair`: a state folder that no node can start on is made one that it can.

Nothing is deleted: what cannot be used is *set aside*, under another name beside it.  Each damage says first what would
be set aside; only then it is done.  `lifl doctor` alone says the same and does nothing.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from lifl.core.errors import LiflError, ResourceFault
from lifl.core.formats import DATABASE_FORMAT
from lifl_cli.output import did
from lifl_cli.render.figures import printable_lines

DATABASE = "lifl.db"
COPY = "cluster.db"
"""The node's copy of its cluster's rows, where they are in a store."""
PARTS, COPY_PARTS = ([f"{name}{end}" for end in ("", "-wal", "-shm", "-journal")] for name in (DATABASE, COPY))
KEYS = ("authority.pem", "identity/key.pem", "cookie")
FILES = (
    *PARTS,
    *COPY_PARTS,
    "format.json",
    "lifld.log",
    "lifld.lock",
    "children.lock",
    "keep.lock",
    *KEYS,
    "identity/cert.pem",
    "identity/ca.pem",
)
SOCKETS = ("lifld.sock", "gateway.sock")
FOLDERS = ("jobs", "audit", "updates", "identity", "redirect")
CLOSED = ("identity", "redirect")
"""Folders that others may not even look into."""
FOLDERS_SHOWN = 32
IMPORTED = (
    "cryptography.exceptions",
    "cryptography.hazmat.primitives.serialization",
    "cryptography.x509",
    "lifl.node.authority.authority_file",
    "lifl.node.resume",
    "lifl.tls.contexts",
)
"""What a look into a folder takes."""


@dataclass(frozen=True)
class Damage:
    """What keeps a node, or a job, from starting: what it is, what would be done, and how; None: only root can."""

    what: str
    would: str
    mend: Callable[[], None] | None


def repair(state_dir: Path) -> None:
    """Say what is to be done for a state folder, and do it.

    Raise `ResourceFault` when a node runs there, and with the command when only root can mend something.
    """
    from lifl.node.locks import StateLocks

    if not state_dir.is_dir():
        raise ResourceFault(f"there is no state folder {state_dir}; `lifl up` makes it")
    mended = 0
    for look in (_rights, _misplaced):  # the locks may be among them, and what is behind a folder that is closed
        for damage in look(state_dir):
            _mend(damage)
            mended += 1
    with as_owner(state_dir), closing(StateLocks(state_dir)):
        for damage in list(_contents(state_dir)):
            _mend(damage)
            mended += 1
    did(f"{state_dir}: {'repaired' if mended else 'nothing to repair'}; `lifl up --state {state_dir}` starts it")


def _mend(damage: Damage) -> None:
    click.echo(printable_lines(f"{damage.what}\n  -> {damage.would}"))
    if damage.mend is None:
        raise ResourceFault(f"{damage.what}; {damage.would}, then `lifl doctor --repair` again")
    try:
        damage.mend()
    except (OSError, LiflError) as error:
        raise ResourceFault(f"that could not be done: {error}; do it by hand") from error
    click.echo("     done")


def damages(state_dir: Path) -> Iterator[Damage]:
    """Yield what keeps a node from starting on the folder, or a job of it from going on; nothing is changed."""
    found = [*_rights(state_dir), *_misplaced(state_dir)]
    if not found:  # what is not a file, or closed, cannot be looked into
        with as_owner(state_dir):
            found = list(_contents(state_dir))
    yield from found


@contextmanager
def as_owner(state_dir: Path) -> Iterator[None]:
    """Be the owner of the folder, if we are root: what is made there is that user's."""
    for module in IMPORTED:  # that user may not be able to read them
        importlib.import_module(module)
    about, us = state_dir.stat(), (os.geteuid(), os.getegid())
    if us[0] == 0 != about.st_uid:
        os.setegid(about.st_gid)
        os.seteuid(about.st_uid)
    try:
        yield
    finally:
        if os.geteuid() != us[0]:
            os.seteuid(us[0])
            os.setegid(us[1])


# ---- what stands there, and whose it is ------------------------------------------------------------------------------


def _rights(state_dir: Path) -> Iterator[Damage]:
    """Yield what is not its user's own, or closed to that user, or open to others."""
    about = state_dir.stat()
    user, owner = os.geteuid(), (about.st_uid, about.st_gid)
    if user not in (0, about.st_uid):
        yield from _given([state_dir], (user, os.getegid()))
        return
    yield from _mode(state_dir, 0o700, 0o022)
    if not os.access(state_dir, os.R_OK | os.X_OK):
        return  # once that is mended more can be seen
    yield from _given([path for path in _there(state_dir) if path.lstat().st_uid != owner[0]], owner)
    for path in _there(state_dir):
        name = str(path.relative_to(state_dir))
        if path.lstat().st_uid != owner[0] or path.is_symlink():
            continue
        if path.is_dir() and name in FOLDERS:
            yield from _mode(path, 0o700, 0o077 if name in CLOSED else 0o022)
        elif path.is_file():
            yield from _mode(path, 0o600, 0o077 if name in KEYS else 0)


def _there(state_dir: Path) -> list[Path]:
    """Return what there is of a node's own in the folder."""
    found = []
    for name in (*FOLDERS, *FILES):
        with suppress(PermissionError):  # within a folder that is told of itself
            if os.path.lexists(state_dir / name) and (state_dir / name).lstat():
                found.append(state_dir / name)
    return found


def _given(paths: list[Path], owner: tuple[int, int]) -> Iterator[Damage]:
    """Yield that files are another user's, if there are any: root may give them to the owner of the folder."""
    if not paths:
        return
    named = ", ".join(map(str, paths))
    what = f"not user {owner[0]}'s own, perhaps made by `sudo lifl`: {named}"
    command = shlex.join(["chown", "-h", f"{owner[0]}:{owner[1]}", *map(str, paths)])
    if os.geteuid():
        yield Damage(what, f"only root can mend that: sudo {command}", None)
        return

    def give() -> None:
        for path in paths:
            os.chown(path, *owner, follow_symlinks=False)

    yield Damage(what, command, give)


def _mode(path: Path, needed: int, forbidden: int) -> Iterator[Damage]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & needed == needed and not mode & forbidden:
        return
    why = "others can get at it" if mode & forbidden else "its user cannot use it"
    would = f"chmod {needed:o} {path}"
    if mode & forbidden:
        would += "; look first whether all that is in it is yours"
    yield Damage(f"{path} has mode {mode:04o}: {why}", would, partial(path.chmod, needed))


def _misplaced(state_dir: Path) -> Iterator[Damage]:
    """Yield what stands where a file, a socket or a folder of the node has to be, and is something else."""
    kinds = [(FOLDERS, stat.S_ISDIR, "folder"), (FILES, stat.S_ISREG, "file"), (SOCKETS, stat.S_ISSOCK, "socket")]
    for names, is_right, kind in kinds:
        for path in (state_dir / name for name in names):
            try:
                mode = path.lstat().st_mode if path.name == "redirect" else path.stat().st_mode
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


# ---- what is in it ---------------------------------------------------------------------------------------------------


def _contents(state_dir: Path) -> Iterator[Damage]:
    """Yield what is wrong within the files.  Raise `ResourceFault` for those of a newer release: they are not."""
    from lifl.node.state_format import FORMAT_FILE, FormatDamaged, check_format

    try:
        check_format(state_dir)
    except FormatDamaged as damaged:
        yield _aside(str(damaged), [state_dir / FORMAT_FILE], "; the next `lifl up` writes it again")
    database = state_dir / DATABASE
    if database.is_file():
        fault = _database_fault(database)
        if fault:
            yield _damaged_database(state_dir, database, fault)
        elif not _is_older(database):  # else a look would be the upgrade
            yield from _unreadable_jobs(database)
    copy = state_dir / COPY
    if copy.is_file() and (fault := _database_fault(copy)):
        more = "; a node that comes to coordinate makes it anew, without what the cluster's store keeps no longer"
        yield _aside(f"{copy}: {fault}", [state_dir / part for part in COPY_PARTS], more)
    yield from _identity(state_dir)


def _identity(state_dir: Path) -> Iterator[Damage]:
    """Yield what makes an authority, or the node's own identity, unusable."""
    from lifl.node.authority.authority_file import AUTHORITY_FILE, check_authority
    from lifl.tls.contexts import Contexts, OutOfTime
    from lifl.tls.folder import load, node_folder

    authority, folder = state_dir / AUTHORITY_FILE, node_folder(state_dir)
    try:
        if authority.exists():
            check_authority(authority)
    except ResourceFault as fault:
        more = "; the next `lifl up` makes a new one: all tokens and certificates of the old one are void"
        yield _aside(str(fault), [authority, folder], more)
        return
    try:
        files = load(folder)
        if files is not None:
            Contexts(files)
    except OutOfTime:
        return  # it is whole: `identities.look` says what to do, and the clock may be what is wrong
    except ResourceFault as fault:
        more = "; `lifl up` makes a new one where the authority is, elsewhere by a token (--token-file)"
        yield _aside(str(fault), [folder], more)


# ---- the database ----------------------------------------------------------------------------------------------------


def _database_fault(database: Path) -> str:
    """Return why the database cannot be used; empty: it can."""
    from lifl.node.authority.credential_store import TABLES as CREDENTIALS
    from lifl.node.database import tables_fault
    from lifl.node.store import NodeStore, version_fault

    try:
        with closing(sqlite3.connect(database, timeout=1.0)) as opened:
            (version,) = opened.execute("PRAGMA user_version").fetchone()
            (answer,) = opened.execute("PRAGMA quick_check(1)").fetchone()
            if answer != "ok":
                return str(answer)
            fault = version_fault(opened, database) or tables_fault(opened, CREDENTIALS, optional=True)
            if fault:
                return fault
    except sqlite3.OperationalError as error:  # locked, no rights, a full disk: no damage
        raise ResourceFault(f"{database} cannot be looked at: {error}") from error
    except sqlite3.DatabaseError as error:
        return str(error)
    if int(version) < DATABASE_FORMAT:
        return ""
    with closing(NodeStore(database)) as store:
        try:
            store.node_id()
            store.seed()
        except ResourceFault as fault:
            return str(fault)
    return ""


def _is_older(database: Path) -> bool:
    """Return whether `lifl up` has yet to take the database over, from an earlier release."""
    with closing(sqlite3.connect(database, timeout=1.0)) as opened:
        (version,) = opened.execute("PRAGMA user_version").fetchone()
    return 0 < int(version) < DATABASE_FORMAT


def _damaged_database(state_dir: Path, database: Path, fault: str) -> Damage:
    """Set the database aside: with it goes what was known of jobs; their models stay in their folders."""
    folders = sorted({*_known_folders(database), *(str(path.parent) for path in state_dir.glob("jobs/*/.lifl-job"))})
    listed = "".join(f"\n     models are in {folder}" for folder in folders[:FOLDERS_SHOWN])
    if len(folders) > FOLDERS_SHOWN:
        listed += f"\n     and in {len(folders) - FOLDERS_SHOWN} more"
    beside = [state_dir / name for name in PARTS]
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
        unreadable = known_jobs(store, store.node_id(), database.parent).unreadable
    for name, why in unreadable.items():
        would = f"set aside: job {name} becomes cancelled; its models stay in its folder"
        yield Damage(f"job {name} cannot be taken up: {why}", would, _canceller(database, name, why))


def _canceller(database: Path, name: str, why: str) -> Callable[[], None]:
    from lifl.node.store import NodeStore

    def cancel() -> None:
        with closing(NodeStore(database)) as store:
            store.save_job(name, "cancelled", f"set aside by lifl doctor --repair: {why}")

    return cancel
