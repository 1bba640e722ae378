"""Several machines on one: network namespaces on a switch of their own.

Each `Host` is a namespace with a loopback and one interface, 10.77.0.1 and so on; a veth pair joins it to a bridge,
which stands in a namespace of its own.  So nothing of it is seen outside, and two networks do not see each other.
Processes enter by `nsenter --net=` (`ip netns exec` would mount another /sys and hide the cgroups, which eBPF needs).

A line is *cut* one way by a permanent neighbour entry with a hardware address that no host has: frames leave, no host
takes them, and the sender sees no error, as with a cable that is cut.  A rate is limited by a token bucket at both ends
of a host's cable.  Root is needed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

HOSTS_MAX = 200
FOLDER = Path("/run/netns")
INTERFACE = "eth0"
NO_HOST = "02:ff:ff:ff:ff:fe"
BURST_S = 0.005
BURST_BYTES_MIN = 64 * 1024
QUEUE_S = 0.05
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Host(NamedTuple):
    """A machine: its namespace, and its address on the network."""

    name: str
    namespace: str
    address: str

    @property
    def path(self) -> Path:
        """The file that stands for the namespace."""
        return FOLDER / self.namespace

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs `arguments` on this host; the process keeps its pid."""
        return ["nsenter", f"--net={self.path}", *arguments]


def why_not() -> str:
    """Return why no namespaces can be made here; empty when they can."""
    if os.geteuid():
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc", "nsenter") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)} (apt-get install iproute2 util-linux)" if missing else ""


class Network:
    """Hosts on one switch."""

    def __init__(self, names: Sequence[str]) -> None:
        prefix = f"lifl{os.getpid()}"
        taken = {path.name for path in FOLDER.iterdir()} if FOLDER.is_dir() else set()
        while any(name.startswith(f"{prefix}-") for name in taken):
            prefix += "x"
        self.switch = f"{prefix}-switch"
        self.hosts = tuple(Host(n, f"{prefix}-{n}", f"10.77.0.{i}") for i, n in enumerate(names, start=1))

    def open(self) -> None:
        """Make the switch, and join each host to it."""
        _run("ip", "netns", "add", self.switch)
        self._ip(self.switch, "link", "add", "switch", "type", "bridge", "forward_delay", "0")
        self._ip(self.switch, "link", "set", "switch", "up")
        for number, host in enumerate(self.hosts):
            port = f"port{number}"
            _run("ip", "netns", "add", host.namespace)
            self._ip(host.namespace, "link", "set", "lo", "up")
            cable = ["type", "veth", "peer", "name", port, "netns", self.switch]
            self._ip(host.namespace, "link", "add", INTERFACE, *cable)
            self._ip(self.switch, "link", "set", port, "master", "switch", "up")
            self._ip(host.namespace, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
            self._ip(host.namespace, "link", "set", INTERFACE, "up")

    def close(self) -> None:
        """Remove what `open` has made, as far as it came.  Processes that are still inside lose their network."""
        for namespace in [*(host.namespace for host in self.hosts), self.switch]:
            if (FOLDER / namespace).exists():
                _run("ip", "netns", "del", namespace)

    def cut(self, source: Host, *targets: Host) -> None:
        """Let nothing more that `source` sends reach `targets`; leave the other way as it is."""
        for target in targets:
            entry = [target.address, "lladdr", NO_HOST, "dev", INTERFACE, "nud", "permanent"]
            self._ip(source.namespace, "neigh", "replace", *entry)

    def mend(self, source: Host, *targets: Host) -> None:
        """Undo `cut`."""
        for target in targets:
            self._ip(source.namespace, "neigh", "del", target.address, "dev", INTERFACE)

    def limit(self, host: Host, bytes_per_s: int) -> None:
        """Have the host send and receive at most so fast."""
        burst = max(BURST_BYTES_MIN, round(bytes_per_s * BURST_S))
        bucket = ["tbf", "rate", f"{bytes_per_s}bps", "burst", f"{burst}b", "latency", f"{QUEUE_S * 1000:.0f}ms"]
        for namespace, interface in self._cable(host):
            _run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", *bucket)

    def _cable(self, host: Host) -> tuple[tuple[str, str], tuple[str, str]]:
        return (host.namespace, INTERFACE), (self.switch, f"port{self.hosts.index(host)}")

    @staticmethod
    def _ip(namespace: str, *arguments: str) -> None:
        _run("ip", "-n", namespace, *arguments)


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """Provide hosts of these names on a switch, removed at the end.  Raise `OSError` or ValueError if impossible."""
    if not 1 <= len(names) <= HOSTS_MAX:
        raise ValueError(f"a network has 1 to {HOSTS_MAX} hosts, not {len(names)}")
    if reason := why_not():
        raise OSError(reason)
    made = Network(names)
    with ExitStack() as stack:
        stack.callback(made.close)
        made.open()
        yield made


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """Put this thread on `host`: threads, sockets and processes that begin within are there and stay."""
    before = os.open(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    try:
        _enter(host.path)
        yield
    finally:
        _set(before)
        os.close(before)


def _enter(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        _set(fd)
    finally:
        os.close(fd)


def _set(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _run(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"`{' '.join(arguments)}`: {done.stderr.strip()}")
