"""A token as it comes to a command: in a file that others cannot read, or on standard input; never as an argument."""

from __future__ import annotations

import os
import stat
import sys

from lifl.core.errors import ResourceFault
from lifl.core.limits import TOKEN_CHARS_MAX
from lifl.core.trust.tokens import Token, read_token

STDIN = "-"
BYTES_MAX = 4 * TOKEN_CHARS_MAX


def token_of(path: str) -> Token:
    """Return the token in a file, or (``-``) on standard input.  Raise `ResourceFault`, and `Refused`: it is none."""
    if path == STDIN:
        return read_token(sys.stdin.buffer.read(BYTES_MAX + 1).decode(errors="replace"))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                text = (
                    f"token file {path} has mode {stat.S_IMODE(mode):04o}: others can read it, and join in your place"
                )
                raise ResourceFault(f"{text}; close it with `chmod 600 {path}`, or revoke the token if they did")
            data = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise ResourceFault(f"token file {path} cannot be read: {error.strerror}") from error
    return read_token(data.decode(errors="replace"))
