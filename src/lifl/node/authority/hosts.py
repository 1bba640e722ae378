"""By which names and addresses a node is reached: they stand in its certificate, for clients check them."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

import psutil

from lifl.core.config.values import split_address
from lifl.core.limits import HOST_CHARS_MAX, HOSTS_MAX

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DNS_NAME = re.compile(
    r"(?=.{1,128}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)


def hosts_of(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return the names and addresses by which a node with these HOST:PORTs is reached, at most `HOSTS_MAX`.

    An unspecified host (0.0.0.0, ::) stands for all addresses that the machine has now.
    """
    named = [split_address(address)[0] for address in addresses]
    everywhere = any(_is_unspecified(host) for host in named)
    found = [host for host in named if not _is_unspecified(host)]
    found += [*LOOPBACK, socket.gethostname(), *(_own_addresses() if everywhere else ())]
    return tuple(dict.fromkeys(map(_plain, filter(is_host, found))))[:HOSTS_MAX]


def is_host(text: str) -> bool:
    """Return whether a text may stand in a certificate as a name or an address; a wildcard may not."""
    try:
        return "%" not in text and not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return len(text) <= HOST_CHARS_MAX and _DNS_NAME.fullmatch(text) is not None


def _plain(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _own_addresses() -> list[str]:
    """Return the machine's addresses that others may reach it by, in an order that stays."""
    found = []
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                address = ipaddress.ip_address(each.address.partition("%")[0])
                if not address.is_loopback and not address.is_link_local:
                    found.append(str(address))
    return sorted(found)
