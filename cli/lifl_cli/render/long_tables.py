"""Tables of many rows, as rich would print them but for its colours, at a fiftieth of what it takes for that.

Rich measures and wraps each cell by itself, half a millisecond a row.  Here only what does not fit is wrapped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2
"""Columns between two cells."""


def long_lines(table: Table, console: Console) -> Iterator[str]:
    """Yield the lines of a table without a box, as wide as the console where cells may be wrapped."""
    heads = [[_plain(column.header)] if table.show_header else [] for column in table.columns]
    columns = [head + [*map(_plain, column.cells)] for head, column in zip(heads, table.columns, strict=True)]
    widths = [
        min(max(map(_width, cells)), column.width or max(2, console.width))
        for cells, column in zip(columns, table.columns, strict=True)
    ]
    _fit(widths, columns, table, console.width)
    for row in zip(*columns, strict=True):
        cells = [_wrapped(text, most, console) for text, most in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            padded = (part + " " * (most - _width(part)) for part, most in zip(parts, widths, strict=True))
            yield (" " * GAP).join(padded).rstrip()


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _width(text: str) -> int:
    if "\n" in text:
        return max(map(_width, text.split("\n")))
    return len(text) if text.isascii() else cell_len(text)


def _fit(widths: list[int], columns: Sequence[Sequence[str]], table: Table, width: int) -> None:
    """Make columns narrower that may be wrapped, the widest first: to their longest word, then to a wide letter."""
    able = [at for at, column in enumerate(table.columns) if not column.no_wrap]
    excess = sum(widths) + GAP * (len(widths) - 1) - width
    if excess <= 0 or not able:
        return
    words = {at: max((_width(word) for text in columns[at] for word in text.split()), default=1) for at in able}
    for least in (words, dict.fromkeys(able, 2)):
        while excess > 0 and (left := [at for at in able if widths[at] > least[at]]):
            widest = max(left, key=lambda at: widths[at])
            widths[widest], excess = widths[widest] - 1, excess - 1


def _wrapped(text: str, width: int, console: Console) -> list[str]:
    """Return a cell's lines: words stay whole where they fit."""
    if len(text) <= width and text.isascii() and "\n" not in text:
        return [text]
    lines: list[str] = []
    for line in text.split("\n"):
        if _width(line) <= width:
            lines.append(line)
        elif line.isascii():
            lines += textwrap.wrap(line, width)
        else:
            lines += [each.plain for each in Text(line).wrap(console, width, overflow="fold")]
    return lines
