"""Whole rounds in Flower and NVFlare, as they are and with LIFL, in one run: `make bench-frameworks`.

    make bench-frameworks                              an hour on two cores, which are to be idle
    make bench-frameworks ARGS=--resume                goes on with one that was cut off, of the same source
    make bench-frameworks ARGS="--only flower --resume --modes mod,many"
    make bench-frameworks ARGS=--quick                 small sizes, minutes: that all of it runs; nothing is kept
    make bench-frameworks ARGS=--page                  measures nothing, writes the page anew

It runs `bench/flower_modes.py` and `bench/nvflare_ways/run.py`, each in the environment that `make test-integrations`
has for it.  Their figures go into `bench/results/flower.json` and `nvflare.json` after each of their runs, and out of
both the page is made, `frameworks.md` beside them.  It exits with 1 when something was not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
SECTIONS = {
    "flower": (
        "integrations",
        "bench/flower_modes.py",
        "--nodes 16 --mb 46.8",
        "--nodes 2 --mb 1 --rounds 1 --many 3",
    ),
    "nvflare": (
        "nvflare",
        "bench/nvflare_ways/run.py",
        "--mib 46.8 --clients 16 --rounds 4 --repeats 3 --ways stock,stock-disk,aggregator,filters",
        "--mib 1 --clients 2 --rounds 2 --repeats 1 --ways stock,stock-disk,aggregator,filters",
    ),
}
"""Of each section the environment, the program, and its arguments in full size and in the quick run."""
SHARE = {
    "round": ("round_s", {"mod": 1 / 3, "ahead": 1 / 3, "many": 1 / 30}),
    "CPU": ("servers_cpu_s", {"mod": 1 / 12, "ahead": 1 / 12, "many": 1 / 12}),
    "memory": ("servers_peak_bytes", {"mod": 1 / 3, "ahead": 1 / 3, "many": 1 / 3}),
}
"""What is aimed at, of stock's."""
FILTERS = {"round": 1 / 3, "server's CPU": 1 / 12, "server's memory, with the arena": 1 / 3}
"""The same of NVFlare with its filters."""
END_S = 120.0
"""In this time a section ends its servers."""
APP_MODELS = 3.0
"""How many models the ServerApp may have for itself with LIFL's strategy alone."""


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


def earlier(path: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier run has written, to be gone on with; `told` where it is of another source, or sizes."""
    if not path.exists():
        return told
    found: dict[str, Any] = json.loads(path.read_text())
    same = found.get("sizes") == told["sizes"] and found["about"]["commit"] == told["about"]["commit"]
    return found if same else told


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


def strategy_alone(runs: list[dict[str, Any]], warm_ups: dict[str, int]) -> str:
    """Return what LIFL's strategy needs without the mod, beside what is aimed at; nothing where it was not measured."""
    of = {mode: [each for each in runs if each["mode"] == mode] for mode in ("numpy", "strategy")}
    lines = ["| the strategy alone | measured | the sum in NumPy | aim | |", "|---" * 5 + "|"]
    models = [_app_models([each for each in of[mode] if "server_app_before_bytes" in each]) for mode in of]
    if models[1]:
        met = "met" if models[1] <= APP_MODELS else "MISSED"
        control = f"{models[0]:.1f}" if models[0] else ""
        text = f"{models[1]:.1f} | {control} | {APP_MODELS:.0f} | {met} |"
        lines.append(f"| ServerApp's peak, beyond what it began with, in models | {text}")
    if all(of.values()):
        rounds = [[each for one in of[mode] for each in one["rounds"][warm_ups.get(mode, 1) :]] for mode in of]
        control_s, ours_s = (statistics.median(each["last_reply_to_model_s"] for each in part) for part in rounds)
        met = "met" if ours_s <= control_s else "MISSED"
        lines.append(f"| last reply to model, s | {ours_s:.3f} | {control_s:.3f} | {control_s:.3f} | {met} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _app_models(runs: list[dict[str, Any]]) -> float:
    more = [(each["app_peak_bytes"] - each["server_app_before_bytes"]) / each["model_bytes"] for each in runs]
    return max(more, default=0.0)


def flower_text(told: dict[str, Any]) -> str:
    """Return the section about Flower."""
    from flower_modes import MODES, WARM_UPS, agreement, table

    runs = told["runs"]
    parts = [
        "## Flower",
        "FedAvg by a real SuperLink, SuperNodes and ClientApp processes, all on one machine, nothing trained. Medians "
        "of rounds behind the warm-up (smallest to largest). Servers: the SuperLink, the ServerApp and LIFL's node.",
        table(runs),
        _missing(MODES, {each["mode"] for each in runs}),
        agreement(runs),
        against_aims(runs, WARM_UPS),
        strategy_alone(runs, WARM_UPS),
        circumstances(told, "bench/flower_modes.py"),
    ]
    return "\n\n".join(part for part in parts if part)


def _missing(wanted: Iterable[str], there: Collection[str]) -> str:
    """Return a line about what was not measured, if something was not."""
    out = [each for each in wanted if each not in there]
    return f"Not measured: {', '.join(out)}." if out else ""


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
    parts = [
        "## NVFlare",
        "FedAvg in its simulator, a process for each client; nothing trained. Medians of rounds behind the warm-up of "
        "each run (smallest to largest). CPU is that of the server's process and LIFL's node.",
        "\n".join(lines),
        _missing(told["ways"], ways),
        against_filters(ways),
        circumstances(told, "bench/nvflare_ways/run.py"),
    ]
    return "\n\n".join(part for part in parts if part)


def against_filters(ways: dict[str, list[dict[str, float]]]) -> str:
    """Return what of stock's the filters take, beside what is aimed at; nothing where one was not measured."""
    if not {"stock", "filters"} <= ways.keys():
        return ""
    measures = (
        lambda each: each["round_s"],
        lambda each: each["cpu_s"],
        lambda each: each["server_peak_mib"] + each["arena_mib"],
    )
    lines = ["| of stock's, `filters` take | measured | aim | |", "|---" * 4 + "|"]
    for (name, aim), measure in zip(FILTERS.items(), measures, strict=True):
        ours, stock = (statistics.median(map(measure, ways[way])) for way in ("filters", "stock"))
        met = "met" if ours <= aim * stock else "MISSED"
        lines.append(f"| {name} | 1/{stock / ours:.1f} | 1/{1 / aim:.0f} | {met} |")
    return "\n".join(lines)


def page(folder: Path) -> Path:
    """Write the page of the figures in a folder; return where."""
    parts = ["# Whole rounds in Flower and NVFlare, as they are and with LIFL"]
    for name, text in (("flower", flower_text), ("nvflare", nvflare_text)):
        path = folder / f"{name}.json"
        if path.exists():
            parts.append(text(json.loads(path.read_text())))
    path = folder / "frameworks.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def measure(given: argparse.Namespace, folder: Path) -> list[str]:
    """Run the sections that are asked for, their figures into a folder; return those in which something failed."""
    failed = []
    for name in given.only.split(","):
        environment, program, full, quick = SECTIONS[name]
        more = {"flower": ("--modes", given.modes), "nvflare": ("--ways", given.ways)}[name]
        command = [
            *(ROOT / ".venv" / environment / "bin/python", ROOT / program, *(quick if given.quick else full).split()),
            *(more if more[1] else ()),
            *("--json", folder / f"{name}.json"),
            *(["--resume"] if given.resume else []),
        ]
        print(f"== {name}", flush=True)
        # What is here counts, not the source that the environment was made from.
        if _run(command, os.environ | {"PYTHONPATH": str(ROOT / "src")}):
            failed.append(name)
    return failed


def _run(command: Sequence[str | Path], env: dict[str, str]) -> int:
    """Run a section to its end; one that is ended with this has time to end what it has started."""
    with subprocess.Popen(command, env=env) as section:
        try:
            return section.wait()
        except BaseException:
            section.terminate()
            section.wait(END_S)
            raise


def main() -> int:
    """Run the sections, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is kept")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--modes", default="", help="some of the modes of bench/flower_modes.py")
    parser.add_argument("--ways", default="", help="some of the ways of bench/nvflare_ways/run.py")
    parser.add_argument("--resume", action="store_true", help="keep what was measured of this source and these sizes")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder for figures and page")
    given = parser.parse_args()
    if not set(given.only.split(",")) <= SECTIONS.keys():
        parser.error(f"--only takes names of {', '.join(SECTIONS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleared up
    with tempfile.TemporaryDirectory(prefix="lifl-frameworks-") as temporary:
        folder = Path(temporary) if given.quick else given.out
        began_s = time.monotonic()
        failed = [] if given.page else measure(given, folder)
        path = page(folder)
        print(path.read_text() if given.quick else f"{path} is written")
    print(f"took {(time.monotonic() - began_s) / 60:.1f} minutes" + "".join(f"; FAILED: {name}" for name in failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
