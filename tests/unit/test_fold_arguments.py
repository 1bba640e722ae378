"""What a program gives to folds and tickets is looked at before it goes anywhere."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lifl.aggregator import Aggregator, Fold
from lifl.aggregator.tickets import made_ticket, read_ticket
from lifl.client.tensors import Update
from lifl.core.errors import LocalFault, Refused
from lifl.core.limits import DEADLINE_S_MAX, PATTERN_CHARS_MAX, TRAINABLE_PATTERNS_MAX
from lifl.core.schema import Layout, TensorSpec

SESSION: Any = SimpleNamespace(
    secret="s" * 64,
    name="fold-1",
    next_round=1,
    gateway="h:1",
    line=SimpleNamespace(node="7", dialled="", own_addresses=list),
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


@pytest.mark.parametrize(
    "trainable",
    ["*", None, 1, [""], [1], ["\0"], ["a" * (PATTERN_CHARS_MAX + 1)], ["a"] * (TRAINABLE_PATTERNS_MAX + 1)],
)
def test_trainable_is_a_list_of_patterns(trainable: Any) -> None:
    with pytest.raises(Refused, match="they are a list") as error:
        Aggregator(node="h:1").open({"w": np.zeros(1, np.float32)}, 1, trainable=trainable)
    assert "regex" not in error.value.text


@pytest.mark.parametrize(
    ("clients", "timeout_s", "field"),
    [
        ("c1", 1.0, "clients"),
        (None, 1.0, "clients"),
        ([["c1"]], 1.0, "clients"),
        ((each for each in ("c1",)), 1.0, "clients"),
        (["c1"], math.nan, "timeout_s"),
        (["c1"], math.inf, "timeout_s"),
        (["c1"], "soon", "timeout_s"),
        (["c1"], math.nextafter(DEADLINE_S_MAX, math.inf), "timeout_s"),
    ],
)
def test_who_is_waited_for_and_how_long_is_looked_at(clients: Any, timeout_s: Any, field: str) -> None:
    layout = Layout([TensorSpec("w", "float32", (1,))])
    fold = Fold(SESSION, 1, 1, Update(layout, {"w": np.zeros(1, np.float32)}), lambda _session: None)
    with pytest.raises(Refused) as error:
        fold.wait(clients, timeout_s)
    assert error.value.field == field
