"""A cluster of the test's own: nodes in network namespaces, clients in one more.

The test's own threads stay outside, where they reach each node by the control socket in its state folder.  A thread
that begins within `inside(host)` lives on that host: that is how trainers, which are threads, come by the network.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import leaks
import psutil
import pytest
import store_history
from certificates import Authority
from etcd_servers import Certificates, Etcd, Member, etcd
from fleet import Fleet, OneHot, Update, Watch, arena_use, ask, fleet, until
from nodes import COMMAND_TIMEOUT_S, FOLDERS, LIFL, LOG_TAIL_LINES, Node, environment

from lifl.core.protocol import cli as om
from lifl.examples.netns import Host, Network, inside, network, why_not
from lifl.tls.folder import node_folder

GATEWAY, CONTROL = 7433, 7434
MEMBERS_MAX = 3
"""Of etcd: more make it slower, and no safer for a test that fails one host at a time."""


class Machine(Node):
    """A node on a host of its own; `join` is the control address of a member, empty for the first node."""

    def __init__(
        self,
        host: Host,
        state_dir: Path,
        flags: Sequence[str],
        join: str = "",
        points: str = "",
        authority: Authority | None = None,
        tokens: bool = False,
    ) -> None:
        self.host = host
        self.control = f"{host.address}:{CONTROL}"
        self.joins = join
        self.stopped = False
        addresses = ["--listen", f"{host.address}:{GATEWAY}", "--control", self.control]
        if authority is None and not tokens:
            addresses.append("--insecure")
        if authority is not None:
            authority.enroll(node_folder(state_dir), "node", f"host-{host.name}", [host.address])
        super().__init__(state_dir, (*addresses, *(["--join", join] if join else []), *flags), points)

    @property
    def gateway(self) -> str:
        """The gateway's HOST:PORT, known before it runs."""
        return f"{self.host.address}:{GATEWAY}"

    @property
    def name(self) -> str:
        """The node's id, as `lifl nodes` shows it."""
        return str(self.info["node"])

    def up(self, *more: str) -> None:
        """Starts `lifld` on the host, and waits until it is ready."""
        command = [*LIFL, "up", "-d", "--json", "--state", str(self.state_dir), *self._flags, *more]
        done = subprocess.run(
            self.host.command(*command),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=environment(self.points, self.build) | self.env,
        )
        assert done.returncode == 0, done.stderr
        self.info = json.loads(done.stdout)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What `lifl nodes` says here: its lines by name."""
        return {line["node"]: line for line in ask(self, om.ListNodes())["nodes"]}

    def states(self) -> dict[str, str]:
        """The state of each node as this one knows it."""
        return {name: line["state"] for name, line in self.nodes().items()}

    def log(self) -> str:
        """What its log says until now: states that come and go stay there."""
        return (self.state_dir / "lifld.log").read_text(errors="replace")

    def received_bytes(self) -> int:
        """What its gateway has received in all; `lifl top` asks twice, for the first answer is an older one."""
        return int(self.snapshot()["node"]["gateway"]["received_bytes"])

    def stop(self) -> None:
        """Stands still, all processes of it, as a machine that hangs."""
        self.stopped = True
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undoes `stop`."""
        self._signal(signal.SIGCONT)
        self.stopped = False

    def store(self) -> dict[str, Any]:
        """What it says of the store that the cluster shares."""
        found: dict[str, Any] = ask(self, om.Snapshot())["node"]["store"]
        return found

    def leave_alone(self) -> None:
        """It joins no member: it finds the others by the store."""
        at = self._flags.index("--join") if "--join" in self._flags else len(self._flags)
        self._flags = (*self._flags[:at], *self._flags[at + 2 :])

    def _signal(self, number: int) -> None:
        lifld = psutil.Process(self.pid)
        for process in [lifld, *lifld.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def end(self) -> None:
        """After the test, whatever state it left: nothing stays."""
        log = self.state_dir / "lifld.log"
        print(f"--- {self.host.name}")
        print("\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]) if log.exists() else "no log")
        if self.is_up():
            self.go_on()
            self.kill()
        if self.info:
            self.remove_arena()


class Cluster:
    """Nodes a, b, c, ...; the first one coordinates until a test changes that.  `clients` is where trainers are.

    With an authority all that passes between hosts is TLS, and each client has an identity; with `tokens` the first
    node makes the authority, and the others come by a token.
    """

    def __init__(
        self,
        net: Network,
        folder: Path,
        flags: Sequence[str],
        points: str,
        authority: Authority | None = None,
        tokens: bool = False,
    ) -> None:
        self.network = net
        self._folder = folder
        self._identities = folder / "identities"
        self._authority = authority
        self._tokens = tokens
        *hosts, self.clients = net.hosts
        self.machines: list[Machine] = []
        for host in hosts:
            join = self.machines[0].control if self.machines else ""
            state_dir = folder / host.name
            state_dir.mkdir()
            self.machines.append(Machine(host, state_dir, flags, join, points, authority, tokens))

    @property
    def coordinator(self) -> Machine:
        """The first node."""
        return self.machines[0]

    @property
    def agents(self) -> list[Machine]:
        """The others."""
        return self.machines[1:]

    @property
    def addresses(self) -> list[str]:
        """For each client another order of all gateways: it stays at the first that lives."""
        gateways = [machine.gateway for machine in self.machines]
        return [",".join(gateways[i:] + gateways[:i]) for i in range(len(gateways))]

    def up(self) -> None:
        """Starts the first node, then all others at once; returns when all know of all."""
        self.coordinator.up()
        more = ["--token-file", str(self._node_token())] if self._tokens else []
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda machine: machine.up(*more), self.agents))
        self.settled()

    def _node_token(self) -> Path:
        path = self._folder / "nodes.token"
        path.touch(0o600)
        path.write_text(self.coordinator.lifl("token", "create", "--role", "node", "--uses", str(len(self.agents))))
        return path

    def settled(self, *gone: Machine) -> None:
        """Waits until every node that is up knows all but `gone` to be alive, and `gone` to be dead or to have left."""
        here = [machine for machine in self.machines if machine not in gone]
        wanted = {machine.name for machine in here}

        def knows(machine: Machine) -> bool:
            states = {name: state for name, state in machine.states().items() if state not in ("dead", "left")}
            return states == dict.fromkeys(wanted, "alive")

        for machine in here:
            until(f"{machine.host.name} to know {sorted(wanted)} alive and no other", lambda: knows(machine))  # noqa: B023

    def back_to_this_release(self) -> None:
        """Takes down nodes of another build: for the next test they are up again, as this one."""
        for machine in [*self.agents, self.coordinator]:
            if machine.build is not None:
                machine.down()
                machine.build = None

    def incarnation(self, machine: Machine) -> int:
        """The number of the node's life, as the coordinator knows it."""
        return int(self.coordinator.nodes()[machine.name]["incarnation"])

    @contextmanager
    def fleet(self, job: str, clients: int, update: Callable[[int, int], Update], **options: Any) -> Iterator[Fleet]:
        """A started fleet on the clients' host; client i has all gateways, number i's first."""
        addresses = options.pop("addresses", self.addresses)
        options.setdefault("access", self.access)
        with ExitStack() as stack:
            with inside(self.clients):
                team = stack.enter_context(fleet(addresses, job, clients, update, **options))
            yield team

    def access(self, name: str) -> dict[str, Any]:
        """How the client of that name is let in."""
        if self._authority is None:
            return {"insecure": True}
        folder = self._identities / name
        if not folder.exists():
            self._authority.enroll(folder, "client", name)
        return {"identity": folder}

    def identities(self) -> list[Path]:
        """The identity folders of the clients that there were."""
        return sorted(self._identities.iterdir()) if self._identities.exists() else []

    def use(self) -> dict[str, tuple[int, int]]:
        """Objects and bytes in the arenas of all nodes that are up."""
        return {machine.host.name: arena_use(machine) for machine in self.machines if machine.is_up()}

    def finished(self, job: str, team: Fleet, oracle: OneHot) -> list[dict[str, Any]]:
        """The job ended well, every client was told the truth, and no arena has anything left; the rounds' lines."""
        team.join()
        lines = oracle.check(self.coordinator, job, team)
        status = ask(self.coordinator, om.JobStatus(job))["job"]
        assert (status["status"], status["committed"]) == ("finished", status["rounds"]), status
        until(f"empty arenas: {self.use()}", lambda: set(self.use().values()) == {(0, 0)})
        return lines

    def watch(self, job: str) -> Watch:
        """The job's events."""
        return Watch(self.coordinator, job)

    def knock(self, machine: Machine, data: bytes) -> bytes:
        """What a stranger on the clients' host is told on the node's control port, until it is shut out."""
        with inside(self.clients), socket.create_connection((machine.host.address, CONTROL), timeout=60) as stranger:
            stranger.sendall(data)
            answer = b""
            with suppress(ConnectionResetError):
                while part := stranger.recv(1 << 16):
                    answer += part
            return answer


class SharedCluster(Cluster):
    """Nodes of which any may coordinate: their rows are in etcd, which has a member on the host of each node.

    `models` is a folder that all nodes reach.
    """

    def __init__(
        self,
        net: Network,
        folder: Path,
        flags: Sequence[str],
        points: str,
        store: Etcd,
        authority: Authority | None = None,
    ) -> None:
        super().__init__(net, folder, (*flags, "--store", store.url()), points, authority)
        self.store = store
        self.models = folder / "models"
        self.certificates: Certificates | None = None
        for machine in self.machines:
            machine.leave_alone()

    @property
    def coordinator(self) -> Machine:
        """The one that coordinates, as soon as one does."""
        return until("a coordinator", self.leading)  # type: ignore[no-any-return]

    def leading(self) -> Machine | None:
        """The one that says of itself that it coordinates, if any does; those that stand still say nothing."""
        for machine in self.machines:
            if machine.is_up() and not machine.stopped and machine.store()["leads"]:
                return machine
        return None

    @property
    def agents(self) -> list[Machine]:
        """The others."""
        coordinator = self.coordinator
        return [machine for machine in self.machines if machine is not coordinator]

    def up(self) -> None:
        """Starts all at once; returns when all know of all."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda machine: machine.up(), self.machines))
        self.settled()

    def job(self, name: str) -> dict[str, Any]:
        """Keys of a job whose models all nodes reach, and whose updates are on all."""
        return {"checkpoint__folder": str(self.models / name), "aggregation__placement": "worst-fit"}

    def next_coordinator(self, last: Machine) -> Machine:
        """The one that coordinates after `last`."""
        found: Machine = until("another coordinator", lambda: (m := self.leading()) is not None and m is not last and m)
        return found

    def store_leader(self) -> Member:
        """The member that leads etcd's others."""
        with inside(self.clients):
            return self.store.leader()

    def revision(self) -> int:
        """etcd's revision: how often anything was written."""
        member = self.store_leader()
        with inside(self.clients):
            found = json.load(store_history.asked(member.client, "/v3/kv/range", {"key": store_history.coded("/")}))
        return int(found["header"]["revision"])

    def history(self) -> store_history.History:
        """What etcd has kept of all that was written, which must hold."""
        leader = self.store_leader()
        with inside(self.clients):
            found = store_history.look(leader.client, context=self.certificates and self.certificates.context())
        assert not found.faults, found.faults
        return found


def hosts(net: Network) -> list[tuple[str, Callable[..., list[str]]]]:
    """Where etcd is to have its members: on the first hosts, and not on that of the clients."""
    return [(host.address, host.command) for host in net.hosts[:-1][:MEMBERS_MAX]]


@contextmanager
def cluster(
    count: int,
    *flags: str,
    points: str = "",
    authority: Authority | None = None,
    tokens: bool = False,
    shared: bool = False,
) -> Iterator[Cluster]:
    """A running cluster of `count` nodes, with failpoints; skips the test where there can be none, but never in a run
    of CI.  `shared`: any of them may coordinate.
    """
    if reason := why_not():
        if os.environ.get(leaks.OWN_MACHINE):
            pytest.fail(f"this run must have namespaces, but: {reason}")
        pytest.skip(f"NOT TESTED: a cluster needs namespaces, and {reason}")
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir=FOLDERS))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        names = [chr(ord("a") + number) for number in range(count)]
        net = stack.enter_context(network(*names, "clients"))
        sizes = ("--arena-bytes", "32MiB", *flags)
        made: Cluster
        if shared:
            asked: tuple[str, ...] = ()
            if authority is not None:
                certificates = Certificates(folder / "etcd", authority, [host.address for host in net.hosts])
                asked, sizes = certificates.members, (*sizes, *certificates.node)
            with inside(net.hosts[-1]):
                store = stack.enter_context(etcd(count, *asked, hosts=hosts(net)))
            made = SharedCluster(net, folder, sizes, points, store, authority)
            if authority is not None:
                made.certificates = certificates
        else:
            made = Cluster(net, folder, sizes, points, authority, tokens)
        for machine in made.machines:
            stack.callback(machine.end)
        made.up()
        yield made


class Keeper:
    """Keeps one cluster for several tests: what a test has taken down is up again for the next one.

    After a test that failed the next one gets a new cluster.
    """

    def __init__(self, count: int, *flags: str, points: str = "", shared: bool = False) -> None:
        self._count, self._flags, self._points, self._shared = count, flags, points, shared
        self._stack = ExitStack()
        self._made: Cluster | None = None

    @contextmanager
    def whole(self, failures: Callable[[], int]) -> Iterator[Cluster]:
        """All nodes are up and know of each other; `failures` is how many tests have failed until now."""
        before = failures()
        if self._made is None:
            made = cluster(self._count, *self._flags, points=self._points, shared=self._shared)
            self._made = self._stack.enter_context(made)
        else:
            for machine in self._made.machines:
                if not machine.is_up():
                    machine.up()
            self._made.settled()
        yield self._made
        if failures() > before:
            self.close()

    def close(self) -> None:
        """Ends the cluster."""
        self._made = None
        self._stack.close()


@contextmanager
def kept(count: int, *flags: str, points: str = "", shared: bool = False) -> Iterator[Keeper]:
    """A `Keeper` that is closed at the end."""
    keeper = Keeper(count, *flags, points=points, shared=shared)
    try:
        yield keeper
    finally:
        keeper.close()
