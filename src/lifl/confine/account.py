"""Whose process `lifld` is, and with which rights: those of root for as long as it loads eBPF and opens its doors.

A node that root starts uses its rights only where it needs them, and gives them up for good before it hears of any
stranger, and while it has one thread: `lower` at first, `raised` around what needs them (`node/privileged.py`), then
`drop`.  With `user` it is that user's process from the first file that it makes on.  Between `lower` and `drop` the
rights are still to be had again, as the saved user id, or in the permitted set.
"""

from __future__ import annotations

import os
import pwd
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lifl.confine import capabilities, kernel
from lifl.core.errors import ConfigError, LocalFault


class Account:
    """The account of a node: `user` (empty: who starts it).  Raise `ConfigError` when that cannot be."""

    def __init__(self, user: str = "") -> None:
        self._entry = _found(user) if user else None
        self._changes = self._entry is not None and os.geteuid() == 0 and self._entry.pw_uid != 0
        self._dropped = False
        if self._entry is not None and not self._changes and self._entry.pw_uid != os.geteuid():
            raise ConfigError("user", f"only root can start a node as {user!r}: say nothing, or `sudo lifl up`")

    def own(self, folder: Path) -> None:
        """Make a folder that is not there yet, and give it to the node's user.  Raise `OSError`."""
        if self._changes and self._entry is not None and not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            os.chown(folder, self._entry.pw_uid, self._entry.pw_gid)

    def lower(self) -> None:
        """Be the node's user, with no rights beyond those of any; `raised` brings them back."""
        if self._changes and self._entry is not None:
            os.initgroups(self._entry.pw_name, self._entry.pw_gid)
            os.environ |= {"HOME": self._entry.pw_dir, "USER": self._entry.pw_name, "LOGNAME": self._entry.pw_name}
        self._lower()

    def _lower(self) -> None:
        if self._changes and self._entry is not None:
            os.setresgid(self._entry.pw_gid, self._entry.pw_gid, 0)
            os.setresuid(self._entry.pw_uid, self._entry.pw_uid, 0)
        elif kernel.MACHINE in capabilities.NUMBERS:
            _, permitted, inheritable = capabilities.held()
            capabilities.hold(0, permitted, inheritable)

    def _raise(self) -> None:
        if self._dropped:
            raise LocalFault("the rights that this process was started with were given up")
        if self._changes:
            os.seteuid(0)
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
        elif kernel.MACHINE in capabilities.NUMBERS:
            _, permitted, inheritable = capabilities.held()
            capabilities.hold(permitted, permitted, inheritable)

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """Be the node's user within a `with` block, to make what is to be that user's."""
        self.lower()
        try:
            yield
        finally:
            self._raise()

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Have the rights that the process was started with within a `with` block."""
        self._raise()
        try:
            yield
        finally:
            self._lower()

    def drop(self) -> None:
        """Give all rights up for good: no process from here on has, or gets, any that other users have not."""
        self._raise()
        if self._changes and self._entry is not None:
            capabilities.shut()
            os.setresgid(self._entry.pw_gid, self._entry.pw_gid, self._entry.pw_gid)
            os.setresuid(self._entry.pw_uid, self._entry.pw_uid, self._entry.pw_uid)
        capabilities.drop_all()
        self._dropped = True
        kernel.hide_memory()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def check(self) -> None:
        """Raise `ConfigError` when the node's user, which this process is by now, cannot run Python or LIFL."""
        for path, how in ((sys.executable, os.X_OK), (__file__, os.R_OK)):
            if self._changes and not os.access(path, how):
                name = self._entry.pw_name if self._entry else ""
                text = f"user {name!r} cannot reach {path}: install LIFL where all users can, such as in /opt"
                raise ConfigError("user", text)


def _found(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        text = f"there is no user {user!r}: make it with `useradd --system --shell /usr/sbin/nologin {user}`"
        raise ConfigError("user", text) from None
