"""A node, and single commands, as a user starts them: `lifl` in processes of their own."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from json_page import unknown_keys

from lifl import failpoints

LIFL = [sys.executable, "-m", "lifl_cli.main"]
COMMAND_TIMEOUT_S = 120.0
SETTLED_FIRST = "import sys; {settings}; from lifl_cli.main import main; sys.argv[0] = 'lifl'; main()"
LOG_TAIL_LINES = 80
_SHM, _SHM_BYTES_MIN = "/dev/shm", 4 << 30


def _in_memory() -> bool:
    """Whether a folder for all that tests need can be in memory: there is room, and what is built there may run."""
    if not os.path.isdir(_SHM) or os.statvfs(_SHM).f_flag & os.ST_NOEXEC:
        return False
    return shutil.disk_usage(_SHM).free > _SHM_BYTES_MIN


FOLDERS = _SHM if _in_memory() else "/tmp"
"""Where state folders are: in memory, for nodes wait for the disk many times a round; by a short path, for sockets are
made there."""


def environment(points: str = "", build: Path | None = None) -> dict[str, str]:
    """What a process of LIFL is started with: failpoints, as in the variable, and another build of it (`builds.py`)."""
    found = {**os.environ, failpoints.VARIABLE: points}
    return found if build is None else found | {"PYTHONPATH": str(build)}


def run_lifl(
    *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, points: str = "", build: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`lifl` with these arguments, in a process of its own; its exit code is the test's business.

    What it prints with --json has no key that docs/json.md does not tell.
    """
    done = subprocess.run(
        [*LIFL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        env=environment(points, build),
    )
    if "--json" in arguments and done.returncode == 0 and build is None and done.stdout:
        assert unknown_keys(arguments, done.stdout) == []
    return done


class Node:
    """A node of the test's own, started by `lifl up -d`; `info` is its start-up report."""

    def __init__(self, state_dir: Path, flags: tuple[str, ...], points: str = "") -> None:
        self.state_dir = state_dir
        self.points = points
        """Failpoints of all its processes, from the next start on."""
        self.build: Path | None = None
        """What it is, from the next start on; None: this tree."""
        self.env: dict[str, str] = {}
        """What its processes have beside, from the next start of a node on a host of its own."""
        # Given: measuring the capacity takes CPU at each start, and some tests hold several workers at work.
        self._flags = ("--capacity", "8", "--workers-max", "8", *flags)
        self.info: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return int(self.info["pid"])

    @property
    def address(self) -> str:
        """The gateway's HOST:PORT."""
        return str(self.info["listen"][0])

    @property
    def segment(self) -> Path:
        """The file of the arena's table."""
        return Path("/dev/shm") / f"lifl-{self.info['node']}"

    @property
    def segments(self) -> dict[int, Path]:
        """The files of the arena's objects, by number."""
        return {int(path.suffixes[0][1:]): path for path in self.segment.parent.glob(f"{self.segment.name}.*")}

    def remove_arena(self) -> None:
        """Removes all files of the arena: what a machine that dies does."""
        for path in (*self.segments.values(), self.segment):
            path.unlink(missing_ok=True)

    def up(self, *more: str) -> None:
        """Starts `lifld` and waits until it is ready."""
        flags = [*self._flags, *more]
        command = ("up", "-d", "--json", "--state", str(self.state_dir), *flags)
        done = run_lifl(*command, points=self.points, build=self.build)
        assert done.returncode == 0, done.stderr
        self.info = json.loads(done.stdout)

    def lifl(self, *arguments: str) -> str:
        """What a command that succeeds printed."""
        done = run_lifl(*arguments, "--state", str(self.state_dir))
        assert done.returncode == 0, f"lifl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What a command printed with --json."""
        return json.loads(self.lifl(*arguments, "--json"))

    def snapshot(self) -> dict[str, Any]:
        """`lifl top --json`."""
        found: dict[str, Any] = self.json("top")
        return found

    def is_up(self) -> bool:
        """Whether `lifld` lives."""
        try:
            return bool(self.info) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def down(self) -> None:
        """Stops it as a user does."""
        self.lifl("down")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to `lifld`, and waits until it has ended."""
        process = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(process, number)
            ended, _, _ = select.select([process], [], [], COMMAND_TIMEOUT_S)
            assert ended, f"lifld (pid {self.pid}) lives {COMMAND_TIMEOUT_S} s after signal {number}"
        finally:
            os.close(process)


@contextmanager
def running(state_dir: Path) -> Iterator[Node]:
    """A node with a small arena on a free port, for the tests of a file; one of them may have ended it."""
    node = Node(state_dir, ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB"))
    node.up()
    yield node
    if node.is_up():
        node.down()


class Foreground(Node):
    """A node whose `lifld` is a child of the test's process; in it `settings`, statements of Python, run first."""

    def __init__(self, state_dir: Path, flags: tuple[str, ...], settings: str) -> None:
        super().__init__(state_dir, flags)
        self._settings = settings

    def up(self, *more: str) -> None:
        """Starts `lifld`; its log is where that of another node is."""
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        flags = ["--json", "--state", str(self.state_dir), *self._flags, *more]
        with open(self.state_dir / "lifld.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SETTLED_FIRST.format(settings=self._settings), "up", *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.state_dir / "lifld.log").read_text()
        self.info = json.loads(line)

    def end(self) -> None:
        """Ends it, unless it has ended, and waits for that."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=COMMAND_TIMEOUT_S)
