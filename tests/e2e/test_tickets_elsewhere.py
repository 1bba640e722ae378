"""A ticket of a node that listens everywhere has addresses that lead there; a certificate is asked for besides."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from nodes import Node, run_lifl

import lifl
from lifl.aggregator.tickets import BEGIN, TicketContent, _from_elsewhere, read_ticket
from lifl.core.errors import Refused

EVERYWHERE = ("--listen", "0.0.0.0:0", "--control", "0.0.0.0:0", "--redirector", "unix")
MODEL = {"w": np.zeros(4, np.float32)}


def from_elsewhere(content: TicketContent, *addresses: str) -> str:
    """The ticket, as another machine can use it: the node's socket is not there."""
    found = addresses or tuple(each for each in content.addresses if not each.startswith("unix:"))
    return (
        BEGIN
        + base64.urlsafe_b64encode(msgspec.msgpack.encode(msgspec.structs.replace(content, addresses=found))).decode()
    )


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    return start_node(*EVERYWHERE)


@pytest.fixture
def identity(node: Node, tmp_path: Path) -> str:
    """The certificate of site-1."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(node.lifl("token", "create", "--role", "client", "--name", "site-1"))
    control = node.info["control"].replace("0.0.0.0", "127.0.0.1")
    done = run_lifl("enroll", control, "--token-file", str(token), "--identity", str(tmp_path / "identity"))
    assert done.returncode == 0, done.stderr
    return str(tmp_path / "identity")


def test_its_addresses_lead_to_the_node_and_the_certificates_name_counts(node: Node, identity: str) -> None:
    with lifl.Aggregator(node.state_dir) as aggregator, aggregator.open(MODEL, expected=2) as fold:
        mine, others = read_ticket(fold.ticket("site-1")), read_ticket(fold.ticket("site-2"))
        port = node.address.rpartition(":")[2]
        by_tcp = [each for each in mine.addresses if not each.startswith("unix:")]
        assert by_tcp and all(each.endswith(f":{port}") for each in by_tcp), by_tcp
        assert not any(each.startswith(("0.0.0.0:", "[::]:")) for each in by_tcp), by_tcp
        # By each of them: on a machine without a network one is left, the loopback's.
        for address in by_tcp:
            with lifl.take_part(from_elsewhere(mine, address), identity=identity) as part:
                part.submit({"w": part.model["w"] + 1}, 2.0)
        with pytest.raises(Refused, match="its certificate says who it is"):
            lifl.take_part(from_elsewhere(others), identity=identity)
        result = fold.result()
    assert result.clients == ("site-1",) and result.weight == 2.0


def test_of_a_host_that_came_by_the_network_it_is_where_the_host_came_to(tmp_path: Path) -> None:
    assert _from_elsewhere("0.0.0.0:7433", "node.example.org:7433") == ["node.example.org:7433"]
    assert _from_elsewhere("[::]:7433", "[2001:db8::7]:9000") == ["[2001:db8::7]:7433"]
    assert _from_elsewhere("10.1.2.3:7433", "/a/state/folder") == ["10.1.2.3:7433"]
    assert _from_elsewhere("host.example:7433", "127.0.0.1:7433") == ["host.example:7433"]
    assert _from_elsewhere("", "/a/state/folder") == []
    for dialled in (str(tmp_path), f"unix:{tmp_path}/gateway.sock", "127.0.0.1:7433", "[::1]:7433"):
        assert "127.0.0.1:7433" in _from_elsewhere("0.0.0.0:7433", dialled)
