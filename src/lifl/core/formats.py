"""In which formats a node keeps what outlives it, and the release of LIFL that this is.

State folder, database and checkpoints carry the number of their format and the release that wrote it first.  An older
one is taken over by the start of `lifld`.  A newer one is refused, and the release that can read it is named: what is
in it is not understood here, and nothing of it is changed or set aside.
"""

from __future__ import annotations

RELEASE = "0.1.0"
"""The one place where it stands: setup.cfg reads it here.  Its minor number, the second, says which other releases it
works with (`protocol/versions.py`).
"""
STATE_FORMAT = 1
"""Of a state folder; 0: it says none, as the first releases left it."""
DATABASE_FORMAT = 3
"""Of `lifl.db`, its `user_version`; since 3 it says the release that wrote it."""
DATABASE_OLDEST = 2
"""The first release's."""
CHECKPOINT_FORMAT = 1
"""Of a model or a rule's state as a file; 0: it says none, as the first releases wrote it."""


def newer_text(what: str, found: int, known: int, release: str) -> str:
    """Return what is said of something in a format that this release does not know; `release` may be empty."""
    take = f"LIFL {release} or a later one" if release else "the one that wrote it, or a later one"
    return f"{what} has format {found}, and LIFL {RELEASE} reads up to format {known}: take another release, {take}"
