"""Tickets of a fold on a node with certificates: a ticket adds to who somebody is, and replaces it never."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from nodes import Node, run_lifl

import lifl
from lifl.aggregator.tickets import BEGIN, read_ticket
from lifl.client.outcomes import NodeUnreachable
from lifl.core.errors import LocalFault, Refused

EVERYWHERE = ("--listen", "0.0.0.0:0", "--control", "0.0.0.0:0", "--redirector", "unix")
MODEL = {"w": np.zeros(4, np.float32)}
SITE = "site-1"


def enrolled(node: Node, where: Path, role: str, name: str) -> Path:
    """The identity folder of somebody whom the node has let in."""
    token, identity = where / f"{name}.token", where / name
    token.touch(mode=0o600)
    token.write_text(node.lifl("token", "create", "--role", role, "--name", name))
    control = node.info["control"].replace("0.0.0.0", "127.0.0.1")
    done = run_lifl("enroll", control, "--token-file", str(token), "--identity", str(identity))
    assert done.returncode == 0, done.stderr
    return identity


def from_elsewhere(node: Node, ticket: str) -> str:
    """The ticket as it is of use on another machine: without the node's socket."""
    address = node.address.replace("0.0.0.0", "127.0.0.1")
    content = msgspec.structs.replace(read_ticket(ticket), addresses=(address,))
    return BEGIN + base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).decode()


def test_a_ticket_is_good_for_who_shows_the_certificate_of_its_name_and_for_nobody_else(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node(*EVERYWHERE)
    own, other = (enrolled(node, tmp_path, "client", name) for name in (SITE, "site-2"))
    reader = enrolled(node, tmp_path, "reader", "auditor")
    with lifl.Aggregator(node.state_dir) as aggregator, aggregator.open(MODEL, expected=2) as fold:
        ticket = from_elsewhere(node, fold.ticket(SITE))
        for identity, code in ((other, "not-own-name"), (reader, "not-allowed")):
            with pytest.raises(Refused) as refused:
                lifl.take_part(ticket, identity=str(identity), return_within_s=10)
            assert refused.value.code == code, refused.value
        with pytest.raises(LocalFault, match="no identity"):
            lifl.take_part(ticket, identity=str(tmp_path / "nobody"), return_within_s=1)
        with lifl.take_part(ticket, identity=str(own)) as part:
            np.testing.assert_array_equal(part.model["w"], MODEL["w"])
            part.submit({"w": np.full(4, 3, np.float32)}, weight=2)
        result = fold.result()
    np.testing.assert_array_equal(result["w"], np.full(4, 3, np.float32))
    assert result.clients == (SITE,)


def test_an_operator_hosts_folds_from_elsewhere_and_its_tickets_are_good_there(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node(*EVERYWHERE)
    operator, site = enrolled(node, tmp_path, "operator", "ops"), enrolled(node, tmp_path, "client", SITE)
    address = node.address.replace("0.0.0.0", "127.0.0.1")
    with (
        lifl.Aggregator(address, identity=str(operator)) as aggregator,
        aggregator.open(MODEL, expected=1) as fold,
        lifl.take_part(from_elsewhere(node, fold.ticket(SITE)), identity=str(site)) as part,
    ):
        part.submit({"w": np.full(4, 5, np.float32)}, weight=1)
        np.testing.assert_array_equal(fold.result()["w"], np.full(4, 5, np.float32))


def test_a_certificate_that_is_revoked_ends_what_a_ticket_was_good_for(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node(*EVERYWHERE)
    site = enrolled(node, tmp_path, "client", SITE)
    with lifl.Aggregator(node.state_dir) as aggregator, aggregator.open(MODEL, expected=1) as fold:
        ticket = from_elsewhere(node, fold.ticket(SITE))
        with lifl.take_part(ticket, identity=str(site), return_within_s=1) as part:
            node.lifl("cert", "revoke", SITE)
            with pytest.raises((Refused, NodeUnreachable)):
                part.submit({"w": np.ones(4, np.float32)}, weight=1)
