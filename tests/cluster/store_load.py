"""What 10,000 clients and 100 jobs cost a real etcd: measured by hand.

Three members on loopback, on real disks, and one coordinator's rows (`ClusterRows`), written one after the other as the
driver writes them; the clients are names in the rows, as the engine puts them there.  Prints the table of
docs/failover.md:

    PYTHONPATH=tests:tests/cluster python tests/cluster/store_load.py [SECONDS]
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import store_history
from etcd_servers import Etcd as Servers
from etcd_servers import etcd

from lifl.core import effects as fx
from lifl.core.config.job import JobConfig, parse_job
from lifl.core.schema import TensorSpec
from lifl.node.durable_rows import write_now
from lifl.node.etcd.client import Etcd
from lifl.node.etcd.cluster_rows import ClusterRows, meet
from lifl.node.etcd.keys import Keys
from lifl.node.etcd.leadership import Leadership
from lifl.node.etcd.mirror import Mirror

SECONDS = 30.0
SHAPES = ((1, 10), (100, 100), (1, 10_000), (100, 10_000))
"""Jobs, and the clients of each of their rounds."""
NODES = 5
TENSORS = tuple(TensorSpec(f"layer{index}.weight", "float32", (64, 64)) for index in range(100))


class Tried(NamedTuple):
    """One shape's figures."""

    rounds_per_s: float
    writes_per_s: float
    median_ms: float
    longest_ms: float
    row_kib: float
    kept_mib: float
    """What the store keeps when what is compacted is gone."""
    begin_s: float
    """How long the next coordinator reads."""


class Handler:
    """What a node that leads does here: nothing."""

    def __init__(self) -> None:
        self.term: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def elected(self, term: int) -> None:
        """Go on."""
        self.term.set_result(term)

    def deposed(self) -> None:
        """It is over."""

    def led_by(self, value: bytes, term: int) -> bool:
        """Say that it is an earlier life of this one."""
        return True


def config(job: int, clients: int) -> JobConfig:
    """A job's config."""
    selection = {"clients_per_round": clients}
    return parse_job({"job": {"name": f"j{job}", "rounds": 1000}, "model": {"path": "/m"}, "selection": selection})


def opened(number: int, job: int) -> fx.SaveRound:
    """The row of a round that begins on all nodes."""
    parts = [[node, f"{node:016x}", 2000] for node in range(NODES)]
    return fx.SaveRound(f"j{job}", number, 1, "open", {"parts": parts, "next_part": NODES})


def committed(number: int, job: int, clients: int, term: int) -> fx.SaveRound:
    """The row of a round that is committed, with who is in it."""
    tree = [f"leaf {leaf}: 2 updates, 12.5 ms" for leaf in range(50)]
    lines = [{"node": f"{node:016x}", "tree": tree} for node in range(NODES)]
    fields: dict[str, Any] = {"metrics": {"loss": 0.1}, "path": f"/models/j{job}/round-{number:05d}.{term}.safetensors"}
    fields |= {"receipt": {"counted": clients, "branches": lines}, "digests": ["0123456789abcdef"], "term": term}
    fields["members"] = [f"hospital-{job:03d}-{client:05d}.example" for client in range(clients)]
    return fx.SaveRound(f"j{job}", number, 1, "committed", fields)


def ask(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """etcd's answer by its HTTP door."""
    answer: dict[str, Any] = json.load(store_history.asked(address, path, body))
    return answer


def in_use_mib(servers: Servers) -> float:
    """What the leader's database has in use when all but the last versions are compacted."""
    address = servers.leader().client
    revision = ask(address, "/v3/kv/range", {"key": store_history.coded("/")})["header"]["revision"]
    ask(address, "/v3/kv/compaction", {"revision": revision, "physical": True})
    return int(ask(address, "/v3/maintenance/status", {})["dbSizeInUse"]) / 2**20


async def measured(servers: Servers, folder: Path, jobs: int, clients: int, seconds: float) -> Tried:
    """Begin and commit rounds of all jobs in turn, for so long."""
    store, keys = Etcd(servers.endpoints), Keys(f"load-{jobs}-{clients}")
    handler = Handler()
    leading = asyncio.create_task(Leadership(store, keys, lambda: b"n", handler).run())
    term = await handler.term
    mirror = Mirror(folder / f"{jobs}-{clients}.db")
    rows = ClusterRows(store, keys, await meet(store, keys), mirror, lambda: None)
    await rows.begin(term)
    for job in range(jobs):
        await rows.new_job(config(job, clients), TENSORS, (), f"/models/j{job}")
        await write_now(rows, fx.SaveJob(f"j{job}", "running", ""))
    times: list[float] = []
    began_s, before = time.monotonic(), servers_revision(servers)
    number = 0
    while time.monotonic() - began_s < seconds:
        number += 1
        for job in range(jobs):
            for row in (opened(number, job), committed(number, job, clients, term)):
                at_s = time.monotonic()
                await write_now(rows, row)
                times.append(time.monotonic() - at_s)
    took_s = time.monotonic() - began_s
    writes = servers_revision(servers) - before
    kept = in_use_mib(servers)
    began_s = time.monotonic()
    await rows.begin(term)
    begin_s = time.monotonic() - began_s
    size = max(len(kv.value) for kv in (await store.range(keys.root, keys.root + b"\xff"))[0]) / 1024
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    await store.close()
    mirror.close()
    rounds = len(times) / 2
    return Tried(
        rounds / took_s, writes / took_s, 1e3 * statistics.median(times), 1e3 * max(times), size, kept, begin_s
    )


def servers_revision(servers: Servers) -> int:
    """etcd's revision."""
    found = ask(servers.leader().client, "/v3/kv/range", {"key": store_history.coded("/")})
    return int(found["header"]["revision"])


def main() -> None:
    """Measure each shape on a store of its own, and print the table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    print(
        "| jobs × clients of a round | rounds/s | writes/s | a write, ms: median (longest) | largest row, KiB"
        " | kept, MiB | the next one reads, s |\n|---|---|---|---|---|---|---|"
    )
    for jobs, clients in SHAPES:
        with etcd(3) as servers, tempfile.TemporaryDirectory() as folder:
            one = asyncio.run(measured(servers, Path(folder), jobs, clients, seconds))
        print(
            f"| {jobs} × {clients:,} | {one.rounds_per_s:.0f} | {one.writes_per_s:.0f} | {one.median_ms:.1f}"
            f" ({one.longest_ms:.0f}) | {one.row_kib:.1f} | {one.kept_mib:.1f} | {one.begin_s:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
