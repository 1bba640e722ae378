"""How figures are written for people."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


def printable(text: object) -> str:
    """Return a text from outside as it may be shown: what a terminal would act on, or not show, is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def printable_lines(text: object) -> str:
    """Return a text of several lines as it may be shown."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def size_text(nbytes: float | None) -> str:
    """Return ``1.5 MiB``; ``-`` for None."""
    if nbytes is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def seconds_text(seconds: float | None) -> str:
    """Return ``3.2 ms``, ``4.1 s``, ``2 min 5 s``, ``3 h 12 min``; ``-`` for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def time_text(unix_s: float) -> str:
    """Return a moment, in the machine's time."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(unix_s))


def minute_text(unix_s: float) -> str:
    """Return a moment to the minute, in the machine's time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))


def metrics_text(metrics: Mapping[str, float] | None) -> str:
    """Return ``accuracy 0.912  loss 0.310``."""
    return "  ".join(f"{printable(name)} {value:.4g}" for name, value in sorted((metrics or {}).items()))


def receipt_lines(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a round's receipt as pairs of label and text."""
    cpu = receipt.get("cpu_s", {})
    workers = [
        f"{receipt.get(f'workers_{kind}', 0)} {kind}"
        for kind in ("cold", "warm", "promoted")
        if f"workers_{kind}" in receipt
    ]
    tree = receipt.get("tree", ())
    roles = {role: sum(1 for task in tree if task["role"] == role) for role in ("leaf", "middle", "top")}
    clients = ", ".join(f"{receipt.get(kind, 0)} {kind}" for kind in ("selected", "accepted", "counted", "expired"))
    return [
        ("clients", clients),
        ("weight", f"{receipt.get('weight', 0):g}"),
        ("bytes in", size_text(receipt.get("bytes_in"))),
        ("models served", size_text(receipt.get("bytes_out"))),
        *([("between nodes", size_text(receipt["bytes_between"]))] if receipt.get("bytes_between") else []),
        (
            "CPU",
            f"{sum(cpu.values()):.3f} s (" + ", ".join(f"{kind} {value:.3f}" for kind, value in cpu.items()) + ")",
        ),
        ("arena peak", size_text(receipt.get("arena_peak_bytes"))),
        ("round took", seconds_text(receipt.get("duration_s"))),
        ("last accepted to commit", seconds_text(receipt.get("last_accepted_to_commit_s"))),
        ("redirector", printable(receipt.get("redirector", "-"))),
        ("workers started", ", ".join(workers) or "-"),
        ("tree", ", ".join(f"{count} {role}" for role, count in roles.items() if count) or "-"),
    ]


def who_coordinates(store: Mapping[str, Any]) -> str:
    """Return who does, of what a node says of its store."""
    if store["leads"]:
        return f"this node, in term {store['term']}"
    return f"node {store['leader']}" if store["leader"] else "none now: one of the nodes will"
