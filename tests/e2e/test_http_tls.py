"""Clients that take part by HTTP over TLS: by a certificate, by a bearer token; the node is reached over loopback."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet import submit
from http_clients import HttpClient, committed, enrolled
from nodes import Node
from safetensors.numpy import load_file

from lifl.core.trust.tokens import read_token

EVERYWHERE = ("--listen", "0.0.0.0:0", "--control", "0.0.0.0:0", "--http", "0.0.0.0:0", "--redirector", "unix")
MODEL = {"w": np.zeros(6, np.float32)}


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    found = start_node(*EVERYWHERE)
    submit(found, "j", MODEL, selection__clients_per_round=2)
    return found


def trusting(node: Node, identity: Path | None = None) -> ssl.SSLContext:
    """TLS that believes the node, and shows an identity."""
    context = ssl.create_default_context(cafile=node.state_dir / "identity/ca.pem")
    if identity is not None:
        context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    return context


def bearing(node: Node, name: str = "hospital-3", job: str = "j") -> dict[str, str]:
    line = node.lifl("token", "create", "--bearer", "--role", "client", "--name", name, "--job", job, "--ttl", "1h")
    return {"Authorization": f"Bearer {line.strip()}"}


def test_by_a_certificate_and_by_a_bearer_token(node: Node, tmp_path: Path) -> None:
    """They take part in their own name and job, and do nothing else; a reader sees, and takes no part."""
    tls, token = trusting(node), bearing(node)
    known: dict[str, Any] = {"headers": {}, "tls": trusting(node, enrolled(node, tmp_path, "client", "clinic"))}
    clients = [HttpClient(node, "clinic", **known), HttpClient(node, "hospital-3", headers=token, tls=tls)]
    waiting = threading.Thread(target=clients[0].selection)
    waiting.start()
    number = clients[1].selected()
    waiting.join()
    for fill, client in enumerate(clients):
        assert client.model(number).keys() == {"w"}
        assert client.put(number, {"w": np.full(6, fill, np.float32)}).json["state"] == "accepted"
    assert clients[0].update(number, 60)["counted"]
    assert np.array_equal(load_file(committed(node, 1))["w"], np.full(6, 0.5))
    for wrong, code in (
        (HttpClient(node, "clinic", headers=token, tls=tls), "not-own-name"),
        (HttpClient(node, "hospital-3", "other", headers=token, tls=tls), "not-own-job"),
        (HttpClient(node, "hospital-3", **known), "not-own-name"),
    ):
        said = wrong.selection()
        assert (said.status, said.code) == (403, code)
        assert wrong.ask("GET", "/v1/status").code == "not-allowed"
    for site, code in (("cross-site", "wrong-origin"), ("same-site", "wrong-origin"), ("none", "not-allowed")):
        assert clients[0].ask("GET", "/v1/status", Sec_Fetch_Site=site).code == code, (
            "a page with the user's certificate"
        )
    assert clients[1].ask("GET", "/v1/status", Sec_Fetch_Site="cross-site").code == "not-allowed", "it has a token"
    reader = HttpClient(node, "eve", headers={}, tls=trusting(node, enrolled(node, tmp_path, "reader", "eve")))
    assert reader.ask("GET", "/v1/status").json["arena"]["bytes"] and reader.ask("GET", "/metrics").status == 200
    assert reader.selection().code == "not-allowed"
    roots = HttpClient(node, headers={}, tls=tls).ask("GET", "/roots.pem").body.decode()
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(roots)).hexdigest()
    assert digest == read_token(token["Authorization"].partition(" ")[2], bearer=True).authority


def test_what_is_revoked_gets_in_no_more(node: Node, tmp_path: Path) -> None:
    """Nor does who waits; nor who has no credential, a wrong one, or comes in plain."""
    submit(node, "k", MODEL, selection__clients_per_round=3)
    tls, token = trusting(node), bearing(node, job="k")
    known: dict[str, Any] = {"headers": {}, "tls": trusting(node, enrolled(node, tmp_path, "client", "clinic"))}
    by_token, by_certificate = (
        HttpClient(node, "hospital-3", "k", headers=token, tls=tls),
        HttpClient(node, "clinic", "k", **known),
    )
    assert by_token.selection(0).status == 204 and by_certificate.selection(0).status == 204
    said: list[Any] = []
    waiting = threading.Thread(target=lambda: said.append(by_token.selection()))
    waiting.start()
    number = read_token(token["Authorization"].partition(" ")[2], bearer=True).number
    node.lifl("token", "revoke", number)
    node.lifl("cert", "revoke", "client/clinic")
    waiting.join()
    assert said[0].status in (401, 503)
    assert by_token.selection().code == "token-over"
    refused = by_certificate.selection()
    assert (refused.status, refused.code) == (403, "wrong-certificate")
    forged = token["Authorization"][:-1] + ("A" if token["Authorization"][-1] != "A" else "B")
    for headers, code in (
        ({}, "no-certificate"),
        ({"Authorization": forged}, "unknown-token"),
        ({"Authorization": "Bearer x"}, "bad-token"),
        ({"Authorization": "Basic Og=="}, "no-certificate"),
    ):
        stranger = HttpClient(node, "hospital-3", "k", headers=headers, tls=tls)
        assert (stranger.selection().status, stranger.selection().code) == (401, code)
        assert stranger.ask("GET", "/v1/status").status == 401
    plain = HttpClient(node, "hospital-3", "k", headers=token).selection()
    assert (plain.status, plain.code) == (400, "no-certificate")
