"""`checkpoint.upload = "s3://..."` with a server that speaks S3 over HTTP (moto's), by s3fs."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import OneHot, Watch, fleet, submit, until
from nodes import Node

boto3 = pytest.importorskip("boto3", reason="NOT TESTED: make test-integrations installs s3fs and moto")
N, ROUNDS = 2, 4
KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI-K7MDENG"


@contextlib.contextmanager
def s3(port: int = 0) -> Iterator[int]:
    """A server with the bucket ``models``; yields its port."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until("the server listens", lambda: _listens(port))
            with store(port) as client:
                client.create_bucket(Bucket="models")
            yield port
        finally:
            server.kill()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextlib.contextmanager
def store(port: int) -> Iterator[Any]:
    """A client of the server's."""
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )
    with contextlib.closing(client):
        yield client


def upload(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.json("status", "j")["job"]["upload"]
    return found


def test_each_committed_model_is_there_also_when_the_store_was_away(
    start_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3() as port:
        pass  # its port; it is away
    for name, value in (
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(
        node,
        "j",
        oracle.model(),
        job__rounds=ROUNDS,
        checkpoint__upload="s3://models/runs",
        checkpoint__keep={"last": 2},
    )
    with fleet(node.address, "j", N, oracle.update) as team:
        team.join()
    assert Watch(node, "j").over()["status"] == "finished"
    until("why it waits is said", lambda: upload(node)["fault"])
    assert upload(node)["waiting"] == [*range(ROUNDS + 1)]
    with s3(port):
        until("all is sent", lambda: upload(node)["waiting"] == [])
        with store(port) as client:
            found = [each["Key"] for each in client.list_objects_v2(Bucket="models")["Contents"]]
            assert found == [f"runs/j/round-{number:05d}.safetensors" for number in range(ROUNDS + 1)]
            last = Path(node.state_dir) / "jobs" / "j" / f"round-{ROUNDS:05d}.safetensors"
            with contextlib.closing(client.get_object(Bucket="models", Key=found[-1])["Body"]) as body:
                assert body.read() == last.read_bytes()
    said = node.lifl("status", "j", "--json") + node.lifl("top", "--json") + (node.state_dir / "lifld.log").read_text()
    assert SECRET not in said
    assert SECRET.encode() not in (node.state_dir / "lifl.db").read_bytes()
