"""What a program gives to folds and tickets is looked at before it goes anywhere."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lifl.aggregator import Aggregator
from lifl.aggregator.tickets import made_ticket, read_ticket
from lifl.core.errors import LocalFault, Refused
from lifl.core.limits import DEADLINE_S_MAX

SESSION: Any = SimpleNamespace(
    secret="s" * 64, name="fold-1", gateway="h:1", line=SimpleNamespace(node="7", dialled="", own_addresses=list)
)


@pytest.mark.parametrize("expected", [True, False, 0, 1.5, "2", None, 10_001])
def test_expected_is_a_number_of_updates(expected: Any) -> None:
    with pytest.raises(Refused, match="expected="):
        Aggregator(node="h:1").open({"w": np.zeros(1, np.float32)}, expected)


@pytest.mark.parametrize(
    "valid_s", [math.nan, math.inf, -math.inf, 1e30, "x", None, True, math.nextafter(DEADLINE_S_MAX, math.inf)]
)
def test_a_ticket_is_good_for_a_number_of_seconds(valid_s: Any) -> None:
    with pytest.raises(Refused, match="valid_s="):
        made_ticket(SESSION, 1, "c", valid_s)


def test_a_ticket_is_read_as_it_was_made_and_not_with_anything_in_or_behind_it() -> None:
    line = made_ticket(SESSION, 1, "c", DEADLINE_S_MAX)
    assert read_ticket(f"{line}\n").client == "c"
    for damaged in (f"{line}a", line * 2, line[:-5], f"{line[:20]}!{line[20:]}", f"{line}\u00e9"):
        with pytest.raises(LocalFault, match="damaged"):
            read_ticket(damaged)
