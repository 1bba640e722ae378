"""Values that are written as text: sizes and addresses."""

from __future__ import annotations

import ipaddress
import re

from lifl.core.errors import ConfigError

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_UNIT_BYTES = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def parse_size(text: str, path: str = "") -> int:
    """Return the bytes that a size such as ``2GiB``, ``1.5 GB`` or ``4096`` means.  Raise `ConfigError`."""
    match = _SIZE.fullmatch(text.strip())
    units = {unit.lower(): size for unit, size in _UNIT_BYTES.items()}
    if match is None or match[2].lower() not in units:
        raise ConfigError(
            path,
            f"{text!r} is not a size; write a number with B, KB, MB, GB, TB, KiB, MiB, GiB, TiB: 2GiB",
        )
    whole, _, decimals = match[1].partition(".")
    scale: int = units[match[2].lower()]
    # In integers, so that no size is rounded by a float.
    scaled: int = int(whole + decimals) * scale // 10 ** len(decimals)
    return scaled


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_duration(text: str, path: str = "") -> float:
    """Return the seconds that a duration such as ``90s``, ``15m``, ``1.5h`` or ``2d`` means.  Raise `ConfigError`."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or match[2] not in _UNIT_S:
        raise ConfigError(path, f"{text!r} is not a duration; write a number with s, m, h or d: 15m")
    return float(match[1]) * _UNIT_S[match[2]]


def can_be_host(text: str) -> bool:
    """Return whether a host may be called so: what is none of a resolver's names makes it raise anything."""
    try:
        known = text.encode("idna").strip(b".")
    except UnicodeError:  # an empty or a too long label, half a character
        return False
    return bool(known) and text.isprintable() and not re.search(r"[\s/@]", text)


def split_address(text: str, path: str = "") -> tuple[str, int]:
    """Return HOST and PORT of ``HOST:PORT`` (an IPv6 host in brackets).  Raise `ConfigError` at `path`."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    well_formed = colon and bare and (bare != host or ":" not in host) and re.fullmatch(r"[0-9]{1,5}", port)
    if not well_formed or int(port) > 65_535 or not can_be_host(bare):
        raise ConfigError(path, f"{text!r} is not HOST:PORT with a port of 0 to 65535, such as 127.0.0.1:7433")
    return bare, int(port)


def joined_address(host: str, port: int) -> str:
    """Return HOST:PORT, as `split_address` takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`; a name other than ``localhost`` may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
