"""One daemon to a state folder, and no child of an earlier one left.

Two files.  `lifld.lock` is held by the daemon alone: a second one is refused at once.  `children.lock` is held by the
daemon and, through the inherited descriptor, by every process that it starts: a daemon that gets it knows that no
process can still write into the arena that is about to be adopted.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from lifl.core.errors import ResourceFault
from lifl.node.modes import open_private

CHILDREN_END_S = 10.0
"""How long the children of a killed daemon may take to end; they are killed by the kernel with it."""


class StateLocks:
    """The locks of a state folder.  Raise `ResourceFault` when another daemon runs on it."""

    def __init__(self, folder: Path) -> None:
        self._daemon = open_private(folder / "lifld.lock", os.O_RDWR)
        self.children = open_private(folder / "children.lock", os.O_RDWR)
        try:
            self._take_daemon(folder)
            self._take_children(folder)
        except ResourceFault:
            self.close()
            raise

    def _take_daemon(self, folder: Path) -> None:
        try:
            fcntl.flock(self._daemon, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._daemon, 32, 0).decode(errors="replace").strip() or "?"
            raise ResourceFault(
                f"a lifld (pid {pid}) runs on state folder {folder} already: stop it with "
                f"`lifl down --state {folder}`, "
                "or use another folder with --state"
            ) from None
        os.ftruncate(self._daemon, 0)
        os.pwrite(self._daemon, f"{os.getpid()}\n".encode(), 0)

    def _take_children(self, folder: Path) -> None:
        taker = threading.Thread(target=fcntl.flock, args=(self.children, fcntl.LOCK_EX), daemon=True)
        taker.start()
        taker.join(CHILDREN_END_S)
        if taker.is_alive():
            raise ResourceFault(
                f"processes of an earlier lifld still hold {folder / 'children.lock'} after {CHILDREN_END_S:g} s: "
                f"find them with `fuser {folder / 'children.lock'}` and end them"
            )

    def close(self) -> None:
        """Let both locks go."""
        os.close(self._daemon)
        os.close(self.children)
