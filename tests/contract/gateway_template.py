"""Gateways that need not import anything: a process that has all of a gateway's modules forks each one.

`fork` stands for `subprocess.Popen` of a gateway.  The process, the template, is started with the first of them, and
ended with the test file (`conftest.py`).  It takes the flags of a gateway with its descriptors (standard error, the
socket by which its pid and its exit status are told, and those of `PASSED`), and is single-threaded.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

PASSED = ("--fd", "--tcp-fd", "--unix-fd")
"""The flags that name a descriptor."""
STARTED_S = 60.0
"""Only a failing test waits so long."""


class Forked:
    """What a test uses of a `subprocess.Popen` whose standard error is a pipe."""

    def __init__(self, template: socket.socket, flags: Sequence[str], fds: Sequence[int]) -> None:
        self._stderr, theirs = os.pipe()
        self._told, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.returncode: int | None = None
        with status:
            socket.send_fds(template, [json.dumps(flags).encode()], [theirs, status.fileno(), *fds])
        os.close(theirs)
        self._told.settimeout(STARTED_S)
        self.pid = int(self._told.recv(64))

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout_s: float | None = None) -> int:
        if self.returncode is None:
            self._told.settimeout(timeout_s)
            self.returncode = int(self._told.recv(64))
            self._told.close()
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, 9)

    def communicate(self, timeout: float | None = None) -> tuple[None, bytes]:
        """Wait for its end; return what it wrote to standard error that was not read before."""
        heard, until = b"", time.monotonic() + (timeout or STARTED_S)
        while self._stderr >= 0:
            if not select.select([self._stderr], [], [], max(0.0, until - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired("gateway", timeout or STARTED_S, heard)
            data = os.read(self._stderr, 1 << 16)
            heard += data
            if not data:
                os.close(self._stderr)
                self._stderr = -1
        self.wait(timeout)
        return None, heard


_lock = threading.Lock()
_running: tuple[subprocess.Popen[bytes], socket.socket] | None = None


def fork(flags: Sequence[str], fds: Sequence[int]) -> Forked:
    """Start a gateway with these flags and the descriptors of `PASSED`."""
    global _running
    with _lock:
        if _running is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, __file__, str(theirs.fileno())]
                _running = subprocess.Popen(command, pass_fds=[theirs.fileno()]), ours
        return Forked(_running[1], flags, fds)


def end() -> None:
    """End the template, if there is one."""
    global _running
    if _running is not None:
        process, sock = _running
        _running = None
        sock.close()
        process.wait()


# ---- in the template -------------------------------------------------------------------------------------------------


def serve(sock: socket.socket) -> None:
    """Fork gateways until the other end of the socket is closed."""
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not sock:
                pid, status = key.data
                selector.unregister(key.fileobj)
                os.close(key.fd)
                ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.write(status, str(ended).encode())
                os.close(status)
                continue
            data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 2 + len(PASSED))
            if not data:
                return
            pid = os.fork()
            if not pid:
                become(json.loads(data), fds)
            for fd in (fds[0], *fds[2:]):
                os.close(fd)
            os.write(fds[1], str(pid).encode())
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, fds[1]))


def become(flags: Sequence[str], fds: Sequence[int]) -> NoReturn:
    """Be a gateway, as one whose process was started by these flags."""
    stderr, _, *passed = fds
    os.dup2(stderr, 2)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in passed:
            try:
                os.close(fd)
            except OSError:
                pass  # the listing's own
    sys.argv = ["gateway", *flags, *(word for pair in zip(PASSED, map(str, passed), strict=True) for word in pair)]
    from lifl.node.gateway.main import main

    sys.exit(main())


if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a forked process has no other threads
    import lifl.node.gateway.main  # noqa: F401 - what is forked has it

    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except Exception:  # noqa: BLE001 - the tests that wait for it see its end
        traceback.print_exc()
        os._exit(1)
