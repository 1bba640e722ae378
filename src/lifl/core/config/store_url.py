"""Where a cluster's rows are kept: ``etcd://HOST:PORT,HOST:PORT,.../NAME``."""

from __future__ import annotations

import re
from typing import NamedTuple

from lifl.core.config.values import split_address
from lifl.core.errors import ConfigError
from lifl.core.limits import STORE_ENDPOINTS_MAX, STORE_NAME_CHARS_MAX

SCHEME = "etcd://"
DEFAULT_NAME = "lifl"


class StoreUrl(NamedTuple):
    """The client addresses of etcd's members, and under which name a cluster keeps its rows there."""

    endpoints: tuple[str, ...]
    name: str


def parse_store(text: str, path: str = "store") -> StoreUrl:
    """Return what the address of a store says.  Raise `ConfigError` at `path`."""
    if not text.startswith(SCHEME):
        raise ConfigError(path, f"{text!r} is no store; write etcd://HOST:PORT,HOST:PORT,HOST:PORT")
    members, slash, name = text.removeprefix(SCHEME).partition("/")
    endpoints = tuple(members.split(","))
    for endpoint in endpoints:
        _host, port = split_address(endpoint, path)
        if not port:
            raise ConfigError(path, f"{endpoint}: no member of etcd listens on port 0")
    if len(endpoints) > STORE_ENDPOINTS_MAX or len(set(endpoints)) < len(endpoints):
        raise ConfigError(path, f"names {len(endpoints)} members; name each once, and at most {STORE_ENDPOINTS_MAX}")
    if slash and not re.fullmatch(rf"[A-Za-z0-9_.-]{{1,{STORE_NAME_CHARS_MAX}}}", name):
        text = f"{name!r} is no name for a cluster: write letters, digits, - _ and . behind the last /"
        raise ConfigError(path, text)
    return StoreUrl(endpoints, name or DEFAULT_NAME)
