"""`lifl simulate --backend ray`: virtual clients on a real Ray cluster, which the test makes for itself."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from nodes import COMMAND_TIMEOUT_S, LIFL

pytest.importorskip("ray", reason="NOT TESTED: make test-integrations installs ray")

CLUSTER = """
import sys
import ray

ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
print("at", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
TRAINER = """
    def train(tensors, *, client, round, options):
        import ray

        assert ray.is_initialized(), "it is not on the cluster"
        if client == 3:
            raise ValueError("no data here")
        tensors["output.bias"] += options["step"]
        return tensors, 1, {"client": client}
"""
JOB = """
    [job]
    name = "j"
    rounds = 2

    [model]
    example = "digits-mlp"

    [selection]
    clients_per_round = 3

    [client.options]
    step = 10
"""


def test_the_rounds_of_a_job_are_trained_on_a_ray_cluster(tmp_path: Path) -> None:
    (tmp_path / "trainers.py").write_text(textwrap.dedent(TRAINER))
    (tmp_path / "job.toml").write_text(textwrap.dedent(JOB))
    command = [*LIFL, "simulate", "job.toml", "--clients", "5", "--backend", "ray", "--json", "--trainer"]

    # A cluster asks for a token by itself, and who joins it has to say that it has one.
    secured = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def simulate(trainer: str, address: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = {**secured, "RAY_ADDRESS": address, **more}
        how = {"capture_output": True, "text": True, "timeout": COMMAND_TIMEOUT_S}
        done = subprocess.run([*command, trainer], cwd=tmp_path, env=env, check=False, **how)  # type: ignore[call-overload]
        return done  # type: ignore[no-any-return]

    pipe = subprocess.PIPE
    command_of_cluster = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command_of_cluster, text=True, stdin=pipe, stdout=pipe, env=secured) as cluster:
        assert cluster.stdout is not None
        address = next(line.split()[1] for line in cluster.stdout if line.startswith("at "))
        done = simulate("trainers:train", address)
        wrong = simulate("trainers:trian", address)
        stranger = simulate("trainers:train", address, RAY_AUTH_MODE="disabled")
        cluster.communicate("", timeout=COMMAND_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (found,) = events[-1]["simulations"]
    assert [each["counted"] for each in found["rounds"]] == [3, 3] and found["status"] == "finished"
    assert {each["client"] for each in events if each["event"] == "trainer.failed"} <= {"client-3"}
    assert wrong.returncode == 1 and "has no attribute 'trian'" in wrong.stderr
    assert stranger.returncode == 1 and "RAY_AUTH_MODE" in stranger.stderr and "Traceback" not in stranger.stderr
    gone = simulate("trainers:train", address)
    assert gone.returncode == 1 and "no Ray cluster is there" in gone.stderr and "Traceback" not in gone.stderr
