"""`lifl token` and `lifl cert` where there is nothing to certify, and on a wrong command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lifl_cli.render import credentials
from nodes import Node, run_lifl
from rich.console import Console


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


def test_certificates_are_listed_in_80_columns_by_what_revokes_them() -> None:
    serials = ["5C0FFEE0" + "1" * 32, "5C0FFEE0AB" + "2" * 30, "A" * 40]
    names = [("node", "0123456789abcdef"), ("client", "hospital-a"), ("operator", "o" * 64)]
    common = {"jobs": [], "token": "01234567", "issued_unix_s": 0.0, "expires_unix_s": 2e9, "state": "revoked"}
    rows = [
        {"serial": number, "role": role, "name": name, **common}
        for number, (role, name) in zip(serials, names, strict=True)
    ]
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(credentials.certificates_table(rows))
    lines = captured.get().splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["serial", "role/name"],
        ["5C0FFEE01", "node/0123456789abcdef"],
        ["5C0FFEE0A", "client/hospital-a"],
    ]
    assert all(line.split()[-1] == "revoked" for line in lines[1:4]) and lines[3].startswith("A" * 9 + " ")


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


def test_what_no_request_may_have_is_refused_by_the_arguments_name(start_node: Callable[..., Node]) -> None:
    node = start_node()
    name = "letters, digits and ._:- , a letter or digit first, at most 64"
    for arguments, argument, allowed in [
        (("drain", "n" * 70), "NODE", "0 to 64 characters"),
        (("token", "create", "--role", "client", "--name", "a b"), "--name", f"{name}; `*` stands for any text"),
        (("token", "create", "--role", "client", "--job", "j", "--job", "-"), "--job", name),
        (("token", "create", "--role", "client", *["--job", "j"] * 17), "--job", "given at most 16 times"),
        (("token", "revoke", "n" * 65), "NUMBER", "0 to 64 characters"),
        (("cert", "revoke", ""), "WHICH", "1 to 80 characters"),
        (("cert", "revoke", "n" * 81), "WHICH", "1 to 80 characters"),
        *((words, "JOB", "0 to 4096 characters") for words in jobs_named("n" * 4097)),
    ]:
        done = run_lifl(*arguments, "--state", str(node.state_dir))
        assert done.returncode == 1
        assert done.stderr.startswith(f"Error: {argument}: it may be {allowed}; this is "), done.stderr
        assert len(done.stderr.splitlines()) == 1 and len(done.stderr) < 200


def jobs_named(name: str) -> list[tuple[str, ...]]:
    return [
        ("status", name),
        ("status", name, "--clients"),
        ("cancel", name),
        ("model", name, "-o", "lifl-no-such-file"),
        ("plan", "--round", name, "1"),
    ]


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
