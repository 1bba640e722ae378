"""Who gets a certificate: what a token allows, and how often one source may guess.

Pure: the clock is an argument, and what the authority has written down comes as rows.  Name and role come from the
token alone.  Who does not know a token's secret hears the same of all tokens; who knows it hears what is wrong with it.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from fnmatch import fnmatchcase
from typing import Annotated

import msgspec

from lifl.core.errors import Refused
from lifl.core.fields import NAME_RULE, Name
from lifl.core.limits import GUESS_SOURCES_MAX, GUESS_WINDOW_S, GUESSES_MAX, JOBS_OF_TOKEN_MAX, NAME_CHARS_MAX
from lifl.core.trust.tokens import digest_of, is_secret

JobNames = Annotated[tuple[Name, ...], msgspec.Meta(max_length=JOBS_OF_TOKEN_MAX)]
JOINING_ROLES = ("node", "client", "operator", "reader")
TOO_MANY_GUESSES = "too-many-guesses"
_NOBODY = digest_of("")
"""What the secret of a token that is not there is compared with, so that it takes as long."""
_UNKNOWN = "that token is not known here: ask an operator of this cluster for one (`lifl token create`)"


class TokenRow(msgspec.Struct, frozen=True):
    """A token as the authority keeps it.  `jobs` empty: those of a client are not limited."""

    number: str
    digest: bytes
    role: str
    pattern: str
    jobs: tuple[str, ...]
    uses: int
    used: int
    created_unix_s: float
    expires_unix_s: float
    revoked_unix_s: float = 0.0

    def state(self, now_unix_s: float) -> str:
        """Return ``valid``, or why it is not: ``revoked``, ``used up``, ``expired``."""
        if self.revoked_unix_s:
            return "revoked"
        if self.used >= self.uses:
            return "used up"
        return "valid" if now_unix_s < self.expires_unix_s else "expired"


class Asked(msgspec.Struct, frozen=True):
    """What who joins asks for: a name where the token leaves it open, and to be a node or not to be one."""

    name: str
    as_node: bool


class WrongToken(Refused):
    """The secret is not that of a token: counted as a guess.  The text is the same for all; `why` is for the log."""

    def __init__(self, why: str) -> None:
        super().__init__("unknown-token", "token", _UNKNOWN)
        self.why = why


def known(row: TokenRow | None, secret: str) -> TokenRow:
    """Return the token when the secret is its own.  Raise `WrongToken`."""
    if not is_secret(secret, row.digest if row is not None else _NOBODY) or row is None:
        raise WrongToken("its secret is wrong" if row is not None else "there is no such token")
    return row


def named(row: TokenRow, asked: Asked, now_unix_s: float, again: bool) -> str:
    """Return the name that a token gives to who knows its secret.  Raise `Refused`, saying what is wrong.

    `again`: the same key was certified by this token before (the answer was lost), which costs no further use.
    """
    state = row.state(now_unix_s)
    if state != "valid" and not (state == "used up" and again and now_unix_s < row.expires_unix_s):
        raise Refused("token-over", "token", f"this token is {state}: ask for a new one (`lifl token create`)")
    if (row.role == "node") != asked.as_node:
        wanted = "`lifl up --join` takes one for a node" if asked.as_node else "`lifl up --join` takes it"
        raise Refused("wrong-role", "token", f"this token is for a {row.role}: {wanted}")
    return _node_name(row.pattern, asked.name) if asked.as_node else _name(row.pattern, asked.name)


def _node_name(pattern: str, own: str) -> str:
    """Return the name of a node: its number takes the place of the first ``*``."""
    name = pattern.replace("*", own, 1).replace("*", "")
    if not is_name(name):
        raise Refused("wrong-name", "name", f"{name!r}, which {pattern} would be here, is no name: {NAME_RULE}")
    return name


def _name(pattern: str, wanted: str) -> str:
    if "*" not in pattern and wanted in ("", pattern):
        return pattern
    if not wanted:
        text = f"this token is for names like {pattern}: say which one with --name"
        raise Refused("name-missing", "name", text)
    if not fnmatchcase(wanted, pattern):
        raise Refused("wrong-name", "name", f"this token is for the name {pattern}, not for {wanted!r}")
    check_wanted(wanted)
    return wanted


def check_wanted(name: str) -> None:
    """Raise `Refused` when a name that is asked for, if one is, cannot be one."""
    if name and not is_name(name):
        raise Refused("wrong-name", "name", f"{name!r} is no name: {NAME_RULE}")


def is_name(text: str) -> bool:
    """Return whether a text may be a name."""
    return len(text) <= NAME_CHARS_MAX and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]*", text) is not None


class Guesses:
    """Wrong tokens by their sources.  A right one is never refused for them: strangers may share its address."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    def wrong(self, host: str, now_s: float) -> None:
        """Note a wrong token; of more sources than are remembered the one silent for longest is forgotten.

        Raise `Refused` when a source has guessed too often: it is told no more of what it tries.
        """
        source = _source(host)
        before = self._of(source, now_s)
        if len(before) >= GUESSES_MAX:
            text = f"that token is wrong, as {GUESSES_MAX} were that came from your address: look at the file you have"
            raise Refused(TOO_MANY_GUESSES, "token", text)
        self._wrong[source] = [*before, now_s]
        self._wrong.move_to_end(source)
        while len(self._wrong) > GUESS_SOURCES_MAX:
            self._wrong.popitem(last=False)

    def _of(self, source: str, now_s: float) -> list[float]:
        return [at_s for at_s in self._wrong.get(source, ()) if now_s - at_s < GUESS_WINDOW_S]


def _source(host: str) -> str:
    """Return what one machine can guess from: an IPv4 address, or a network of IPv6, of which it has all addresses."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
