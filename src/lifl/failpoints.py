"""Failpoints: named places in the code where a test has the process die, fail or wait.

A fault that is injected by a clock ("kill it after 20 ms") hits another place on each machine, and on a fast one none.
Here the place has a name.  On both sides of each step that must not be lost or done twice stands one line:

    failpoints.hit("gateway.seal.before")

Off, which is always so in production, `hit` is a function that does nothing.  A test switches points on, in this
process with `arm`, in all processes of a node (they inherit it) with the environment variable LIFL_FAILPOINTS:

    LIFL_FAILPOINTS="gateway.seal.after=kill@3;lifld.round_row.before=pause:/tmp/x/stops"

Each entry is POINT=ACTION, with @N only at the N-th hit of this point in this process, else at each hit.  Actions:

    kill          SIGKILL to this process: nothing is flushed, closed or said
    exit[:CODE]   the process ends with this code (70 if none is given), without clean-up
    raise:ERRNO   `OSError` with that errno, by its name: raise:ENOSPC
    pause:SOCKET  tells the test that the point is reached, and waits until the test lets it go on
    count         nothing: `hits` tells how often the point was reached

**Pause.**  A process connects to the AF_UNIX socket (SOCK_SEQPACKET) at the path when its points are switched on, for
later it may be in a box that allows no connection; what it forks inherits that.  At the point it sends "POINT PID N"
with one end of a socket pair of its own, and reads the other.  The test answers one of the actions above, or "" to go
on; a test that is gone lets everything go on.  What is paused is the
thread that came there: in `lifld`, where one thread does it all, that is the whole daemon, as by SIGSTOP at that line.
No side sleeps or polls.  `tests/stops.py` is the test's end.

**A new point.**  Add its line to `POINTS` and call `hit` with that literal, through the module (`failpoints.hit`, never
`from failpoints import hit`: what is imported by name stays off).  A test holds that each point of the table stands in
the code and each one in the code is in the table.  Nothing in `core/` calls it: what core wants done is an effect, and
the effect's executor has the point.  Not within loops over bytes: a point costs a call, about 50 ns.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from lifl.core.errors import ConfigError

VARIABLE = "LIFL_FAILPOINTS"
EXIT_CODE = 70
ANSWER_BYTES_MAX = 256

POINTS = {
    # ---- the gateway
    "gateway.ready.before": "the gateway is about to tell lifld that it listens",
    "gateway.seal.before": "an update is in its slot and checked; the slot is still being written",
    "gateway.seal.after": "the update is sealed; lifld has not heard of it",
    "gateway.partial_seal.before": "another node's partial is here and checked",
    "gateway.partial_seal.after": "it is sealed; lifld has not heard of it",
    "gateway.model_seal.before": "a model fetched from another node is here and checked",
    "gateway.model_seal.after": "it is sealed; lifld has not heard of it",
    "gateway.ack.before": "lifld has said Accepted; the client has not heard it",
    "gateway.ack.after": "Accepted is in the client's socket, or in line for it",
    "gateway.carry.before": "a partial is to be offered to another node's gateway",
    "gateway.carry.after": "the other node has the partial; lifld has not heard of it",
    # ---- a worker
    "worker.start.before": "the fork has returned in the child; it has not joined the redirector",
    "worker.seal.before": "a task's output is made; it is still being written",
    "worker.seal.after": "the output is sealed; its key is not sent",
    "worker.keys.before": "the output's key is to be sent to the parent task's address",
    "worker.keys.after": "the key is sent; lifld has not heard that the task is done",
    "worker.done.after": "lifld has been told that the task is done",
    "worker.file_fsync.before": "a checkpoint is written under its temporary name; not synced",
    "worker.file_fsync.after": "it is synced; it has not its name yet",
    "worker.folder_fsync.before": "the checkpoint has its name; its folder is not synced",
    "worker.folder_fsync.after": "the checkpoint is durable; lifld has not heard of it",
    "worker.load_seal.before": "a model (or a rule's state) is read from its file",
    "worker.load_seal.after": "it is sealed; lifld has not heard of it",
    # ---- the zygote
    "zygote.fork.before": "a worker is to be forked",
    "zygote.fork.after": "it is forked; lifld has not heard of it",
    # ---- the journal
    "journal.write.before": "a sealed update is to be written to its journal",
    "journal.sync.before": "updates are written to their journals; not synced",
    "journal.sync.after": "they are durable; lifld has not heard of it",
    "journal.load_seal.before": "an update is read from its journal into the arena",
    "journal.load_seal.after": "it is sealed; lifld has not heard of it",
    # ---- lifld
    "lifld.open.before": "lifld holds the locks of its state folder; nothing else is made",
    "lifld.children.before": "the arena and the sockets are made; no other process has been started",
    "lifld.punch.before": "pages that a job has freed are to be another job's; they are in the first one's segment",
    "lifld.punch.after": "they are in no segment",
    "lifld.reserve.after": "they are in the other job's segment; there is no object yet",
    "lifld.job_row.before": "what became of a job is to be written to the database",
    "lifld.job_row.after": "the row is on the disk; what follows from it is not done",
    "lifld.job_config.before": "what a job's config has become is to be written to the database",
    "lifld.job_config.after": "it is on the disk; no round has begun with it",
    "lifld.job_drop.before": "the rows of a job that is to be forgotten are in the database",
    "lifld.job_drop.after": "they are gone from it",
    "lifld.round_row.before": "a round's row (at the end: its commit) is to be written to the database",
    "lifld.round_row.after": "the row is on the disk; no client has heard of it",
    "lifld.set_aside.before": "rounds whose checkpoints cannot be read are to be marked as damaged in the database",
    "lifld.set_aside.after": "they are marked; the job has not gone on",
    "lifld.remove.before": "a commit is durable; a file of a model that does not stay is to be removed (by a thread)",
    "lifld.plan_row.before": "a plan is to be written to the database",
    "lifld.plan_row.after": "the plan is on the disk; no client has been selected by it",
    "lifld.txn.before": "a transaction is to be sent to the store that a cluster shares",
    "lifld.txn.after": "what became of it is known, or it is to be sent again; nothing has followed from it",
    "lifld.fork.before": "a worker is to be asked of the zygote",
    "lifld.fork.after": "the zygote has been asked",
    "lifld.route.before": "an address is to be routed to a worker",
    "lifld.route.after": "it is routed; no key has been sent there",
    "lifld.keys.before": "keys are to be sent to an address",
    "lifld.keys.after": "they are sent",
    "lifld.task.before": "a task is to be sent to a worker",
    "lifld.task.after": "it is sent",
    "lifld.child.before": "messages are to be sent to the gateway or to the zygote",
    "lifld.child.after": "they are sent",
    "lifld.audit_line.half": "half of what is noted in the audit log is written (by its thread)",
    "lifld.drain.before": "lifld has been told to end; rounds whose updates are all in are to be waited for",
    "lifld.order.before": "the coordinator's order is to be sent to another node's agent",
    "lifld.order.after": "it is sent",
    "lifld.report.before": "an agent's report is to be sent to the coordinator",
    "lifld.report.after": "it is sent",
}
"""Every point, and how things stand there."""


class _Entry(NamedTuple):
    """What happens at a point: at hit `at` only, or (0) at each."""

    action: str
    argument: str
    at: int


def _off(_name: str) -> None:
    """Do nothing: what production calls."""


hit: Callable[[str], None] = _off
"""Does what is switched on for this point; a no-op function while nothing is."""
on = False
"""True while any point is switched on: for a place that has to find out first whether it is the point."""

_entries: dict[str, list[_Entry]] = {}
_hits: Counter[str] = Counter()
_tests: dict[str, socket.socket] = {}  # by the path at which the test listens


def arm(text: str) -> None:
    """Switch points on, as the variable does.  Raise `ConfigError` for what is no point or no action."""
    global hit, on
    for item in filter(None, map(str.strip, text.split(";"))):
        name, _, what = item.partition("=")
        if name not in POINTS:
            raise ConfigError(VARIABLE, f"{name!r} is no failpoint; they stand in lifl/failpoints.py")
        entry = _parse(item, what)
        _entries.setdefault(name, []).append(entry)
        if entry.action == "pause" and entry.argument not in _tests:
            _connect(entry.argument)
    if _entries:
        hit, on = _hit, True


def disarm() -> None:
    """Switch all points off and forget their hits."""
    global hit, on
    hit, on = _off, False
    _entries.clear()
    _hits.clear()
    while _tests:
        _tests.popitem()[1].close()


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Have points switched on in this process within a `with` block."""
    arm(text)
    try:
        yield
    finally:
        disarm()


def hits(name: str) -> int:
    """Return how often this process has come to a point since points were switched on."""
    return _hits[name]


def _connect(path: str) -> None:
    test = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        test.connect(path)
    except OSError:  # it is gone
        test.close()
    else:
        _tests[path] = test


def _parse(item: str, what: str) -> _Entry:
    what, _, at = what.rpartition("@") if what.rpartition("@")[2].isdigit() else (what, "", "0")
    action, _, argument = what.partition(":")
    good = {
        "kill": not argument,
        "exit": not argument or argument.isdigit(),
        "raise": argument in errno.errorcode.values(),
        "pause": bool(argument),
        "count": not argument,
    }
    if not good.get(action):
        raise ConfigError(VARIABLE, f"{item!r} is not POINT=kill, exit[:CODE], raise:ERRNO, pause:SOCKET or count[@N]")
    return _Entry(action, argument, int(at))


def _hit(name: str) -> None:
    assert name in POINTS, name
    _hits[name] += 1
    number = _hits[name]
    for entry in _entries.get(name, ()):
        if entry.at in (0, number):
            _do(name, number, entry)


def _do(name: str, number: int, entry: _Entry) -> None:
    match entry.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(int(entry.argument or EXIT_CODE))
        case "raise":
            code = getattr(errno, entry.argument)
            raise OSError(code, f"{os.strerror(code)} (failpoint {name})")
        case "pause":
            answer = _ask(name, number, entry.argument)
            if answer:
                _do(name, number, _parse(f"{name}={answer}", answer))


def _ask(name: str, number: int, path: str) -> str:
    """Return what the test wants done here; "" when it says so, or when there is none any more."""
    test = _tests.get(path)
    if test is None:
        return ""
    ours, theirs = socket.socketpair()
    with ours:
        try:
            with theirs:
                socket.send_fds(test, [f"{name} {os.getpid()} {number}".encode()], [theirs.fileno()])
            return ours.recv(ANSWER_BYTES_MAX).decode().strip()
        except OSError:
            return ""


arm(os.environ.get(VARIABLE, ""))
