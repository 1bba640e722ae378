"""The one line with which someone joins: which authority it is for, and a secret that this authority knows.

``LIFL1<authority>::<number>.<secret>``: `authority` is the SHA-256 digest of the CA's certificate as 64 hex digits, so
whoever holds the line knows whom to tell the secret before it is told.  The line of a bearer token (`bearers.py`), with
which somebody takes part without a certificate, begins with ``LIFLB1``.  The authority keeps a digest of the secret
only; the secret is 256 bits of chance, so the digest needs no salt and no slow function.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Annotated

import msgspec

from lifl.core.errors import Refused
from lifl.core.limits import TOKEN_CHARS_MAX

SECRET_BYTES = 32
NUMBER_BYTES = 4
_LINE = re.compile(r"(LIFLB?1)([0-9a-f]{64})::([0-9a-f]{8})\.([A-Za-z0-9_-]{43})")
_PREFIXES = ("LIFL1", "LIFLB1")
_NUMBER = r"\A[0-9a-f]{8}\Z"
_SECRET = r"\A[A-Za-z0-9_-]{43}\Z"
TokenNumber = Annotated[str, msgspec.Meta(min_length=8, max_length=8, pattern=_NUMBER)]
"""What a token is called; it is no secret."""
TokenSecret = Annotated[str, msgspec.Meta(min_length=43, max_length=43, pattern=_SECRET)]
"""`SECRET_BYTES` in base64 for URLs."""


class Token(msgspec.Struct, frozen=True):
    """A token in its parts.  It shows itself without its secret."""

    authority: str
    number: str
    secret: str
    bearer: bool = False

    def line(self) -> str:
        """Return the one line."""
        return f"{_PREFIXES[self.bearer]}{self.authority}::{self.number}.{self.secret}"

    def __repr__(self) -> str:
        return f"Token({self.authority[:8]}..., {self.number})"


def read_token(text: str, bearer: bool = False) -> Token:
    """Return the token in a text of one line: a bearer's, or one to join with.

    Raise `Refused` when it is none of that kind; nothing of it is told again.
    """
    found = _LINE.fullmatch(text.strip()) if len(text) <= 4 * TOKEN_CHARS_MAX else None
    if found is None:
        told = "that is no token: it is the one line that `lifl token create` prints, and begins with LIFL1"
        raise Refused("bad-token", "token", told)
    prefix, authority, number, secret = found.groups()
    if (prefix == _PREFIXES[True]) is not bearer:
        other = "is one to join with (lifl enroll, lifl up --join)" if bearer else "is a bearer's (Client(token_file=))"
        raise Refused("bad-token", "token", f"that token {other}, and of no use here; its secret was not told")
    return Token(authority, number, secret, bearer)


def digest_of(secret: str) -> bytes:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def is_secret(secret: str, digest: bytes) -> bool:
    """Return whether a secret is the one with this digest; how long it takes tells nothing of the digest."""
    return hmac.compare_digest(digest_of(secret), digest)
