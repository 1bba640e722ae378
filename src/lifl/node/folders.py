"""Whose a checkpoint folder is: each has a file that claims it for one job of one node, and no other may write there.

Two jobs in one folder would overwrite each other's models, also when they are on different nodes that share a disk.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from lifl.core.errors import Refused, ResourceFault
from lifl.core.modelfile import CLAIM, CLAIM_BYTES_MAX, LENGTH_BYTES, decode_metadata, header_bytes

INITIAL = "initial.safetensors"
"""The model that a job starts from, where that is another job's."""
MODELS = "round-*.safetensors"
"""The files of models, and of rules' states."""
JOBS = "jobs"
"""In the state folder: the models of jobs that name no folder of their own."""


def local(state: Path, folder: str) -> Path:
    """Return where a job's folder is on this node: one that is no whole path is below each node's own state folder."""
    return state / JOBS / folder


def free_beside(folder: Path) -> Path:
    """Return a folder that no job has models in: this one, or else ``NAME.2``, ``NAME.3``, ... beside it."""
    numbered = (folder.with_name(f"{folder.name}.{number}") for number in count(2))
    return folder if _is_free(folder) else next(path for path in numbered if _is_free(path))


def _is_free(folder: Path) -> bool:
    return not owner_of(folder) and not any(folder.glob(MODELS))


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a checkpoint folder that is free; when its job is refused after all, it goes again, if it was made here.

    Raise `Refused` when it cannot be used, or is another job's.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        make_folder(folder)
        yield
    except BaseException:
        with suppress(OSError):  # one that holds something, or was not made
            for path in missing:
                path.rmdir()
        raise


def make_folder(folder: Path) -> None:
    """Make a checkpoint folder that is free.  Raise `Refused` when it cannot be used, or is another job's."""
    check_free(folder)
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        text = f"folder {folder} cannot be made: {error.strerror}; choose another in checkpoint.folder"
        raise Refused("bad-config", "checkpoint.folder", text) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        text = f"folder {folder} is not writable for lifld; choose another in checkpoint.folder"
        raise Refused("bad-config", "checkpoint.folder", text)


def check_free(folder: Path) -> None:
    """Raise `Refused` unless no job has claimed the folder, or has left models in it."""
    owner = owner_of(folder)
    if owner or any(folder.glob(MODELS)):
        of = f"job {owner['name']!r} (number {owner['job']} of node {owner['node']})" if owner else "another job"
        text = f"folder {folder} holds the models of {of}; move them away, or choose another in checkpoint.folder"
        raise Refused("folder-in-use", "checkpoint.folder", f"{text} (or another job.name)")


def claim(folder: Path, node: int, number: int, name: str) -> None:
    """Claim a folder for a job; once more is no harm.

    Raise `Refused` when it is another's (``folder-in-use``), or cannot be written to.
    """
    mine = {"node": f"{node:016x}", "job": number, "name": name}
    path = folder / CLAIM
    for _ in range(2):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            owner = owner_of(folder)
            if owner and (owner["node"], owner["job"]) != (mine["node"], number):
                of = f"job {owner['name']!r} (number {owner['job']} of node {owner['node']})"
                text = f"folder {folder} is that of {of}; choose another in checkpoint.folder"
                raise Refused("folder-in-use", "checkpoint.folder", text) from None
            if owner:
                return
            path.unlink(missing_ok=True)  # it was not written to its end
            continue
        except OSError as error:
            text = f"folder {folder} cannot be claimed: {error.strerror}; make room there, or choose another"
            raise Refused("bad-config", "checkpoint.folder", text) from error
        try:
            with open(fd, "w") as file:
                json.dump(mine, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            text = f"folder {folder} cannot be claimed: {error.strerror}; make room there, or choose another"
            raise Refused("bad-config", "checkpoint.folder", text) from error
        return


def release(folder: Path, node: int, number: int) -> bool:
    """Give up the claim of a job that was refused after all; return whether it had one."""
    owner = owner_of(folder)
    mine = bool(owner) and (owner["node"], owner["job"]) == (f"{node:016x}", number)
    if mine:
        (folder / CLAIM).unlink(missing_ok=True)
    return mine


def bring_initial(source: Path, folder: Path) -> None:
    """Have another job's model in a folder, also when that job is gone.  Raise `Refused` when it cannot be."""
    target = folder / INITIAL
    try:
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)  # a model's file is never written to again
        except OSError:
            shutil.copyfile(source, target)
    except OSError as error:
        text = f"{source} cannot be had in {folder}: {error.strerror}; make room there"
        raise Refused("bad-config", "model.from", text) from error


class Removed(NamedTuple):
    """How many files were removed, and of how many bytes."""

    files: int
    nbytes: int


def remove_models(folder: Path, node: int, number: int) -> Removed:
    """Remove a job's models, its claim last, and the folder if that leaves it empty; none that is gone is missed.

    Raise `Refused` when the folder is another job's, `ResourceFault` when a file cannot be removed.
    """
    owner = owner_of(folder)
    if owner and (owner["node"], owner["job"]) != (f"{node:016x}", number):
        text = f"folder {folder} is that of job {owner['name']!r} (number {owner['job']} of node {owner['node']})"
        raise Refused("folder-in-use", "--models", f"{text}: nothing was removed; leave --models out")
    files = nbytes = 0
    try:
        for path in (*folder.glob(MODELS), *folder.glob(f".{MODELS}.tmp"), *folder.glob(INITIAL)) if owner else ():
            nbytes += path.stat().st_size
            path.unlink()
            files += 1
        if owner:
            (folder / CLAIM).unlink()
        with suppress(OSError):  # it holds something else, or is not there
            folder.rmdir()
    except OSError as error:
        text = (
            f"{error.filename} cannot be removed: {error.strerror}; see to it and say it again, or leave --models out"
        )
        raise ResourceFault(text) from error
    return Removed(files, nbytes)


def is_copied(folder: str) -> bool:
    """Return whether the folder of a job's row is one that each node has below its own state folder."""
    return bool(folder) and not Path(folder).is_absolute()


def remove_copies(folder: Path, owner: int, number: int, name: str) -> Removed:
    """Remove a node's copies of the models of `owner`'s job, and the folder if that leaves it empty.

    What other jobs have there stays: each file says whose it is, and so does the claim of a job that ran here.  A file
    that cannot be read or removed stays, too: this is said again when the node comes again.
    """
    claim = owner_of(folder)
    mine = {"node": f"{owner:016x}", "job": number, "name": name}
    if claim and {key: claim[key] for key in mine} != mine:
        return Removed(0, 0)
    files = nbytes = 0
    for path in (*folder.glob(MODELS), *folder.glob(f".{MODELS}.tmp")):
        with suppress(OSError):
            if not _is_of(path, number, name):
                continue
            nbytes += path.stat().st_size
            path.unlink()
            files += 1
    with suppress(OSError):  # it holds something else, or is not there
        if claim and not any(folder.glob(MODELS)):
            (folder / CLAIM).unlink()
        folder.rmdir()
    return Removed(files, nbytes)


def _is_of(path: Path, number: int, name: str) -> bool:
    """Return whether a file says that it is a model of the job, or of its rule's state.  Raise `OSError`."""
    with open(path, "rb") as file, suppress(Refused):
        head = file.read(header_bytes(file.read(LENGTH_BYTES), str(path)))
        said = decode_metadata(head, str(path))
        return (said.get("lifl.number"), said.get("lifl.job")) == (str(number), name)
    return False


def pass_on(folder: Path, before: int, after: int, number: int, name: str) -> None:
    """Let a job's folder be that of the same job of another owner; once more is no harm.

    Raise `Refused` when it is another job's, or cannot be written to.
    """
    check_own(folder, (before, after), number)
    path = folder / f"{CLAIM}.new"
    try:
        with open(path, "w") as file:
            json.dump({"node": f"{after:016x}", "job": number, "name": name}, file)
            file.flush()
            os.fsync(file.fileno())
        path.replace(folder / CLAIM)
    except OSError as error:
        text = f"folder {folder} cannot be written to: {error.strerror}; make it accessible"
        raise Refused("bad-config", "checkpoint.folder", text) from error


def check_own(folder: Path, owners: Collection[int], number: int) -> None:
    """Raise `Refused` unless the folder is there, and is that of this job of one of these owners."""
    owner = owner_of(folder)
    if not owner:
        text = f"folder {folder} of job number {number} cannot be seen here, or its {CLAIM} is gone; mount its disk"
        raise Refused("folder-missing", "checkpoint.folder", text)
    if (owner["node"], owner["job"]) not in {(f"{each:016x}", number) for each in owners}:
        text = f"folder {folder} is that of job {owner['name']!r} (number {owner['job']} of node {owner['node']})"
        raise Refused("folder-in-use", "checkpoint.folder", text)


def owner_of(folder: Path) -> dict[str, Any]:
    """Return who has claimed the folder: its node, its job's number and name; nothing when nobody has."""
    try:
        with open(folder / CLAIM, "rb") as file:
            found = json.loads(file.read(CLAIM_BYTES_MAX))
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and {"node", "job", "name"} <= found.keys()
    return found if whole else {}
