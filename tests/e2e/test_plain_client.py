"""docs/protocol.md is enough to take part: two processes of examples/plain_client.py, which imports nothing of LIFL."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fleet import WAIT_S, submit
from nodes import Node
from safetensors.numpy import load_file

CLIENT = Path(__file__).parents[2] / "examples/plain_client.py"
ROUNDS = 2


def test_it_imports_nothing_of_lifl() -> None:
    imports = [
        node for node in ast.walk(ast.parse(CLIENT.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not [ast.unparse(node) for node in imports if "lifl" in ast.unparse(node)]


def test_two_of_them_train_a_model(start_node: Callable[..., Node]) -> None:
    node = start_node()
    model = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([7]), "steps": np.array(5)}
    submit(node, "j", model, job__rounds=ROUNDS, selection__clients_per_round=2)
    command = [sys.executable, str(CLIENT), node.address, "j"]
    clients = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")]
    try:
        told = [client.communicate(timeout=WAIT_S)[0] for client in clients]
    finally:
        for client in clients:
            client.kill()
    for lines in told:
        assert lines.count("'Accepted'") == ROUNDS and "'finished'" in lines
    path = node.state_dir / "made.safetensors"
    node.lifl("model", "j", "-o", str(path))
    made = load_file(path)
    assert np.array_equal(made["w"], model["w"] + ROUNDS) and made["b"] == 9 and made["steps"] == 5
