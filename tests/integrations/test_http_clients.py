"""The clients of examples/ that take part by HTTP, in C, JavaScript, a browser; the description, by Schemathesis."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, found
from fleet import WAIT_S, submit
from http_clients import authorization, committed
from nodes import Node
from safetensors.numpy import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"
ROUNDS = 2
MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([7])}


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    return start_node("--http", "127.0.0.1:0", "--redirector", "unix", "--requests-per-s", "1000")


def test_one_in_c_and_one_in_javascript_train_a_model(node: Node, tmp_path: Path) -> None:
    compiler, javascript = shutil.which("gcc"), shutil.which("node")
    assert compiler and javascript, "gcc and node are needed"
    built = tmp_path / "http_client"
    subprocess.run([compiler, "-Wall", "-Werror", "-O2", "-o", built, EXAMPLES / "http_client.c"], check=True)
    submit(node, "j", MODEL, job__rounds=ROUNDS, selection__clients_per_round=2)
    header, address = node.state_dir / "http.header", node.info["http"]
    host, _, port = address.rpartition(":")
    commands = (
        [built, host, port, header, "j", "in-c"],
        [javascript, EXAMPLES / "http_client.mjs", f"http://{address}", header, "j", "in-javascript"],
    )
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        told = [client.communicate(timeout=WAIT_S)[0] for client in clients]
    finally:
        for client in clients:
            client.kill()
    for client, lines in zip(clients, told, strict=True):
        assert client.returncode == 0, lines
        assert lines.count("accepted") == ROUNDS and "job-over" in lines
    made = load_file(committed(node, ROUNDS))
    assert np.array_equal(made["w"], MODEL["w"] + ROUNDS) and made["b"] == 7 + ROUNDS


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The files of a folder at an origin of their own."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(found() is None, reason="there is no Chromium")
def test_a_page_of_another_origin_trains_a_model_in_a_browser(node: Node, tmp_path: Path) -> None:
    """It is given the credential; without one, and of the node's own page, it gets nothing."""
    submit(node, "j", MODEL, job__rounds=ROUNDS, selection__clients_per_round=1)
    address, (credential,) = f"http://{node.info['http']}", authorization(node).values()
    with served(EXAMPLES) as origin, Browser(tmp_path / "chromium") as browser:
        page = browser.page(800, 600)
        page.go(f"{origin}/http_client.html")
        page.until("document.querySelector('button')")
        status = "fetch('{}/v1/status'{}).then((answer) => answer.status, () => 'none')"
        assert page.run(status.format(address, "")) == 401
        shown = "{headers: {Authorization: 'Bearer wrong'}}"
        assert page.run(status.format(address, f", {shown}")) == 401
        assert page.run(f"fetch('{address}/').then((answer) => answer.status, () => 'none')") == "none"
        for name, value in {"address": address, "authorization": credential, "job": "j", "client": "a-browser"}.items():
            page.run(f"document.querySelector('[name={name}]').value = {value!r}")
        page.click("button")
        page.until("document.querySelector('pre').textContent.includes('job-over')")
        lines = page.run("document.querySelector('pre').textContent")
    assert lines.count("accepted") == ROUNDS, lines
    made = load_file(committed(node, ROUNDS))
    assert np.array_equal(made["w"], MODEL["w"] + ROUNDS) and made["b"] == 7 + ROUNDS


PARAMETERS = """
[parameters]
"path.job" = "j"
"path.client" = "a"
"path.round" = 1
"query.wait_s" = 0.1
"""
CONFIG = """
[checks.positive_data_acceptance]
# What a description cannot say: which tensors the model has, whose turn it is, how much of a file is there.
expected-statuses = ["2xx", 304, 401, 403, 404, 409, 410, 413, 416, 422, 503]
"""


@pytest.mark.parametrize("real", [False, True], ids=["strange names", "a job that runs"])
def test_what_is_answered_is_what_is_described(node: Node, tmp_path: Path, real: bool) -> None:
    """Whatever is asked: no answer that the description does not have, and no fault of the node."""
    pytest.importorskip("schemathesis", reason="NOT TESTED: make test-integrations installs schemathesis")
    submit(node, "j", MODEL, job__rounds=1000, selection__clients_per_round=1)
    ((name, value),) = authorization(node).items()
    config = tmp_path / "schemathesis.toml"
    config.write_text((PARAMETERS if real else "") + CONFIG)
    command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config)]
    command += ["run", f"http://{node.info['http']}/openapi.json", "-H", f"{name}: {value}", "--max-examples", "30"]
    command += ["--request-timeout", "70", "--generation-database", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.is_up()
