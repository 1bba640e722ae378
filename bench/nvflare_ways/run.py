"""NVFlare with and without LIFL, side by side: rounds of its simulator in which nothing is trained.

    ENVIRONMENT-WITH-NVFLARE-AND-LIFL/bin/python bench/nvflare_ways/run.py --mib 46.8 --clients 16 --rounds 4

Ways: `stock` (FedAvg that folds on arrival, NumPy arrays that NVFlare streams), `stock-disk` (PyTorch tensors that are
put on the disk as they come; needs torch), `aggregator` (LiflAggregator) and `filters` (the tensors go by LIFL, too).
The ways take turns, `--repeats` times; the first round of each run warms up and is left out.  `cpu_s` is of the
server's process and LIFL's node; clients have processes of their own, which are not counted.  The server's peak is its
process's own memory, without files and the arena, `arena_mib` what the node shares; other nodes are to be down.
`bench/frameworks.py` makes a page of the figures of `--json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from frameworks import about  # noqa: E402

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
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        path = folder / "rounds.jsonl"
        if done.returncode or not path.exists():
            print(f"{way}: no figures: {(done.stdout + done.stderr)[-1500:]}", file=sys.stderr)
            return []
        return [json.loads(line) for line in path.read_text().splitlines()][1:]


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, default=46.8)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", default="stock,aggregator,filters")
    parser.add_argument("--json", type=Path, help="a file for all figures, written after each run")
    parser.add_argument("--run", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_job(args.run, args.mib, args.clients, args.rounds, args.folder)
        return
    ways = args.ways.split(",")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way in ways:
            found[way] += measure(way, args)
            if args.json:
                told = {"about": about("nvflare"), "command": sys.argv[1:], "ways": found}
                args.json.write_text(json.dumps(told, indent=1))
    print(f"{args.clients} clients x {args.mib} MiB, medians (smallest to largest) of rounds")
    for way, rounds in found.items():
        texts = []
        for name in rounds[0] if rounds else ():
            values = [each[name] for each in rounds]
            texts.append(f"{name} {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})")
        print(f"{way:11} n={len(rounds)}  " + "  ".join(texts))


if __name__ == "__main__":
    main()
