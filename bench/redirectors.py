"""Which redirectors this machine allows: both, or AF_UNIX alone and why."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Literal

from lifl.redirect import open_redirector

Kind = Literal["sockmap", "unix"]


@cache
def found() -> tuple[tuple[Kind, ...], str]:
    """Return the kinds, the one that `auto` takes first; and what the node says about the choice."""
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        redirector = open_redirector("auto", Path(folder))
        try:
            return (("sockmap", "unix") if redirector.name == "sockmap" else ("unix",)), redirector.why
        finally:
            redirector.close()


def kinds() -> tuple[Kind, ...]:
    """Return the kinds that can be measured here."""
    return found()[0]
