"""The processes that `lifld` starts: the zygote and the gateway.

Each has a link to the daemon over an inherited socket, dies with the daemon (it asks the kernel for that itself) and is
started again when it ends; one that ends `RESTARTS_MAX` times within `RESTARTS_WINDOW_S` is broken for good, and
the daemon stops with what it last said.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Any

from lifl.core.errors import ResourceFault
from lifl.core.messages import Drain, Message
from lifl.node.link import Link

RESTARTS_MAX = 8
RESTARTS_WINDOW_S = 60.0
LAST_WORDS_BYTES = 4096


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
    ) -> None:
        self.module = module
        self._arguments = arguments
        self._descriptors = descriptors
        self._kinds = kinds
        self._on_message = on_message
        self._on_end = on_end
        self._on_broken = on_broken
        self._clock = clock
        self._starts: deque[float] = deque(maxlen=RESTARTS_MAX)
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._link: Link | None = None
        self._ending = False

    @property
    def pid(self) -> int:
        """The process that runs now; 0 when none does."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Starts the process; `send` works at once, for the socket keeps what it cannot read yet."""
        ours, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module, "--fd", str(theirs.fileno()), *self._arguments],
                pass_fds=[theirs.fileno(), *self._descriptors],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._starts.append(self._clock())
        self._link = Link(ours, self._kinds, self._on_message, self._closed)

    def send(self, *messages: Message, descriptors: Sequence[int] = ()) -> None:
        """Sends messages to the process; between two lives of it, they are lost (and `on_end` told so)."""
        if self._link is not None:
            self._link.send(*messages, descriptors=descriptors)

    def last_words(self) -> str:
        """The end of what the process wrote to standard error."""
        if self._errors is None:
            return ""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - LAST_WORDS_BYTES))
        return self._errors.read().decode(errors="replace").strip()

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
        if len(self._starts) == RESTARTS_MAX and self._clock() - self._starts[0] < RESTARTS_WINDOW_S:
            self._on_broken(
                ResourceFault(
                    f"{self.module} ended {RESTARTS_MAX} times within {RESTARTS_WINDOW_S:g} s; it last said: "
                    f"{self.last_words() or 'nothing'}"
                )
            )
            return
        self._forget_errors()
        self.start()

    def _forget_errors(self) -> None:
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def stop(self, timeout_s: float) -> None:
        """Tells the process to drain, waits for its end, and kills it when it has not come in time."""
        self._ending = True
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
        self._forget_errors()
