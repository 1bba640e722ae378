"""How figures are written for people."""

from __future__ import annotations

import json
import re
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any


def printable(text: object) -> str:
    """Return a text from outside as it may be shown: what a terminal would act on, or not show, is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def printable_lines(text: object) -> str:
    """Return a text of several lines as it may be shown."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


NARROW_COLUMNS = 72
"""On a terminal that has fewer, lines are shorter, and a table that does not fit is written row by row."""


def folded(line: str, width: int, indent: int) -> list[str]:
    """Return a line in pieces where the terminal is narrow: between words, each but the first indented.

    What has no space in it, as a path, stays whole: it is for copying.
    """
    if width >= NARROW_COLUMNS or len(line) <= width:
        return [line]
    text = re.sub(r"(?<=\S) {3,}", "  ", line)
    pieces = textwrap.wrap(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return pieces or [""]


def line_text(queue: Mapping[str, Any]) -> str:
    """Return where a job stands in line, and what it waits for."""
    needs, free = size_text(queue["needs_bytes"]), size_text(queue["free_bytes"])
    text = f"needs {needs} of the arena, free {free}; {queue['position']} of {queue['length']} in line"
    return f"{text}; over the nodes: {queue['elsewhere']}" if queue.get("elsewhere") else text


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


def ranges_text(ranges: Sequence[Sequence[int]]) -> str:
    """Return rounds as ``0, 100, 198-213``."""
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges) or "none"


def disk_text(disk: Mapping[str, Any]) -> str:
    """Return what a job's models take on the disk."""
    fault = f"; {printable(disk['fault'])}" if disk.get("fault") else ""
    models = "1 model takes" if disk["models"] == 1 else f"{disk['models']} models take"
    return f"{models} {size_text(disk['bytes'])}, {size_text(disk['free_bytes'])} are free{fault}"


def upload_text(upload: Mapping[str, Any]) -> str:
    """Return what has become of a job's models that go to a store elsewhere."""
    from lifl.core.planning.keeping import ranges

    sent = f"round {upload['sent']} was sent last" if upload["sent"] >= 0 else "none was sent yet"
    waits = f", {ranges_text(ranges(upload['waiting']))} wait" if upload["waiting"] else ""
    given_up = f", {upload['given_up']} were given up" if upload["given_up"] else ""
    fault = f": {printable(upload['fault'])}" if upload["fault"] else ""
    return f"upload to {printable(upload['url'])}: {sent}{waits}{given_up}{fault}"


def models_lines(models: Mapping[str, Any] | None, disk: Mapping[str, Any] | None) -> list[str]:
    """Return which models of a job there are, the best of them, and what they take."""
    lines = []
    if models and models["rounds"]:
        one = models["rounds"] == [[models["rounds"][0][0]] * 2]
        lines.append(f"of round{'' if one else 's'} {ranges_text(models['rounds'])}")
    if models and (best := models.get("best")):
        metric = printable(best["metric"].removeprefix("-"))
        lines.append(f"best is round {best['round']}: {metric} {best['value']:.4g}")
    return lines + ([disk_text(disk)] if disk else [])


def metrics_text(metrics: Mapping[str, float] | None) -> str:
    """Return ``accuracy 0.912  loss 0.310``."""
    return "  ".join(f"{printable(name)} {value:.4g}" for name, value in sorted((metrics or {}).items()))


def measured_text(line: Mapping[str, Any]) -> str:
    """Return what was measured in a round, and of its model where that was evaluated."""
    found = line.get("evaluation") or {}
    means = means_of(found.get("metrics") or {}) | (found.get("server") or {}).get("metrics", {})
    return found_text(line.get("metrics"), means)


def means_of(evaluation: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return of each metric that was evaluated the value that counts: the server's, else the mean over the clients."""
    return {name: figures["server"] if "server" in figures else figures["mean"] for name, figures in evaluation.items()}


def found_text(trained: Mapping[str, float] | None, evaluated: Mapping[str, float]) -> str:
    """Return ``loss 0.310  evaluated: loss 0.290``."""
    texts = (metrics_text(trained), f"evaluated: {metrics_text(evaluated)}" if evaluated else "")
    return "  ".join(filter(None, texts))


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was found of a round's model as pairs of label and text."""
    lines = [("clients", f"{evaluation['clients']} of {evaluation['selected']} selected")]
    for name, figures in evaluation["metrics"].items():
        spread = "  ".join(f"{which} {figures[which]:.4g}" for which in ("min", "max", "std"))
        lines.append((printable(name), f"{figures['mean']:.4g}  {spread}  of {figures['clients']} clients"))
    if evaluation.get("fault"):
        lines.append(("left out", printable(evaluation["fault"])))
    server = evaluation.get("server") or {}
    lines += [(f"{printable(name)} (server)", f"{value:.4g}") for name, value in server.get("metrics", {}).items()]
    return [*lines, ("server", printable(server["fault"]))] if server.get("fault") else lines


VALUE_CHARS_MAX = 60
"""Of a value that is shown among others."""


def changes_text(changes: Mapping[str, Any]) -> str:
    """Return ``client.options.lr = 0.01, job.rounds = 60``."""
    shown = {key: json.dumps(value, ensure_ascii=False) for key, value in changes.items()}
    short = {
        key: text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}..." for key, text in shown.items()
    }
    return ", ".join(f"{printable(key)} = {printable(text)}" for key, text in short.items())


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
        *([("edited before it", changes_text(receipt["edited"]))] if receipt.get("edited") else []),
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
