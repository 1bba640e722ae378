"""The journal: the process of a node that writes accepted updates to the disk, where jobs want that.

It takes the updates that have been sealed in the arena, writes them to the files of their journals (`file.py`), has the
disk sync them, and says so; only then is a client told ACCEPTED.  While the disk syncs, others come, and share the next
sync.  After a power cut it says what is in the files, and reads it back into the arena.

A disk that takes nothing is tried again; meanwhile updates wait in the arena, and their clients for an answer.  It is
started when the first such job runs, sleeps while nothing is to be written, and ends with `lifld`.

    python -m lifl.node.journal.main --fd N --arena NAME --folder PATH
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from lifl import failpoints
from lifl.confine import signals
from lifl.core.errors import LiflError, StaleKey
from lifl.core.fields import Message
from lifl.core.ids import Key
from lifl.core.limits import (
    FILE_RETRY_S,
    FILE_RETRY_S_MAX,
    JOURNAL_FREE_BYTES_MIN,
    STORED_PER_FRAME_MAX,
    TEXT_CHARS_MAX,
)
from lifl.core.protocol import journal as jm
from lifl.core.protocol.contribution import unpack_contributions
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.core.protocol.gateway import Drain
from lifl.node.journal.file import SUFFIX, JournalFile, named, path_of
from lifl.shm.arena import Arena

GROUP_BYTES_MAX = 64 * 1024 * 1024
"""Updates that share a sync, but one at the least: the first of them waits for the last."""
READ_BYTES = 256 * 1024
_PR_SET_PDEATHSIG = 1
At = tuple[int, int]
"""A job's number, and an epoch."""


class Journals:
    """All journals of a node; `say` tells `lifld`."""

    def __init__(self, sock: socket.socket, arena: Arena, folder: Path) -> None:
        self._sock = sock
        self._arena = arena
        self._folder = folder
        self._files: dict[At, JournalFile] = {}
        self._waiting: deque[jm.StoreUpdate] = deque()
        self._retry_at_s = 0.0
        self._retry_s = FILE_RETRY_S
        self._paused = False

    def say(self, *messages: Message) -> None:
        """Tell `lifld`."""
        self._sock.sendall(b"".join(map(encode, messages)))

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def handle(self, message: Any) -> None:
        """Do what is asked, or put it in line."""
        match message:
            case jm.StoreUpdate():
                self._waiting.append(message)
            case jm.LoadUpdate():
                self._load(message)
            case jm.DropUpdates():
                self._drop(message)
            case jm.ListJournals():
                self._list()

    def _file(self, at: At) -> JournalFile:
        if at not in self._files:
            self._files[at] = JournalFile(self._folder, *at)
        return self._files[at]

    def _load(self, message: jm.LoadUpdate) -> None:
        key, error = Key.unpack(message.key), ""
        self._arena.keep_only([key])
        try:
            header = self._file((message.number, message.epoch)).load(message.place, self._arena.data(key))
            (member,) = unpack_contributions(header.meta)
            failpoints.hit("journal.load_seal.before")
            self._arena.seal(key, member.weight, 1, header.meta, header.checksum)
            failpoints.hit("journal.load_seal.after")
        except (OSError, LiflError) as fault:
            error = str(fault)[:TEXT_CHARS_MAX]
        self.say(jm.UpdateLoaded(message.key, error))

    def _drop(self, message: jm.DropUpdates) -> None:
        at = (message.number, message.epoch)
        with contextlib.suppress(OSError):  # what stays is older than what its round goes on from, or loaded in vain
            if message.places and (at in self._files or path_of(self._folder, *at).exists()):
                self._file(at).drop(message.places)
            elif not message.places:
                path_of(self._folder, *at).unlink(missing_ok=True)
        if message.places:
            self.say(jm.UpdatesDropped())
            return
        gone = [store for store in self._waiting if (store.number, store.epoch) == at]
        self._waiting = deque(store for store in self._waiting if (store.number, store.epoch) != at)
        self.say(*(jm.UpdateStored(store.key, None) for store in gone), jm.UpdatesDropped())
        if at in self._files:
            self._files.pop(at).close()

    def _list(self) -> None:
        """Say what is in the files."""
        faults = []
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            at = named(path)
            if at is None:
                continue
            try:
                file = JournalFile(self._folder, *at)
                found = file.scan()
                file.close()
            except OSError as error:
                faults.append(f"{path} cannot be read: {error.strerror}")
                continue
            faults += [found.fault] if found.fault else []
            for begin in range(0, len(found.stored), STORED_PER_FRAME_MAX):
                self.say(jm.JournalFound(*at, tuple(found.stored[begin : begin + STORED_PER_FRAME_MAX])))
        self.say(jm.JournalsListed("; ".join(faults)[:TEXT_CHARS_MAX]))

    # ---- what is written ---------------------------------------------------------------------------------------------

    def wait_s(self) -> float | None:
        """Return how long nothing is to be written, if nothing comes; None: for ever."""
        return max(0.0, self._retry_at_s - time.monotonic()) if self._waiting else None

    def write(self) -> None:
        """Write what waits, as far as one sync is for it, and say that it is durable."""
        group: list[tuple[jm.StoreUpdate, int]] = []
        files: dict[At, JournalFile] = {}
        try:
            nbytes = 0
            while self._waiting and (not group or nbytes < GROUP_BYTES_MAX):
                store = self._waiting[0]
                at = (store.number, store.epoch)
                file = files[at] = self._file(at)
                written = self._append(file, store)
                self._waiting.popleft()
                if written is None:
                    self.say(jm.UpdateStored(store.key, None))
                    continue
                group.append((store, written[0]))
                nbytes += written[1]
            failpoints.hit("journal.sync.before")
            for file in files.values():
                file.sync()
            failpoints.hit("journal.sync.after")
        except OSError as error:
            self._failed(error, [store for store, _ in group], files)
            return
        self.say(*(jm.UpdateStored(store.key, place) for store, place in group))
        self._retry_s = FILE_RETRY_S
        if self._paused:
            self._paused = False
            self.say(jm.JournalPaused())

    def _append(self, file: JournalFile, store: jm.StoreUpdate) -> tuple[int, int] | None:
        """Write an update; return its place and its bytes, or None: the object is gone.  Raise `OSError`."""
        key = Key.unpack(store.key)
        self._arena.keep_only([key])
        try:
            entry, data, meta = self._arena.entry(key), self._arena.data(key), bytes(self._arena.meta(key))
        except StaleKey:
            return None
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < len(data) + JOURNAL_FREE_BYTES_MIN:
            text = f"{os.strerror(errno.ENOSPC)}; {JOURNAL_FREE_BYTES_MIN} bytes stay free for the database"
            raise OSError(errno.ENOSPC, text)
        failpoints.hit("journal.write.before")
        return file.append(data, meta, entry.checksum), len(data)

    def _failed(self, error: OSError, group: list[jm.StoreUpdate], files: dict[At, JournalFile]) -> None:
        """Take back what was written of a group, and try again later."""
        self._waiting.extendleft(reversed(group))
        for file in files.values():
            with contextlib.suppress(OSError):
                file.roll_back()
        self._retry_at_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, FILE_RETRY_S_MAX)
        self._paused = True
        text = f"updates cannot be written to {self._folder}: {error.strerror or error}; make room on its disk"
        self.say(jm.JournalPaused(text[:TEXT_CHARS_MAX]))

    def serve(self) -> None:
        """Do what `lifld` asks until it says Drain, or is gone."""
        decoder: FrameDecoder[Any] = FrameDecoder(jm.ToJournal | Drain)
        while True:
            readable, _, _ = select.select([self._sock], [], [], self.wait_s())
            if readable:
                data = self._sock.recv(READ_BYTES)
                if not data:
                    return
                decoder.feed(data)
                while (message := decoder.next_message()) is not None:
                    if isinstance(message, Drain):
                        return
                    self.handle(message)
            if self._waiting and self.wait_s() == 0:
                self.write()


def main() -> int:
    """Run the journal; the exit status is 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="lifl-journal", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--arena", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signals.leave_to_lifld()
    try:
        arena = Arena.attach(options.arena)
        Journals(socket.socket(fileno=options.fd), arena, options.folder).serve()
        arena.close()
    except (LiflError, ConnectionError) as error:
        print(f"journal: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
