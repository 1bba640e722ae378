"""What can go wrong, named by whose fault it was.

Four families, and no others leave the public interfaces:

* `LocalFault`     we, or the program that called us, used an interface wrongly;
* `RemoteFault`    the peer on a connection sent what the protocol forbids;
* `Refused`        a request was understood and is answered "no": it names the field and the fix;
* `ResourceFault`  something ran out or is not allowed on this machine: memory, descriptors, rights.

Every text says what happened, where, and what to do.
"""

from __future__ import annotations


class LiflError(Exception):
    """The base of every error that LIFL raises on purpose."""


class LocalFault(LiflError):
    """The caller broke the contract of an interface (a bug in this program, or in the user's)."""


class Impossible(LocalFault):
    """The engine's books contradict each other, or an event contradicts them; the text tells how it came."""


class RemoteFault(LiflError):
    """The peer sent bytes that the protocol forbids; the connection is not usable any more."""


class ResourceFault(LiflError):
    """A resource ran out or a right is missing; the text says which and how to get it."""


class EndedEarly(ResourceFault):
    """A node was told to end before it was ready: by a signal, or `lifl down`."""


class ArenaFull(ResourceFault):
    """The arena (or its object table) has no room for the object now; try again when something is freed."""


class FrameTooLong(LocalFault):
    """A message is longer than a frame may be: it cannot be sent, and what it was about cannot go on."""


class StaleKey(LocalFault):
    """The key names an object that is gone: its slot holds another generation."""


class ConfigError(LiflError):
    """A configuration cannot be used.  `path` is the dotted key, such as ``selection.quorum``."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


class Refused(LiflError):
    """A request is answered "no".

    `code` is stable and for programs (``wrong-shape``, ``unknown-job``); `field` names the part of the request
    at fault; the text is for people and ends with what to do.
    """

    def __init__(self, code: str, field: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.field = field
        self.text = text
