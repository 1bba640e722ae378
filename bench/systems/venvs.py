"""The virtual environments of the systems that LIFL is compared with, and programs that run in them.

`bench/rivals.sh` makes the environments.  A `Program` is a process of one of them that takes orders as lines of JSON on
its stdin and answers each by a line on its stdout; it ends when its stdin does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from measure import ROOT

VENVS = Path(os.environ.get("LIFL_RIVALS", ROOT / ".venv-rivals"))
END_S = 10.0


def python(name: str) -> Path:
    """Return the interpreter of a system's environment."""
    return VENVS / name / "bin" / "python"


def missing(name: str) -> str:
    """Return why the environment cannot be used; empty when it can."""
    if (VENVS / name / ".installed").is_file() and python(name).exists():
        return ""
    why = VENVS / f"{name}.why"
    return (why.read_text().strip() if why.exists() else f"not installed: sh {ROOT / 'bench/rivals.sh'}") or "unknown"


def versions(name: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages in the environment, and of its interpreter."""
    code = (
        "import json, platform, sys; from importlib.metadata import version;"
        "print(json.dumps({p: version(p) for p in sys.argv[1:]} | {'python': platform.python_version()}))"
    )
    done = subprocess.run([python(name), "-c", code, *packages], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def free_port() -> int:
    """Return a TCP port of the loopback that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Lines:
    """Lines of JSON from and to another process.  `why` says what is wrong when it does not answer."""

    def __init__(self, read_fd: int, write_fd: int, name: str) -> None:
        self._read, self._write, self._name = read_fd, write_fd, name
        self._buffer = b""

    def order(self, **what: Any) -> None:
        """Send an order."""
        os.write(self._write, json.dumps(what).encode() + b"\n")

    def reply(self, within_s: float) -> dict[str, Any]:
        """Return the next answer.  Raise `RuntimeError` when none comes."""
        deadline = time.monotonic() + within_s
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            ready = select.select([self._read], [], [], left_s)[0] if left_s > 0 else []
            data = os.read(self._read, 1 << 16) if ready else b""
            if not data:
                raise RuntimeError(f"{self._name} {'ended' if ready else f'did not answer within {within_s:g} s'}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Program:
    """A process in a session of its own, its stderr in a file; ended with all its descendants by `close`.

    `merged`: its stdout goes to the file too, for programs that do not answer there.
    """

    def __init__(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str], merged: bool = False
    ) -> None:
        self.name = f"{Path(command[0]).name} {Path(command[1]).name if len(command) > 1 else ''}".strip()
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=file if merged else subprocess.PIPE,
                stderr=file,
                env=dict(environment),
                start_new_session=True,
                cwd=log.parent,
            )
        assert self._process.stdin is not None
        answers = self._process.stdout.fileno() if self._process.stdout else -1
        self.lines = Lines(answers, self._process.stdin.fileno(), f"{self.name} ({log})")

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Return whether it runs."""
        return self._process.poll() is None

    def close(self, gently: bool = True) -> None:
        """End it: by the end of its stdin and SIGTERM, then by force with all that descends from it."""
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children(recursive=True)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.poll() is None and not gently:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()  # psutil looks that the pid is still the same process
        psutil.wait_procs(children, END_S)

    def tail(self, lines: int = 6) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
