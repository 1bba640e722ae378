"""What LIFL gains in a Flower app: rounds of FedAvg by a real SuperLink, SuperNodes and ClientApps, in several modes.

    make test-integrations ARGS=--co && .venv/integrations/bin/python bench/flower_modes.py --nodes 16 --mb 46.8

`stock`: FedAvg as installed; `numpy`: its replies streamed into a running sum, the fair control; `strategy`: LIFL's
strategy alone; `mod`: with LIFL's mod in the ClientApps, as the strategy is told (`with_mod`); `ahead`: with messages
that are sent ahead; `many`: all rounds of a run for one message.  Nothing is trained.  Each repeat runs all modes one
after the other, each with a SuperLink and SuperNodes of its own; the first round of each run is a warm-up (of `ahead`
the first two).  Servers are the SuperLink with all that descends from it: the ServerApp, LIFL's node; their memory is
what is private to each, and the node's arena.

A mode that fails is told at the end, and the others are run.  Figures go into the file of `--json` after each run; with
`--resume` those of the same source and sizes in it are kept, and only the others measured.  `bench/frameworks.py` runs
all of it and makes a page.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from flower_fleet import FlowerFleet  # noqa: E402 - of the tests
from frameworks import about, earlier  # noqa: E402

MODES = ("stock", "numpy", "strategy", "mod", "ahead", "many")
WARM_UPS = {"ahead": 2}
SAMPLE_S = 0.2
NODE = ("daemon", "gateway", "zygote and workers")
PARTS = {
    "flwr-serverapp": "ServerApp",
    "lifl.node.embedded": "daemon",
    "lifl.node.gateway": "gateway",
    "lifl.worker": "zygote and workers",
    "flower-superlink": "SuperLink",
}
"""Whose a process is, by what stands in its command."""


class PeakMemory:
    """Watches the private memory of a process and its descendants, and the segments of LIFL nodes among them."""

    def __init__(self, pid: int) -> None:
        self._top = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0
        self.parts: dict[str, int] = {}
        """What the peak was made of."""
        self.app_bytes = 0
        """The most that the ServerApp had for itself."""

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_ended: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            parts: dict[str, int] = {}
            segments: set[Path] = set()
            for process in [self._top, *self._top.children(recursive=True)]:
                part = _part(process)
                parts[part] = parts.get(part, 0) + _private_bytes(process)
                segments |= _segments(process) if part in NODE else set()
            for path in segments:
                with suppress(FileNotFoundError):
                    parts["arena"] = parts.get("arena", 0) + path.stat().st_blocks * 512
            self.app_bytes = max(self.app_bytes, parts.get("ServerApp", 0))
            if sum(parts.values()) > self.peak_bytes:
                self.peak_bytes, self.parts = sum(parts.values()), parts


def _part(process: psutil.Process) -> str:
    """Return of whom a process is."""
    with suppress(psutil.Error):
        command = " ".join(process.cmdline())
        for word, part in PARTS.items():
            if word in command:
                return part
    return "other"


def _segments(process: psutil.Process) -> set[Path]:
    """Return the segments of shared memory that a process of a node has mapped."""
    with suppress(OSError):
        words = Path(f"/proc/{process.pid}/maps").read_text().split()
        return {Path(word) for word in words if word.startswith("/dev/shm/lifl-")}
    return set()


def _private_bytes(process: psutil.Process) -> int:
    """Return the memory that is in no file; what forked processes share counts once."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
    return 0


def run(folder: Path, mode: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return what one run of some rounds came to, with a fleet of its own."""
    fleet = FlowerFleet(folder, given.nodes)
    try:
        return _run(fleet, mode, given)
    finally:
        fleet.close()


def _run(fleet: FlowerFleet, mode: str, given: argparse.Namespace) -> dict[str, Any]:
    out = fleet.folder / f"{mode}.json"
    out.unlink(missing_ok=True)
    rounds = max(given.many, 3) + 1 if mode == "many" else given.rounds + WARM_UPS.get(mode, 1)
    config = {
        "mode": mode,
        "mod": mode in ("mod", "ahead", "many"),
        "model-bytes": int(given.mb * 1e6),
        "nodes": given.nodes,
        "rounds": rounds,
        "out": str(out),
        "link": fleet.processes[0].pid,
    }
    with PeakMemory(fleet.processes[0].pid) as memory:
        said = fleet.run(ROOT / "bench/flower_modes_app", config, within_s=given.within_s)
    if not out.exists():
        raise RuntimeError(f"{mode}: {said[-3000:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    more = {"servers_peak_bytes": memory.peak_bytes, "peak_parts": memory.parts, "app_peak_bytes": memory.app_bytes}
    return {**found, "mode": mode, "model_bytes": config["model-bytes"], **more}


def _memory_cells(runs: list[dict[str, Any]]) -> str:
    """Return the servers' peak with its parts, and the ServerApp's, as far as they were measured."""
    measured = [each for each in runs if "peak_parts" in each]
    if not measured:
        return " | "
    largest = max(measured, key=lambda each: each["servers_peak_bytes"])
    found = largest["peak_parts"]
    of = {part: found.get(part, 0) for part in ("SuperLink", "ServerApp", "node", "arena")}
    of["node"] += sum(found.get(part, 0) for part in NODE)
    text = ", ".join(f"{nbytes / 1e6:.0f}" for nbytes in of.values())
    most = max(measured, key=lambda each: each["app_peak_bytes"])
    app = f"{most['app_peak_bytes'] / 1e6:.0f}"
    if "server_app_before_bytes" in most:
        app += f" ({(most['app_peak_bytes'] - most['server_app_before_bytes']) / most['model_bytes']:.1f})"
    return f"{largest['servers_peak_bytes'] / 1e6:.0f}{f' ({text})' if found else ''} | {app}"


def table(runs: list[dict[str, Any]]) -> str:
    """Return the medians of each mode, and their ratios to stock."""
    lines = [
        "| mode | n | round, s | servers' CPU, s | servers' peak, MB (SuperLink, ServerApp, node, arena) "
        "| ServerApp's own peak, MB (beyond what it began with, in models) | last reply to model, s |",
        "|---" * 7 + "|",
    ]
    for mode in MODES:
        mine = [each for each in runs if each["mode"] == mode]
        if not mine:
            continue
        rounds = [each for one in mine for each in one["rounds"][WARM_UPS.get(mode, 1) :]]
        median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0] if key != "round"}
        spread = sorted(each["round_s"] for each in rounds)
        last = f"{median['last_reply_to_model_s']:.2f}" if mode != "many" else ""
        lines.append(
            f"| {mode} | {len(rounds)} | {median['round_s']:.2f} ({spread[0]:.2f} to {spread[-1]:.2f}) "
            f"| {median['servers_cpu_s']:.2f} | {_memory_cells(mine)} | {last} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the modes, and print the table and how far the models differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--mb", type=float, default=46.8, help="the model's size")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a run behind the warm-up")
    parser.add_argument("--many", type=int, default=19, help="rounds for one message behind the warm-up")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--within-s", type=float, default=1800.0, help="a run takes no longer")
    parser.add_argument("--json", type=Path, help="a file for all figures, written after each run")
    parser.add_argument("--resume", action="store_true", help="keep what that file has of this source and these sizes")
    given = parser.parse_args()
    if given.resume and not given.json:
        parser.error("--resume needs --json")
    if not set(given.modes.split(",")) <= set(MODES):
        parser.error(f"--modes takes some of {','.join(MODES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleared up
    runs, failed = measure(given)
    if runs:
        print(table(runs))
        print(agreement(runs))
    for text in failed:
        print(f"FAILED  {text}", file=sys.stderr)
    sys.exit(bool(failed))


def measure(given: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """Run the modes that are asked for; return all figures, those of earlier runs with `--resume`, and what failed."""
    told: dict[str, Any] = {
        "about": about("flwr"),
        "command": sys.argv[1:],
        "sizes": {"nodes": given.nodes, "mb": given.mb, "rounds": given.rounds, "many": given.many},
        "runs": [],
    }
    if given.resume:
        told = earlier(given.json, told)
    runs, failed = told["runs"], []
    with tempfile.TemporaryDirectory(prefix="lifl-flower-") as folder:
        for number in range(given.repeats):
            for mode in given.modes.split(","):
                if sum(each["mode"] == mode for each in runs) > number:
                    continue
                try:
                    runs.append(run(Path(folder) / f"{mode}-{number}", mode, given))
                except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
                    failed.append(f"{mode}: {error}")
                    continue
                print(f"{mode}: {[round(each['round_s'], 2) for each in runs[-1]['rounds']]}", flush=True)
                if given.json:
                    given.json.write_text(json.dumps(told, indent=1))
    return runs, failed


def agreement(runs: list[dict[str, Any]]) -> str:
    """Return how far the models of all modes are apart."""
    by_rounds: dict[int, list[list[float]]] = {}
    off = 0.0
    for each in runs:
        by_rounds.setdefault(len(each["rounds"]), []).append(each["means"])
    for means in by_rounds.values():
        off = max(off, *(abs(x - y) for other in means for x, y in zip(means[0], other, strict=True)))
    return f"Largest difference of a tensor's mean between runs of as many rounds: {off:.2g}."


if __name__ == "__main__":
    main()
