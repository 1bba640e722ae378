"""Mistakes of who sets a cluster up, each told with what to do instead; nothing is used up or overwritten by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import until
from nodes import Node, run_lifl
from test_identities import EVERYWHERE, Somebody, control, token_file

from lifl import Client
from lifl.core.errors import LiflError


@pytest.fixture
def first(start_node: Callable[..., Node]) -> Node:
    return start_node(*EVERYWHERE)


def gateway(node: Node) -> str:
    return node.address.replace("0.0.0.0", "127.0.0.1")


def told(*command: str) -> str:
    """What a command that fails says, in one line."""
    done = run_lifl(*command)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def trainer(address: str, identity: Path, name: str) -> str:
    """What a client that is not let in is told."""
    with (
        Client(address, job="j", client=name, identity=identity, give_up_after_s=0.0) as client,
        pytest.raises(LiflError) as caught,
    ):
        next(client.rounds())
    return str(caught.value)


def test_one_port_is_taken_for_the_other(first: Node, tmp_path: Path) -> None:
    alice = Somebody(first, tmp_path / "alice", "--role", "operator", "--name", "alice")
    secret = token_file(first, tmp_path / "t", "--role", "client", "--name", "c")
    where = "give its control address (lifl up --control)"
    assert where in told("enroll", gateway(first), "--token-file", str(secret), "--identity", str(tmp_path / "c"))
    assert where in told("--node", gateway(first), "--identity", str(alice.folder), "jobs")
    done = run_lifl("enroll", control(first), "--token-file", str(secret), "--identity", str(tmp_path / "c"))
    assert done.returncode == 0, done.stderr
    assert "clients come to a node's --listen address" in trainer(control(first), tmp_path / "c", "c")


def test_a_second_identity_does_not_take_the_place_of_the_first(first: Node, tmp_path: Path) -> None:
    Somebody(first, tmp_path / "here", "--role", "client", "--name", "c")
    before = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    secret = token_file(first, tmp_path / "t", "--role", "operator", "--name", "alice")
    command = ("enroll", control(first), "--token-file", str(secret), "--identity")
    said = told(*command, str(tmp_path / "here"))
    assert "identity of client c already" in said and "--identity DIR" in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == before
    assert run_lifl(*command, str(tmp_path / "there")).returncode == 0, "the token was not used"


def test_who_has_the_wrong_role_is_told_which_token_to_ask_for(first: Node, tmp_path: Path) -> None:
    client = Somebody(first, tmp_path / "c", "--role", "client", "--name", "c")
    said = told("--node", control(first), "--identity", str(client.folder), "jobs")
    assert "client c's" in said and "token for an operator, or a reader" in said
    alice = Somebody(first, tmp_path / "alice", "--role", "operator", "--name", "alice")
    assert "operator alice may not take part in a job: that is for: client" in trainer(
        gateway(first), alice.folder, "alice"
    )
    assert "not as 'd'" in trainer(gateway(first), client.folder, "d")


def test_an_identity_is_renewed_by_its_folder_with_or_without_a_slash(
    first: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Somebody(first, tmp_path / "c", "--role", "client", "--name", "c")
    monkeypatch.chdir(tmp_path)
    for whose in ("c", "./c", str(tmp_path / "c")):
        assert "client c: the certificate is valid until" in run_lifl("cert", "renew", whose).stdout
    assert str(tmp_path / "none") in told("cert", "renew", "none")


@pytest.mark.parametrize("secured", [True, False], ids=["insecure to secured", "secured to insecure"])
def test_a_secured_node_and_an_insecure_one_are_in_no_cluster(
    start_node: Callable[..., Node], tmp_path: Path, secured: bool
) -> None:
    home = start_node(*EVERYWHERE, *(() if secured else ("--insecure",)))
    other = tmp_path / "other"
    flags = ("--arena-bytes", "64MiB", "--capacity", "4", "--join", control(home), "--state", str(other))
    if not secured:
        elsewhere = start_node(*EVERYWHERE, folder=tmp_path / "e")
        secret = token_file(elsewhere, tmp_path / "t", "--role", "node")
        said = told("up", "-d", *EVERYWHERE, *flags, "--token-file", str(secret))
        assert "does not speak TLS" in said and "--insecure" in said
        return
    done = run_lifl("up", "-d", *EVERYWHERE, *flags, "--insecure")
    assert done.returncode == 0, done.stderr
    assert "INSECURE" in done.stdout
    try:
        node = Node(other, ())

        def says() -> str:
            return " ".join(each for each in node.snapshot()["node"]["warnings"] if "TLS port" in each)

        said = until("lifl top to say why it is in no cluster", says)
        assert "lifl up --token-file" in said and "without --insecure" in said
        assert len(home.json("nodes")["nodes"]) == 1
    finally:
        assert run_lifl("down", "--state", str(other)).returncode == 0
