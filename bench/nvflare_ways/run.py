"""NVFlare with and without LIFL, side by side: rounds of its simulator in which nothing is trained.

    ENVIRONMENT-WITH-NVFLARE-AND-LIFL/bin/python bench/nvflare_ways/run.py --mib 46.8 --clients 16 --rounds 4

Ways: `stock` (FedAvg that folds on arrival, NumPy arrays that NVFlare streams), `stock-disk` (PyTorch tensors that are
put on the disk as they come; needs torch), `aggregator` (LiflAggregator) and `filters` (the tensors go by LIFL, too).
The ways take turns, `--repeats` times; the first round of each run warms up and is left out.  `cpu_s` is of the
server's process and LIFL's node; clients have processes of their own, which are not counted.  The server's peak is its
process's own memory, without files and the arena, `arena_mib` what the node shares; other nodes are to be down.

A way that fails is told, and the others are run.  Figures go into the file of `--json` after each run; with `--resume`
those of the same source and sizes in it are kept, and only the others measured.  `bench/frameworks.py` runs all of it
and makes a page.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from frameworks import about, earlier  # noqa: E402

WAYS = ("stock", "stock-disk", "aggregator", "filters")


def run_job(way: str, mib: float, clients: int, rounds: int, folder: Path) -> None:
    """Run one job in this process: what `simulator_run` starts is NVFlare's."""
    from nvflare.app_common.workflows.fedavg import FedAvg
    from nvflare.job_config.api import FedJob
    from nvflare.job_config.defs import FilterType
    from parts import Model, Train, Watch

    job = FedJob(name=f"ways-{way}", min_clients=clients)
    job.set_app_packages(["lifl"])
    more = {"enable_tensor_disk_offload": True} if way == "stock-disk" else {}
    if way in ("aggregator", "filters"):
        from lifl.integrations.nvflare import LiflAggregator, LiflFilter

        more = {"aggregator": LiflAggregator()}
    torch = way == "stock-disk"
    job.to_server(Model(mib, torch), id="persistor")
    job.to_server(Watch(str(folder / "rounds.jsonl")), id="watch")
    job.to_server(FedAvg(num_clients=clients, num_rounds=rounds, **more))
    job.to_clients(Train(torch), tasks=["train"])
    if way == "filters":
        job.to_server(LiflFilter(), filter_type=FilterType.TASK_DATA, tasks=["train"])
        job.to_clients(LiflFilter(), filter_type=FilterType.TASK_DATA, tasks=["train"])
        job.to_clients(LiflFilter(), filter_type=FilterType.TASK_RESULT, tasks=["train"])
    failed = job.simulator_run(str(folder / "workspace"), n_clients=clients, threads=clients)
    if failed:
        raise SystemExit(f"{way}: the simulator failed, see {folder}")


def measure(way: str, args: argparse.Namespace) -> list[dict[str, float]]:
    """Return the figures of a run's rounds, the first left out."""
    with tempfile.TemporaryDirectory(prefix="nvflare-ways-") as name:
        folder = Path(name)
        env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{Path(__file__).parent}", "HOME": name}
        own = ["--run", way, "--folder", name, "--mib", str(args.mib), "--clients", str(args.clients)]
        command = [sys.executable, __file__, *own, "--rounds", str(args.rounds)]
        said, fault = _ended(command, env, args.within_s)
        path = folder / "rounds.jsonl"
        rounds = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if fault or len(rounds) != args.rounds:
            print(f"FAILED  {way}: {len(rounds)} of {args.rounds} rounds, {fault}: {said[-1500:]}", file=sys.stderr)
            return []
        return rounds[1:]


def _ended(command: list[str], env: dict[str, str], within_s: float) -> tuple[str, str]:
    """Run a command to its end, with all that it starts; return what it said, and what was wrong."""
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as job:
        try:
            said, _none = job.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            _kill(job.pid)
            return job.communicate()[0], f"ended after {within_s:.0f} s"
        except BaseException:
            _kill(job.pid)
            raise
    return said, f"exit code {job.returncode}" if job.returncode else ""


def _kill(pid: int) -> None:
    """Kill a process with all that descends from it: NVFlare gives its simulator a session of its own."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(family[1:], 10)


def measure_all(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Return the figures of each way's rounds, those of earlier runs with `--resume`."""
    told: dict[str, Any] = {
        "about": about("nvflare"),
        "command": sys.argv[1:],
        "sizes": {"clients": args.clients, "mib": args.mib, "rounds": args.rounds},
        "ways": {},
    }
    if args.resume:
        told = earlier(args.json, told)
    found: dict[str, list[dict[str, float]]] = told["ways"]
    for repeat in range(args.repeats):
        for way in args.ways.split(","):
            mine = found.setdefault(way, [])
            if len(mine) // (args.rounds - 1) > repeat:
                continue
            mine += measure(way, args)
            if args.json:
                args.json.write_text(json.dumps(told, indent=1))
    return found


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, default=46.8)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", default="stock,aggregator,filters")
    parser.add_argument("--json", type=Path, help="a file for all figures, written after each run")
    parser.add_argument("--resume", action="store_true", help="keep what that file has of this source and these sizes")
    parser.add_argument("--within-s", type=float, default=900.0, help="a run takes no longer")
    parser.add_argument("--run", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_job(args.run, args.mib, args.clients, args.rounds, args.folder)
        return
    if args.rounds < 2 or (args.resume and not args.json) or not set(args.ways.split(",")) <= set(WAYS):
        parser.error(f"--rounds is 2 or more, --resume needs --json, --ways takes some of {','.join(WAYS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleared up
    found = measure_all(args)
    print(f"{args.clients} clients x {args.mib} MiB, medians (smallest to largest) of rounds")
    for way, rounds in found.items():
        texts = []
        for name in rounds[0] if rounds else ():
            values = [each[name] for each in rounds]
            texts.append(f"{name} {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})")
        print(f"{way:11} n={len(rounds)}  " + "  ".join(texts))
    sys.exit(any(len(rounds) < args.repeats * (args.rounds - 1) for rounds in map(found.get, args.ways.split(","))))


if __name__ == "__main__":
    main()
