"""A node that a program starts for itself, in a folder that goes with it.

It ends when this process does, however that ends: its stdin is a pipe of ours.  When it is killed it is started again,
with the same folder, and goes on from its arena.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from typing import IO, Any

import msgspec

from lifl.core.errors import ResourceFault
from lifl.core.limits import ARENA_BYTES_MIN, STATE_DIR_BYTES_MAX

END_S = 30.0


class LocalNode:
    """The node of one `Aggregator`, with an arena of so many bytes; `folder` is its state folder.

    `more` are keys of its config.
    """

    def __init__(self, arena_bytes: int, **more: Any) -> None:
        self.arena_bytes = max(arena_bytes, ARENA_BYTES_MIN)
        self._more = more
        self.folder = tempfile.mkdtemp(prefix="lifl-")
        if len(os.fsencode(self.folder)) > STATE_DIR_BYTES_MAX:
            os.rmdir(self.folder)
            self.folder = tempfile.mkdtemp(prefix="lifl-", dir="/tmp")
        self.number = ""
        """The node's, in hexadecimal digits."""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @property
    def pid(self) -> int:
        """The process of its `lifld`."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it, unless it runs.  Raise `ResourceFault` when it cannot."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._let_go(self._process)
        where = {"state_dir": self.folder, "listen": "127.0.0.1:0", "arena_bytes": self.arena_bytes}
        # Capacity is for the choice among nodes: to measure it takes a third of a second and 400 MB.
        config = {**where, "capacity": float(os.cpu_count() or 1), **self._more}
        log = os.path.join(self.folder, "lifld.out")
        with open(log, "ab") as out:
            # -P: the working folder must not shadow modules.
            command = [sys.executable, "-P", "-m", "lifl.node.embedded"]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, start_new_session=True
            )
        self._process = process
        stdin, stdout = _pipes(process)
        with contextlib.suppress(BrokenPipeError):
            stdin.write(msgspec.json.encode(config) + b"\n")
            stdin.flush()
        answer: dict[str, Any] = msgspec.json.decode(stdout.readline() or b"{}")
        if "ready" not in answer:
            process.wait()
            why = answer.get("error") or _end_of(log)
            raise ResourceFault(f"the aggregator's own node could not be started: {why}")
        self.number = str(answer["ready"]["node"])

    def close(self) -> None:
        """End it, and remove its folder."""
        if self._ended() < 0:  # it was killed: the next one clears up what it has left in shared memory
            with contextlib.suppress(ResourceFault):
                self.start()
            self._ended()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ended(self) -> int:
        """Have it end, if it runs; return its exit code, below 0 when it was killed."""
        process, self._process = self._process, None
        if process is None:
            return 0
        self._let_go(process)
        try:
            return process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    @staticmethod
    def _let_go(process: subprocess.Popen[bytes]) -> None:
        for pipe in _pipes(process):
            with contextlib.suppress(OSError):
                pipe.close()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _end_of(log: str) -> str:
    with contextlib.suppress(OSError), open(log, errors="replace") as file:
        return "".join(file.readlines()[-5:]).strip() or "it said nothing"
    return "it said nothing"
