"""Starts and ends of a node that meet each other: one wins, the other says so, and nothing is left behind."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Thread

import psutil
import pytest
from click.testing import CliRunner
from fleet import OneHot, submit
from lifl_cli import down
from lifl_cli.daemon_client import DaemonClient
from nodes import LIFL, Node, run_lifl
from skips import has_no_mounts
from stops import Stops

from lifl import failpoints
from lifl.confine import signals
from lifl.core.errors import ResourceFault
from lifl.core.limits import CLI_CONNECTIONS_MAX, CLI_FOLLOWERS_MAX
from lifl.core.protocol import cli as om

FLAGS = ["--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--capacity", "8", "--workers-max", "2"]
WAIT_S = 120.0
"""Only a failing test waits so long."""
FILES = {"lifl.db", "lifld.log", "lifld.lock", "children.lock", "keep.lock", "jobs", "audit", "identity", "cookie"} | {
    "format.json"
}


def test_up_says_that_the_node_is_not_in_the_cluster_yet_which_it_joins(state_dir: Path) -> None:
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        there = f"127.0.0.1:{taken.getsockname()[1]}"
        joining = ["--insecure", "--control", "127.0.0.1:0", "--join", there]
        done = run_lifl("up", "-d", "--state", str(state_dir), *FLAGS, *joining)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if "joins" in line]
        assert there in line and "NOT YET" in line and "goes on trying" in line and "cannot be reached" in line
        assert run_lifl("down", "--state", str(state_dir)).returncode == 0


class Command:
    """`lifl` that runs beside the test."""

    def __init__(self, *arguments: str, points: str = "") -> None:
        self.process = subprocess.Popen(
            [*LIFL, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, failpoints.VARIABLE: points},
        )
        self.out = self.err = ""
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.out, self.err = self.process.communicate()

    def end(self) -> int:
        self._reader.join(WAIT_S)
        assert not self._reader.is_alive(), "the command does not end"
        return int(self.process.returncode)


def up(state_dir: Path, *more: str, points: str = "") -> Command:
    return Command("up", "--state", str(state_dir), *FLAGS, *more, points=points)


def segment(state_dir: Path) -> Path:
    """The arena of the folder's node."""
    with closing(sqlite3.connect(state_dir / "lifl.db")) as database:
        (node,) = database.execute("SELECT node FROM node").fetchone()
    return Path(f"/dev/shm/lifl-{node}")


@contextmanager
def nothing_left(state_dir: Path) -> Iterator[None]:
    yield
    down = run_lifl("down", "--state", str(state_dir))
    assert down.returncode == 1, f"a node was left: {down.stdout}"
    assert down.stderr.startswith("Error: no lifld runs with state folder")
    assert not segment(state_dir).exists()
    assert {path.name for path in state_dir.iterdir()} <= FILES


def refused(done: subprocess.CompletedProcess[str], *texts: str) -> None:
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for text in texts:
        assert text in done.stderr


@pytest.mark.parametrize("detach", [[], ["-d"]], ids=["foreground", "detached"])
def test_of_two_that_start_the_second_says_that_the_first_is_starting(state_dir: Path, detach: list[str]) -> None:
    with nothing_left(state_dir), Stops("lifld.open.before") as stops:
        hold = stops.hold("lifld.open.before")
        first = up(state_dir, "-d", points=stops.variable)
        visit = hold.reached()
        second = run_lifl("up", *detach, "--state", str(state_dir), *FLAGS)
        refused(second, f"pid {visit.pid}", "is starting", str(state_dir))
        visit.go()
        assert first.end() == 0, first.err
        assert f"{visit.pid}" in first.out
        assert run_lifl("down", "--state", str(state_dir)).returncode == 0


def test_many_that_start_at_once_give_one_node(state_dir: Path) -> None:
    with nothing_left(state_dir):
        starts = [up(state_dir, "-d") for _ in range(4)]
        codes = [start.end() for start in starts]
        assert sorted(codes) == [0, 1, 1, 1]
        for start in starts:
            assert start.err.count("\n") == start.process.returncode
        assert run_lifl("down", "--state", str(state_dir)).returncode == 0


def test_down_before_the_node_can_hear_it_says_that_it_is_starting(state_dir: Path) -> None:
    with nothing_left(state_dir), Stops("lifld.open.before") as stops:
        hold = stops.hold("lifld.open.before")
        first = up(state_dir, "-d", points=stops.variable)
        visit = hold.reached()
        for command in ("down", "jobs"):
            refused(run_lifl(command, "--state", str(state_dir)), f"pid {visit.pid}", "is starting", "try again")
        visit.go()
        assert first.end() == 0, first.err
        assert run_lifl("down", "--state", str(state_dir)).returncode == 0


@pytest.mark.parametrize(("detach", "code"), [([], 0), (["-d"], 1)], ids=["foreground", "detached"])
def test_down_while_the_node_starts_ends_it_and_up_says_so(state_dir: Path, detach: list[str], code: int) -> None:
    """In the foreground it has done what it was told; with -d there is no node, as it would have promised by 0."""
    with nothing_left(state_dir), Stops("gateway.ready.before") as stops:
        hold = stops.hold("gateway.ready.before")
        first = up(state_dir, *detach, points=stops.variable)
        gateway = hold.reached()
        down = Command("down", "--state", str(state_dir))
        assert down.end() == 0, down.err
        gateway.go()
        assert first.end() == code
        assert "was ended while it was starting" in first.err
        assert "lifld is up" not in first.out


@pytest.mark.parametrize("number", signals.ENDS)
def test_a_signal_while_the_node_starts_leaves_nothing(state_dir: Path, number: int) -> None:
    with nothing_left(state_dir), Stops("lifld.children.before") as stops:
        hold = stops.hold("lifld.children.before")
        first = up(state_dir, points=stops.variable)
        visit = hold.reached()  # the arena is made
        assert first.process.pid == visit.pid
        first.process.send_signal(number)
        visit.go()
        assert first.end() == 0
        assert "was ended while it was starting" in first.err


def test_up_while_the_node_ends_says_so_and_works_after_that(state_dir: Path) -> None:
    with nothing_left(state_dir), Stops("lifld.drain.before") as stops:
        first = up(state_dir, "-d", points=stops.variable)
        assert first.end() == 0, first.err
        hold = stops.hold("lifld.drain.before")
        down = Command("down", "--state", str(state_dir))
        visit = hold.reached()
        for detach in ([], ["-d"]):
            second = run_lifl("up", *detach, "--state", str(state_dir), *FLAGS)
            refused(second, f"pid {visit.pid}", "is stopping", "try again")
        again = Command("down", "--state", str(state_dir))
        visit.go()
        assert down.end() == 0
        # It may have come too late to hear of it, or in between.
        assert again.end() == 0 or "is stopping" in again.err or "no lifld runs" in again.err
        assert up(state_dir, "-d").end() == 0
        assert run_lifl("down", "--state", str(state_dir)).returncode == 0


def test_a_closed_terminal_ends_a_foreground_node_in_good_order(state_dir: Path) -> None:
    with nothing_left(state_dir):
        pid, master = pty.fork()
        if pid == 0:
            os.execv(LIFL[0], [*LIFL, "up", "--state", str(state_dir), *FLAGS])
        said = b""
        while b"state " not in said:
            said += os.read(master, 4096)
        os.close(master)  # its whole process group gets SIGHUP
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_a_node_that_ignores_hangups_goes_on(state_dir: Path) -> None:
    """As one under nohup."""
    with nothing_left(state_dir):
        command = [*LIFL, "up", "--state", str(state_dir), *FLAGS]
        node = subprocess.Popen(
            ["nohup", *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert node.stdout is not None
        while not node.stdout.readline().startswith("  state"):
            pass
        node.send_signal(signal.SIGHUP)
        assert run_lifl("jobs", "--state", str(state_dir)).returncode == 0
        assert run_lifl("down", "--state", str(state_dir)).returncode == 0
        node.communicate()
        assert node.returncode == 0


@pytest.mark.skipif(has_no_mounts(), reason="NOT TESTED, it needs the right to mount")
def test_down_from_another_pid_namespace(state_dir: Path) -> None:
    with nothing_left(state_dir):
        assert up(state_dir, "-d").end() == 0
        down = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", *LIFL, "down", "--state", str(state_dir)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )
        assert (down.returncode, down.stderr) == (0, "")
        assert down.stdout == "lifld (in another PID namespace) is down\n"


def test_down_gets_in_however_many_are_connected(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    submit(node, "j", OneHot(2).model())
    with ExitStack() as opened:
        for number in range(CLI_CONNECTIONS_MAX):
            daemon = opened.enter_context(DaemonClient(node.state_dir))
            daemon.ask(om.Follow("j") if number < CLI_FOLLOWERS_MAX else om.ListJobs())
        assert "is down" in node.lifl("down")
    assert not node.is_up()


def test_down_says_what_it_waits_for_and_not_without_end(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(down, "SAID_S", 0.01)
    monkeypatch.setattr(down, "DOWN_S", 0.02)
    with Stops("lifld.drain.before") as stops:
        node = Node(state_dir, tuple(FLAGS), points=stops.variable)
        node.up()
        draining = stops.hold("lifld.drain.before")
        done = CliRunner().invoke(down.down, ["--state", str(state_dir)])
        assert "rounds whose updates are all in" in done.stderr
        assert isinstance(done.exception, ResourceFault)
        assert all(text in str(done.exception) for text in (f"kill -9 {node.pid}", "lifld.log", "not ended"))
        draining.reached().go()
        process = psutil.Process(node.pid)
    psutil.wait_procs([process], timeout=WAIT_S)
    assert not node.is_up()


def test_a_copy_of_a_state_folder_takes_no_running_nodes_arena(start_node: Callable[..., Node]) -> None:
    """Both have one node id, and the name of the arena is made from that."""
    node = start_node()
    with tempfile.TemporaryDirectory(prefix="lt-", dir="/tmp") as folder:
        copy = Path(folder) / "copy"
        copy.mkdir(mode=0o700)
        for path in node.state_dir.glob("lifl.db*"):
            shutil.copy2(path, copy / path.name)
        flags = ("--state", str(copy), "--listen", "127.0.0.1:0", "--arena-bytes", "64MiB")
        refused = run_lifl("up", "-d", *flags)
        assert refused.returncode == 1
        assert "another lifld uses the arena" in refused.stderr and "copy" in refused.stderr
        assert node.is_up() and node.segment.exists()
        node.down()
        assert run_lifl("up", "-d", *flags).returncode == 0
        assert run_lifl("down", "--state", str(copy)).returncode == 0
