"""Tickets of a fold on a node with certificates: one adds to who somebody is; a bearer's says it in their place."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fleet import until
from nodes import Node, run_lifl

import lifl
from lifl.aggregator.tickets import BEGIN, read_ticket
from lifl.client.dialling import Dialler
from lifl.client.outcomes import NodeUnreachable
from lifl.client.stream import greeted
from lifl.core.errors import LocalFault, Refused
from lifl.core.fields import Ticket
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol import tickets as tm
from lifl.core.schema import TensorSpec

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
                lifl.take_part(ticket, identity=str(identity))
            assert refused.value.code == code, refused.value
        with pytest.raises(LocalFault, match="no identity"):
            lifl.take_part(ticket, identity=str(tmp_path / "nobody"))
        with lifl.take_part(ticket, identity=str(own)) as part:
            np.testing.assert_array_equal(part.model["w"], MODEL["w"])
            part.submit({"w": np.full(4, 3, np.float32)}, weight=2)
        result = fold.result()
    np.testing.assert_array_equal(result["w"], np.full(4, 3, np.float32))
    assert result.clients == (SITE,)
    has_noted(node, SITE, f"client {SITE}")


def has_noted(node: Node, client: str, who: str) -> None:
    """Wait until the audit log says who has shown a ticket as this client."""
    wanted = ("ticket.used", client, who)
    until("a note", lambda: wanted in {(n["event"], n.get("client"), n["who"]) for n in node.json("audit")})


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


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of an identity is found here."""
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


@pytest.mark.usefixtures("stranger")
def test_a_ticket_that_is_a_bearers_lets_in_its_name_for_its_fold_alone_until_it_is_revoked_or_expires(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node(*EVERYWHERE)
    with lifl.Aggregator(node.state_dir) as aggregator, aggregator.open(MODEL, expected=4) as fold:
        plain = from_elsewhere(node, fold.ticket(SITE))
        with pytest.raises(Refused, match="asks for a certificate"):
            lifl.take_part(plain)
        line = from_elsewhere(node, fold.ticket(SITE, bearer=True))
        with lifl.take_part(line) as part:
            np.testing.assert_array_equal(part.model["w"], MODEL["w"])
            part.submit({"w": np.full(4, 3, np.float32)}, weight=1)
        for change in (
            {"client": "site-2"},
            {"fold": fold.number + 1},
            {"expires_unix_s": 1 << 40},
            {"made_unix_s": 1 << 40},
            {"job": "fold-000000000000-1"},
            {"entry": "0" * 64},
        ):
            with pytest.raises(Refused) as refused:
                lifl.take_part(changed(line, **change))
            assert refused.value.code in ("wrong-ticket", "too-many-guesses"), change
        old = from_elsewhere(node, fold.ticket("site-3", valid_s=-5, bearer=True))
        with pytest.raises(Refused, match="too old"):
            lifl.take_part(old)
        with pytest.raises(Refused, match="its authority is not the one"):
            lifl.take_part(changed(line, authority="0" * 64))
        revoked = from_elsewhere(node, fold.ticket("site-4", bearer=True))
        with lifl.take_part(revoked) as part:
            fold.revoke("site-4")
            with pytest.raises(Refused, match="revoked"):
                part.submit({"w": np.ones(4, np.float32)}, weight=1)
        assert fold.result().clients == (SITE,)
    for client in (SITE, "site-4"):
        has_noted(node, client, f"client {client} by a ticket")


def changed(line: str, **fields: object) -> str:
    """The ticket with other fields."""
    content = msgspec.structs.replace(read_ticket(line), **fields)
    return BEGIN + base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).decode()


@pytest.mark.usefixtures("stranger")
def test_who_has_come_by_a_ticket_takes_part_and_does_nothing_else(start_node: Callable[..., Node]) -> None:
    node = start_node(*EVERYWHERE)
    with lifl.Aggregator(node.state_dir, rule="fedavg") as aggregator, aggregator.open(MODEL, expected=2) as fold:
        content = read_ticket(from_elsewhere(node, fold.ticket(SITE, bearer=True)))
        address = content.addresses[0]

        def told(client: str, *messages: cm.FromClient) -> list[str]:
            """The codes by which these are refused, over one connection."""
            stream = greeted(address, 30, client, False, Dialler([], access=content.access))
            codes = []
            for message in messages:
                stream.send(message)
                answer = stream.receive()
                codes.append(answer.code if isinstance(answer, cm.Refusal) else type(answer).__name__)
            stream.close()
            return codes

        with pytest.raises(Refused, match="its own name alone"):
            told("site-2")
        shown = Ticket(content.credential, content.expires_unix_s)
        asks = (
            fm.OpenFold(fold.job, fold.number, 1),
            fm.CloseFold(fold.job, fold.number),
            tm.RevokeTicket(fold.job, fold.number, SITE),
            fm.HostSession("mine", 1, (TensorSpec("w", "float32", (4,)),)),
            cm.Join("another-job"),
            cm.GetModel(fold.job, 2),
            fm.TakePart(fold.job, fold.number, shown),
        )
        assert told(SITE, *asks) == [*["not-allowed"] * 4, "not-own-job", "wrong-ticket", "Selected"]
