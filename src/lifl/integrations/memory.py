"""The memory of a framework's server process, in which models come and go."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Have the C library give the machine back what has been freed: of a model's arrays it keeps most, in pieces.

    Where it cannot (it is glibc's own) nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
