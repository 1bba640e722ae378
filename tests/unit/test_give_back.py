"""What has been freed in pieces is the machine's again."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from lifl.integrations.memory import give_back

PIECE_BYTES = 100 << 10  # the C library has larger ones from the machine, each by itself
PIECES = 640


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_what_lies_below_something_that_is_in_use_is_given_back() -> None:
    pieces = [np.ones(PIECE_BYTES, np.uint8) for _ in range(PIECES)]
    in_use = np.ones(PIECE_BYTES, np.uint8)
    before = private_bytes()
    pieces.clear()
    give_back()
    assert (in_use == 1).all()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        assert before - private_bytes() > PIECES * PIECE_BYTES // 2
