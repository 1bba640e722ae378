"""What the demos share: processes that do not outlive them, `lifl` as a user calls it, a look at what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

LIFL = [sys.executable, "-m", "lifl_cli.main"]
STOP_TIMEOUT_S = 20.0
LOG_TAIL_LINES = 15


class DemoFailed(Exception):
    """The demo did not end as it should; the text says how."""


@contextmanager
def process(command: Sequence[str], log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Provide a child process that does not outlive the block; its stderr goes to `log` when one is given."""
    # One core's worth of BLAS each: all trainers share the machine.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with ExitStack() as stack:
        stderr = stack.enter_context(log.open("w")) if log else None
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE if not log else stderr, stderr=stderr, env=environment, text=True
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that `lifl submit --watch` prints.  Raise `DemoFailed` when it has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise DemoFailed(f"`lifl submit` ended with code {process.wait()}")
    return line


def lifl(*arguments: str) -> None:
    """Call `lifl` as a user would, with its output on the terminal.  Raise `DemoFailed`."""
    sys.stdout.flush()
    if subprocess.run([*LIFL, *arguments], check=False).returncode:
        raise DemoFailed(f"`lifl {' '.join(arguments)}` failed")


def asked(state_dir: str | Path, *arguments: str) -> Any:
    """Return what `lifl` says with --json.  Raise `DemoFailed`."""
    command = [*LIFL, *arguments, "--json", "--state", str(state_dir)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise DemoFailed(f"`lifl {' '.join(arguments)}` failed")
    return json.loads(done.stdout)


def processes(state_dir: str | Path) -> list[int]:
    """Return the pids of the node: lifld, then all its children."""
    return [int(pid) for pid in asked(state_dir, "top")["processes"]]


def round_text(event: Mapping[str, Any], scores: Mapping[str, float]) -> str:
    """Return a committed round in one line, with its model's `scores` on the test data."""
    receipt = event["receipt"]
    return (
        f"  round {event['round']:>2}  test accuracy {scores['accuracy']:.3f}  "
        f"loss {scores['loss']:.3f}  (clients: {event['metrics']['accuracy']:.3f})  "
        f"{event['counted']} counted, {receipt['duration_s']:.2f} s, "
        f"commit {receipt['last_accepted_to_commit_s'] * 1000:.0f} ms after the last update"
    )


def segments(node: str) -> list[Path]:
    """Return the files that a node's arena has in /dev/shm."""
    return sorted(Path("/dev/shm").glob(f"lifl-{node}*"))


def check_gone(pids: Iterable[int], node: str) -> None:
    """Raise `DemoFailed` when anything of a node is left."""
    left = [pid for pid in pids if lives(pid)]
    if left:
        raise DemoFailed(f"processes of the node still run: {left}")
    if left_segments := segments(node):
        raise DemoFailed(f"shared memory is left: {', '.join(map(str, left_segments))}")


def lives(pid: int) -> bool:
    """Return whether the process runs; a zombie has ended, though its entry stays until its parent looks."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def print_logs(logs: Sequence[Path]) -> None:
    """Print the end of each log that says anything."""
    for log in logs:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        if lines:
            print(f"--- {log.parent.name}/{log.name}", *lines[-LOG_TAIL_LINES:], sep="\n", file=sys.stderr)
