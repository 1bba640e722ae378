"""`lifl restore`: a state folder as a backup has it, on a machine where it is not yet.

All is written to a folder beside, looked at, and put in its place in one step: what is refused leaves nothing.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from lifl.core.errors import Refused, ResourceFault
from lifl.core.fields import Name
from lifl.node.backup.archive import DATABASE, Contents, Reader
from lifl.node.locks import holder
from lifl.node.modes import open_file
from lifl.node.state_format import check_format
from lifl.node.store import version_fault

NUMBERED = "numbered"
"""Where the models of jobs wait for the database to tell their names."""


def restore_backup(archive: Path, state: Path) -> Contents:
    """Make the state folder `state`, which is not there or empty, of the file `archive`; return what is in it.

    Raise `Refused` when the archive is no whole backup, or `state` has something; `ResourceFault` when a node runs
    there, when a newer release wrote it, or something cannot be read or written.
    """
    if running := holder(state):
        raise ResourceFault(running.text(state))
    if os.path.lexists(state) and (not state.is_dir() or any(state.iterdir())):
        text = f"{state} is there, and not empty: a backup is restored to a new folder; move it away, or name another"
        raise Refused("folder-in-use", "state", text)
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        with open(open_file(archive, os.O_RDONLY), "rb") as file:
            _check_room(os.fstat(file.fileno()).st_size, state.parent)
            return _restored(Reader(archive, file), state)
    except OSError as error:
        raise ResourceFault(f"{error.filename or archive}: {error.strerror}; nothing was restored") from error


def _check_room(nbytes: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise ResourceFault(
            f"the backup has {nbytes} bytes, and {free} are free in {folder}: make room, or name another"
        )


def _restored(reader: Reader, state: Path) -> Contents:
    made = Path(tempfile.mkdtemp(prefix=f".{state.name}-", suffix=".restore", dir=state.parent))  # 0700
    try:
        for name in ("jobs", NUMBERED):
            (made / name).mkdir(mode=0o700)
        contents = reader.entries(lambda name, mode, data: _take(made, name, mode, data))
        check_format(made)
        _place_models(made, state, contents)
        (made / NUMBERED).rmdir()
        _own(made, state)
        try:
            made.rename(state)  # onto nothing, or an empty folder
        except OSError as error:
            text = f"{state} has something by now: was a node started there?  Nothing was restored"
            raise Refused("folder-in-use", "state", text) from error
        return contents
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _take(made: Path, name: str, mode: int, data: Iterator[bytes]) -> None:
    """Write one file, durably, under a name that the archive may have."""
    top, _, rest = name.partition("/")
    path = made / NUMBERED / rest if top == "jobs" else made / name
    path.parent.mkdir(mode=0o755 if top == "jobs" else 0o700, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        os.fchmod(fd, mode)
        for piece in data:
            file.write(piece)
        file.flush()
        os.fsync(fd)


def _place_models(made: Path, state: Path, contents: Contents) -> None:
    """Give the folders of models their jobs' names, and have the database know where they are now."""
    path = made / DATABASE
    try:
        with closing(sqlite3.connect(path)) as db:
            (answer,) = db.execute("PRAGMA quick_check(1)").fetchone()
            fault = version_fault(db, path) if answer == "ok" else str(answer)
            if fault:
                raise Refused("bad-backup", DATABASE, f"the database in the backup cannot be used: {fault}")
            for number, name, folder in db.execute("SELECT number, name, folder FROM jobs").fetchall():
                models = made / NUMBERED / str(number)
                if folder in contents.left_out:
                    continue  # they are elsewhere, and stay there
                msgspec.convert(name, Name)
                if models.is_dir():
                    models.rename(made / "jobs" / name)
                db.execute("UPDATE jobs SET folder = ? WHERE number = ?", (f"{state}/jobs/{name}", number))
            db.commit()
    except (sqlite3.Error, msgspec.ValidationError) as error:
        raise Refused("bad-backup", DATABASE, f"the database in the backup cannot be used: {error}") from error
    if left := sorted(os.listdir(made / NUMBERED)):
        text = f"the database in the backup has no job {left[0]} with models in its state folder"
        raise Refused("bad-backup", f"jobs/{left[0]}", text)


def _own(made: Path, state: Path) -> None:
    """Give all to the owner of an empty folder that is there, as far as we are root; sync the folders."""
    owner = state.stat() if os.geteuid() == 0 and state.is_dir() else None
    for folder, _, names in os.walk(made):
        for each in (folder, *(os.path.join(folder, name) for name in names)):
            if owner is not None:
                os.chown(each, owner.st_uid, owner.st_gid, follow_symlinks=False)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
