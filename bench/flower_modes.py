"""What LIFL gains in a Flower app: rounds of FedAvg by a real SuperLink, SuperNodes and ClientApps, in several modes.

    make test-integrations ARGS=--co && .venv/integrations/bin/python bench/flower_modes.py --nodes 16 --mb 46.8

`stock`: FedAvg as installed; `numpy`: its replies streamed into a running sum, the fair control; `strategy`: LIFL's
strategy alone; `mod`: with LIFL's mod in the ClientApps; `many`: all rounds of a run for one message.  Nothing is
trained.  Each repeat runs all modes one after the other; the first round of each run is a warm-up.  Servers are
the SuperLink with all that descends from it: the ServerApp, LIFL's node; their memory is what is private to each, and
the node's arena.
"""

from __future__ import annotations

import argparse
import json
import statistics
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

MODES = ("stock", "numpy", "strategy", "mod", "many")
SAMPLE_S = 0.1


class PeakMemory:
    """Watches the private memory of a process and its descendants, and the segments of LIFL nodes among them."""

    def __init__(self, pid: int) -> None:
        self._top = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = set(Path("/dev/shm").glob("lifl-*"))
        self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_ended: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            found = sum(map(_private_bytes, [self._top, *self._top.children(recursive=True)]))
            for path in set(Path("/dev/shm").glob("lifl-*")) - self._before:
                with suppress(FileNotFoundError):
                    found += path.stat().st_blocks * 512
            self.peak_bytes = max(self.peak_bytes, found)


def _private_bytes(process: psutil.Process) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def run(fleet: FlowerFleet, mode: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return what one run of some rounds came to."""
    out = fleet.folder / f"{mode}.json"
    out.unlink(missing_ok=True)
    rounds = max(given.many, 3) + 1 if mode == "many" else given.rounds + 1
    config = {
        "mode": mode,
        "mod": mode in ("mod", "many"),
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
    return {**found, "mode": mode, "servers_peak_bytes": memory.peak_bytes}


def table(runs: list[dict[str, Any]]) -> str:
    """Return the medians of each mode, and their ratios to stock."""
    lines = [
        "| mode | n | round, s | servers' CPU, s | servers' peak, MB | ServerApp's peak, MB | last reply to model, s |"
    ]
    lines.append("|---" * 7 + "|")
    for mode in MODES:
        mine = [each for each in runs if each["mode"] == mode]
        if not mine:
            continue
        rounds = [each for one in mine for each in one["rounds"][1:]]
        median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0] if key != "round"}
        spread = sorted(each["round_s"] for each in rounds)
        peak, app = (max(each[key] for each in mine) for key in ("servers_peak_bytes", "server_app_kib"))
        lines.append(
            f"| {mode} | {len(rounds)} | {median['round_s']:.2f} ({spread[0]:.2f} to {spread[-1]:.2f}) "
            f"| {median['servers_cpu_s']:.2f} | {peak / 1e6:.0f} | {app * 1024 / 1e6:.0f} "
            f"| {median['last_reply_to_model_s']:.2f} |"
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
    parser.add_argument("--json", type=Path, help="a file for all figures")
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lifl-flower-") as folder:
        fleet = FlowerFleet(Path(folder), given.nodes)
        try:
            for _ in range(given.repeats):
                for mode in given.modes.split(","):
                    runs.append(run(fleet, mode, given))
                    print(f"{mode}: {[round(each['round_s'], 2) for each in runs[-1]['rounds']]}", flush=True)
        finally:
            fleet.close()
    print(table(runs))
    by_rounds: dict[int, list[list[float]]] = {}
    for each in runs:
        by_rounds.setdefault(len(each["rounds"]), []).append(each["means"])
    for means in by_rounds.values():
        off = max(abs(x - y) for other in means for x, y in zip(means[0], other, strict=True))
        print(f"largest difference of a tensor's mean between runs of {len(means)} modes or repeats: {off:.2g}")
    if given.json:
        given.json.write_text(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
