"""The workers as the daemon sees them: forked by the zygote, reached by link and redirector.

A worker's control link carries its tasks; the redirector carries keys.  What the redirector cannot deliver now (a
receiver is full) is held here until the receiver wakes the daemon; what comes to the daemon because an address had no
route goes to `on_fallback`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lifl import failpoints
from lifl.core.errors import RemoteFault, ResourceFault
from lifl.core.fields import Message
from lifl.core.ids import DAEMON_ADDRESS, Key, Record
from lifl.core.protocol import worker as wm
from lifl.node import folders
from lifl.node.children import Child
from lifl.node.link import Link
from lifl.node.process_state import is_child, is_stopped
from lifl.redirect import Redirector, is_wake

log = logging.getLogger("lifl.workers")


class Workers:
    """Forks, links and routes; owns the redirector.

    `on_message(worker, message)`, `on_gone(worker)` and `on_fallback(address, key)` are the events.
    """

    def __init__(
        self,
        zygote: Child,
        redirector: Redirector,
        on_message: Callable[[int, Any], None],
        on_gone: Callable[[int], None],
        on_fallback: Callable[[int, Key], None],
        state: Path = Path(),
    ) -> None:
        self._state = state
        self._on_message = on_message
        self._on_gone = on_gone
        self._on_fallback = on_fallback
        self._links: dict[int, Link] = {}
        self._slots: dict[int, int] = {}
        self._pidfds: dict[int, tuple[int, int]] = {}  # by worker: its pid, and a descriptor of the process
        self._held: dict[int, list[Record]] = {}  # by address
        self._loop = asyncio.get_running_loop()
        self._zygote = zygote
        self.redirector = redirector
        self.redirector.on_fallback(self._watch, self._unwatch)

    def fork(self, worker: int) -> None:
        """Have the zygote fork a worker; it says WorkerReady when it runs.

        One for which there is no descriptor is gone a moment later, as one that could not be forked.
        """
        try:
            registration = self.redirector.register()
        except ResourceFault as error:
            self._no_room(worker, error)
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            registration.handed_over()
            self.redirector.retire(registration.slot)
            self._no_room(worker, error)
            return
        with theirs:
            descriptors = [theirs.fileno(), *registration.descriptors]
            self._slots[worker] = registration.slot
            self._links[worker] = Link(
                ours,
                wm.FromWorker,
                lambda message: self._on_message(worker, message),
                lambda error: self._closed(worker, error),
            )
            failpoints.hit("lifld.fork.before")
            self._zygote.send(wm.Fork(worker, registration.port, len(descriptors)), descriptors=descriptors)
            failpoints.hit("lifld.fork.after")
        # From here on no copy is left with the daemon: else a dead worker would look alive.
        registration.handed_over()

    def forked(self, worker: int, pid: int) -> None:
        """Take note of a worker's process, once: a child of the zygote, for it is killed when it hangs."""
        if worker not in self._links or worker in self._pidfds:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended, as its link will say
            return
        except OSError as error:
            log.warning("worker.unwatched worker=%d pid=%d %s; it is not killed when it hangs", worker, pid, error)
            return
        if is_child(pid, self._zygote.pid):  # looked at after it was opened: it is the same process
            self._pidfds[worker] = pid, pidfd
        else:
            os.close(pidfd)
            log.warning("worker.unwatched worker=%d pid=%d: it is none of the zygote's", worker, pid)

    def is_stopped(self, worker: int) -> bool:
        """Return whether the worker's process is stopped."""
        pid, _ = self._pidfds.get(worker, (0, -1))
        return bool(pid) and is_stopped(pid)

    def kill(self, worker: int, why: str) -> None:
        """Kill the worker's process, if it has one; the end of its link tells when it is gone."""
        pid, pidfd = self._pidfds.get(worker, (0, -1))
        if not pid:
            return
        log.warning("worker.killed worker=%d pid=%d %s", worker, pid, why)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _end_process(self, worker: int) -> None:
        """See to it that a process without its link ends, which is of no use, and may be on its way out already."""
        _, pidfd = self._pidfds.get(worker, (0, -1))
        if pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self._forget_process(worker)

    def _forget_process(self, worker: int) -> None:
        _, pidfd = self._pidfds.pop(worker, (0, -1))
        if pidfd >= 0:
            os.close(pidfd)

    def _no_room(self, worker: int, error: Exception) -> None:
        # Told later: nothing that is performed hands in an event within that.
        log.warning("worker.no_room worker=%d %s", worker, error)
        self._loop.call_soon(self._on_gone, worker)

    def send(self, worker: int, message: Message) -> None:
        """Send a worker a task, or what it is to do about one."""
        link = self._links.get(worker)
        if link is not None:
            failpoints.hit("lifld.task.before")
            link.send(self._placed(message) if isinstance(message, wm.Checkpoint | wm.Load) else message)
            failpoints.hit("lifld.task.after")

    def _placed(self, message: wm.Checkpoint | wm.Load) -> Message:
        """Return a task on files whose paths are whole: those of copies are below the node's own folder."""
        paths = {name: getattr(message, name) for name in ("path", "state_path")}
        whole = {name: str(folders.local(self._state, path)) for name, path in paths.items() if path}
        return msgspec.structs.replace(message, **whole)

    def route(self, address: int, worker: int | None) -> None:
        """Route what goes to the address to the worker (None: to the daemon) from now on."""
        self._held.pop(address, None)  # the next task of the address is sent all its keys afresh
        slot = self._slots.get(worker) if worker is not None else None
        failpoints.hit("lifld.route.before")
        self.redirector.route(address, slot)
        failpoints.hit("lifld.route.after")

    def send_keys(self, address: int, attempt: int, keys: tuple[Key, ...]) -> None:
        """Send keys to an address; those that find no room follow when the receiver wakes the daemon."""
        now_ns = time.monotonic_ns()
        records = [Record(address, key, attempt, 0, now_ns) for key in keys]
        if address in self._held:
            self._held[address] += records
            return
        failpoints.hit("lifld.keys.before")
        rest = self.redirector.send(records)
        if rest:
            self._held[address] = list(rest)
        failpoints.hit("lifld.keys.after")

    def _flush(self) -> None:
        for address, records in list(self._held.items()):
            rest = self.redirector.send(records)
            if rest:
                self._held[address] = list(rest)
            else:
                self._held.pop(address, None)

    def _watch(self, fd: int) -> None:
        self._loop.add_reader(fd, self._readable, fd)

    def _unwatch(self, fd: int) -> None:
        self._loop.remove_reader(fd)

    def _readable(self, fd: int) -> None:
        try:
            records = self.redirector.receive(fd)
        except (EOFError, RemoteFault) as error:
            slot = self.redirector.slot_of(fd)
            if isinstance(error, RemoteFault):
                log.error("redirector.garbage slot=%d %s", slot, error)
            self._retire(slot)
            return
        for record in records:
            if is_wake(record):
                self._flush()
            elif record.address != DAEMON_ADDRESS:
                self._on_fallback(record.address, record.key)

    def _retire(self, slot: int) -> None:
        """Give up a worker that the redirector has lost; the end of its link ends it, if it lives at all."""
        self.redirector.retire(slot)
        for worker, its in list(self._slots.items()):
            if its == slot:
                del self._slots[worker]
                self._links[worker].close()

    def _closed(self, worker: int, error: Exception | None) -> None:
        if error is not None:
            log.warning("worker.link worker=%d %s", worker, error)
        del self._links[worker]
        self._end_process(worker)
        slot = self._slots.pop(worker, None)
        if slot is not None:
            self.redirector.retire(slot)
        self._on_gone(worker)

    def end(self) -> None:
        """End all links (workers exit at that) and the redirector."""
        for link in list(self._links.values()):
            link.close()
        for worker in list(self._pidfds):
            self._forget_process(worker)
        self.redirector.on_fallback(lambda _fd: None, lambda _fd: None)
        for fd in self.redirector.fallback_fds():
            self._loop.remove_reader(fd)
        self.redirector.close()
