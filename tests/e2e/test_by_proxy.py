"""A site that lets nothing out but by an HTTP proxy takes part: it enrolls, trains, and comes again when it is cut off.

Only the proxy knows where the node is: who does not go by it reaches nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from connect_proxy import ConnectProxy
from fleet import OneHot, submit
from nodes import Node, run_lifl

from lifl import Client
from lifl.core.trust.tokens import Token

HOST = "node.site.test"
ROUNDS = 3
TOKEN = Token("0" * 64, "0" * 8, "0" * 43).line()


def beyond(address: str) -> str:
    """An address of this machine, as the site calls it."""
    return f"{HOST}:{address.rpartition(':')[2]}"


def test_a_client_trains_through_it_and_comes_again_when_it_is_cut(
    start_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, oracle = start_node("--insecure"), OneHot(1)
    submit(node, "j", oracle.model(), job__rounds=ROUNDS, selection__clients_per_round=1)
    with ConnectProxy({beyond(node.address): node.address}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with Client(beyond(node.address), job="j", client="site", insecure=True) as client:
            for round_ in client.rounds():
                if round_.number == 2:
                    proxy.cut()
                tensors, weight, metrics = oracle.update(0, round_.number)
                assert round_.submit(tensors, weight, metrics).accepted
        assert len(proxy.heads) >= 2, "it came once, and once more after the cut"
    oracle.check(node, "j")


def test_somebody_enrolls_through_it(
    start_node: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_node("--control", "127.0.0.1:0")
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(node.lifl("token", "create", "--role", "client", "--name", "site"))
    there = beyond(node.info["control"])
    asked = ("enroll", there, "--token-file", str(token), "--identity", str(tmp_path / "site"))
    with ConnectProxy({}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        refused = run_lifl(*asked)
    assert refused.returncode == 1 and "(HTTPS_PROXY) does not connect to" in refused.stderr and "403" in refused.stderr
    with ConnectProxy({there: node.info["control"]}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        done = run_lifl(*asked)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/cert.pem").exists()


def test_what_is_no_proxy_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    monkeypatch.setenv("HTTPS_PROXY", "socks5://alice:s3cret@p:1080")
    told = run_lifl("enroll", f"{HOST}:7434", "--token-file", str(token)).stderr
    assert told.count("\n") == 1 and "$HTTPS_PROXY is no proxy that can be used" in told and "s3cret" not in told
