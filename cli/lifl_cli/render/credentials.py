"""Tables of tokens and certificates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lifl_cli.render.figures import time_text
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
            f"{each['used']}/{each['uses']}",
            time_text(each["expires_unix_s"]),
            cell(each["state"], STYLES.get(each["state"], "yellow")),
        )
    return table


def certificates_table(certificates: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each certificate."""
    table = _table("serial", "role", "name", "jobs", "token", "issued", "valid until", "state")
    for each in certificates:
        table.add_row(
            cell(each["serial"]),
            cell(each["role"]),
            cell(each["name"]),
            cell(", ".join(each["jobs"]) or "any" if each["role"] == "client" else "-"),
            cell(each["token"] or "-"),
            time_text(each["issued_unix_s"]),
            time_text(each["expires_unix_s"]),
            cell(each["state"], STYLES.get(each["state"], "yellow")),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
