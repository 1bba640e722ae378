"""`lifl backup`: what a node would go on from after the loss of its machine, in one file, while it runs.

The database is copied by SQLite's own backup, as it was at one moment.  A model is on the disk before its row is, and
never changes, and none is removed meanwhile, so all that the copy goes on from is there when the folders are read.
Identity files are taken together, as a pair that matches.  Left out is what belongs to the life of the node (arena,
journals, sockets, locks, logs), and the models of jobs with a folder of their own elsewhere.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lifl.core.errors import Refused, ResourceFault
from lifl.node.audit_log import FOLDER as AUDIT_FOLDER
from lifl.node.authority.authority_file import AUTHORITY_FILE
from lifl.node.backup.archive import DATABASE, LIST, Contents, Writer, kind_of
from lifl.node.keeper import held
from lifl.node.modes import open_file
from lifl.node.state_format import FORMAT_FILE, check_format
from lifl.node.store import version_of
from lifl.tls.folder import CA, CERTIFICATE, KEY, node_folder
from lifl.tls.unreadable import unreadable

MATCH_TRIES, MATCH_WAIT_S = 40, 0.05
"""How long a renewal that puts its files in place is waited for."""


class Models(NamedTuple):
    """A job's folder of models: the job's number and name, and where it is."""

    number: int
    name: str
    folder: Path


def write_backup(state: Path, target: Path) -> Contents:
    """Write the durable state of the node with the folder `state` to the new file `target`; return what is in it.

    Raise `Refused` when the file is there already, `ResourceFault` when something cannot be read or written.
    """
    if not (state / DATABASE).is_file():
        raise ResourceFault(f"there is no {DATABASE} in {state}: no node has kept anything there")
    check_format(state)
    if os.path.lexists(target):
        raise Refused("file-exists", "file", f"{target} is there already: choose another name, or remove it")
    part = ""
    try:
        fd, part = tempfile.mkstemp(prefix=f".{target.name}-", suffix=".part", dir=target.parent)  # 0600
        with open(fd, "wb") as file:
            with held(state):
                contents = _write(state, target.parent, file)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, target)  # where a rename would replace what has come meanwhile
    except FileExistsError as error:
        raise Refused("file-exists", "file", f"{target} is there already: choose another name") from error
    except OSError as error:
        raise ResourceFault(f"{error.filename or target}: {error.strerror}; the backup was not made") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)
    _sync_folder(target.parent)
    return contents


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(state: Path, scratch: Path, file: BinaryIO) -> Contents:
    writer = Writer(file)
    with tempfile.TemporaryDirectory(prefix=".lifl-backup-", dir=scratch) as folder:  # 0700
        copy = Path(folder) / DATABASE
        node, models = _copied(state / DATABASE, copy)
        _add(writer, DATABASE, copy, 0o600)
    for name in (FORMAT_FILE, AUTHORITY_FILE):
        with suppress(FileNotFoundError):
            _add(writer, name, state / name)
    for name, data, mode in _identity(node_folder(state)):
        with tempfile.TemporaryFile(dir=scratch) as held:
            held.write(data)
            held.seek(0)
            writer.add(name, mode, held, len(data))
    for path in _files(state / AUDIT_FOLDER):
        with suppress(FileNotFoundError):  # the oldest goes when a new one begins
            _add(writer, f"{AUDIT_FOLDER}/{path.name}", path)
    own = [each for each in models if each.folder.resolve() == (state / "jobs" / each.name).resolve()]
    for each in own:
        for path in _files(each.folder):
            _add(writer, f"jobs/{each.number}/{path.name}", path)
    left_out = tuple(sorted(str(each.folder) for each in models if each not in own))
    return writer.end(node, time.time(), left_out)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _add(writer: Writer, name: str, path: Path, mode: int | None = None) -> None:
    """Append a file as it is now, if it has a place in a backup; what is written behind it from now on is not in it."""
    if name == LIST or kind_of(name) is None:
        return
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        about = os.fstat(file.fileno())
        writer.add(name, about.st_mode & 0o777 if mode is None else mode, file, about.st_size)


def _copied(database: Path, copy: Path) -> tuple[str, list[Models]]:
    """Copy the database as it is at one moment; return the node's number and where its jobs have their models."""
    try:
        with (
            closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # so that the copy is one file
            if not version_of(target, database):
                raise ResourceFault(f"{database} is not lifld's")
            rows = target.execute("SELECT number, name, folder FROM jobs WHERE status != 'new'").fetchall()
            ((node,),) = target.execute("SELECT node FROM node").fetchall() or [("",)]
    except (sqlite3.Error, ValueError) as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            text = f"{copy.parent.parent} has no room for a copy of the database, no backup was made: make room there,"
            raise ResourceFault(f"{text} or have it elsewhere") from error
        text = f"database {database} cannot be copied: {error}; `lifl doctor` says whether it is damaged"
        raise ResourceFault(text) from error
    models = [
        Models(number, name, Path(folder))
        for number, name, folder in rows
        if number > 0
        and isinstance(name, str)
        and isinstance(folder, str)
        and folder  # else it is damaged, and nobody's
    ]
    return str(node), models


def _identity(folder: Path) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, content and mode of the files of the node's identity, of which key and certificate are a pair."""
    for _ in range(MATCH_TRIES):
        found = {}
        for name in (CA, CERTIFICATE, KEY):
            with suppress(FileNotFoundError), open(open_file(folder / name, os.O_RDONLY), "rb") as file:
                found[name] = (file.read(), os.fstat(file.fileno()).st_mode & 0o777)
        if not {CERTIFICATE, KEY} <= found.keys() or _match(found[CERTIFICATE][0], found[KEY][0]):
            break
        time.sleep(MATCH_WAIT_S)  # a new pair is being put in place
    else:
        raise ResourceFault(f"{folder / KEY} is not the key of {folder / CERTIFICATE}: `lifl doctor` tells more")
    for name, (data, mode) in found.items():
        yield f"identity/{name}", data, mode


def _match(certificate: bytes, key: bytes) -> bool:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    try:
        public = load_pem_private_key(key, None).public_key()
        return bool(load_pem_x509_certificate(certificate).public_key() == public)
    except unreadable():
        return False
