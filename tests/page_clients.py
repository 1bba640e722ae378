"""A browser's part in the page, as a test says each word of it."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
from typing import Any

from fleet import WAIT_S
from http_clients import Said
from nodes import Node


class PageClient:
    """One that has opened a link, or shows the secrets that it is given."""

    def __init__(self, node: Node, role: str = "", link: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        more = ["--role", role] if role else []
        self.address = node.info["http"].replace("0.0.0.0", "127.0.0.1")
        self.tls = tls
        self.cookie = self.key = ""
        self.link = node.json("web", *more)["link"] if link is None else link
        self.secret = self.link.partition("#link=")[2]

    @property
    def origin(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.address}"

    def headers(self) -> dict[str, str]:
        """What the page sends along with each request."""
        return {"Cookie": f"theme=dark; {self.cookie}", "LIFL-Page": self.key, "Origin": self.origin}

    def connection(self) -> http.client.HTTPConnection:
        host, _, port = self.address.rpartition(":")
        if self.tls is not None:
            return http.client.HTTPSConnection(host, int(port), timeout=WAIT_S, context=self.tls)
        return http.client.HTTPConnection(host, int(port), timeout=WAIT_S)

    def say(self, method: str, path: str, body: Any = None, **headers: str | None) -> Said:
        """Send a request; a header that is None is left out."""
        given = self.headers() | {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[dict-item]
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        connection = self.connection()
        try:
            shown = {name: value for name, value in given.items() if value is not None}
            connection.request(method, path, data, shown)
            answer = connection.getresponse()
            return Said(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def open(self) -> Said:
        """Open the link."""
        said = self.say("POST", "/page/v1/visit", {"link": self.secret})
        if said.status == 200:
            self.cookie = said.headers["Set-Cookie"].partition(";")[0]
            self.key = said.json["key"]
        return said

    def ask(self, kind: str, **fields: Any) -> Said:
        """Ask what a command line asks."""
        return self.say("POST", "/page/v1/ask", {"type": kind, **fields})

    def submit(self, text: str, **fields: Any) -> Said:
        """Submit a job by its file."""
        return self.say("POST", "/page/v1/submit", {"text": text, **fields})

    def plan(self, text: str, **fields: Any) -> Said:
        """Ask how a job would be planned, by its file."""
        return self.say("POST", "/page/v1/plan", {"text": text, **fields})

    def bring(self, data: bytes, piece_bytes: int = 1 << 20) -> str:
        """Bring a model's file; return where it is on the node."""
        digest, offset = hashlib.sha256(data).hexdigest(), 0
        while True:
            path = f"/page/v1/model?digest={digest}&offset={offset}&total_bytes={len(data)}"
            found = self.say("PUT", path, data[offset : offset + piece_bytes]).json
            if found["path"]:
                return str(found["path"])
            offset = found["received"]

    def stream(self, job: str = "") -> http.client.HTTPResponse:
        """Open the stream of what happens."""
        connection = self.connection()
        connection.request("GET", f"/page/v1/stream?job={job}", headers=self.headers())
        return connection.getresponse()


def heard(stream: http.client.HTTPResponse, *parts: str) -> dict[str, Any]:
    """Return what a stream tells, once each of the parts was told."""
    found: dict[str, Any] = {}
    while not set(parts) <= set(found):
        event = stream.readline()
        assert event, f"the stream ended after {sorted(found)}"
        if event.startswith(b"event: "):
            data = stream.readline()
            found[event[7:].decode().strip()] = json.loads(data.removeprefix(b"data: "))
    return found
