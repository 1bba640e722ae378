"""Removes the files of models that do not stay (`core/planning/keeping.py`), in a thread of its own.

It is told what stays after each commit, when that is durable, and looks at what is there: whatever an earlier life, or
a failure, has left goes the next time.  A folder that another job has claimed is let be.  While a backup is made
nothing is removed (`held`); what is being read by another machine's command line, or is the first model of a job that
is still loading, stays until the next commit.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from lifl import failpoints
from lifl.core import effects as fx
from lifl.core.engine import Engine
from lifl.core.planning.keeping import Kept, removable
from lifl.node import folders
from lifl.node.modes import open_file, open_private

log = logging.getLogger("lifl.keeper")

LOCK = "keep.lock"
READ_S = 60.0
"""How long a model stays that another machine has begun to read, behind the last piece that it was sent."""
_NAME = re.compile(r"(\.?)round-([0-9]{5,7})(?:\.[0-9]+)?(\.state)?\.safetensors(\.tmp)?")


class Disk(NamedTuple):
    """What a job's models take on the disk, and what is free there, as was seen at the last commit."""

    models: int
    nbytes: int
    free_bytes: int
    fault: str = ""


@contextmanager
def held(state: Path) -> Iterator[None]:
    """Have no model of a node's jobs removed meanwhile.  Raise `OSError`."""
    try:
        fd = open_file(state / LOCK, os.O_RDONLY)
    except FileNotFoundError:  # no node of this version has run there
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def models_in(folder: Path) -> dict[int, list[Path]]:
    """Return the files of committed models in a job's folder by round, the model's before its states'."""
    found: dict[int, list[Path]] = {}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            named = _NAME.fullmatch(entry.name)
            if named is not None and not named[1] and not named[4]:
                found.setdefault(int(named[2]), []).append(Path(entry.path))
    for paths in found.values():
        paths.sort(key=lambda path: (path.name.endswith(".state.safetensors"), path.name))
    return found


class Keeper:
    """The thread; `state` is the node's folder.  `seen` has what each job's models take, by its name."""

    def __init__(self, state: Path, engine: Engine) -> None:
        self.seen: dict[str, Disk] = {}
        self._state = state
        self._engine = engine
        self._reads: dict[tuple[str, int], float] = {}  # by job and round: until when it stays
        self._waiting: dict[str, tuple[fx.KeepModels, frozenset[int], frozenset[str]]] = {}  # by job, the last word
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        os.close(open_private(state / LOCK, os.O_RDWR))

    def keep(self, effect: fx.KeepModels, needed: Collection[int] = ()) -> None:
        """Have the files go that do not stay, soon; those of rounds that are `needed` stay for now."""
        now = time.monotonic()
        self._reads = {at: until_s for at, until_s in self._reads.items() if until_s > now}
        stay = {number for job, number in self._reads if job == effect.job} | set(needed)
        loading = (job for job in self._engine.jobs.values() if job.status == "loading" and job.rounds.committed < 0)
        begin = frozenset(job.spec.config.model.path for job in loading)
        with self._changed:
            self._waiting[effect.job] = (effect, frozenset(stay), begin)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
                self._thread.start()

    def reads(self, job: str, number: int) -> None:
        """Note that somebody reads a model, piece by piece."""
        self._reads[job, number] = time.monotonic() + READ_S

    def shown(self, job: str) -> dict[str, Any] | None:
        """Return what `lifl status` and `lifl top` say of a job's models; None: nothing was seen in this life."""
        disk = self.seen.get(job)
        if disk is None:
            return None
        return {"models": disk.models, "bytes": disk.nbytes, "free_bytes": disk.free_bytes, "fault": disk.fault}

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                job, (effect, stay, begin) = next(iter(self._waiting.items()))
                del self._waiting[job]
            try:
                with _alone(self._state):
                    self.seen[job] = self._sweep(effect, stay, begin)
            except Exception:  # whatever it is: the next commit tries again, and no other job is held up
                log.exception("models.not_removed job=%s", job)

    def _sweep(self, effect: fx.KeepModels, stay: Collection[int], begin: Collection[str]) -> Disk:
        """Remove what does not stay; return what is left."""
        folder = folders.local(self._state, effect.folder)
        owner, fault = folders.owner_of(folder), ""
        if owner and (owner["job"], owner["name"]) != (effect.number, effect.job):
            return Disk(0, 0, 0, f"{folder} is that of job {owner['name']!r}: nothing is removed there")
        there, before = models_in(folder), self.seen.get(effect.job)
        for number in removable(effect.kept, there, stay):
            if any(str(path) in begin for path in there[number]):
                continue
            try:
                for path in there[number]:  # the model first: none is there without its states
                    failpoints.hit("lifld.remove.before")
                    path.unlink(missing_ok=True)
            except OSError as error:
                fault = f"{error.filename} cannot be removed: {error.strerror}"
                break
            del there[number]
        _remove_halves(folder, effect.kept)
        if fault and (before is None or before.fault != fault):
            log.warning("models.not_removed job=%s %s; it is tried again with the next commit", effect.job, fault)
        return _disk(folder, there, fault)


def _remove_halves(folder: Path, kept: Kept) -> None:
    """Remove what a worker's end has left of files that were never whole."""
    with suppress(OSError):
        for path in folder.glob(".round-*.tmp"):
            named = _NAME.fullmatch(path.name)
            if named is not None and int(named[2]) <= kept.committed:
                path.unlink(missing_ok=True)


def _disk(folder: Path, there: dict[int, list[Path]], fault: str) -> Disk:
    """Return what models take, each as much as the newest, and what is free."""
    each = free = 0
    with suppress(OSError):
        each = sum(path.stat().st_size for path in there[max(there)]) if there else 0
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
    return Disk(len(there), each * len(there), free, fault)


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Wait until no backup is being made, and let none begin."""
    fd = open_private(state / LOCK, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
