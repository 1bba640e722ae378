"""Members of etcd of the test's own, on loopback or on hosts of a network: real processes that die by real signals."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority
from nodes import FOLDERS

WAIT_S = 120.0


def program() -> str | None:
    """The path of etcd: the machine's, or the one that `make setup` has unpacked."""
    return shutil.which("etcd") or shutil.which("etcd", path=str(Path(sys.prefix) / "bin"))


def why_not() -> str:
    """Why there can be no etcd here, or nothing."""
    if program() is None:
        return "it is not installed (apt-get install etcd-server)"
    return "" if importlib.util.find_spec("grpc") else "grpcio is not installed"


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Member:
    """One member; `prefix` is what its command is run by (on a host of its own)."""

    def __init__(
        self, name: str, host: str, folder: Path, prefix: Callable[..., list[str]], flags: Sequence[str]
    ) -> None:
        self.name, self.folder = name, folder
        self.client, self.peer, self.metrics = (f"{host}:{free_port()}" for _ in range(3))
        self._prefix, self._flags = prefix, flags
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, others: Sequence[Member], state: str = "new") -> None:
        """Starts the process, on what it had before."""
        scheme = "https" if "--client-cert-auth" in self._flags else "http"
        command = [
            *(str(program()), "--name", self.name, "--data-dir", str(self.folder), "--initial-cluster-state", state),
            *(
                "--listen-client-urls",
                f"{scheme}://{self.client}",
                "--advertise-client-urls",
                f"{scheme}://{self.client}",
            ),
            *("--listen-peer-urls", f"http://{self.peer}", "--initial-advertise-peer-urls", f"http://{self.peer}"),
            "--pre-vote",  # else one that was cut off has the others elect anew when it is back
            *("--listen-metrics-urls", f"http://{self.metrics}"),
            *("--initial-cluster", ",".join(f"{each.name}=http://{each.peer}" for each in others)),
            *self._flags,
        ]
        log = (self.folder.parent / f"{self.name}.log").open("ab")
        with log:
            self.process = subprocess.Popen(self._prefix(*command), stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kills it, if it runs, frozen or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Etcd:
    """A cluster of members; all are up when it is made."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        for member in self.members:
            member.start(self.members)

    @property
    def endpoints(self) -> list[str]:
        return [member.client for member in self.members]

    def url(self, name: str = "") -> str:
        """What a node is told."""
        return "etcd://" + ",".join(self.endpoints) + (f"/{name}" if name else "")

    def revive(self, *members: Member) -> None:
        """Starts members that were killed, on what they had."""
        for member in members:
            member.start(self.members, "existing")

    def leader(self) -> Member:
        """The member that leads the others, as soon as one does."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for member in self.members:
                if member.process is not None and _says(member, b"etcd_server_is_leader 1"):
                    return member
            time.sleep(0.02)
        raise AssertionError(f"no member of etcd leads within {WAIT_S:g} s")

    def settled(self) -> None:
        """Waits until all members that run have a leader, and so serve."""
        waited = [member for member in self.members if member.process is not None]
        deadline = time.monotonic() + WAIT_S
        while not all(_says(member, b"etcd_server_has_leader 1") for member in waited):
            assert time.monotonic() < deadline, f"etcd does not serve within {WAIT_S:g} s"
            time.sleep(0.02)


def _says(member: Member, line: bytes) -> bool:
    """Whether a member's metrics have this line; one that is cut off or stands still says nothing."""
    host, port = member.metrics.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=1.0) as asked:
            asked.settimeout(1.0)
            asked.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b""
            while part := asked.recv(1 << 16):
                answer += part
    except OSError:
        return False
    return b"\n" + line + b"\n" in answer


class Certificates:
    """What members ask of clients for, and show, and what a client shows; all of one authority."""

    def __init__(self, folder: Path, authority: Authority, hosts: Sequence[str]) -> None:
        self.ca, *files = (folder / name for name in ("ca.pem", "member.pem", "member.key", "client.pem", "client.key"))
        self._member, self._member_key, self.cert, self.key = files
        folder.mkdir()
        self.ca.write_bytes(authority.pem)
        pems = [*authority.issue("node", "etcd", hosts), *authority.issue("node", "lifl")]
        for path, pem in zip(files, pems, strict=True):
            path.write_bytes(pem)

    @property
    def members(self) -> tuple[str, ...]:
        """Flags of etcd."""
        files = ("--trusted-ca-file", self.ca, "--cert-file", self._member, "--key-file", self._member_key)
        return ("--client-cert-auth", *map(str, files))

    def context(self) -> ssl.SSLContext:
        """What a client dials a member with."""
        made = ssl.create_default_context(cafile=str(self.ca))
        made.load_cert_chain(self.cert, self.key)
        return made

    @property
    def node(self) -> tuple[str, ...]:
        """Flags of a node."""
        return tuple(map(str, ("--store-ca", self.ca, "--store-cert", self.cert, "--store-key", self.key)))


@contextmanager
def etcd(count: int = 3, *flags: str, hosts: Sequence[tuple[str, Callable[..., list[str]]]] = ()) -> Iterator[Etcd]:
    """A cluster of etcd that is ended whatever happens; skips the test where there can be none.

    `hosts` are addresses, each with what puts a command on that host; none given: loopback.
    """
    if reason := why_not():
        pytest.skip(f"NOT TESTED: this needs etcd, and {reason}")
    folder = Path(tempfile.mkdtemp(prefix="lt-etcd-", dir=FOLDERS))
    places = hosts or [("127.0.0.1", lambda *command: list(command))] * count
    members = [Member(f"m{i}", host, folder / f"m{i}", prefix, flags) for i, (host, prefix) in enumerate(places)]
    try:
        made = Etcd(members)
        made.leader()
        yield made
    finally:
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                member.kill()
        if "LIFL_KEEP" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)


FREEZE, GO_ON = signal.SIGSTOP, signal.SIGCONT
