"""Whole rounds in Flower and NVFlare, as they are and with LIFL: a page of the figures that their benchmarks wrote.

    make bench-frameworks

runs `bench/flower_modes.py` and `bench/nvflare_ways/run.py` in full size, an hour on two cores that are to be idle, and
writes `bench/results/frameworks.md`.  This file alone writes it anew:

    .venv/bin/python bench/frameworks.py --flower flower.json --nvflare nvflare.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "bench/results/frameworks.md"
SHARE = {
    "round": ("round_s", {"mod": 1 / 3, "ahead": 1 / 3, "many": 1 / 30}),
    "CPU": ("servers_cpu_s", {"mod": 1 / 12, "ahead": 1 / 12, "many": 1 / 12}),
    "memory": ("servers_peak_bytes", {"mod": 1 / 3, "ahead": 1 / 3, "many": 1 / 3}),
}
"""What is aimed at, of stock's."""


def about(library: str) -> dict[str, str]:
    """Return the circumstances of a run with a library."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        library: version(library),
        "Python": platform.python_version(),
        "NumPy": version("numpy"),
        "cores": str(os.cpu_count()),
        "Linux": platform.release(),
    }


def circumstances(told: dict[str, Any], program: str) -> str:
    """Return what was run, and where."""
    parts = ", ".join(f"{name} {text}" for name, text in told["about"].items())
    return f"`{program} {' '.join(told['command'])}`; {parts}. {told.get('note', '')}".strip()


def against_aims(runs: list[dict[str, Any]], warm_ups: dict[str, int]) -> str:
    """Return what of stock's round, CPU and memory each mode takes, beside what is aimed at."""

    def figure(mode: str, key: str) -> float:
        mine = [each for each in runs if each["mode"] == mode]
        if key == "servers_peak_bytes":
            return float(max((each[key] for each in mine if key in each), default=0.0))
        return statistics.median(each[key] for one in mine for each in one["rounds"][warm_ups.get(mode, 1) :])

    there = {each["mode"] for each in runs}
    lines = ["| of stock's | mode | measured | aim | |", "|---" * 5 + "|"]
    for name, (key, aims) in SHARE.items():
        for mode, aim in aims.items():
            if {mode, "stock"} <= there:
                share = figure(mode, key) / figure("stock", key)
                if not share:
                    continue
                met = "met" if share <= aim else "MISSED"
                lines.append(f"| {name} | {mode} | 1/{1 / share:.1f} | 1/{1 / aim:.0f} | {met} |")
    return "\n".join(lines)


def flower_text(told: dict[str, Any]) -> str:
    """Return the section about Flower."""
    from flower_modes import WARM_UPS, agreement, table

    runs = told["runs"]
    return "\n\n".join([
        "## Flower",
        "FedAvg by a real SuperLink, SuperNodes and ClientApp processes, all on one machine, nothing trained. Medians "
        "of rounds behind the warm-up (smallest to largest). Servers: the SuperLink, the ServerApp and LIFL's node.",
        table(runs),
        agreement(runs),
        against_aims(runs, WARM_UPS),
        circumstances(told, "bench/flower_modes.py"),
    ])  # fmt: skip


def nvflare_text(told: dict[str, Any]) -> str:
    """Return the section about NVFlare."""
    ways = {way: rounds for way, rounds in told["ways"].items() if rounds}
    names = list(next(iter(ways.values()))[0])
    lines = ["| way | n | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for way, rounds in ways.items():
        cells = []
        for name in names:
            values = [each[name] for each in rounds]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        lines.append(f"| {way} | {len(rounds)} | " + " | ".join(cells) + " |")
    return "\n\n".join([
        "## NVFlare",
        "FedAvg in its simulator, a process for each client; nothing trained. Medians of rounds behind the warm-up of "
        "each run (smallest to largest). CPU is that of the server's process and LIFL's node.",
        "\n".join(lines),
        circumstances(told, "bench/nvflare_ways/run.py"),
    ])  # fmt: skip


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower", type=Path, help="the figures of bench/flower_modes.py --json")
    parser.add_argument("--nvflare", type=Path, help="the figures of bench/nvflare_ways/run.py --json")
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args()
    parts = ["# Whole rounds in Flower and NVFlare, as they are and with LIFL"]
    if given.flower:
        parts.append(flower_text(json.loads(given.flower.read_text())))
    if given.nvflare:
        parts.append(nvflare_text(json.loads(given.nvflare.read_text())))
    given.out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
