"""A token as it comes to a command: in a file that others cannot read, or on standard input; never as an argument."""

from __future__ import annotations

import sys

from lifl.core.trust.tokens import Token, read_token

STDIN = "-"


def token_of(path: str) -> Token:
    """Return the token in a file, or (``-``) on standard input.  Raise `ResourceFault`, and `Refused`: it is none."""
    from lifl.tls.token_file import BYTES_MAX, token_in

    if path == STDIN:
        return read_token(sys.stdin.buffer.read(BYTES_MAX + 1).decode(errors="replace"))
    return token_in(path)
