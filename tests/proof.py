"""What long runs have found until now, summed over all of them: one line of a ledger for each, and the page of it.

    python tests/proof.py            writes the tables of docs/proof.md anew

A run adds what it has done to `bench/results/proof.jsonl`: what it was, when, at which commit, and its figures.  In
docs/proof.md, between marks, stands what the ledger says; the words around are written by hand.  A ledger's lines are
never changed: a failure that was mended stays in it.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LEDGER, PAGE = ROOT / "bench/results/proof.jsonl", ROOT / "docs/proof.md"

Line = dict[str, Any]


def commit() -> str:
    """The commit of the tree that runs, with a + when files of it differ from that."""
    done = subprocess.run(
        ("git", "describe", "--always", "--dirty=+", "--exclude=*"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.strip() or "no repository"


def lines(kind: str, ledger: Path = LEDGER) -> list[Line]:
    """What runs of this kind have added."""
    found = ledger.read_text().splitlines() if ledger.exists() else []
    return [line for line in map(json.loads, found) if line["kind"] == kind]


def add(kind: str, at: str, figures: Line, ledger: Path = LEDGER) -> None:
    """Add what a run has done, at this commit."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    with ledger.open("a") as file:
        file.write(json.dumps({"kind": kind, "day": day, "commit": at, **figures}) + "\n")


# ---- the page --------------------------------------------------------------------------------------------------------


def table(head: str, rows: list[list[Any]]) -> str:
    """A table of Markdown."""
    width = head.count("|") - 1
    body = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * width, *body])


def simulated(ledger: Path = LEDGER) -> str:
    """How many rounds were simulated, by commit and day."""
    found = lines("sim", ledger)
    kinds = ("lives", "rounds", "attempts_failed", "failures")
    rows = [[line["day"], f"`{line['commit']}`", *(f"{line[each]:,}" for each in kinds)] for line in found]
    sums = [f"**{sum(line[each] for line in found):,}**" for each in kinds]
    head = "| day | commit | lives | rounds committed | rounds failed and tried again | lives that failed |"
    return table(head, [*rows, ["**all**", "", *sums]])


SECTIONS: dict[str, Callable[[Path], str]] = {"sim": simulated}
"""What stands between the marks of this name."""


def written(text: str, ledger: Path = LEDGER) -> str:
    """The page with what the ledger says now."""
    for name, told in SECTIONS.items():
        begin, end = f"<!-- {name}: written by the run -->\n", f"<!-- {name}: end -->"
        assert begin in text and end in text, f"the page has no place for {name}"
        before, rest = text.split(begin)
        text = f"{before}{begin}{told(ledger)}\n{end}{rest.split(end)[1]}"
    return text


def write_page() -> None:
    """Write the tables anew."""
    PAGE.write_text(written(PAGE.read_text()))


if __name__ == "__main__":
    write_page()
    sys.exit(0)
