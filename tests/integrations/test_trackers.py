"""A job's metrics as the real MLflow, TensorBoard, Weights & Biases, Prometheus and OpenTelemetry have them."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import OneHot, fleet, submit, until
from http_clients import authorization
from nodes import Node, run_lifl

CLIENTS, ROUNDS = 2, 3
METRICS = {"index": 0.5, "round.counted": 2.0}
"""Of each round: the mean of 0 and 1."""


def run(node: Node, job: str, **keys: Any) -> None:
    """A job of a few rounds, to its end."""
    oracle = OneHot(CLIENTS)
    submit(node, job, oracle.model(), job__rounds=ROUNDS, selection__clients_per_round=CLIENTS, **keys)
    with fleet(node.address, job, CLIENTS, oracle.update) as team:
        team.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


# ---- MLflow ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A server of its own, until it answers; its rows stay in the folder."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "a")]
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen([*command, *places], stdout=log, stderr=log, cwd=folder, process_group=0)
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
            return False

        until("MLflow's server answers", answers)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # its workers may take longer to end, which is nothing of ours
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def mlflow_asked(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return {}


def mlflow_history(url: str, job: str) -> dict[str, list[tuple[int, float]]]:
    """What MLflow's server has of a job, as its own interface tells."""
    experiment = mlflow_asked(url, "experiments/get-by-name?experiment_name=lifl").get("experiment")
    if experiment is None:
        return {}
    body = {"experiment_ids": [experiment["experiment_id"]], "filter": f"attributes.run_name = '{job}'"}
    runs = mlflow_asked(url, "runs/search", body).get("runs", [])
    assert len(runs) <= 1, "a job is one run"
    found = {}
    for each in runs:
        for name in METRICS:
            words = urllib.parse.urlencode({"run_id": each["info"]["run_id"], "metric_key": name})
            told = mlflow_asked(url, f"metrics/get-history?{words}").get("metrics", [])
            found[name] = [(int(point.get("step", 0)), point["value"]) for point in told]
    return found


def test_mlflow_is_told_each_round_once_also_when_it_was_away(start_node: Callable[..., Node], tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="make test-integrations installs mlflow")
    node, port = start_node("--redirector", "unix"), free_port()
    url, told = (
        f"http://127.0.0.1:{port}",
        {name: [(step, value) for step in (1, 2, 3)] for name, value in METRICS.items()},
    )
    run(node, "away", metrics__tracker="mlflow", metrics__address=url)
    until("that it is away is warned of", lambda: any("away" in text for text in node.snapshot()["node"]["warnings"]))
    with mlflow_server(tmp_path, port):
        run(node, "there", metrics__tracker="mlflow", metrics__address=url)
        for job in ("there", "away"):
            until(f"all rounds of {job} are told", lambda job=job: mlflow_history(url, job) == told)
        until("the processes end", lambda: not node.snapshot()["node"]["warnings"])
        assert json.loads(node.lifl("export", "there", "--json"))["rounds"] == 0, "nothing is told twice"
        assert mlflow_history(url, "there") == told


# ---- TensorBoard, Weights & Biases -----------------------------------------------------------------------------------


def test_tensorboard_reads_each_round(start_node: Callable[..., Node], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="make test-integrations installs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    node = start_node("--redirector", "unix")
    run(node, "j", metrics__tracker="tensorboard", metrics__address=str(tmp_path), metrics__per_client=True)

    def folder() -> Path | None:
        found = [path.parent for path in tmp_path.glob("j-*/lifl.round") if path.read_text() == f"{ROUNDS}\n"]
        return found[0] if found else None

    read = EventAccumulator(str(until("all rounds are told", folder)))
    read.Reload()
    for name, value in METRICS.items():
        assert [(each.step, each.value) for each in read.Scalars(name)] == [(step, value) for step in (1, 2, 3)]
    assert {"client.c00.index", "client.c01.index"} <= set(read.Tags()["scalars"])
    assert abs(read.Scalars("index")[0].wall_time - time.time()) < 3600


def test_weights_and_biases_has_an_offline_run(start_node: Callable[..., Node], tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="make test-integrations installs wandb")
    node = start_node("--redirector", "unix")
    run(node, "j")
    assert (
        json.loads(node.lifl("export", "j", "--to", "wandb", "--address", str(tmp_path), "--json"))["rounds"] == ROUNDS
    )
    (written,) = tmp_path.glob("j-*/wandb/offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0
    assert b"counted" in written.read_bytes()
    assert json.loads(node.lifl("export", "j", "--to", "wandb", "--address", str(tmp_path), "--json"))["rounds"] == 0


# ---- Prometheus ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus, as Debian has it")
def test_prometheus_scrapes_a_node_and_answers_all_that_the_dashboard_asks(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node, port = start_node("--redirector", "unix", "--http", "127.0.0.1:0"), free_port()
    run(node, "j")
    configs = Path(__file__).parents[2] / "configs"
    (tmp_path / "lifl.token").write_text(authorization(node)["Authorization"].removeprefix("Bearer "))
    shutil.copy(configs / "prometheus-rules.yml", tmp_path)
    config = (configs / "prometheus.yml").read_text().replace("127.0.0.1:7480", node.info["http"], 1)
    (tmp_path / "prometheus.yml").write_text(config.replace("15s", "1s"))
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)

    def asked(expression: str) -> Any:
        with contextlib.suppress(OSError):
            words = urllib.parse.urlencode({"query": expression})
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{words}", timeout=10) as answer:
                told = json.load(answer)
                assert told["status"] == "success", expression
                return told["data"]["result"]
        return None

    try:
        until("it has scraped the node", lambda: asked('lifl_job_rounds_committed_total{job_name="j",job="lifl"} == 3'))
        assert asked("up == 1")
        for panel in json.loads((configs / "grafana-dashboard.json").read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$instance", ".*").replace("$job_name", ".*")
                assert asked(expression) is not None, expression
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/rules", timeout=10) as answer:
            rules = json.load(answer)["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    finally:
        process.terminate()
        process.wait(30)


# ---- OpenTelemetry ---------------------------------------------------------------------------------------------------


def test_opentelemetry_gets_a_rounds_spans_below_one(start_node: Callable[..., Node]) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="make test-integrations installs opentelemetry")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            bodies.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    node = start_node("--redirector", "unix")
    run(node, "j")
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        node.lifl("trace", "j", "2", "--otlp", f"http://127.0.0.1:{server.server_port}/v1/traces")
        server.shutdown()
    told = ExportTraceServiceRequest()
    told.ParseFromString(bodies[0])
    spans = [span for group in told.resource_spans for scope in group.scope_spans for span in scope.spans]
    (root,) = [span for span in spans if not span.parent_span_id]
    assert root.name == "round 2"
    assert {span.parent_span_id for span in spans if span is not root} == {root.span_id}
    assert {"selection", "collecting", "checkpoint", "c00", "c01"} <= {span.name for span in spans}
    assert abs(root.end_time_unix_nano / 1e9 - time.time()) < 3600


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_matplotlib_draws_the_curves(start_node: Callable[..., Node], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="make test-integrations installs matplotlib")
    node = start_node("--redirector", "unix")
    run(node, "j")
    node.lifl("plot", "j", "index", "round.duration_s", "-o", str(tmp_path / "j.png"))
    assert (tmp_path / "j.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    node.lifl("plot", "j", "-o", str(tmp_path / "j.svg"))
    assert "<svg" in (tmp_path / "j.svg").read_text()
    done = run_lifl("plot", "j", "-o", str(tmp_path / "j.tiffany"), "--state", str(node.state_dir))
    assert (done.returncode, "bad-file" in done.stderr) == (1, True)
