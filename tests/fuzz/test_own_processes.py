"""A node's own gateway, zygote or worker says anything: `lifld` lives, and so does an honest job.

Whoever takes one of these processes over (they read what strangers send, and run users' rules) has its link to `lifld`,
and no more.  The test takes a copy of that link's socket out of the running process, and says each message of the
channel on it, with each field at its extremes, about a round that collects, or a task that runs.  Then the process is
killed, as a hostile one is when it is noticed: `lifld` reads all before it sees the end, and starts another one.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from extremes import FUZZ_S, KNOWN, WAIT_S, at_random, at_the_ends, commits, decodes, honest, log_of
from fleet import OneHot, ask, fleet, gated, seeded, submit, until
from nodes import Foreground
from skips import is_no_root

from lifl.core.errors import Refused
from lifl.core.ids import Key
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.schema import Layout
from lifl.shm.arena import Arena
from lifl.shm.layout import Entry, ObjectState

pytestmark = pytest.mark.skipif(is_no_root(), reason="NOT TESTED, it needs root")

ENDLESS = "from lifl.node import children; children.RESTARTS_MAX = 1_000_000"
"""Processes may end as often as a test has them end."""
_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)
MODULES = {"gateway": "lifl.node.gateway.main", "zygote": "lifl.worker.zygote"}
SAYS: dict[str, Any] = {"gateway": gm.FromGateway, "zygote": wm.FromZygote, "worker": wm.FromWorker}
LIVES_MAX = 2
"""Of a process, for the messages of one kind: those that cannot be true end it, and the next one says the others."""


@pytest.fixture
def node(state_dir: Path) -> Iterator[Foreground]:
    flags = ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--redirector", "unix")
    found = Foreground(state_dir, flags, ENDLESS)
    found.up()
    yield found
    found.end()
    assert found.process.returncode == 0, log_of(found)


class Taken:
    """A copy of the socket by which a process speaks with `lifld`."""

    def __init__(self, pid: int, fd: int) -> None:
        process = os.pidfd_open(pid)
        try:
            self.fd = _libc.syscall(_PIDFD_GETFD, process, fd, 0)
            if self.fd < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(process)

    def say(self, data: bytes) -> bool:
        """Say this, whole, and return whether the other end was still there."""
        while data:
            try:
                data = data[os.write(self.fd, data) :]
            except BlockingIOError:
                select.select([], [self.fd], [], WAIT_S)
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def is_stream(self) -> bool:
        sock = socket.socket(fileno=os.dup(self.fd))
        with sock:
            return sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM

    def close(self) -> None:
        os.close(self.fd)


def child(node: Foreground, name: str) -> psutil.Process:
    """The node's gateway, or zygote, which has its link by now."""

    def look() -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(node.process.pid).children():
                if MODULES[name] in process.cmdline():
                    return process
        return None

    return until(f"a {name}", look)


def link_of(process: psutil.Process) -> Taken:
    words = process.cmdline()
    return Taken(process.pid, int(words[words.index("--fd") + 1]))


def worker_link(pid: int) -> Taken:
    """Its control socket: the only stream of this machine that it has."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                taken = Taken(pid, int(name))
                if taken.is_stream():
                    return taken
                taken.close()
    raise AssertionError(f"worker {pid} has no link")


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def replaced(node: Foreground, name: str, pid: int) -> psutil.Process:
    """The process that has taken the place of this one."""
    return until(f"another {name}", lambda: (found := child(node, name)).pid != pid and found)


# ---- what is there to be spoken of -----------------------------------------------------------------------------------


@contextmanager
def uploading(node: Foreground, job: str) -> Iterator[dict[str, Any]]:
    """A job of two clients that are selected; one of them has announced its update, and does not send it."""
    number = len(ask(node, om.ListJobs())["jobs"]) + 1
    submit(node, job, OneHot(2).model(), job__rounds=5, selection__deadline_s=86_400.0)
    with ExitStack() as clients:
        for name in ("t1", "t2"):
            sock = clients.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(WAIT_S)
            sock.connect(str(node.state_dir / "gateway.sock"))
            decoder: FrameDecoder[Any] = FrameDecoder(cm.ToClient)
            for message in (cm.Hello(cm.PROTOCOL_VERSION, name), cm.Join(job)):
                sock.sendall(encode(message))
        tensors = heard(sock, decoder, cm.Selected).tensors
        sock.sendall(encode(cm.Submit(job, 1, 1.0, Layout(tensors).data_bytes, tensors)))
        heard(sock, decoder, cm.Go)
        writing = [key for key, entry in live(node) if entry.state == ObjectState.WRITING and entry.job == number]
        key = writing[0].pack() if writing else b"\0" * 16
        # Of a fresh gateway the last of four connections; whoever else's it is comes back over the next gateway.
        yield KNOWN | {"job": job, "number": number, "client": "t2", "conn": 4, "key": key}
    ask(node, om.CancelJob(job))


def live(node: Foreground) -> list[tuple[Key, Entry]]:
    """The arena's objects, read from outside."""
    arena = Arena.attach(f"/lifl-{node.info['node']}")
    try:
        found = [(slot, arena._sealed(arena._in_table(slot))) for slot in range(arena.entries)]
        return [(Key(slot, entry.generation, arena.node), entry) for slot, entry in found]
    finally:
        arena.close()


def heard(sock: socket.socket, decoder: FrameDecoder[Any], kind: type) -> Any:
    while not isinstance(message := decoder.next_message(), kind):
        if message is None:
            data = sock.recv(65_536)
            assert data, "the node closed the connection"
            decoder.feed(data)
        assert not isinstance(message, cm.Refusal), message
    return message


# ---- what they say ---------------------------------------------------------------------------------------------------


def say_all(node: Foreground, name: str, frames: list[bytes]) -> None:
    """Say this on the link of the gateway or zygote, and of those that come after it; the last one is killed."""
    waiting = list(frames)
    for _ in range(LIVES_MAX):
        process = child(node, name)
        with closing(link_of(process)) as link:
            while waiting and link.say(waiting.pop(0)):
                pass
        if not waiting:
            kill(process)
        replaced(node, name, process.pid)
        if not waiting:
            return


def check(node: Foreground, what: str, committed: Callable[[], int] | None = None) -> None:
    """lifld lives, and serves: the job that is there, or (None) one whose clients come now."""
    assert node.process.poll() is None, f"lifld ended at {what}: {log_of(node)}"
    if committed is not None:
        commits(committed)
    else:
        oracle = OneHot(2)
        submit(node, f"after-{what}", oracle.model(), job__rounds=2)
        with fleet(node.address, f"after-{what}", 2, oracle.update) as team:
            team.join()
            oracle.check(node, f"after-{what}", team)
    assert "Traceback" not in log_of(node), f"at {what}: {log_of(node)}"


def said_at_the_ends(node: Foreground, name: str, kind: type, known: dict[str, Any]) -> None:
    frames = list(at_the_ends(kind, known))
    good = [data for data in frames if decodes(SAYS[name], data)]
    say_all(node, name, [*good, next(data for data in frames if not decodes(SAYS[name], data))])


def test_every_field_of_the_gateway_at_its_extremes(node: Foreground) -> None:
    """To its own clients it can say anything, so those that are looked at come over the next one."""
    for kind in typing.get_args(gm.FromGateway):
        with uploading(node, f"t-{kind.__name__}") as known:
            said_at_the_ends(node, "gateway", kind, known)
            check(node, kind.__name__)


def test_every_field_of_the_zygote_at_its_extremes(node: Foreground) -> None:
    with honest(node) as committed:
        for kind in typing.get_args(wm.FromZygote):
            workers = [each["worker"] for each in ask(node, om.Snapshot())["workers"]]
            said_at_the_ends(node, "zygote", kind, KNOWN | {"worker": max(workers, default=1)})
            check(node, kind.__name__, committed)


def tree_of(node: Foreground, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (ask(node, om.JobStatus(job))["now"] or {}).get("tree", [])
    return found


@contextmanager
def worker_says(
    node: Foreground, job: str, committed: Callable[[], int]
) -> Iterator[tuple[Taken, dict[str, Any], list[int]]]:
    """A worker that is tied to a job, as those are that run a user's rule, within its task.

    Its link, what there is to be spoken of, and the numbers of workers.  In the end it says what no worker says, and
    `lifld` kills it; the honest job of which so many rounds are `committed` goes on.
    """
    oracle = OneHot(2)
    with gated(node, "fold") as (keys, (gate,)):
        submit(node, job, oracle.model(), **keys)
        with fleet(node.address, job, 2, oracle.update) as team:
            gate.reached()
            tree = until("its worker", lambda: [each for each in tree_of(node, job) if each["pid"]])
            task = tree[0]  # it may be on its way to the gate: one of the job before can be there, too
            others = {each["worker"] for each in ask(node, om.Snapshot())["workers"] if each["pid"] != task["pid"]}
            process = psutil.Process(task["pid"])
            with closing(worker_link(task["pid"])) as link:
                yield link, KNOWN | {"address": task["address"], "attempt": 1}, [*others, 1]
                link.say(next(data for data in at_the_ends(wm.TaskDone) if not decodes(wm.FromWorker, data)))
            psutil.wait_procs([process], timeout=WAIT_S)
            assert not process.is_running(), "one that says what no worker says is not left alive"
            check(node, job, committed)
            gate.open()
            with suppress(Refused):  # what the worker said of its own task may have failed its job
                ask(node, om.CancelJob(job))
            team.join(well=False)


@pytest.mark.parametrize("kind", typing.get_args(wm.FromWorker), ids=lambda kind: kind.__name__)
def test_every_field_of_a_worker_at_its_extremes(node: Foreground, kind: type) -> None:
    with honest(node) as committed, worker_says(node, "gated", committed) as (link, known, numbers):
        for number in numbers:
            for data in at_the_ends(kind, known | {"worker": number}):
                if decodes(wm.FromWorker, data):
                    link.say(data)


def test_fields_of_a_worker_at_random(node: Foreground, request: pytest.FixtureRequest) -> None:
    draw = seeded(request.node.name)
    kinds = typing.get_args(wm.FromWorker)
    end_s, lives = time.monotonic() + FUZZ_S, 0
    with honest(node) as committed:
        while time.monotonic() < end_s:
            lives += 1
            with worker_says(node, f"gated-{lives}", committed) as (link, known, numbers):
                for _ in range(200):
                    data = at_random(draw.choice(kinds), draw, known | {"worker": draw.choice(numbers)})
                    if decodes(wm.FromWorker, data) and not link.say(data):
                        break  # it has said what cannot be true


@pytest.mark.parametrize("name", ["gateway", "zygote"])
def test_fields_at_random(node: Foreground, name: str, request: pytest.FixtureRequest) -> None:
    draw = seeded(request.node.name)
    kinds = typing.get_args(SAYS[name])
    end_s, lives = time.monotonic() + FUZZ_S, 0
    while time.monotonic() < end_s:
        lives += 1
        with uploading(node, f"r-{lives}") as known:
            frames = [at_random(draw.choice(kinds), draw, known) for _ in range(200)]
            say_all(node, name, [data for data in frames if decodes(SAYS[name], data)])
            check(node, f"life-{lives}")
