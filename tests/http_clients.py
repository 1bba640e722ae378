"""A client by HTTP, as a test says each word of it: the standard library's connection, JSON, safetensors."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fleet import WAIT_S
from nodes import Node, run_lifl
from safetensors.numpy import load_file, save

Tensors = dict[str, np.ndarray]


class Said(NamedTuple):
    """An answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["code"])


def authorization(node: Node) -> dict[str, str]:
    """The header that the node asks for, as a client of its account reads it."""
    name, _, value = (node.state_dir / "http.header").read_text().partition(":")
    return {name: value.strip()}


def enrolled(node: Node, folder: Path, role: str, name: str) -> Path:
    """An identity's folder."""
    secret = folder / f"{name}.token"
    secret.touch(mode=0o600)
    secret.write_text(node.lifl("token", "create", "--role", role, "--name", name))
    where = folder / name
    control = node.info["control"].replace("0.0.0.0", "127.0.0.1")
    done = run_lifl("enroll", control, "--token-file", str(secret), "--identity", str(where))
    assert done.returncode == 0, done.stderr
    return where


class HttpClient:
    """One of `job`, called `name`.  Each request has a connection of its own unless one is kept."""

    def __init__(
        self, node: Node, name: str = "c0", job: str = "j", headers: dict[str, str] | None = None, tls: Any = None
    ) -> None:
        self.host, _, port = node.info["http"].replace("0.0.0.0", "127.0.0.1").rpartition(":")
        self.port = int(port)
        self.base = f"/v1/jobs/{job}/clients/{name}"
        self.headers = authorization(node) if headers is None else headers
        self.tls: ssl.SSLContext | None = tls

    def connection(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection(self.host, self.port, timeout=WAIT_S, context=self.tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=WAIT_S)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Said:
        """Asks for a path, below the client's own unless it begins with a slash."""
        given = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        connection = self.connection()
        try:
            connection.request(method, path if path.startswith("/") else f"{self.base}/{path}", body, given)
            answer = connection.getresponse()
            return Said(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def selection(self, wait_s: float = 60.0) -> Said:
        return self.ask("GET", f"selection?wait_s={wait_s}")

    def selected(self) -> int:
        """The round that it is selected for."""
        said = self.selection()
        assert said.status == 200, said
        return int(said.json["round"])

    def model(self, round_: int) -> Tensors:
        said = self.ask("GET", f"rounds/{round_}/model")
        assert said.status == 200, said
        with tempfile.NamedTemporaryFile() as file:  # from bytes it reads no bfloat16
            file.write(said.body)
            file.flush()
            return load_file(file.name)

    def put(self, round_: int, update: Tensors | bytes, weight: float = 1.0, **headers: str) -> Said:
        data = update if isinstance(update, bytes) else save(update)
        return self.ask("PUT", f"rounds/{round_}/update?weight={weight}", data, **headers)

    def update(self, round_: int, wait_s: float = 0.0) -> Any:
        said = self.ask("GET", f"rounds/{round_}/update" + (f"?wait_s={wait_s}" if wait_s else ""))
        assert said.status == 200, said
        return said.json

    def begin_put(self, round_: int, data: bytes, sent: int, first: int = 0, weight: float = 1.0) -> socket.socket:
        """Sends the head of a PUT of all from `first` on, and of its body so much."""
        head = [f"PUT {self.base}/rounds/{round_}/update?weight={weight} HTTP/1.1", "Host: node"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        head += [f"Content-Length: {len(data) - first}"]
        if first:
            head += [f"Content-Range: bytes {first}-{len(data) - 1}/{len(data)}"]
        sock = socket.create_connection((self.host, self.port), timeout=WAIT_S)
        sock.sendall("\r\n".join([*head, "", ""]).encode() + data[first : first + sent])
        return sock


def committed(node: Node, round_: int, job: str = "j") -> Path:
    """The checkpoint of a round."""
    return node.state_dir / "jobs" / job / f"round-{round_:05d}.safetensors"
