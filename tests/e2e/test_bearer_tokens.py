"""Clients that take part by a bearer token over TLS, without a certificate; the nodes are reached over loopback."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fleet import OneHot, submit, until
from nodes import Node, run_lifl

from lifl import Client
from lifl.client.dialling import Dialler
from lifl.client.stream import Stream, greeted
from lifl.core.errors import LocalFault, Refused, ResourceFault
from lifl.core.limits import GUESSES_MAX
from lifl.core.protocol import client as cm
from lifl.core.trust.tokens import Token, read_token

EVERYWHERE = ("--listen", "0.0.0.0:0", "--control", "0.0.0.0:0", "--redirector", "unix")
WAIT_S = 60.0
NAME, JOB = "hospital-3", "digits"


def here(address: str) -> str:
    return address.replace("0.0.0.0", "127.0.0.1")


def bearer(node: Node, where: Path, name: str = NAME, job: str = JOB, ttl: str = "1h") -> Path:
    """A bearer token made on the node, in a file as its bearer would have it."""
    line = node.lifl("token", "create", "--bearer", "--role", "client", "--name", name, "--job", job, "--ttl", ttl)
    assert line.startswith("LIFLB1") and line.count("\n") == 1
    where.touch(mode=0o600)
    where.write_text(line)
    return where


def number_of(path: Path) -> str:
    return read_token(path.read_text(), bearer=True).number


@pytest.fixture
def first(start_node: Callable[..., Node]) -> Node:
    return start_node(*EVERYWHERE)


@pytest.fixture
def pair(first: Node, start_node: Callable[..., Node], tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    secret = tmp_path / "node.token"
    secret.touch(mode=0o600)
    secret.write_text(first.lifl("token", "create", "--role", "node"))
    with tempfile.TemporaryDirectory(prefix="lt-", dir="/tmp") as folder:
        flags = ("--join", here(first.info["control"]), "--token-file", str(secret))
        second = start_node(*EVERYWHERE, *flags, folder=Path(folder))
        until("both nodes", lambda: len(first.json("nodes")["nodes"]) == 2)
        yield first, second
        second.down()


def dial(node: Node, path: Path, name: str = NAME) -> Stream:
    return greeted(here(node.address), WAIT_S, name, False, Dialler([], token_file=path))


def refusal(node: Node, path: Path, name: str = NAME) -> Refused | None:
    """How a new connection is refused; None when it is taken."""
    try:
        dial(node, path, name).close()
    except Refused as refused:
        return refused
    return None


def has_ended(stream: Stream) -> bool:
    sock = stream._sock
    sock.settimeout(0.0)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_client_takes_part_by_a_token_alone_and_its_secret_is_written_nowhere(
    first: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over as many connections as it makes; and by the variable in the place of an argument."""
    oracle = OneHot(1)
    submit(first, JOB, oracle.model(), job__rounds=2)
    path = bearer(first, tmp_path / "token")
    token = read_token(path.read_text(), bearer=True)
    others = [dial(first, path) for _ in range(5)]
    monkeypatch.setenv("LIFL_TOKEN_FILE", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []
    with Client(here(first.address), job=JOB, client=NAME, give_up_after_s=WAIT_S) as client:
        for round_ in client.rounds():
            seen.append(first.lifl("top", "--json") + first.lifl("status", JOB, "--clients", "--json"))
            round_.submit(*oracle.update(0, round_.number))
    assert [line["receipt"]["counted"] for line in oracle.check(first, JOB)] == [1, 1]
    for stream in others:
        assert not has_ended(stream)
        stream.close()
    shown = [first.lifl("token", "list", "--json"), first.lifl("token", "list"), first.lifl("audit")]
    assert f'"number": "{token.number}"' in shown[0] and "bearer" in shown[1]
    assert "token.made" in shown[2] and f"client.join client {NAME} by token {token.number}" in shown[2]
    first.lifl("debug", "record")
    assert not any(token.secret in text for text in [*seen, *shown])
    first.down()
    files = [Path(folder) / name for folder, _, names in os.walk(first.state_dir) for name in names]
    assert any(path.name == "lifld.log" for path in files)
    for file in files:
        assert token.secret.encode() not in file.read_bytes(), file
    first.up()


def test_it_is_for_one_name_and_one_job_and_for_nothing_but_to_take_part(first: Node, tmp_path: Path) -> None:
    oracle = OneHot(1)
    for job in (JOB, "other"):
        submit(first, job, oracle.model())
    path = bearer(first, tmp_path / "token")
    wrong = refusal(first, path, "hospital-4")
    assert wrong is not None and wrong.code == "not-own-name" and "its bearer token says who it is" in wrong.text
    for message, code in (
        (cm.Join("other"), "not-own-job"),
        (cm.GetModel("other", 1), "not-own-job"),
        (cm.GetModel(JOB, 1, checked=True), "not-allowed"),
        (cm.Offer(1, 1, 1, 1.0, 1, 8, 8), "not-allowed"),
    ):
        with closing(dial(first, path)) as stream:
            stream.send(message)
            answer = stream.receive()
            assert isinstance(answer, cm.Refusal) and answer.code == code, answer
    done = run_lifl("enroll", here(first.info["control"]), "--token-file", str(path), "--identity", str(tmp_path / "i"))
    assert done.returncode == 1 and "is a bearer's" in done.stderr and not (tmp_path / "i").exists()


@pytest.mark.parametrize("how", ["token", "name"])
def test_a_revocation_ends_its_connections_on_all_nodes_and_lasts(
    pair: tuple[Node, Node], tmp_path: Path, how: str
) -> None:
    first, second = pair
    bad, good = bearer(first, tmp_path / "bad"), bearer(first, tmp_path / "good", "other")
    until("the second node knows it", lambda: refusal(second, bad) is None)
    connected = [dial(node, bad) for node in pair]
    kept = [dial(node, good, "other") for node in pair]
    began_s = time.monotonic()
    first.lifl(*(("token", "revoke", number_of(bad)) if how == "token" else ("cert", "revoke", f"client/{NAME}")))
    for stream in connected:
        until("its end", lambda: has_ended(stream))  # noqa: B023
    print(f"connections ended {time.monotonic() - began_s:.2f} s after it was said")
    for node in pair:
        refused = refusal(node, bad)
        assert refused is not None and "revoked" in refused.text
        assert refusal(node, good, "other") is None
    assert not any(map(has_ended, kept))
    second.down()
    second.up()
    for node in pair:
        refused = refusal(node, bad)
        assert refused is not None and "revoked" in refused.text
    for stream in (*connected, *kept):
        stream.close()
    new = bearer(first, tmp_path / "new")
    until("a new one is good", lambda: refusal(second, new) is None)


def test_its_connections_end_when_it_expires(first: Node, tmp_path: Path) -> None:
    path = bearer(first, tmp_path / "token", ttl="2s")
    try:
        with closing(dial(first, path)) as stream:
            until("its end", lambda: has_ended(stream))
    except Refused:  # a machine that took two seconds to get here
        pass
    refused = refusal(first, path)
    assert refused is not None and "expired" in refused.text and refused.code == "token-over"


def test_a_guesser_is_told_nothing_and_keeps_nobody_out(first: Node, tmp_path: Path) -> None:
    path = bearer(first, tmp_path / "token")
    right = read_token(path.read_text(), bearer=True)
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    told = set()
    for number in range(GUESSES_MAX + 2):
        guess = Token(right.authority, right.number if number % 2 else "00000000", "A" * 43, bearer=True)
        wrong.write_text(guess.line())
        refused = refusal(first, wrong)
        assert refused is not None
        told.add(refused.code)
    assert told == {"unknown-token", "too-many-guesses"}
    assert refusal(first, path) is None
    assert "client.refused 127.0.0.1" in first.lifl("audit")


def test_another_clusters_node_hears_no_secret(first: Node, start_node: Callable[..., Node], tmp_path: Path) -> None:
    path = bearer(first, tmp_path / "token")
    with tempfile.TemporaryDirectory(prefix="lt-", dir="/tmp") as folder:
        other = start_node(*EVERYWHERE, folder=Path(folder))
        refused = refusal(other, path)
        assert refused is not None and refused.code == "wrong-authority" and "was not told" in refused.text
        other.down()


def test_who_shows_the_right_roots_and_has_not_their_certificate_hears_no_secret(first: Node, tmp_path: Path) -> None:
    """A machine in between that tells the true roots: its own certificate is another authority's."""
    from certificates import Authority

    path = bearer(first, tmp_path / "token")
    roots = (first.state_dir / "identity" / "ca.pem").read_text()
    heard: list[bytes] = []
    files = Authority().enroll(tmp_path / "liar", "node", "liar", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    def serve(listener: socket.socket) -> None:
        from lifl.core.protocol.frames import encode

        for _ in range(2):
            raw, _ = listener.accept()
            try:
                with context.wrap_socket(raw, server_side=True) as sock:
                    heard.append(sock.recv(4096))
                    sock.sendall(encode(cm.Roots(roots)))
                    heard.append(sock.recv(4096))
            except OSError:
                continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        with pytest.raises(OSError, match="certificate"):
            greeted(f"127.0.0.1:{listener.getsockname()[1]}", WAIT_S, NAME, False, Dialler([], token_file=path))
        server.join(WAIT_S)
    secret = read_token(path.read_text(), bearer=True).secret.encode()
    assert b"AskRoots" in b"".join(heard) and secret not in b"".join(heard)


def test_what_is_no_use_is_refused_with_the_remedy(first: Node, tmp_path: Path) -> None:
    path = bearer(first, tmp_path / "token")
    path.chmod(0o640)
    with pytest.raises(ResourceFault, match="chmod 600"):
        dial(first, path)
    with pytest.raises(ResourceFault, match="cannot be read"):
        dial(first, tmp_path / "nothing")
    path.chmod(0o600)
    for also in ({"identity": tmp_path}, {"insecure": True}):
        with pytest.raises(LocalFault, match="one of them"):
            Dialler([], token_file=path, **also)  # type: ignore[arg-type]
    path.write_text(first.lifl("token", "create", "--role", "client"))
    with pytest.raises(Refused, match="is one to join with"):
        dial(first, path)
    for arguments in (
        ("--role", "operator", "--name", "a", "--job", "j"),
        ("--role", "client", "--name", "a-*", "--job", "j"),
        ("--role", "client", "--name", "a"),
        ("--role", "client", "--name", "a", "--job", "j", "--uses", "2"),
    ):
        done = run_lifl("token", "create", "--bearer", *arguments, "--state", str(first.state_dir))
        assert done.returncode == 2 and "for one client in one job" in done.stderr


def test_a_node_without_certificates_makes_and_takes_none(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node = start_node()
    arguments = ("token", "create", "--bearer", "--role", "client", "--name", "a", "--job", "j")
    done = run_lifl(*arguments, "--state", str(node.state_dir))
    assert done.returncode == 1 and "no certificates" in done.stderr
    with closing(Stream(here(node.address), WAIT_S, Dialler([], insecure=True))) as stream:
        stream.send(cm.ShowToken("00000000", "A" * 43))
        answer = stream.receive()
    assert isinstance(answer, cm.Refusal) and answer.code == "no-token-wanted"
