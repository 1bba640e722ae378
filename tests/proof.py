"""What long runs have found until now, summed over all of them: one line of a ledger for each, and the page of it.

    python tests/proof.py            writes the tables of docs/proof.md anew

A run adds what it has done to `bench/results/proof.jsonl` (chaos: `chaos.jsonl`): what it was, when, at which commit,
and its figures.  In docs/proof.md, between marks, stands what the ledgers say; the words around are written by hand.
Lines of a ledger are never changed: a failure that was mended stays in it.
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHAOS = ROOT / "bench/results/chaos.jsonl"
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


FATES = ("rounds", "accepted", "counted", "expired", "lost", "doubled")


def times(found: list[Line]) -> str:
    """The times that it took to recover: the median, and the longest."""
    took = [line["recover_s"] for line in found if line["recover_s"] is not None]
    return f"{statistics.median(took):.1f} ({max(took):.1f})" if took else ""


def chaos(ledger: Path = CHAOS) -> str:
    """What became of updates under each fault in each role."""
    found = lines("chaos", ledger)
    groups = sorted({(line["fault"], line["role"]) for line in found})
    rows = []
    for fault, role in groups:
        these = [line for line in found if (line["fault"], line["role"]) == (fault, role)]
        made = sum(line["recover_s"] is not None for line in these)
        rows.append([fault, role, made, *(f"{sum(line[each] for line in these):,}" for each in FATES), times(these)])
    made = sum(line["recover_s"] is not None for line in found)
    sums = [f"**{sum(line[each] for line in found):,}**" for each in FATES]
    head = "| fault | role | trials | rounds | accepted | counted | expired | lost | doubled | recovered after, s |"
    return table(head, [*rows, ["**all**", "", f"**{made}**", *sums, times(found)]])


def matrix(ledger: Path = CHAOS) -> str:
    """How often each fault was done at each point to each role, and how long it took to recover."""
    found = lines("chaos", ledger)
    faults = sorted({line["fault"] for line in found})
    rows = []
    for point, role in sorted({(line["point"], line["role"]) for line in found}):
        row = [f"`{point}`", role]
        for fault in faults:
            wanted = (fault, role, point)
            these = [line for line in found if (line["fault"], line["role"], line["point"]) == wanted]
            made = sum(line["recover_s"] is not None for line in these)
            row.append(f"{made}: {times(these)}" if made else "nobody" if these else "")
        rows.append(row)
    return table("| point | role | " + "".join(f"{fault} | " for fault in faults).rstrip(), rows)


def soaks(ledger: Path = LEDGER) -> str:
    """What became of updates in each soak, and what grew."""
    rows = []
    for line in lines("soak", ledger):
        figures = [f"{line[each]:,}" for each in FATES]
        ends = [line["pss_bytes"][-1] / 2**20, line["descriptors"][-1], 1000 * line["round_s"][-1]]
        warm = min(2, line["laps"] - 1)
        begins = [line["pss_bytes"][warm] / 2**20, line["descriptors"][warm], 1000 * line["round_s"][warm]]
        grew = [f"{begin:.0f} → {end:.0f}" for begin, end in zip(begins, ends, strict=True)]
        wrong = "; ".join(line["faults"]) or "nothing"
        minutes = f"{line['seconds'] / 60:.0f}"
        rows.append([line["day"], f"`{line['commit']}`", minutes, line["laps"], *figures, *grew, wrong])
    head = "| day | commit | minutes | laps | rounds | accepted | counted | expired | lost | doubled "
    return table(f"{head}| PSS, MiB | descriptors | a round, ms | wrong |", rows)


def stretches(ledger: Path = LEDGER) -> str:
    """What became of many rounds without a fault: each figure at their beginning, and at their end."""
    rows = []
    for line in lines("stretch", ledger):
        figures = [f"{line[each]:,}" for each in FATES]
        grew = []
        for kind, (scale, digits) in STRETCHED.items():
            names = [name for name in line["medians"] if name.split()[-1] == kind]
            pairs = [[f"{value / scale:.{digits}f}" for value in line["medians"][name]] for name in sorted(names)]
            grew.append(", ".join(" → ".join(pair) for pair in pairs))
        wrong = "; ".join(line["faults"]) or "nothing"
        rows.append([line["day"], f"`{line['commit']}`", f"{line['seconds'] / 60:.0f}", *figures, *grew, wrong])
    head = "| day | commit | minutes | rounds | accepted | counted | expired | lost | doubled "
    return table(f"{head}| a round, ms | CPU of a round, ms | PSS, MiB | descriptors | databases, KiB | wrong |", rows)


STRETCHED = {
    "round_s": (1e-3, 0),
    "cpu_s": (1e-3, 1),
    "pss_bytes": (2**20, 1),
    "descriptors": (1, 0),
    "database_bytes": (1024, 0),
}
"""Figures of a stretch in its table: what a unit there is, and the digits behind the point."""


SECTIONS: dict[str, tuple[Callable[[Path], str], Path]] = {
    "sim": (simulated, LEDGER),
    "chaos": (chaos, CHAOS),
    "matrix": (matrix, CHAOS),
    "soak": (soaks, LEDGER),
    "stretch": (stretches, LEDGER),
}
"""What stands between the marks of this name, and out of which ledger."""


def written(text: str) -> str:
    """The page with what the ledgers say now."""
    for name, (told, ledger) in SECTIONS.items():
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
