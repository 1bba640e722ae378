"""The loop of an aggregator process: sleeps until the daemon or a key wakes it.

Two descriptors are watched: the *control link* to the daemon (frames of `protocol/worker.ToWorker`) and the
*port*, the worker's own socket of keys.  Nothing else happens: no timers, no threads.  A worker holds any
number of open tasks, told apart by address.

The daemon sends a task's TaskStart before it routes the task's address here, so a key can never be there
before its task; but the two come on different sockets.  So when a key's address is unknown, the control
link is read first; if the address is still unknown the task is over and the key is dropped (the daemon
knows, it has ended it).

It maps the segments of the jobs that it has tasks of, and unmaps them when a task of another job comes.

Before its first task with a user's own rule the worker enters that rule's box (`confine/box.py`) for good: it then
serves no other job, and no file.  It has that job's segment, no descriptor of it, and the arena's table to read.

A task's output is sealed first, then its key is sent to the parent, then TaskDone is sent.  A worker that
dies in between leaves a sealed output: the daemon counts the task as done and sends the key itself.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from lifl import failpoints
from lifl.confine import box
from lifl.core.errors import ResourceFault
from lifl.core.ids import Key, Record
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.protocol.worker import (
    Arriving,
    Call,
    Checkpoint,
    Drop,
    Evaluate,
    Expect,
    Load,
    Retire,
    TaskDone,
    TaskDropped,
    TaskStart,
    ToWorker,
    WorkerReady,
)
from lifl.redirect import Port
from lifl.rules.load import bound_recursion, is_users
from lifl.shm.arena import Arena
from lifl.worker import files
from lifl.worker.call import call
from lifl.worker.evaluate import evaluate
from lifl.worker.task import ANY_ATTEMPT, Clock, OpenTask, failure

READ_BYTES = 64 * 1024


class Worker:
    """One worker.  `control` is a blocking stream socket to the daemon; `pid` is this process's.

    `state_folder` is what no user's rule reads; None: there is none.
    """

    def __init__(
        self,
        number: int,
        pid: int,
        control: socket.socket,
        arena: Arena,
        port: Port,
        state_folder: Path | None = None,
    ) -> None:
        self._number = number
        self._pid = pid
        self._control = control
        self._arena = arena
        self._port = port
        self._state_folder = state_folder
        self._users = False  # in the box of a user's rule
        self._decoder: FrameDecoder[Any] = FrameDecoder(ToWorker)
        self._tasks: dict[int, OpenTask] = {}
        self._over = False

    def run(self) -> None:
        """Return when the daemon says Retire or is gone.  Raise `RemoteFault` when it does not speak the
        protocol.
        """
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._port.fileno(), select.POLLIN)
        self._send(WorkerReady(self._number, self._pid, time.monotonic_ns()))
        while not self._over:
            ready = {fd for fd, _events in poll.poll()}
            if self._control.fileno() in ready:
                self._read_control()
            if self._port.fileno() in ready and not self._over:
                self._read_port()
            for task in list(self._tasks.values()):
                self._advance(task)

    def _read_control(self) -> None:
        """Handle every message that is there, without waiting for more."""
        while not self._over:
            try:
                data = self._control.recv(READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._over = True
                return
            self._decoder.feed(data)
            while not self._over and (message := self._decoder.next_message()) is not None:
                self._handle(message)

    def _read_port(self) -> None:
        try:
            records = self._port.receive()
        except EOFError:
            self._over = True
            return
        for record in records:
            if record.address not in self._tasks:
                self._read_control()
            task = self._tasks.get(record.address)
            if task is not None:
                task.add(record)

    def _handle(self, message: Any) -> None:
        match message:
            case TaskStart():
                self._start(message)
            case Expect():
                task = self._tasks.get(message.address)
                if task is not None and task.start.attempt == message.attempt:
                    task.expect = message.expect
            case Arriving():
                task = self._tasks.get(message.address)
                if task is not None and task.start.attempt == message.attempt:
                    task.arriving(message)
            case Drop():
                task = self._tasks.get(message.address)
                if task is not None and task.start.attempt == message.attempt:
                    del self._tasks[message.address]
                self._send(TaskDropped(message.address, message.attempt))
            case Checkpoint() | Load():
                self._do_file(message)
            case Evaluate():
                self._evaluate(message)
            case Call():
                self._call(message)
            case Retire():
                self._over = True

    @contextmanager
    def _here(self) -> Iterator[None]:
        """Run what a user's rule is part of; a process that it has forked, and that comes out of it, ends here."""
        try:
            yield
        finally:
            if os.getpid() != self._pid:
                os._exit(0)

    def _map_only(self, *keys: bytes) -> None:
        """Have no segment of another job mapped than of those that there is something to do for."""
        outputs = [task.start.output for task in self._tasks.values()]
        self._arena.keep_only(Key.unpack(key) for key in (*outputs, *keys) if key)

    def _start(self, message: TaskStart) -> None:
        output = Key.unpack(message.output)
        if not self._arena.holds(output):  # the job's pages went to others meanwhile, and it has a fresh segment
            self._over = True
            return
        try:
            self._map_only(message.output)
            if is_users(message.rule):
                self._enter_box(message.rule_folder, output)
            with self._here():
                self._tasks[message.address] = OpenTask(message, self._arena)
        except BaseException as error:  # noqa: BLE001 - a user's rule may raise anything; the daemon gets it
            self._send(failure(message.address, message.attempt, error, message.rule))

    def _enter_box(self, folder: str, key: Key | None = None, job: int = 0) -> None:
        """Be held, from now on, as a process is that runs a user's code of this folder on a job's objects.

        One of them has the `key`; without it the job's number tells.
        """
        if not self._users:
            if key is not None:
                self._arena.close_to_others(key)
            else:
                self._arena.close_to_other_jobs(job)
            box.enter_rule(folder, self._state_folder)
            bound_recursion()
            self._users = True

    def _advance(self, task: OpenTask) -> None:
        start = task.start
        try:
            with self._here():
                done = task.advance()
        except BaseException as error:  # noqa: BLE001 - a user's rule may raise anything; the daemon gets it
            del self._tasks[start.address]
            self._send(failure(start.address, start.attempt, error, start.rule))
            return
        if done is None:
            return
        del self._tasks[start.address]
        if start.parent:
            record = Record(start.parent, task.output, ANY_ATTEMPT, start.address, time.monotonic_ns())
            failpoints.hit("worker.keys.before")
            try:
                self._port.send([record])
            except EOFError:
                self._over = True
            failpoints.hit("worker.keys.after")
        self._send(done)
        failpoints.hit("worker.done.after")

    def _evaluate(self, message: Evaluate) -> None:
        key, clock, started_ns = Key.unpack(message.model), Clock(), time.monotonic_ns()
        if not self._arena.holds(key):  # as in `_start`
            self._over = True
            return
        try:
            self._map_only(message.model)
            self._enter_box(message.folder, key)
            with self._here(), clock:
                metrics = evaluate(message, self._arena)
        except BaseException as error:  # noqa: BLE001 - a user's function may raise anything; the daemon gets it
            self._send(failure(message.address, message.attempt, error, message.function, "function"))
            return
        self._send(done_alone(message, clock, started_ns, metrics=metrics))

    def _call(self, message: Call) -> None:
        clock, started_ns = Clock(), time.monotonic_ns()
        try:
            self._enter_box(message.folder, job=message.number)
            with self._here(), clock:
                answer = call(message)
        except BaseException as error:  # noqa: BLE001 - as in `_evaluate`
            self._send(failure(message.address, message.attempt, error, message.function, "function"))
            return
        self._send(done_alone(message, clock, started_ns, answer=answer))

    def _do_file(self, message: Checkpoint | Load) -> None:
        started_ns = time.monotonic_ns()
        clock = Clock()
        digests: tuple[str, ...] = ()
        try:
            with clock:
                self._map_only(message.model if isinstance(message, Checkpoint) else message.output)
                if isinstance(message, Checkpoint):
                    digests = files.checkpoint(message, self._arena)
                else:
                    files.load(message, self._arena)
        except Exception as error:  # noqa: BLE001 - a full disk must not end a worker that holds tasks
            failed = failure(message.address, message.attempt, error)
            self._send(msgspec.structs.replace(failed, retry=isinstance(error, ResourceFault)))
            return
        self._send(done_alone(message, clock, started_ns, digests=digests))

    def _send(self, message: msgspec.Struct) -> None:
        try:
            self._control.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            self._over = True


def done_alone(message: Checkpoint | Evaluate | Call | Load, clock: Clock, started_ns: int, **found: Any) -> TaskDone:
    """Return what is said of a task that has no inputs, with what it has `found`."""
    return TaskDone(
        address=message.address,
        attempt=message.attempt,
        weight=0.0,
        members=0,
        inputs=0,
        cpu_s=clock.cpu_s,
        busy_s=clock.busy_s,
        started_ns=started_ns,
        **found,
    )
