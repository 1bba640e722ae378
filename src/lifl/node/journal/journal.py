"""`lifld`'s side of the journal process: started when it is first needed; what it owes an answer to is said again.

The engine's effects go to it as they are, and its answers are events.  When it dies another one is started, and is told
in the same order what the last one had not answered: what was written twice lies in the file twice, the last counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lifl.core.errors import RemoteFault, ResourceFault
from lifl.core.fields import Message
from lifl.core.protocol import journal as jm
from lifl.core.protocol.journal import Stored
from lifl.node.children import Child
from lifl.node.journal.file import SUFFIX
from lifl.node.modes import private_folder

log = logging.getLogger("lifl.journal")

FOLDER = "updates"
Left = dict[int, dict[int, tuple[Stored, ...]]]
"""By a job's number and epoch."""


class Journal:
    """The journals of a node, in `folder`; `on_event` gets the engine's events.

    `passed` are descriptors that the process inherits; at each of its ends `mend` makes the arena whole, for that may
    be why; `on_broken` is told when it ends again and again.
    """

    def __init__(
        self,
        folder: Path,
        arena: str,
        passed: Sequence[int],
        mend: Callable[[], None],
        on_broken: Callable[[ResourceFault], None],
        clock: Callable[[], float],
    ) -> None:
        self.fault = ""  # why nothing can be written now
        self.damage = ""  # what could not be read when the node started
        self.on_event: Callable[[Any], None] = lambda _event: None
        self._folder = folder
        self._mend = mend
        arguments = ["--arena", arena, "--folder", str(folder)]
        told = (self._heard, self._ended, on_broken)
        self._child = Child("lifl.node.journal.main", arguments, passed, jm.FromJournal, *told, clock)
        self._started = False
        self._owed: list[Message] = []  # what is not answered, in the order in which it was said
        self._found: Left = {}
        self._listed: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def pid(self) -> int:
        """The process; 0: there is none."""
        return self._child.pid

    def send(self, message: Message) -> None:
        """Have done what the engine wants."""
        if not self._started:
            if isinstance(message, jm.DropUpdates) and not self._files():
                return
            self._start()
        self._owed.append(message)
        self._child.send(message)

    def _files(self) -> bool:
        return any(self._folder.glob(f"*{SUFFIX}"))

    def _start(self) -> None:
        private_folder(self._folder)
        self._child.start()
        self._started = True

    async def left(self) -> Left:
        """Return what earlier lives have left."""
        if self._files():
            self._start()
            self._listed = self._loop.create_future()
            self._ask()
            await self._listed
        return self._found

    def _ask(self) -> None:
        self._found = {}
        self._child.send(jm.ListJournals())

    def _heard(self, message: Any) -> None:
        match message:
            case jm.JournalFound(number, epoch, stored):
                epochs = self._found.setdefault(number, {})
                epochs[epoch] = epochs.get(epoch, ()) + stored
            case jm.JournalsListed(fault):
                self.damage = fault
                if self._listed is not None and not self._listed.done():
                    self._listed.set_result(None)
            case jm.JournalPaused(text):
                if bool(text) != bool(self.fault):
                    log.warning("journal.%s %s", "paused" if text else "goes_on", text)
                self.fault = text
            case jm.UpdatesDropped():
                self._answered(lambda owed: isinstance(owed, jm.DropUpdates))
            case jm.UpdateStored(key):
                self._answered(lambda owed: isinstance(owed, jm.StoreUpdate) and owed.key == key)
                self.on_event(message)
            case jm.UpdateLoaded(key):
                self._answered(lambda owed: isinstance(owed, jm.LoadUpdate) and owed.key == key)
                self.on_event(message)

    def _answered(self, is_it: Callable[[Message], bool]) -> None:
        found = next((index for index, owed in enumerate(self._owed) if is_it(owed)), None)
        if found is None:
            raise RemoteFault("the journal answers what it was not asked")
        del self._owed[found]

    def _ended(self) -> None:
        log.warning("journal.ended %s", self._child.last_words() or "without a word")
        self._mend()
        self._loop.call_soon(self._say_again)

    def _say_again(self) -> None:
        if self._listed is not None and not self._listed.done():
            self._ask()
        self._child.send(*self._owed)

    def kill_if_stopped(self) -> None:
        """Kill the process if a signal has stopped it; another one is started at its end."""
        self._child.kill_if_stopped()

    def stop(self, timeout_s: float) -> None:
        """End the process."""
        if self._started:
            self._child.stop(timeout_s)
