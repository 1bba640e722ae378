"""Who may come in, as users meet it: tokens, `lifl enroll`, `lifl up --join --token-file`, and commands from elsewhere.

The nodes listen on all addresses, which makes them secured, and are reached over loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import until
from nodes import LIFL, Node, run_lifl
from safetensors.numpy import load_file

EVERYWHERE = ("--listen", "0.0.0.0:0", "--control", "0.0.0.0:0", "--redirector", "unix")
CONFIG = Path(__file__).parents[2] / "configs" / "digits.toml"


def control(node: Node) -> str:
    return str(node.info["control"]).replace("0.0.0.0", "127.0.0.1")


def token_file(node: Node, where: Path, *arguments: str) -> Path:
    """A token made on the node, in a file as its bearer would have it."""
    line = node.lifl("token", "create", *arguments)
    assert line.count("\n") == 1
    where.touch(mode=0o600)
    where.write_text(line)
    return where


@pytest.fixture
def first(start_node: Callable[..., Node]) -> Node:
    return start_node(*EVERYWHERE)


class Somebody:
    """Who has enrolled at a node, and asks it from elsewhere."""

    def __init__(self, node: Node, folder: Path, *token: str, enroll: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.where = control(node)
        secret = token_file(node, folder.with_suffix(".token"), *token)
        done = run_lifl("enroll", self.where, "--token-file", str(secret), "--identity", str(folder), "--json", *enroll)
        assert done.returncode == 0, done.stderr
        self.told: dict[str, Any] = json.loads(done.stdout)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_lifl("--node", self.where, "--identity", str(self.folder), *arguments)

    def lifl(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, f"lifl {' '.join(arguments)}: {done.stderr}"
        return done.stdout


def test_an_operator_works_from_elsewhere(first: Node, tmp_path: Path) -> None:
    alice = Somebody(first, tmp_path / "alice", "--role", "operator", "--name", "alice")
    assert (alice.told["role"], alice.told["name"]) == ("operator", "alice")
    submitted = alice.lifl(
        "submit", str(CONFIG), "--set", "selection.clients_per_round=2", "--set", "selection.quorum=2"
    )
    assert "job digits" in submitted and str(first.state_dir) in submitted
    assert json.loads(alice.lifl("jobs", "--json"))["jobs"][0]["name"] == "digits"
    assert json.loads(alice.lifl("status", "digits", "--json"))["job"]["rounds"] == 15
    shown = json.loads(alice.lifl("top", "--json"))
    assert shown["node"]["node"] == first.info["node"] and shown["host"] is None
    assert first.info["node"] in alice.lifl("top", "--once")
    alice.lifl("model", "digits", "-o", str(tmp_path / "far.safetensors"))
    first.lifl("model", "digits", "-o", str(tmp_path / "near.safetensors"))
    far, near = load_file(tmp_path / "far.safetensors"), load_file(tmp_path / "near.safetensors")
    assert far.keys() == near.keys() and all((far[name] == near[name]).all() for name in far)
    made = alice.lifl("token", "create", "--role", "reader")
    assert made.startswith("LIFL1") and len(json.loads(alice.lifl("token", "list", "--json"))["tokens"]) == 2
    assert "alice" in alice.lifl("cert", "list")
    assert "cancelled" in alice.lifl("cancel", "digits")
    audit = first.lifl("audit")
    for event in ("job.submitted", "job.cancelled", "token.made"):
        assert f"{event} operator alice" in audit
    refused = alice.run("down")
    assert refused.returncode == 2 and "own machine" in refused.stderr


def test_a_reader_looks_and_does_nothing(first: Node, tmp_path: Path) -> None:
    reader = Somebody(first, tmp_path / "r", "--role", "reader", "--name", "guest-*", enroll=("--name", "guest-1"))
    for command in (("jobs",), ("top", "--once"), ("nodes",)):
        reader.lifl(*command)
    first.lifl("submit", str(CONFIG))
    reader.lifl("status", "digits")
    for command in (
        ("submit", str(CONFIG), "--set", "job.name=mine"),
        ("cancel", "digits"),
        ("model", "digits", "-o", str(tmp_path / "m")),
        ("token", "create", "--role", "operator"),
        ("token", "list"),
        ("cert", "list"),
        ("cert", "revoke", "guest-1"),
        ("cert", "rotate"),
    ):
        done = reader.run(*command)
        assert done.returncode == 1 and "reader guest-1 may not" in done.stderr, command
    assert first.json("status", "digits")["job"]["status"] != "cancelled"
    assert "cli.refused reader guest-1" in first.lifl("audit")


@pytest.mark.parametrize("role", ["client", "node"])
def test_who_is_neither_operator_nor_reader_asks_nothing(first: Node, tmp_path: Path, role: str) -> None:
    if role == "client":
        somebody = Somebody(first, tmp_path / "c", "--role", "client", "--name", "c")
        done = somebody.run("jobs")
    else:
        folder = first.state_dir / "identity"
        done = run_lifl("--node", control(first), "--identity", str(folder), "jobs")
    assert done.returncode == 1 and "it is no operator or reader" in done.stderr


def test_who_has_no_identity_or_another_clusters_asks_nothing(
    first: Node, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    done = run_lifl("--node", control(first), "--identity", str(tmp_path / "none"), "jobs")
    assert done.returncode == 1 and "lifl enroll" in done.stderr
    other = start_node(*EVERYWHERE, folder=_folder(tmp_path, "other"))
    stranger = Somebody(other, tmp_path / "s", "--role", "operator", "--name", "s")
    done = run_lifl("--node", control(first), "--identity", str(stranger.folder), "jobs")
    assert done.returncode == 1 and "not of this cluster" in done.stderr
    secret = token_file(first, tmp_path / "t", "--role", "operator")
    done = run_lifl("enroll", control(other), "--token-file", str(secret), "--identity", str(tmp_path / "x"))
    assert done.returncode == 1 and "secret was not told" in done.stderr
    assert not (tmp_path / "x").exists()


_MADE: list[Path] = []


@pytest.fixture(autouse=True)
def folders_go() -> Iterator[None]:
    """Removes, after the nodes are down, the state folders that a test has made besides its first."""
    yield
    while _MADE:
        shutil.rmtree(_MADE.pop(), ignore_errors=True)


def _folder(tmp_path: Path, name: str) -> Path:
    """A state folder with a short path: sockets are made in it."""
    _MADE.append(Path(tempfile.mkdtemp(prefix=f"lt-{name}-", dir="/tmp")))
    return _MADE[-1]


def test_a_node_joins_by_a_token_and_comes_back_without_it(
    first: Node, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    folder = _folder(tmp_path, "second")
    bare = run_lifl("up", "-d", "--state", str(folder), *EVERYWHERE, "--arena-bytes", "64MiB", "--join", control(first))
    assert bare.returncode == 1 and "lifl token create --role node" in bare.stderr
    secret = token_file(first, tmp_path / "t", "--role", "node")
    second = start_node(*EVERYWHERE, "--join", control(first), "--token-file", str(secret), folder=folder)

    def alive() -> set[str]:
        return {line["node"] for line in first.json("nodes")["nodes"] if line["state"] == "alive"}

    both = {first.info["node"], second.info["node"]}
    assert (second.info["join"], second.info["joined"]) == (control(first), True) and alive() == both
    assert "used up" in first.lifl("token", "list")
    second.down()
    secret.unlink()
    second.up()
    until("both nodes again", lambda: alive() == both)
    done = run_lifl("token", "create", "--role", "client", "--state", str(folder))
    assert done.returncode == 1 and "not its cluster's authority" in done.stderr and "--node" in done.stderr
    by_the_second = Somebody.__new__(Somebody)
    by_the_second.where, by_the_second.folder = control(second), tmp_path / "op"
    secret = token_file(first, tmp_path / "t2", "--role", "operator", "--name", "op")
    done = run_lifl("enroll", control(second), "--token-file", str(secret), "--identity", str(tmp_path / "op"))
    assert done.returncode == 0, done.stderr
    assert second.info["node"] in by_the_second.lifl("top", "--json")


@pytest.mark.parametrize("detached", [True, False])
def test_a_token_comes_on_standard_input_too(
    first: Node, start_node: Callable[..., Node], tmp_path: Path, detached: bool
) -> None:
    line = first.lifl("token", "create", "--role", "node" if detached else "client", "--name", "n")
    if detached:
        folder = _folder(tmp_path, "stdin")
        node = Node(folder, ())
        command = [*LIFL, "up", "-d", "--json", "--state", str(folder), *EVERYWHERE, "--arena-bytes", "64MiB"]
        command += ["--capacity", "4", "--join", control(first), "--token-file", "-"]
        done = subprocess.run(command, input=line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        node.info = json.loads(done.stdout)
        assert line.strip() not in Path(f"/proc/{node.pid}/cmdline").read_text()
        node.down()
    else:
        command = [*LIFL, "enroll", control(first), "--token-file", "-", "--identity", str(tmp_path / "c")]
        done = subprocess.run(command, input=line, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "client n of cluster" in done.stdout, done.stderr


def test_a_token_file_that_others_can_read_is_not_used(first: Node, tmp_path: Path) -> None:
    secret = token_file(first, tmp_path / "t", "--role", "client", "--name", "a")
    secret.chmod(0o644)
    for command in (
        ("enroll", control(first), "--identity", str(tmp_path / "a")),
        ("up", "--state", str(tmp_path / "n"), *EVERYWHERE, "--join", control(first)),
    ):
        done = run_lifl(*command, "--token-file", str(secret))
        assert done.returncode == 1 and "chmod 600" in done.stderr and "0644" in done.stderr
        assert secret.read_text().strip() not in done.stderr
    secret.chmod(0o600)
    done = run_lifl("enroll", control(first), "--identity", str(tmp_path / "a"), "--token-file", str(secret))
    assert done.returncode == 0, "it was not used up"


def test_no_secret_is_written_anywhere_but_to_its_bearer(first: Node, tmp_path: Path) -> None:
    somebody = Somebody(first, tmp_path / "a", "--role", "client", "--name", "a")
    secret = somebody.folder.with_suffix(".token").read_text().strip().rpartition(".")[2]
    first.down()
    for folder, _folders, files in os.walk(first.state_dir):
        for name in files:
            assert secret.encode() not in (Path(folder) / name).read_bytes(), name
    first.up()


def test_the_authority_lives_on_and_is_rotated(first: Node, tmp_path: Path) -> None:
    before = Somebody(first, tmp_path / "before", "--role", "operator", "--name", "before")
    early = token_file(first, tmp_path / "early", "--role", "operator", "--name", "early")
    first.down()
    first.up()
    before.where = control(first)
    before.lifl("jobs")
    digest = json.loads(before.lifl("cert", "rotate", "--json"))["digest"]
    assert digest in first.lifl("token", "create", "--role", "client")
    before.lifl("jobs")
    Somebody(first, tmp_path / "after", "--role", "operator", "--name", "after").lifl("jobs")
    done = run_lifl("enroll", control(first), "--token-file", str(early), "--identity", str(tmp_path / "e"))
    assert done.returncode == 0, done.stderr
    assert "cert.rotated operator before" in first.lifl("audit")


def test_a_given_authority_is_used_where_it_lies(start_node: Callable[..., Node], tmp_path: Path) -> None:
    import time

    from lifl.node.authority.certificate_authority import make_authority

    made = make_authority("theirs", time.time())
    cert, key = tmp_path / "root.pem", tmp_path / "root.key"
    cert.write_bytes(made.trusted(time.time()))
    key.touch(mode=0o600)
    key.write_bytes(made.pem())
    node = start_node(*EVERYWHERE, "--ca-cert", str(cert), "--ca-key", str(key))
    assert not (node.state_dir / "authority.pem").exists()
    somebody = Somebody(node, tmp_path / "a", "--role", "operator", "--name", "a")
    assert made.digest in somebody.folder.with_suffix(".token").read_text()
    done = somebody.run("cert", "rotate")
    assert done.returncode == 1 and "--ca-cert" in done.stderr


# ---- revocation and renewal, while everybody is connected ------------------------------------------------------------


class Pair:
    """Two nodes, and clients of the second one's gateway."""

    def __init__(self, first: Node, start: Callable[..., Node], tmp_path: Path) -> None:
        self.first = first
        self.tmp_path = tmp_path
        secret = token_file(first, tmp_path / "node.token", "--role", "node")
        flags = ("--join", control(first), "--token-file", str(secret))
        self.second = start(*EVERYWHERE, *flags, folder=_folder(tmp_path, "pair"))
        until("both nodes", lambda: len(self.alive()) == 2)

    def alive(self) -> set[str]:
        return {line["node"] for line in self.first.json("nodes")["nodes"] if line["state"] == "alive"}

    def client(self, name: str, folder_name: str = "") -> Connected:
        folder = self.tmp_path / (folder_name or name)
        secret = token_file(self.first, folder.with_suffix(".token"), "--role", "client", "--name", name)
        done = run_lifl("enroll", control(self.first), "--token-file", str(secret), "--identity", str(folder))
        assert done.returncode == 0, done.stderr
        return Connected(self.second.address.replace("0.0.0.0", "127.0.0.1"), folder, name)


class Connected:
    """A client's connection, greeted; it sees its end."""

    def __init__(self, address: str, folder: Path, name: str) -> None:
        self.address, self.folder, self.name = address, folder, name
        self.stream = self.dial()

    def dial(self) -> Any:
        from lifl.client.dialling import Dialler
        from lifl.client.stream import greeted

        dialler = Dialler([self.address], self.folder)
        return greeted(self.address, 60.0, self.name, False, dialler)

    def has_ended(self) -> bool:
        """Whether the node has closed it."""
        sock = self.stream._sock
        sock.settimeout(0.0)
        try:
            return sock.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def refusal(self) -> str:
        """Why a new connection is not taken; empty when it is."""
        from lifl.core.errors import Refused

        try:
            self.dial().close()
        except Refused as refused:
            return refused.text
        return ""


def test_a_revocation_ends_what_is_connected_on_all_nodes_and_lasts(
    first: Node, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    pair = Pair(first, start_node, tmp_path)
    bad, good = pair.client("bad"), pair.client("good")
    watching = Somebody(first, tmp_path / "op", "--role", "operator", "--name", "op")
    watch = subprocess.Popen(
        [*LIFL, "--node", control(first), "--identity", str(watching.folder), "submit", str(CONFIG), "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert watch.stdout is not None and "job digits" in watch.stdout.readline()
    first.lifl("cert", "revoke", "bad")
    first.lifl("cert", "revoke", "operator/op")
    until("the client's end", bad.has_ended)
    assert watch.wait(60) != 0
    watch.stdout.close()
    assert "is revoked" in bad.refusal()
    assert not good.has_ended() and good.refusal() == ""
    again = pair.client("bad", "again")
    assert not again.has_ended(), "what a new token gives is valid at once, on the other node as well"
    again.stream.close()
    assert "is revoked" in bad.refusal()
    assert "revoked" in watching.run("jobs").stderr
    pair.second.down()
    pair.second.up()
    bad.address = pair.second.address.replace("0.0.0.0", "127.0.0.1")
    assert "is revoked" in bad.refusal(), "the second node keeps it"
    first.down()
    first.up()
    assert "revoked" in first.lifl("cert", "list")
    bad.stream.close()
    good.stream.close()


def test_a_revoked_node_is_out_and_stays_out(first: Node, start_node: Callable[..., Node], tmp_path: Path) -> None:
    pair = Pair(first, start_node, tmp_path)
    first.lifl("cert", "revoke", f"node/{pair.second.info['node']}")
    until("it is dead", lambda: pair.second.info["node"] not in pair.alive())
    log = pair.second.state_dir / "lifld.log"
    until("it is told", lambda: "is revoked" in log.read_text())
    own = run_lifl("cert", "revoke", first.info["node"], "--state", str(first.state_dir))
    assert own.returncode == 1 and "own certificate" in own.stderr


def test_certificates_are_renewed_and_nobody_is_disconnected(
    first: Node, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    pair = Pair(first, start_node, tmp_path)
    client = pair.client("c")
    before = {node: _serial_shown(node) for node in (first, pair.second)}
    account = json.loads(run_lifl("cert", "renew", str(client.folder), "--json").stdout)
    for node in (first, pair.second):
        node.lifl("cert", "renew")
        until("the new certificate is shown", lambda node=node: _serial_shown(node) != before[node])  # type: ignore[misc]
    assert not client.has_ended() and client.refusal() == ""
    assert len(pair.alive()) == 2
    assert "peer.lost" not in first.lifl("audit")
    assert account["serial"] in first.lifl("cert", "list", "--json")
    first.lifl("cert", "rotate")
    pair.second.lifl("cert", "renew")
    assert client.refusal() == "" and not client.has_ended(), "who trusts the old root believes the new certificates"
    client.stream.close()


def _serial_shown(node: Node) -> str:
    """The serial that the node's gateway shows to a new connection."""
    import ssl

    from cryptography import x509

    host, _, port = node.address.replace("0.0.0.0", "127.0.0.1").rpartition(":")
    shown = x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())
    return f"{shown.serial_number:X}"
