"""The file of a cookie (`core/trust/cookie.py`): made by the node, read by clients of its account."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from lifl.core.errors import Refused, ResourceFault
from lifl.core.trust.cookie import COOKIE_BYTES, NAME

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def made(folder: Path) -> Path:
    """Return the cookie's file in a state folder, made if need be, and its owner's alone.  Raise `OSError`."""
    path = folder / NAME
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "r+b") as file:
        os.fchmod(file.fileno(), 0o600)
        if len(file.read(COOKIE_BYTES + 1)) != COOKIE_BYTES:
            file.seek(0)
            file.truncate()
            file.write(secrets.token_bytes(COOKIE_BYTES))
    return path


def read(path: Path) -> bytes:
    """Return a cookie that is this account's alone.  Raise `ResourceFault`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            data = file.read(COOKIE_BYTES + 1) if stat.S_ISREG(found.st_mode) else b""
    except OSError as error:
        raise ResourceFault(f"its cookie {path} cannot be read: {error.strerror}") from error
    if len(data) != COOKIE_BYTES:
        raise ResourceFault(f"{path} is no cookie")
    if os.geteuid() not in (0, found.st_uid):
        raise ResourceFault(f"its cookie {path} is another account's (uid {found.st_uid})")
    if mode := stat.S_IMODE(found.st_mode) & _OTHERS:
        raise ResourceFault(f"its cookie {path} is open to others ({mode:03o}): chmod 600 {path}")
    return data


def told(where: str, address: str) -> bytes:
    """Return the cookie that the node at an address has told of.  Raise `Refused` when it is not for this account.

    Whoever listens there may name any file: nothing but a cookie is read, and nothing of it is told.
    """
    try:
        if not os.path.isabs(where) or os.path.basename(where) != NAME or "\0" in where:
            raise ResourceFault(f"what it says is its cookie cannot be one: {where!r:.100}")
        return read(Path(where))
    except ResourceFault as fault:
        text = f"the node at {address} takes clients of its own account alone, and {fault}"
        remedy = "be that account, or have the node take others: `lifl up --listen` beyond loopback, and `lifl enroll`"
        raise Refused("no-cookie", "node", f"{text}; {remedy}") from fault
