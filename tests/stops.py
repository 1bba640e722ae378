"""The test's end of failpoints (`lifl/failpoints.py`): processes come to named places, and the test says what happens.

    stops = Stops("worker.seal.before")          # a context manager; `stops.variable` goes to the node
    hold = stops.hold("worker.seal.before")      # the next one that comes there stays there
    visit = hold.reached()                       # returns when it has come; visit.pid is who
    visit.go()                                   # or visit.kill(), visit.fail("ENOSPC")

What comes to a place that nobody holds goes on at once, unless `decide` says otherwise: it is asked about each visit,
in the order in which they come, and what it returns is done there.  Nothing here sleeps, polls or counts time; the one
bound (`WAIT_S`) is for what never comes.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import shutil
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

WAIT_S = 120.0


class Visit:
    """A process that has come to a point, and waits there; it is the `number`-th time that this process has."""

    def __init__(self, line: bytes, connection: socket.socket) -> None:
        self._connection = connection
        point, pid, number = line.decode().split()
        self.point, self.pid, self.number = point, int(pid), int(number)

    def go(self) -> None:
        """It goes on."""
        self.answer("")

    def kill(self) -> None:
        """It dies there, as by kill -9; returns when it is dead."""
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self.answer("")
            return
        try:
            self.answer("kill")
            assert select.select([process], [], [], WAIT_S)[0], f"process {self.pid} lives on"
        finally:
            os.close(process)

    def fail(self, errno_name: str) -> None:
        """What the point stands before raises this error."""
        self.answer(f"raise:{errno_name}")

    def answer(self, action: str) -> None:
        """It does this action and goes on, if it can."""
        with self._connection:
            try:
                self._connection.sendall(f"{action}\n".encode())
            except OSError:  # it was killed while it waited
                pass


class Hold:
    """Keeps the first visit of a point that comes after it was made, of those that `wanted` says; the others go on."""

    def __init__(self, point: str, wanted: Callable[[Visit], bool] = lambda visit: True) -> None:
        self.point, self.wanted = point, wanted
        self._visit: Visit | None = None
        self._came = threading.Event()

    def reached(self) -> Visit:
        """Returns when a process is there."""
        assert self._came.wait(WAIT_S), f"nothing came to {self.point} within {WAIT_S:g} s"
        assert self._visit is not None
        return self._visit

    def within(self, seconds: float) -> Visit | None:
        """Who is there, as soon as somebody is; none when that takes longer."""
        self._came.wait(seconds)
        return self._visit

    def take(self, visit: Visit) -> None:
        self._visit = visit
        self._came.set()


class Stops:
    """Listens for the processes that come to `points`; those of a node whose environment has `variable`."""

    def __init__(self, *points: str, decide: Callable[[Visit], str] | None = None) -> None:
        self.points = points
        self.decide = decide
        self.visits: Counter[str] = Counter()
        self._holds: list[Hold] = []
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Stops:
        self._folder = tempfile.mkdtemp(prefix="lt-", dir="/tmp")
        path = Path(self._folder) / "stops"
        self.variable = ";".join(f"{point}=pause:{path}" for point in self.points)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._ending, self._ended = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Lets all go that are held or still come."""
        self._ending.close()
        self._thread.join(WAIT_S)
        shutil.rmtree(self._folder)
        for hold in self._holds:
            if hold._visit is not None:
                hold._visit.go()
        if self._failure is not None:
            raise self._failure

    def hold(self, point: str, wanted: Callable[[Visit], bool] = lambda visit: True) -> Hold:
        """Keeps the next process that comes to the point, of those that `wanted` says."""
        assert point in self.points, f"{point} is not among {self.points}"
        with self._lock:
            self._holds.append(Hold(point, wanted))
            return self._holds[-1]

    def drop(self, hold: Hold) -> None:
        """Keeps nobody there any more; who is there goes on."""
        with self._lock:
            self._holds.remove(hold)
            if hold._visit is not None:
                hold._visit.go()

    def _serve(self) -> None:
        """Takes in the processes that have points, and what each, or one that it has forked, says."""
        with selectors.DefaultSelector() as watched, self._listener, self._ended:
            watched.register(self._listener, selectors.EVENT_READ)
            watched.register(self._ended, selectors.EVENT_READ)
            try:
                while self._serve_one(watched):
                    pass
            finally:
                for key in list(watched.get_map().values()):
                    key.fileobj.close()  # type: ignore[union-attr]

    def _serve_one(self, watched: selectors.BaseSelector) -> bool:
        for key, _ in watched.select():
            if key.fileobj is self._ended:
                return False
            if key.fileobj is self._listener:
                watched.register(self._listener.accept()[0], selectors.EVENT_READ)
                continue
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            line, descriptors = b"", []
            with contextlib.suppress(ConnectionError):
                line, descriptors, _flags, _address = socket.recv_fds(connection, 256, 1)
            if not line:  # all that could say something there have ended
                watched.unregister(connection)
                connection.close()
                continue
            visit = Visit(line, socket.socket(fileno=descriptors[0]))
            with self._lock:
                self._meet(visit)
        return True

    def _meet(self, visit: Visit) -> None:
        self.visits[visit.point] += 1
        for hold in self._holds:
            if hold.point == visit.point and hold._visit is None and hold.wanted(visit):
                hold.take(visit)
                return
        try:
            answer = self.decide(visit) if self.decide is not None else ""
        except BaseException as error:  # noqa: BLE001 - the test's own thread raises it
            self._failure, answer = self._failure or error, ""
        visit.answer(answer)
