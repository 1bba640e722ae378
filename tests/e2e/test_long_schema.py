"""A model whose schema fits no frame: refused with the numbers; a state folder that has one anyway comes up."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fleet import submit, write_job
from nodes import Node, run_lifl

from lifl.core.config.job import parse_job
from lifl.core.limits import SCHEMA_BYTES_MAX
from lifl.core.schema import Layout, TensorSpec
from lifl.node.store import NodeStore

LONG = tuple(TensorSpec(f"{index:0200d}", "float32", (1,)) for index in range(45_000))


def write_model(path: Path) -> None:
    header = {t.name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, t in enumerate(LONG)}
    packed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + bytes(4 * len(LONG)))


def test_it_is_refused_before_anything_is_stored_and_the_node_lives(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node()
    job = write_job(tmp_path, "long", {"w": np.zeros(4, np.float32)})
    write_model(tmp_path / "long.safetensors")
    model = f'model.path="{tmp_path / "long.safetensors"}"'
    done = run_lifl("submit", str(job), "--set", model, "--state", str(node.state_dir))
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert str(Layout(LONG).packed_bytes) in said
    assert str(SCHEMA_BYTES_MAX) in said
    assert node.json("jobs")["jobs"] == []
    assert not (node.state_dir / "jobs" / "long").exists()
    submit(node, "short", {"w": np.zeros(4, np.float32)})
    assert node.json("status", "short")["job"]["status"] in ("loading", "running", "waiting")


def test_a_state_folder_that_has_it_comes_up_and_the_job_has_failed(
    start_node: Callable[..., Node], state_dir: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "long.safetensors")
    state_dir.mkdir(mode=0o700, exist_ok=True)
    config = {
        "job": {"name": "long", "rounds": 1},
        "model": {"path": str(tmp_path / "long.safetensors")},
        "selection": {"clients_per_round": 1},
    }
    store = NodeStore(state_dir / "lifl.db")
    store.add_job(parse_job(config), LONG, (), str(tmp_path / "jobs"))
    store.save_job("long", "running", "")
    store.close()
    node = start_node()
    (line,) = node.json("jobs")["jobs"]
    assert (line["name"], line["status"]) == ("long", "failed")
    assert "bytes" in line["reason"]
    submit(node, "short", {"w": np.zeros(4, np.float32)})
    assert node.json("status", "short")["job"]["status"] in ("loading", "running", "waiting")
