"""How a site that lets nothing out but by an HTTP proxy reaches a cluster: by CONNECT (RFC 9110, 9.3.6).

The environment says which one, as for other programs: HTTPS_PROXY (or ALL_PROXY), and NO_PROXY whom to reach without.
What goes through is as it would be without it: the proxy hands bytes on, and sees none of what TLS protects.  Clients
and commands come that way; nodes reach each other by themselves.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from lifl.core.config.values import can_be_host, is_loopback, joined_address
from lifl.core.errors import LocalFault
from lifl.core.limits import PROXY_ANSWER_BYTES_MAX
from lifl.tls.polling import readable

Opened = Callable[[socket.socket], None]
_END = b"\r\n\r\n"
_STATUS = re.compile(rb"[1-5][0-9]{2}( |\Z)")


class Proxy(NamedTuple):
    """A proxy, and what is shown to it; `variable` names it in errors, which never show a password."""

    host: str
    port: int
    authorization: str
    variable: str

    def __str__(self) -> str:
        return f"the proxy {joined_address(self.host, self.port)} ({self.variable})"


def connected(host: str, port: int, timeout_s: float, opened: Opened = lambda _sock: None) -> socket.socket:
    """Return a TCP connection to `host`, by a proxy where the environment names one.

    `opened` is told each socket before it is connected.  Raise `OSError` when nobody is reached, and `LocalFault` where
    what the environment says is no proxy.
    """
    proxy = proxy_for(host)
    if proxy is None:
        return _dialled(host, port, timeout_s, opened)
    until_s = time.monotonic() + timeout_s
    try:
        sock = _dialled(proxy.host, proxy.port, timeout_s, opened)
    except OSError as error:
        raise type(error)(f"{proxy} cannot be reached: {error.strerror or error}") from error
    try:
        _ask(sock, proxy, host, port, until_s)
        sock.settimeout(timeout_s)
    except BaseException:
        sock.close()
        raise
    return sock


def _dialled(host: str, port: int, timeout_s: float, opened: Opened) -> socket.socket:
    error: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
            opened(sock)
            sock.connect(address)
        except OSError as failed:
            sock.close()
            error = failed
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise error


# ---- which one -------------------------------------------------------------------------------------------------------


def proxy_for(host: str) -> Proxy | None:
    """Return the proxy by which `host` is reached; None: by none.  Raise `LocalFault` for one that cannot be used."""
    names = [name for name in os.environ if name.lower() in ("https_proxy", "all_proxy") and os.environ[name]]
    if not names or is_loopback(host):
        return None
    from urllib.request import getproxies_environment, proxy_bypass

    if proxy_bypass(host):
        return None
    found = getproxies_environment()
    for name in ("https", "all"):
        if found.get(name):
            return _proxy(found[name], next(each for each in names if each.lower() == f"{name}_proxy"))
    return None


def _proxy(url: str, variable: str) -> Proxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = 80 if parts.port is None else parts.port
    except ValueError:
        parts, port = SplitResult("", "", "", "", ""), 0
    if parts.scheme != "http" or not parts.hostname or not port or not can_be_host(parts.hostname):
        text = "is no proxy that can be used: write http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT"
        raise LocalFault(f"${variable} {text}; or name the node's host in $NO_PROXY to reach it without one")
    return Proxy(parts.hostname, port, _authorization(parts), variable)


def _authorization(parts: SplitResult) -> str:
    if parts.username is None:
        return ""
    said = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(said.encode(errors='surrogateescape')).decode()}"


# ---- what it is asked ------------------------------------------------------------------------------------------------


def _ask(sock: socket.socket, proxy: Proxy, host: str, port: int, until_s: float) -> None:
    """Have the proxy connect.  Raise `ConnectionError` when it does not."""
    where = joined_address(host, port)
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    said, body = _answer(sock, proxy, until_s)
    version, _, rest = said.partition(b"\r\n")[0].partition(b" ")
    if not version.startswith(b"HTTP/1.") or _STATUS.match(rest) is None:
        raise ConnectionAbortedError(f"{proxy} does not answer as a proxy: {said[:40]!a}")
    if not rest.startswith(b"2"):
        text = rest.decode(errors="replace").strip()[:100]
        more = f"; put name and password into ${proxy.variable}" if rest.startswith(b"407") else ""
        raise ConnectionRefusedError(f"{proxy} does not connect to {where}: {text!a}{more}")
    if body:
        raise ConnectionAbortedError(f"{proxy} answers with more than the head of an answer")


def _answer(sock: socket.socket, proxy: Proxy, until_s: float) -> tuple[bytes, bytes]:
    """Return the head of the proxy's answer, and what came with it: a refusal has a page, a connection nothing."""
    said = bytearray()
    while _END not in said:
        if len(said) >= PROXY_ANSWER_BYTES_MAX:
            raise ConnectionAbortedError(f"{proxy} answers with more than the head of an answer")
        if not readable([sock], max(0.0, until_s - time.monotonic())):
            raise TimeoutError(f"{proxy} does not answer")
        piece = sock.recv(PROXY_ANSWER_BYTES_MAX - len(said))
        said += piece
        if not piece:
            raise ConnectionAbortedError(f"{proxy} closed the connection")
    head, _, body = bytes(said).partition(_END)
    return head, body
