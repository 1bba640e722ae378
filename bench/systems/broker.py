"""The broker of SL and the proxies before it: Debian's redis-server and haproxy, each on a free port of loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

READY_S = 20.0
END_S = 10.0
PAUSE_S = 0.01
PROXY = """global
    nbthread {threads}
    maxconn 2000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    option splice-auto
frontend entry
    bind fd@{fd}
    default_backend broker
backend broker
    balance leastconn
    server redis 127.0.0.1:{port}
"""


class Broker:
    """redis-server and the platform's proxy before it, while the `with` block runs."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._settings = settings
        self._opened = ExitStack()

    def __enter__(self) -> Broker:
        with ExitStack() as opened, socket.create_server(("127.0.0.1", 0)) as placeholder:
            self.port = placeholder.getsockname()[1]
            placeholder.close()
            command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
            command += ["--save", "", "--appendonly", "no"]
            redis = started(command, self._folder / "redis.log", self._settings)
            opened.callback(ended, redis)
            _answering(self.port, redis)
            proxy, self.proxy_port = proxied(self._folder / "proxy", self.port, 2, self._settings)
            opened.callback(ended, proxy)
            self.pids = [redis.pid, proxy.pid]
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._opened.close()


def connected(port: int) -> Any:
    """Return a client of the broker, at its own port or a proxy's.

    Without the five seconds after which redis-py gives an answer up and asks again: one that waits for its turn behind
    gigabytes would send its update twice.
    """
    import redis  # the benchmark runs, without this system, where it is not installed

    client = redis.Redis("127.0.0.1", port, socket_timeout=None)
    client.ping()
    return client


def proxied(path: Path, port: int, threads: int, settings: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a haproxy before the broker at `port`, and its own port; `path` names its files."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = path.with_suffix(".cfg")
        config.write_text(PROXY.format(threads=threads, fd=listener.fileno(), port=port))
        command = ["haproxy", "-db", "-q", "-f", str(config)]
        process = started(command, path.with_suffix(".log"), settings, [listener.fileno()])
        return process, listener.getsockname()[1]


def started(
    command: Sequence[str], log: Path, settings: Mapping[str, str], descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process whose words go to `log`."""
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=descriptors,
            env={**os.environ, **settings},
            process_group=0,
        )


def ended(process: subprocess.Popen[bytes]) -> None:
    """End a process, and wait for it."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answering(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server takes connections.  Raise `RuntimeError` when it ends or takes too long."""
    deadline = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            time.sleep(PAUSE_S)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not answer at port {port}")
