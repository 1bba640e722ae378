"""The ledger of long runs, and the page that sums it."""

from __future__ import annotations

from pathlib import Path

import proof


def test_the_page_says_what_the_ledger_says() -> None:
    assert proof.written(proof.PAGE.read_text()) == proof.PAGE.read_text(), "run python tests/proof.py"


def test_runs_are_summed(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    for lives, failures in ((1000, 0), (234, 1)):
        figures = {"lives": lives, "rounds": 3 * lives, "attempts_failed": 7, "failures": failures}
        proof.add("sim", "abc1234", figures, ledger)
    proof.add("other", "abc1234", {}, ledger)
    *_runs, last = proof.simulated(ledger).splitlines()
    assert last == "| **all** |  | **1,234** | **3,702** | **14** | **1** |"
