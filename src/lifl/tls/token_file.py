"""A token in a file that others cannot read; it is never an argument of a command, where all of the machine see it."""

from __future__ import annotations

import os
import stat

from lifl.core.errors import ResourceFault
from lifl.core.limits import TOKEN_CHARS_MAX
from lifl.core.trust.tokens import Token, read_token

VARIABLE = "LIFL_TOKEN_FILE"
"""Names the file with the bearer token of a client that is given none."""
BYTES_MAX = 4 * TOKEN_CHARS_MAX


def token_in(path: str | os.PathLike[str], bearer: bool = False) -> Token:
    """Return the token in a file: a bearer's, or one to join with.

    Raise `ResourceFault` when it cannot be read, or by others too, and `Refused` when it has no such token.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if hasattr(os, "geteuid") and mode & (stat.S_IRWXG | stat.S_IRWXO):
                text = (
                    f"token file {path} has mode {stat.S_IMODE(mode):04o}: others can read it, and join in your place"
                )
                raise ResourceFault(f"{text}; close it with `chmod 600 {path}`, or revoke the token if they did")
            data = file.read(BYTES_MAX + 1)
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or error  # no path at all, or with a character that no path has
        raise ResourceFault(f"token file {path!s:.200} cannot be read: {why}") from error
    return read_token(data.decode(errors="replace"), bearer)
