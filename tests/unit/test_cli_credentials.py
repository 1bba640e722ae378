"""`lifl token` and `lifl cert` where there is nothing to certify, and on a wrong command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nodes import Node, run_lifl


def test_a_node_that_only_this_machine_reaches_says_that_it_has_no_certificates(
    start_node: Callable[..., Node],
) -> None:
    node = start_node()
    for command in (
        ("token", "create", "--role", "client"),
        ("token", "list"),
        ("token", "revoke", "01234567"),
        ("cert", "list"),
        ("cert", "revoke", "somebody"),
        ("cert", "renew"),
        ("cert", "rotate"),
    ):
        done = run_lifl(*command, "--state", str(node.state_dir))
        assert done.returncode == 1, command
        assert "listens on this machine alone" in done.stderr and "--listen" in done.stderr
    assert not (node.state_dir / "authority.pem").exists()
    assert not (node.state_dir / "identity").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--role"),
        (["--role", "root"], "'root' is not one of"),
        (["--role", "client", "--uses", "0"], "--uses"),
        (["--role", "client", "--uses", "10001"], "--uses"),
        (["--role", "client", "--ttl", "15"], "--ttl"),
        (["--role", "client", "--ttl", "0s"], "--ttl"),
        (["--role", "client", "--ttl", "31d"], "30d"),
    ],
)
def test_a_token_that_cannot_be_is_refused_before_a_node_is_asked(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = run_lifl("token", "create", *arguments, "--state", str(tmp_path))
    assert done.returncode in (1, 2) and said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ca-cert", "root.pem"], "ca_key"),
        (["--ca-key", "root.key"], "ca_cert"),
        (["--token-file", "token"], "token_file"),
        (["--ca-cert", "root.pem", "--ca-key", "root.key", "--join", "10.0.0.1:7434"], "ca_cert"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(flags: list[str], said: str, tmp_path: Path) -> None:
    done = run_lifl("up", "--state", str(tmp_path), *flags)
    assert done.returncode == 1 and said in done.stderr
