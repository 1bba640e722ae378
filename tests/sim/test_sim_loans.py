"""Random lives of clients that map their models where the node has them, and keep them for as long as they like.

In every second one they give none back as long as anything else can happen.
"""

from __future__ import annotations

from collections import Counter

import pytest
from lives import live

from lifl.core.agent.quota import Loans
from lifl.core.ids import Key

LIVES = 10


@pytest.mark.parametrize(("hosts", "moves"), [(1, False), (3, True)])
def test_no_round_that_has_begun_waits_for_a_loan(hosts: int, moves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does any client read what is gone, nor is anything left when all have given back what they had."""
    found: Counter[bool] = Counter()
    begin = Loans.begin

    def noted(loans: Loans, key: Key, job: int) -> bool:
        lent = begin(loans, key, job)
        found[lent] += 1
        return lent

    monkeypatch.setattr(Loans, "begin", noted)
    for seed in range(LIVES):
        live(seed, hosts, moves, lends=True)
    assert found[True] and found[False], found
