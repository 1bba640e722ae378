"""Tables of tokens and certificates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lifl.core.limits import SERIAL_DIGITS_MIN
from lifl_cli.render.figures import minute_text, time_text
from lifl_cli.render.tables import cell

STYLES = {"valid": "green", "revoked": "red"}


def tokens_table(tokens: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each token."""
    table = _table("token", "role", "name", "jobs", "used", "valid until", "state")
    for each in tokens:
        table.add_row(
            cell(each["number"]),
            cell(each["role"]),
            cell(each["pattern"]),
            cell(", ".join(each["jobs"]) or "any" if each["role"] == "client" else "-"),
            "bearer" if each["bearer"] else f"{each['used']}/{each['uses']}",
            time_text(each["expires_unix_s"]),
            cell(each["state"], STYLES.get(each["state"], "yellow")),
        )
    return table


def certificates_table(certificates: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table, in 80 columns, a row for each certificate: of its serial as much as tells it from all others.

    That much, or ROLE/NAME, is what `lifl cert revoke` takes.
    """
    table = _table("serial", "role/name", "jobs", "token", "valid until", "state")
    digits = _digits_apart([str(each["serial"]) for each in certificates])
    for each in certificates:
        table.add_row(
            cell(each["serial"][:digits]),
            cell(f"{each['role']}/{each['name']}"),
            cell(", ".join(each["jobs"]) or "any" if each["role"] == "client" else "-"),
            cell(each["token"] or "-"),
            minute_text(each["expires_unix_s"]),
            cell(each["state"], STYLES.get(each["state"], "yellow")),
        )
    for name in ("serial", "valid until", "state"):
        next(column for column in table.columns if column.header == name).no_wrap = True
    return table


def _digits_apart(serials: Sequence[str]) -> int:
    """Return how many digits tell all of them apart."""
    digits, longest = SERIAL_DIGITS_MIN, max(map(len, serials), default=0)
    while digits < longest and len({serial[:digits] for serial in serials}) < len(set(serials)):
        digits += 1
    return digits


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
