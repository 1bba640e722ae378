"""What 100,000 rounds leave behind: a node that has committed so many, beside one that has committed a hundred.

    .venv/bin/python bench/node_history.py [ROUNDS]

By hand; it takes a minute or two.  The rows are written by the code that writes them (`coordinator/keeping.py`,
`node/store.py`), without waiting for the disk, into the database of a real node between two of its lives; each has ten
clients and a receipt of six tasks.  Then the node is started, asked, and stopped, several times, the two in turn.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from lifl_cli.daemon_client import DaemonClient
from safetensors.numpy import save_file

from lifl.core import effects as fx
from lifl.core.config.job import JobConfig
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.keeping import Keeping
from lifl.core.coordinator.nodes import Node, NodeTable
from lifl.core.protocol import cli as om
from lifl.core.schema import Layout
from lifl.core.turn import Turn
from lifl.node.durable_rows import put
from lifl.node.rows import JobRow
from lifl.node.store import NodeStore, trim_rounds

LIFL = [sys.executable, "-m", "lifl_cli.main"]
FEW, MANY, LIVES, ASKED = 100, 100_000, 5, 20
CLIENTS = [f"hospital-{number:02d}" for number in range(10)]
JOB = """
[job]
name = "j"
rounds = 1_000_000
[model]
path = "m.safetensors"
[selection]
clients_per_round = 10
[checkpoint]
keep = { last = 3, every = 10_000, best = "accuracy" }
"""
TASK = {"role": "leaf", "state": "sealed", "address": 17, "expect": 2, "inputs": 2, "parent": 23, "worker": 4}
RECEIPT = {
    **{"selected": 10, "accepted": 10, "counted": 10, "expired": 0, "weight": 1000.0, "bytes_in": 40_960},
    **{"bytes_out": 40_960, "bytes_between": 0, "cpu_s": {"workers": 0.01, "lifld": 0.01, "gateway": 0.01}},
    **{"arena_peak_bytes": 1 << 20, "duration_s": 0.1, "last_accepted_to_sealed_s": 0.001, "workers_cold": 0},
    **{"last_accepted_to_commit_s": 0.01, "workers_warm": 3, "workers_promoted": 2, "workers_shared": 1, "nodes": 1},
    **{"tree": [TASK | {"node": "5c0ffee5c0ffee00"}] * 6, "redirector": "sockmap"},
}


class Timed:
    """A node with so many rounds behind it, and what was measured of it, by name."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.found: dict[str, list[float]] = {}
        self.run("up", "-d", "--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--capacity", "2")
        save_file({"w": np.zeros(1024, np.float32)}, folder / "m.safetensors")
        (folder / "j.toml").write_text(JOB)
        self.run("submit", str(folder / "j.toml"))
        while not (folder / "jobs/j/round-00000.safetensors").exists():
            time.sleep(0.05)
        self.run("down")
        self.fill()

    def run(self, *arguments: str) -> str:
        command = [*LIFL, *arguments, "--state", str(self.folder)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def fill(self) -> None:
        """Write the rows, and the model of the last round."""
        with closing(NodeStore(self.folder / "lifl.db")) as store:
            row = store.job("j")
            assert isinstance(row, JobRow)
            store._db.execute("PRAGMA synchronous=OFF")
            store._db.execute("PRAGMA wal_autocheckpoint=10000")
            begun_s = time.monotonic()
            self._rows(store, row.config, JobSpec(row.number, row.config, Layout(row.tensors), (), row.folder))
            each_s = (time.monotonic() - begun_s) / self.rounds
            self.note("a round's row and its share of trimming, no disk", each_s)
        number, path = store_node(self.folder), Path(row.folder)
        about = {"lifl.job": "j", "lifl.round": str(self.rounds), "lifl.number": str(row.number), "lifl.node": number}
        save_file({"w": np.zeros(1024, np.float32)}, path / f"round-{self.rounds:05d}.safetensors", about)

    def _rows(self, store: NodeStore, config: JobConfig, spec: JobSpec) -> None:
        turn = Turn(1, coordinates=True)
        keeping = Keeping(spec, turn, NodeTable(Node(1, "127.0.0.1:1", 2.0, 1 << 26, 2), b""))
        for number in range(1, self.rounds + 1):
            metrics = {"accuracy": 1 - 1 / number, "loss": 1 / number}
            fields: dict[str, Any] = {"metrics": metrics, "path": spec.path_of(number), "receipt": RECEIPT}
            fields |= {"members": CLIENTS, "keep": keeping.committed(number, metrics)}
            put(store, fx.SaveRound("j", number, 1, "open", {}))
            put(store, fx.SaveRound("j", number, 1, "committed", fields))
            keeping.tell(number, fresh=number)
            for effect in turn.effects:
                if isinstance(effect, fx.TrimRounds):
                    trim_rounds(store, effect.job, effect.rounds, effect.receipts, effect.kept)
            turn.effects.clear()

    def note(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(value)

    def timed(self, name: str, what: Callable[[], Any]) -> Any:
        begun_s = time.monotonic()
        result = what()
        self.note(name, time.monotonic() - begun_s)
        return result

    def live(self) -> None:
        """One life of the node."""
        flags = ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--capacity", "2")
        info = json.loads(self.timed("lifl up", lambda: self.run("up", "-d", "--json", *flags)))
        try:
            assert info["adopted"]["jobs"] == 1 and not info["warnings"], info
            shown = self.timed("lifl status", lambda: self.run("status", "j"))
            assert f"committed  {self.rounds} of" in shown, shown
            self.timed("lifl top --once", lambda: self.run("top", "--once"))
            with DaemonClient(self.folder) as daemon:
                for _ in range(ASKED):
                    self.timed("lifld's answer to status", lambda: daemon.ask(om.JobStatus("j")))
                    self.timed("lifld's answer to top", lambda: daemon.ask(om.Snapshot()))
            memory = psutil.Process(info["pid"]).memory_info()
            self.note("lifld's own memory, MB", (memory.rss - memory.shared) / 1e6)
        finally:
            self.run("down")
        self.note("lifl.db, MB", (self.folder / "lifl.db").stat().st_size / 1e6)


def store_node(folder: Path) -> str:
    """Return the node's number as files have it."""
    with closing(NodeStore(folder / "lifl.db")) as store:
        return f"{store.node_id():016x}"


def main() -> None:
    """Measure both, and print a table."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else MANY
    with tempfile.TemporaryDirectory(prefix="lb-") as few_at, tempfile.TemporaryDirectory(prefix="lb-") as many_at:
        nodes = [Timed(Path(few_at), FEW), Timed(Path(many_at), many)]
        for _ in range(LIVES):
            for node in nodes:
                node.live()
    print(f"| | {FEW} rounds | {many} rounds |\n|---|---|---|")
    for name, values in nodes[0].found.items():
        cells = [statistics.median(node.found[name]) for node in nodes]
        texts = [f"{cell:.1f}" if name.endswith("MB") else f"{1000 * cell:.3g} ms" for cell in cells]
        print(f"| {name} | {texts[0]} | {texts[1]} |" + ("" if len(values) == 1 else f"  n={len(values)}"))


if __name__ == "__main__":
    main()
