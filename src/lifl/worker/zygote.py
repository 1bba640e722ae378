"""The zygote: a small process with everything loaded that forks workers in milliseconds.

    python -m lifl.worker.zygote --fd N --arena NAME [--state FOLDER] [--data-bytes N]

N is the zygote's end of a stream AF_UNIX socket to the daemon, inherited.  The zygote imports NumPy and the
worker, attaches the arena (children inherit the mapping) and says ZygoteReady.  Then it sleeps until one of
two descriptors is readable: the link, or the pipe into which a SIGCHLD is written.

**Fork.**  Each Fork frame is sent by one sendmsg with its descriptors as SCM_RIGHTS: `Fork.descriptors` of
them, first the worker's control socket, then the port's in the order of `Registration.descriptors`.  The
kernel hands descriptors out with the first byte of what they were sent with, and never two sends' at once,
so the zygote keeps them in a queue and each Fork takes its number of them from the front.  A fork that the
system refuses is answered by Exited with pid 0 and no Forked before it.

**Calibration.**  One more child measures the node's capacity when the daemon asks for it, writes the answer to the link
itself (one small frame, so it cannot be torn) and ends.

**One thread.**  A forked child has only the thread that forked, so there must be no other: BLAS is told to
use one before it is loaded.  `gc.freeze` keeps the collector from touching, and thereby copying, inherited
pages.

**Box.**  Before it is ready the zygote gives up what neither it nor a worker needs; each worker gives up more
(`confine/box.py`).  FOLDER is the node's state, which no user's rule reads, N the bytes of memory that a worker may
have for itself.

**No orphans.**  The kernel kills a worker when its zygote dies and the zygote when the daemon dies
(PDEATHSIG); a worker that was forked just before that sees its parent changed and exits; the link's EOF ends the
zygote in any case.
"""

# ruff: noqa: E402

from __future__ import annotations

import os

# Before NumPy is imported: its BLAS makes its threads while it is loaded.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import array
import ctypes
import gc
import select
import signal
import socket
import sys
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lifl import failpoints
from lifl.confine import box, signals
from lifl.core.errors import LiflError, RemoteFault
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.protocol.gateway import Drain
from lifl.core.protocol.worker import Calibrate, Calibrated, Exited, Fork, Forked, ToZygote, ZygoteReady
from lifl.redirect import open_port
from lifl.rules import calibration, kernels
from lifl.shm.arena import Arena
from lifl.worker.main import Worker

DESCRIPTORS_MAX = 16
"""That one Fork may carry; a port needs two or three."""
READ_BYTES = 64 * 1024

_PR_SET_NAME = 15
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Zygote:
    """The zygote's state: its link, its children by pid, and descriptors that wait for their Fork."""

    def __init__(
        self, link: socket.socket, arena: Arena, state_folder: Path | None, data_bytes: int, landlock: int
    ) -> None:
        self._link = link
        self._arena = arena
        self._state_folder = state_folder
        self._data_bytes = data_bytes
        self._landlock = landlock
        self._pid = os.getpid()
        self._decoder: FrameDecoder[Any] = FrameDecoder(ToZygote)
        self._descriptors: deque[int] = deque()
        self._workers: dict[int, int] = {}
        self._calibrating: set[int] = set()
        self._over = False
        self._wakeup, self._wakeup_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Return at the link's EOF, or after Drain when the last worker has ended."""
        signal.set_wakeup_fd(self._wakeup_in)
        signal.signal(signal.SIGCHLD, _noted)
        gc.collect()
        gc.freeze()
        self._send(ZygoteReady(self._pid, self._landlock))
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        draining = False
        while not self._over and not (draining and not self._workers):
            ready = {fd for fd, _events in poll.poll()}
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
                self._reap()
            if self._link.fileno() in ready:
                self._read_link()
            while not self._over and (message := self._decoder.next_message()) is not None:
                match message:
                    case Drain():
                        draining = True
                    case Calibrate(most):
                        self._calibrate(most)
                    case Fork():
                        self._fork(message)

    def _read_link(self) -> None:
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        try:
            data, ancillary, flags, _address = self._link.recvmsg(READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # the daemon died and had not read all
            self._over = True
            return
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) // received.itemsize * received.itemsize])
                self._descriptors.extend(received)
        if flags & socket.MSG_CTRUNC:
            raise RemoteFault(f"a Fork brought more than {DESCRIPTORS_MAX} descriptors")
        if not data:
            self._over = True
        self._decoder.feed(data)

    def _fork(self, message: Fork) -> None:
        if not 1 <= message.descriptors <= len(self._descriptors):
            raise RemoteFault(
                f"Fork of worker {message.worker} announces {message.descriptors} descriptors,"
                f" {len(self._descriptors)} came"
            )
        descriptors = [self._descriptors.popleft() for _ in range(message.descriptors)]
        failpoints.hit("zygote.fork.before")
        try:
            pid = os.fork()
        except OSError as error:  # no memory or no process number left: this worker fails, the node lives
            print(f"zygote.fork_failed worker={message.worker} error={error}", file=sys.stderr, flush=True)
            pid = -1
        if pid == 0:
            self._become(message, descriptors)
        for fd in descriptors:
            os.close(fd)
        if pid < 0:
            self._send(Exited(message.worker, 0, 1 << 8))
            return
        failpoints.hit("zygote.fork.after")
        self._workers[pid] = message.worker
        self._send(Forked(message.worker, pid))

    def _become(self, message: Fork, descriptors: list[int]) -> NoReturn:
        """Be the child: run the worker and never return into the zygote's code."""
        status = 1
        try:
            self._leave_zygote()
            self._link.close()
            _name_process(f"lifl-worker-{message.worker}")
            failpoints.hit("worker.start.before")
            control = socket.socket(fileno=descriptors[0])
            control.setblocking(True)
            port = open_port(message.port, descriptors[1:])
            # What a user's rule forks, where nothing keeps it from that, ends with the worker.
            os.register_at_fork(after_in_child=partial(_die_with_parent, os.getpid()))
            box.enter_worker(message.port, self._data_bytes)
            Worker(message.worker, os.getpid(), control, self._arena, port, self._state_folder).run()
            status = 0
        except LiflError as error:
            print(f"worker.failed worker={message.worker} error={error}", file=sys.stderr, flush=True)
        except BaseException:  # noqa: BLE001 - whatever it is, it must not go on in the zygote's code
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def _leave_zygote(self) -> None:
        """Drop, in the child, what is the zygote's alone; the link is the caller's business."""
        _die_with_parent(self._pid)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._wakeup)
        os.close(self._wakeup_in)
        for fd in self._descriptors:  # of later Forks: a copy kept here would outlive its worker
            os.close(fd)

    def _calibrate(self, most: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # the node keeps the capacity that it has assumed
            print(f"zygote.calibrate_failed error={error}", file=sys.stderr, flush=True)
            return
        if pid:
            self._calibrating.add(pid)
            return
        status = 1
        try:
            self._leave_zygote()
            _name_process("lifl-calibrate")
            self._send(Calibrated(calibration.capacity(most)))
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, it must not go on in the zygote's code
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Report every worker that has ended."""
        while self._workers or self._calibrating:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self._calibrating:
                self._calibrating.remove(pid)
                continue
            self._send(Exited(self._workers.pop(pid), pid, status))

    def _send(self, message: ZygoteReady | Forked | Exited | Calibrated) -> None:
        try:
            self._link.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            self._over = True


def _noted(_signal: int, _frame: object) -> None:
    """Do nothing: SIGCHLD has a handler only so that it is written to the wakeup pipe."""


def _die_with_parent(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _name_process(name: str) -> None:
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def _warm_up() -> None:
    """Run each kernel once: what the compiled ones or BLAS load, choose for this CPU and take in memory at
    first use is there before the forks.
    """
    for dtype in ("float32", "float64"):
        vectors = list(np.ones((4, 64), dtype))
        kernels.fold(np.zeros(64), vectors, [0.25] * 4)
        kernels.mean(np.zeros(64, dtype), [np.ones(64)], [0.0], vectors, [0.25] * 4)


def main() -> None:
    """Run the zygote: the entry of the process."""
    parser = argparse.ArgumentParser(prog="lifl.worker.zygote")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket to the daemon")
    parser.add_argument("--arena", required=True, help="the name of the node's shared-memory segment")
    parser.add_argument("--state", type=Path, help="the node's state folder")
    parser.add_argument("--data-bytes", type=int, default=0, help="memory that a worker may have; 0: any")
    arguments = parser.parse_args()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signals.leave_to_lifld()
    _name_process("lifl-zygote")
    link = socket.socket(fileno=arguments.fd)
    link.setblocking(True)
    link.set_inheritable(False)
    arena = Arena.attach(arguments.arena)
    _warm_up()
    landlock = box.enter_zygote()
    Zygote(link, arena, arguments.state, arguments.data_bytes, landlock).run()


if __name__ == "__main__":
    main()
