"""Tickets of a fold by HTTP: beside who somebody is or, of a bearer's, in its place; for its fold alone."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import numpy as np
from fleet import until
from http_clients import HttpClient, Said, Tensors
from nodes import Node

import lifl

MODEL = {"w": np.zeros(4, np.float32), "n": np.zeros(2, np.int64)}


def filled(number: int) -> Tensors:
    return {"w": np.full(4, number, np.float32), "n": np.full(2, number, np.int64)}


class Holder(HttpClient):
    """Who has a ticket; its paths are told by the node."""

    def __init__(self, node: Node, fold: lifl.aggregator.Fold, ticket: str, name: str, **more: Any) -> None:
        super().__init__(node, name, fold.job, **more)
        self.headers = self.headers | {"LIFL-Ticket": ticket}

    def open(self) -> Said:
        return self.ask("GET", "/v1/ticket?wait_s=60")


def test_a_ticket_takes_part_in_its_fold_by_the_same_checks_until_it_is_revoked(
    start_node: Callable[..., Node],
) -> None:
    node = start_node("--http", "127.0.0.1:0", "--redirector", "unix")
    with lifl.Aggregator(node.state_dir) as aggregator:
        with aggregator.open(MODEL, expected=3) as fold:
            standing = Holder(node, fold, fold.ticket("a", standing=True), "a")
            once = Holder(node, fold, fold.ticket("b"), "b")
            for index, client in enumerate((standing, once)):
                told = client.open()
                assert told.status == 200, told
                assert told.json["update"] == f"{client.base}/rounds/1/update"
                np.testing.assert_array_equal(client.model(1)["n"], MODEL["n"])
                wrong = client.put(1, {"w": MODEL["w"]})
                assert (wrong.status, wrong.json["field"]) == (422, "tensors.n")
                for _again in range(2):
                    assert client.put(1, filled(2 * index + 1), weight=2.0).json["state"] == "accepted"
            stolen = once.ask("GET", f"/v1/jobs/{fold.job}/clients/c/selection")
            assert (stolen.status, stolen.code) == (403, "not-own-name")
            out = Holder(node, fold, fold.ticket("c"), "c")
            assert out.open().status == 200
            fold.revoke("c")
            assert (out.open().status, out.put(1, filled(9)).code) == (403, "wrong-ticket")
            bare = HttpClient(node, "a", fold.job, {"LIFL-Ticket": standing.headers["LIFL-Ticket"]})
            assert (bare.ask("GET", "/v1/ticket").status, bare.ask("GET", "/v1/status").status) == (401, 401)
            broken = HttpClient(node, "a", fold.job, standing.headers | {"LIFL-Ticket": "lifl-ticket-1:x"})
            assert broken.ask("GET", "/v1/ticket").code == "wrong-ticket"
            assert HttpClient(node).ask("GET", "/v1/ticket").status == 422
            assert fold.wait(["a", "b"], 60)
            result = fold.result(copy=True)
        np.testing.assert_array_equal(result["w"], np.full(4, 2, np.float32))
        assert once.open().status == 410, "its fold is over"
        with aggregator.open(result, expected=1, shared=True) as fold:
            assert standing.open().json["round"] == 2
            assert np.array_equal(standing.model(2)["w"], result["w"])
            assert standing.put(2, filled(5)).json["state"] == "accepted"
            assert fold.result().clients == ("a",)

    def noted() -> bool:
        """Whether it is: the ticket for the first fold, and those for any."""
        said = [note for note in node.json("audit") if note["event"] == "ticket.revoked"]
        told = [(note["client"], note["job"], note["fold"] == 0) for note in said]
        return told == [("c", fold.job, False), ("c", fold.job, True)]

    until("the notes", noted)


def test_a_bearers_ticket_is_all_that_it_takes_where_certificates_are_asked_for(
    start_node: Callable[..., Node],
) -> None:
    everywhere = ("--listen", "0.0.0.0:0", "--control", "0.0.0.0:0", "--http", "0.0.0.0:0")
    node = start_node(*everywhere, "--redirector", "unix")
    context = ssl.create_default_context(cafile=str(next(node.state_dir.rglob("ca.pem"))))
    context.check_hostname = False
    more = {"headers": {}, "tls": context}
    with lifl.Aggregator(node.state_dir) as aggregator, aggregator.open(MODEL, expected=2) as fold:
        plain = Holder(node, fold, fold.ticket("a"), "a", **more)
        assert (plain.open().status, plain.open().code) == (401, "no-certificate")
        bearer = Holder(node, fold, fold.ticket("a", bearer=True), "a", **more)
        for path in ("/v1/status", "/metrics"):
            assert (bearer.ask("GET", path).status, bearer.ask("GET", path).code) == (403, "not-allowed")
        assert bearer.open().status == 200
        np.testing.assert_array_equal(bearer.model(1)["w"], MODEL["w"])
        assert bearer.put(1, filled(3)).json["state"] == "accepted"
        old = Holder(node, fold, fold.ticket("b", valid_s=-5, bearer=True), "b", **more)
        assert (old.open().status, old.open().code) == (403, "ticket-expired")
        out = Holder(node, fold, fold.ticket("c", bearer=True), "c", **more)
        assert out.open().status == 200
        fold.revoke("c")
        assert (out.open().code, out.put(1, filled(9)).code) == ("wrong-ticket", "wrong-ticket")
        assert fold.result().clients == ("a",)
