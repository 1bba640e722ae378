"""Whom a client reaches by a proxy, and what becomes of a proxy that refuses, or is none."""

from __future__ import annotations

import socket

import pytest
from connect_proxy import OK, ConnectProxy

from lifl.core.errors import LocalFault
from lifl.core.limits import PROXY_ANSWER_BYTES_MAX
from lifl.tls.proxy import connected, proxy_for

HOST, PORT = "node.site.test", 7433
NAMES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
WAIT_S = 30.0


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def through(monkeypatch: pytest.MonkeyPatch, url: str, timeout_s: float = WAIT_S) -> socket.socket:
    monkeypatch.setenv("HTTPS_PROXY", url)
    return connected(HOST, PORT, timeout_s)


def test_a_host_that_only_the_proxy_knows_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ConnectProxy({f"{HOST}:{PORT}": "{}:{}".format(*server.getsockname())}) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with connected(HOST, PORT, WAIT_S, opened.append) as sock, server.accept()[0] as near:
            near.sendall(b"hello")
            assert sock.recv(5) == b"hello"
        assert opened == [sock], "who closes the client must find the socket"
        assert proxy.heads == [f"CONNECT {HOST}:{PORT} HTTP/1.1\r\nHost: {HOST}:{PORT}\r\n\r\n"]


@pytest.mark.parametrize(
    ("environment", "host", "expected"),
    [
        ({}, HOST, None),
        ({"HTTPS_PROXY": ""}, HOST, None),
        ({"HTTPS_PROXY": "http://p:3128"}, HOST, ("p", 3128)),
        ({"https_proxy": "p:3128"}, HOST, ("p", 3128)),
        ({"HTTPS_PROXY": "http://p"}, HOST, ("p", 80)),
        ({"ALL_PROXY": "http://p:1"}, HOST, ("p", 1)),
        ({"HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://q:2"}, HOST, ("p", 1)),
        ({"HTTPS_PROXY": "http://[::1]:3128"}, HOST, ("::1", 3128)),
        ({"HTTPS_PROXY": "http://p:1"}, "127.0.0.1", None),
        ({"HTTPS_PROXY": "http://p:1"}, "::1", None),
        ({"HTTPS_PROXY": "http://p:1"}, "localhost", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.test,site.test"}, HOST, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "*"}, HOST, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.1"}, "10.0.0.1", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.1"}, "10.0.0.2", ("p", 1)),
        ({"HTTP_PROXY": "http://p:1"}, HOST, None),
    ],
)
def test_the_environment_says_which_proxy(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], host: str, expected: tuple[str, int] | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(host)
    assert (found and found[:2]) == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://p:1",
        "socks5://p:1",
        "http://",
        "http://p:0",
        "http://p:99999",
        "http://p:x",
        "http://[::1",
        "http://[zz]:1",
    ]
    + [f"http://{'a' * 70}:80", "http://a..b:1", "http://.:1", "http://\udcff:1", "http://a b:1", "a" * 100_000],
)
def test_what_is_no_proxy_is_refused_by_its_variable(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(LocalFault, match=r"\$HTTPS_PROXY .*HOST:PORT.*NO_PROXY"):
        through(monkeypatch, url)


def test_name_and_password_are_shown_to_the_proxy_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with ConnectProxy({}, password="Basic YWxpY2U6c+ljcmV0") as proxy:
        with pytest.raises(ConnectionRefusedError, match=r"407 .*password into \$HTTPS_PROXY") as wrong:
            through(monkeypatch, proxy.url.replace("//", "//alice:s3cret@"))
        with pytest.raises(ConnectionRefusedError, match="407"):  # bytes that are no UTF-8, as the environment has them
            through(monkeypatch, proxy.url.replace("//", "//al\udcff:s3cret@"))
        assert "Proxy-Authorization: Basic YWz/OnMzY3JldA==\r\n" in proxy.heads[1]
        assert "s3cret" not in str(wrong.value) and "Proxy-Authorization: Basic YWxpY2U6czNjcmV0\r\n" in proxy.heads[0]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not connect to node.site.test:7433: '403 Forbidden'"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n" + b"<p>" * 50_000, "'403 Forbidden'"),
        (b"HTTP/1.1 407 no\r\nContent-Length: 5\r\n\r\nhello", r"'407 no'; put name and password into \$HTTPS_PROXY"),
        (b"HTTP/1.1 2\r\n\r\n", "does not answer as a proxy"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "does not answer as a proxy"),
        (b"HTTP/1.1 503 \x1b[31mno\r\nRetry-After: 1\r\n\r\n", r"'503 \\x1b\[31mno'"),
        (b"SSH-2.0-x\r\n\r\n", "does not answer as a proxy"),
        (b"HTTP/1.1 xyz\r\n\r\n", "does not answer as a proxy"),
        (OK + b"more", "more than the head"),
        (b"HTTP/1.1 200 OK\r\n" + b"a" * PROXY_ANSWER_BYTES_MAX, "more than the head"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * (PROXY_ANSWER_BYTES_MAX - 23) + b"\r\n\r\n", "more than the head"),
    ],
)
def test_a_proxy_that_refuses_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, answer: bytes, told: str) -> None:
    with ConnectProxy({}, answer) as proxy, pytest.raises(ConnectionError, match=told) as refused:
        through(monkeypatch, proxy.url)
    assert f"the proxy {proxy.url.removeprefix('http://')} (HTTPS_PROXY)" in str(refused.value)


def test_an_answer_at_its_limit_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"HTTP/1.1 200 OK\r\nX: "
    answer = head + b"a" * (PROXY_ANSWER_BYTES_MAX - len(head) - 4) + b"\r\n\r\n"
    with ConnectProxy({}, answer) as proxy:
        through(monkeypatch, proxy.url).close()


def test_a_proxy_that_is_silent_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with ConnectProxy({}, b"") as proxy, pytest.raises(TimeoutError, match="does not answer"):
        through(monkeypatch, proxy.url, timeout_s=0.2)


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        where = "{}:{}".format(*gone.getsockname())
    with pytest.raises(OSError, match=rf"the proxy {where} \(HTTPS_PROXY\) cannot be reached"):
        through(monkeypatch, f"http://{where}")
