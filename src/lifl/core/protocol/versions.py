"""Which versions of a protocol work together: those that are one apart.

Each side says its version in its first frame, and looks at the other's.  A minor release of LIFL raises a version by
one at most, and speaks with the one before: so nodes and clients are upgraded one by one, in any order, while all of
them work.  What a later version has beyond the earlier one goes only to who says that it knows it (`knows`).  Who is
further apart is refused, by either side, with what can be done on both.
"""

from __future__ import annotations

from typing import NamedTuple


class Spoken(NamedTuple):
    """A version of the protocol `channel`, as this release speaks it.

    `oldest` is the oldest one that it works with: that before, or itself where that before cannot be worked with.
    """

    channel: str
    version: int
    oldest: int

    def fault(self, theirs: int, here: str, there: str) -> str:
        """Return why who speaks version `theirs` cannot be worked with, and what to do here and there; empty: it can.

        `here` and `there` say what the two are, as "this node".
        """
        if self.oldest <= theirs <= self.version + 1:
            return ""
        told = f"{here} speaks version {self.version} of the {self.channel}, {there} version {theirs}"
        told = f"{told}; versions one apart work together: "
        if theirs > self.version:
            newer, older, least, most = there, here, theirs - 1, self.version + 1
        else:
            newer, older, least, most = here, there, self.oldest, min(theirs + 1, self.version - 1)
        upgrade = f"upgrade {older} to a release of LIFL that speaks version {least} or later"
        return f"{told}{upgrade}, or run a release on {newer} that speaks at most version {most}"
