"""Which releases work together: those whose minor numbers are one apart.

Each side says the version of the protocol in its first frame, and looks at the other's.  A minor release of LIFL, and
nothing else, raises the versions, each by one, and speaks with the one before: so nodes and clients are upgraded one by
one, in any order, while all of them work.  What a later version has beyond the earlier one goes only to who says that
it knows it (`knows`).  Who is further apart is refused, by either side, with the release to take on both.  LIFL 0.1 is
the first release: what was before it works with none.
"""

from __future__ import annotations

from typing import NamedTuple

from lifl.core.formats import RELEASE

MINOR = int(RELEASE.split(".")[1])
FIRST_MINOR = 1
"""The first release that others work with is 0.1."""


class Spoken(NamedTuple):
    """A version of the protocol `channel`, as the release 0.`minor` speaks it; `first` is that of the first release."""

    channel: str
    first: int
    minor: int = MINOR

    @property
    def version(self) -> int:
        """What this release says."""
        return self.first + self.minor - FIRST_MINOR

    @property
    def oldest(self) -> int:
        """The oldest version that it works with."""
        return max(self.first, self.version - 1)

    def fault(self, theirs: int, here: str, there: str) -> str:
        """Return why who speaks version `theirs` cannot be worked with, and what to do here and there; empty: it can.

        `here` and `there` say what the two are, as "this node".
        """
        if self.oldest <= theirs <= self.version + 1:
            return ""
        own, other = self._release(self.version), self._release(theirs)
        told = f"{here} is {own}, version {self.version} of the {self.channel}, {there} is {other}, version {theirs}"
        told = f"{told}; minor releases one apart work together: "
        if theirs > self.version:
            newer, older, least, most = there, here, theirs - 1, self.version + 1
        else:
            newer, older, least, most = here, there, self.oldest, min(theirs + 1, self.version - 1)
        upgrade = f"upgrade {older} to {self._release(least)} or a later one"
        return f"{told}{upgrade}" + (f", or run {self._release(most)} at most on {newer}" if most >= self.first else "")

    def _release(self, version: int) -> str:
        """Return the releases that speak a version."""
        if version < self.first:
            return f"from before LIFL 0.{FIRST_MINOR}"
        return f"LIFL 0.{FIRST_MINOR + version - self.first}"
