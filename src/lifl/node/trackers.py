"""The processes that tell a job's metrics to its tracker: `lifl export --follow`, as a user would run it.

`lifld` imports no tracker and keeps nothing for one: a process reads the job's committed rows by the command line's
door, and knows by the tracker itself where to go on.  So here is only who runs: one process for each job that wants it,
from its first commit until it is over and told; in one of `TRACKERS_MAX` places, or when one is free.  One that ends in
another way is started again by a later commit; no round waits for any of this.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lifl.core import effects as fx
from lifl.core.config.job import JobConfig
from lifl.core.engine import Engine
from lifl.core.errors import Refused
from lifl.core.limits import TRACKERS_MAX
from lifl.node.children import LastWords

log = logging.getLogger("lifl.trackers")

SAID = "tracker: "
"""What begins a line in which a process says how it fares."""
AGAIN_S = 60.0
"""After one that failed no other is started for its job within this time."""
END_S = 5.0


def check_tracker(config: JobConfig) -> None:
    """Raise `Refused` when this node has not the library of the job's tracker."""
    tracker = config.told.tracker
    if tracker and find_spec(str(tracker)) is None:
        text = f"takes the library {tracker}, which this node has not: pip install 'lifl[{tracker}]' there"
        raise Refused("bad-config", "metrics.tracker", text)


class _Process(NamedTuple):
    process: subprocess.Popen[bytes]
    ends: int
    """A descriptor that can be read when the process has ended."""
    words: LastWords


class Trackers:
    """Those of one node, for the jobs that it coordinates."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._folder = folder
        self._engine = engine
        self._running: dict[str, _Process] = {}
        self._waiting: dict[str, None] = {}  # for a place
        self._not_before_s: dict[str, float] = {}
        self._loop = asyncio.get_running_loop()

    def published(self, event: fx.Publish) -> None:
        """Have the job's tracker told, if something is new for it."""
        if event.name not in ("round.committed", "evaluation.over", "job.over"):
            return
        job = self._engine.jobs.get(event.job)
        if job is None or not job.spec.config.told.tracker or event.job in self._running:
            return
        if self._loop.time() >= self._not_before_s.get(event.job, 0.0):
            self._waiting[event.job] = None
            self._fill()
        if event.name == "job.over":
            self._not_before_s.pop(event.job, None)

    def faults(self) -> list[str]:
        """Return what does not go, a sentence for each job."""
        return [f"metrics of job {job}: {text}" for job, text in self._told() if text and text != "it goes on"]

    def _told(self) -> list[tuple[str, str]]:
        found = []
        for job, running in self._running.items():
            lines = [line for line in running.words.text().splitlines() if line.startswith(SAID)]
            found.append((job, lines[-1].removeprefix(SAID) if lines else ""))
        return found

    def _fill(self) -> None:
        while self._waiting and len(self._running) < TRACKERS_MAX:
            job = next(iter(self._waiting))
            del self._waiting[job]
            try:
                self._start(job)
            except OSError as error:
                self._failed(job, f"it cannot be started: {error}")

    def _start(self, job: str) -> None:
        command = [sys.executable, "-P", "-m", "lifl_cli.main", "export", job, "--follow", "--state", str(self._folder)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0
        )
        assert process.stderr is not None
        words, ends = LastWords(process.stderr), os.pidfd_open(process.pid)
        self._running[job] = _Process(process, ends, words)
        self._loop.add_reader(ends, self._ended, job)
        log.info("tracker.started job=%s pid=%d", job, process.pid)

    def _ended(self, job: str) -> None:
        code = self._forget(job)
        if code:
            self._failed(job, f"exit code {code}: {self._last or 'without a word'}")
        else:
            log.info("tracker.ended job=%s all is told", job)
        self._fill()

    def _forget(self, job: str) -> int:
        running = self._running.pop(job)
        self._loop.remove_reader(running.ends)
        os.close(running.ends)
        code = running.process.wait()
        self._last = running.words.text()
        running.words.close()
        return code

    def _failed(self, job: str, why: str) -> None:
        log.warning("tracker.ended job=%s %s; `lifl export %s` tells what is missing", job, why, job)
        found = self._engine.jobs.get(job)
        if found is not None and not found.over:
            self._not_before_s[job] = self._loop.time() + AGAIN_S

    def close(self) -> None:
        """End all of them: what is not told yet is told when the job goes on, or by `lifl export`."""
        for running in self._running.values():
            running.process.terminate()
        for job in list(self._running):
            try:
                self._running[job].process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._running[job].process.kill()
            self._forget(job)
