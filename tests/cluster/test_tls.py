"""Nodes and clients over TLS: rounds as ever, also when a node dies; and who is not of the cluster stays out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority
from fleet import OneHot, submit, until
from netns import Cluster, cluster
from nodes import run_lifl

from lifl import Client
from lifl.client import Refused
from lifl.examples.netns import inside
from lifl.tls.folder import node_folder, save

N = 3


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def three(ca: Authority) -> Iterator[Cluster]:
    with cluster(3, "--capacity", "1000", "--redirector", "unix", authority=ca) as made:
        yield made


def test_three_clients_take_part_over_tls(three: Cluster) -> None:
    """Updates are spread, so that partials and models go between nodes too; none of it can be read on the wire."""
    oracle = OneHot(N, ballast_bytes=1 << 20)
    submit(three.coordinator, "secured", oracle.model(), job__rounds=3, aggregation__placement="worst-fit")
    with three.fleet("secured", N, oracle.update) as team:
        lines = three.finished("secured", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * 3
    assert all(line["receipt"]["bytes_between"] > 2 * oracle.data_bytes for line in lines)


def test_a_client_comes_under_its_own_name_alone_and_not_without_an_identity(three: Cluster, tmp_path: Path) -> None:
    address = three.agents[0].gateway
    with inside(three.clients):
        for name, access, text in (
            ("c1", three.access("c2"), "in its own name alone"),
            ("c1", {"insecure": True}, "this node asks for a certificate"),
            ("c1", {"identity": Authority().enroll(tmp_path / "i", "client", "c1").folder}, "not of this cluster's CA"),
        ):
            with pytest.raises(Refused, match=text), Client(address, job="j", client=name, **access) as client:
                next(client.rounds())


def test_a_node_that_is_killed_comes_back(three: Cluster) -> None:
    oracle = OneHot(N)
    submit(three.coordinator, "killed", oracle.model(), job__rounds=4, aggregation__placement="worst-fit")
    watch = three.watch("killed")
    victim = three.agents[1]
    with three.fleet("killed", N, oracle.update, held=[(0, 2)]) as team:
        watch.wait("update.accepted", N - 1, round=2)
        victim.kill()
        victim.up()
        team.release()
        lines = three.finished("killed", team, oracle)
    assert [line["receipt"]["counted"] for line in lines] == [N] * 4
    three.settled()
    assert three.incarnation(victim) > 1


def test_an_insecure_node_and_one_of_another_authority_stay_out(three: Cluster, tmp_path: Path) -> None:
    """They say why, and the cluster does not notice."""
    host = three.clients
    for name, flags, text in (
        ("plain", ["--insecure"], "TLS port"),
        ("other", [], "not of this cluster's CA"),
    ):
        state = tmp_path / name
        state.mkdir(mode=0o700)
        Authority().enroll(node_folder(state), "node", name, [host.address])
        addresses = ["--listen", f"{host.address}:7433", "--control", f"{host.address}:7434"]
        more = ["--arena-bytes", "16MiB", "--redirector", "unix", "--capacity", "1"]
        command = ["up", "-d", "--json", "--state", str(state), *addresses, *more, *flags]
        with inside(host):
            done = run_lifl(*command, "--join", three.coordinator.control)
        assert done.returncode == 0, done.stderr
        try:
            log = state / "lifld.log"
            until(f"{name} to say {text!r}", lambda log=log, text=text: text in log.read_text())  # type: ignore[misc]
        finally:
            assert run_lifl("down", "--state", str(state)).returncode == 0
    three.settled()


def test_a_node_beyond_this_machine_without_an_identity_says_how_to_get_one(three: Cluster, tmp_path: Path) -> None:
    host = three.clients
    command = ["--listen", f"{host.address}:7433", "--join", three.coordinator.control, "--state", str(tmp_path)]
    with inside(host):
        done = run_lifl("up", "-d", "--json", *command)
    assert done.returncode == 1
    assert "has no identity in" in done.stderr
    assert "--token-file F" in done.stderr


def test_a_renewed_certificate_is_shown_from_the_next_connection_on(three: Cluster, ca: Authority) -> None:
    """No connection is dropped for it, no node started again."""
    machine = three.agents[0]
    before = three.incarnation(machine)
    certificate, key = ca.issue("node", f"host-{machine.host.name}", [machine.host.address])
    save(node_folder(machine.state_dir), certificate=certificate, key=key)
    oracle = OneHot(1)
    submit(three.coordinator, "renewed", oracle.model())
    with three.fleet("renewed", 1, oracle.update, addresses=[machine.gateway]) as team:
        three.finished("renewed", team, oracle)
    assert three.incarnation(machine) == before
    assert json.loads(machine.lifl("top", "--json"))["node"]


def test_nodes_and_a_client_that_come_by_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user does it: the first node makes the authority, tokens let in the others, a client finds its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LIFL_IDENTITY", raising=False)
    with cluster(2, "--capacity", "1000", "--redirector", "unix", tokens=True) as made:
        token = tmp_path / "token"
        token.touch(0o600)
        token.write_text(made.coordinator.lifl("token", "create", "--role", "client", "--name", "c00"))
        with inside(made.clients):
            done = run_lifl("enroll", made.agents[0].control, "--token-file", str(token))
        assert done.returncode == 0, done.stderr
        oracle = OneHot(1)
        submit(made.coordinator, "enrolled", oracle.model(), job__rounds=2)
        with made.fleet("enrolled", 1, oracle.update, access=lambda _name: {}) as team:
            made.finished("enrolled", team, oracle)
