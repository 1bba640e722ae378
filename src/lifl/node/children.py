"""The processes that `lifld` starts: the zygote and the gateway.

Each has a link to the daemon over an inherited socket, dies with the daemon (it asks the kernel for that itself) and is
started again when it ends; one that ends `RESTARTS_MAX` times within `RESTARTS_WINDOW_S` is broken for good, and
the daemon stops with what it last said.

Standard error of a child, which workers inherit from the zygote, is a pipe that the daemon reads in its loop and of
which it keeps the end: a user's rule that writes without measure waits for the daemon, and fills no disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Any

from lifl import failpoints
from lifl.core.errors import ResourceFault
from lifl.core.fields import Message
from lifl.core.protocol.gateway import Drain
from lifl.node.link import Link
from lifl.node.process_state import is_stopped

log = logging.getLogger("lifl.children")

RESTARTS_MAX = 8
RESTARTS_WINDOW_S = 60.0
START_PAUSE_S = 1.0
"""Before a process that could not be started is tried again."""
LAST_WORDS_BYTES = 4096
"""What is kept of a child's standard error: its end, which tells why it ended."""


class LastWords:
    """The end of what comes out of `pipe`, which the running loop reads; it is this object's to close.

    The last writer need not be gone for it to be closed: a process that writes then gets EPIPE.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        os.set_blocking(pipe.fileno(), False)
        self._pipe = pipe
        self._pipe_bytes = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        self._last = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pipe.fileno(), self._read)

    def _read(self) -> None:
        """Take at most what the pipe holds: a process that never stops writing does not keep the loop."""
        try:
            data = os.read(self._pipe.fileno(), self._pipe_bytes)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._pipe.fileno())
        self._last = (self._last + data)[-LAST_WORDS_BYTES:]

    def text(self) -> str:
        """Return the end of what has been written until now."""
        self._read()
        return self._last.decode(errors="replace").strip()

    def close(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()


class Child:
    """One long-lived child process and its link; `on_end` is called after each end, before the restart."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        descriptors: Sequence[int],
        kinds: Any,
        on_message: Callable[[Any], None],
        on_end: Callable[[], None],
        on_broken: Callable[[ResourceFault], None],
        clock: Callable[[], float],
        takes_descriptors: bool = False,
    ) -> None:
        self.module = module
        self._takes_descriptors = takes_descriptors
        self._arguments = arguments
        self._descriptors = descriptors
        self._kinds = kinds
        self._on_message = on_message
        self._on_end = on_end
        self._on_broken = on_broken
        self._clock = clock
        self._starts: deque[float] = deque(maxlen=RESTARTS_MAX)
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: LastWords | None = None
        self._link: Link | None = None
        self._ending = False

    @property
    def pid(self) -> int:
        """The process that runs now; 0 when none does."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the process; `send` works at once, for the socket keeps what it cannot read yet.  Raise `OSError`."""
        self._starts.append(self._clock())
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as failed, theirs:
            failed.callback(ours.close)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module, "--fd", str(theirs.fileno()), *self._arguments],
                pass_fds=[theirs.fileno(), *self._descriptors],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
            failed.pop_all()
        assert self._process.stderr is not None
        self._errors = LastWords(self._process.stderr)
        takes = self._takes_descriptors
        self._link = Link(ours, self._kinds, self._on_message, self._closed, takes_descriptors=takes)

    def send(self, *messages: Message, descriptors: Sequence[int] = ()) -> None:
        """Send messages to the process; between two lives of it, they are lost (and `on_end` told so)."""
        if self._link is not None:
            failpoints.hit("lifld.child.before")
            self._link.send(*messages, descriptors=descriptors)
            failpoints.hit("lifld.child.after")

    def gather(self, *messages: Message) -> None:
        """Send messages as `Link.gather` does."""
        if failpoints.on:  # a process that ends behind this has said it
            self.send(*messages)
        elif self._link is not None:
            self._link.gather(*messages)

    def flush(self) -> None:
        """Send at once what was gathered."""
        if self._link is not None:
            self._link.flush()

    def taken_descriptor(self) -> int:
        """Return the descriptor that came along with the message that is being handed over (`Link`)."""
        assert self._link is not None
        return self._link.taken_descriptor()

    def hold(self, held: bool) -> None:
        """Read nothing from the process while it is `held`: then it is slowed by its socket."""
        if self._link is not None:
            (self._link.pause_reading if held else self._link.resume_reading)()

    def kill_if_stopped(self) -> None:
        """Kill the process if a signal has stopped it; the end of its link has another one started."""
        if self._process is not None and is_stopped(self.pid):
            log.warning("child.stopped module=%s pid=%d; it is killed", self.module, self.pid)
            self._process.kill()

    def last_words(self) -> str:
        """Return the end of what the process wrote to standard error."""
        return self._errors.text() if self._errors is not None else ""

    def _closed(self, _error: Exception | None) -> None:
        self._link = None
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()  # a process without its link is of no use, and may be on its way out already
        process.wait()
        self._on_end()
        if self._ending:
            return
        self._start_again()

    def _start_again(self) -> None:
        if self._ending:
            return
        if len(self._starts) == RESTARTS_MAX and self._clock() - self._starts[0] < RESTARTS_WINDOW_S:
            self._on_broken(
                ResourceFault(
                    f"{self.module} ended {RESTARTS_MAX} times within {RESTARTS_WINDOW_S:g} s; it last said: "
                    f"{self.last_words() or 'nothing'}"
                )
            )
            return
        self._forget_errors()
        try:
            self.start()
        except OSError as error:  # no descriptor, no memory or no process number is left
            log.warning("child.start_failed %s %s; next try in %g s", self.module, error, START_PAUSE_S)
            asyncio.get_running_loop().call_later(START_PAUSE_S, self._start_again)

    def _forget_errors(self) -> None:
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def stop(self, timeout_s: float) -> None:
        """Tell the process to drain, wait for its end, and kill it when it has not come in time."""
        self._ending = True
        self._forget_errors()  # nothing is read while this waits, and no process shall wait for that
        process, self._process = self._process, None
        if process is not None:
            self.send(Drain())
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._link is not None:
            self._link.close()
