"""Curves: drawn in a terminal with the dots of braille characters, or into a picture by matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lifl.core.errors import Refused, ResourceFault
from lifl_cli.render.figures import printable

Curve = Sequence[tuple[float, float]]
"""Points (round, value), in the order of the rounds."""
BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille character's dots: two beside each other, four rows."""
LABEL_CHARS_MIN, COLUMNS_MIN = 6, 8
PICTURE_INCHES = (8.0, 2.6)
"""Of one curve in a picture."""


def text_chart(name: str, curve: Curve, width: int, height: int, *, braille: bool = True) -> list[str]:
    """Return the lines of a chart: a title, `height` rows of a curve with its ends, and the first and last round.

    Values that are not finite leave a gap; without `braille` a star stands for a dot, one in each cell.
    """
    points = [(x, y) for x, y in curve if math.isfinite(y)]
    if not points:
        return [printable(name), "  no value that is finite"]
    (low, high), (first, last) = _ends([y for _, y in points]), (curve[0][0], curve[-1][0])
    labels = [f"{value:.4g}" for value in (high, low)]
    edge = max(LABEL_CHARS_MIN, *map(len, labels))
    columns = max(COLUMNS_MIN, width - edge - 2)
    across, down = (2, 4) if braille else (1, 1)
    dots = _line(curve, (first, last), (low, high), columns * across, height * down)
    rows = _cells(dots, columns, height) if braille else _stars(dots, columns, height)
    sides = [labels[0], *[""] * (height - 2), labels[1]] if height > 1 else [labels[0]]
    ends = f"{first:g}", f"{last:g}"
    return [
        f"{printable(name)}  {points[-1][1]:.4g}",
        *(f"{side:>{edge}} {'│' if braille else '|'}{row}".rstrip() for side, row in zip(sides, rows, strict=True)),
        f"{'':>{edge}}  {ends[0]}{ends[1]:>{max(columns - len(ends[0]), 1 + len(ends[1]))}}",
    ]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper end of an axis on which all values are, and which has a length."""
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) / 2 or 1.0
        return low - margin, high + margin
    return low, high


def _line(
    curve: Curve, across: tuple[float, float], along: tuple[float, float], columns: int, rows: int
) -> set[tuple[int, int]]:
    """Return the dots (column, row from the top) of a curve, each joined to the one before."""
    dots: set[tuple[int, int]] = set()
    before: tuple[int, int] | None = None
    for x, y in curve:
        if not math.isfinite(y):
            before = None
            continue
        column = _place(x, *across, columns)
        row = rows - 1 - _place(y, *along, rows)
        steps = max(abs(column - before[0]), abs(row - before[1]), 1) if before is not None else 1
        last = before if before is not None else (column, row)
        for step in range(steps + 1):
            part = step / steps
            dots.add((round(last[0] + (column - last[0]) * part), round(last[1] + (row - last[1]) * part)))
        before = column, row
    return dots


def _place(value: float, low: float, high: float, places: int) -> int:
    """Return where a value is among so many places."""
    if high == low:
        return 0
    if math.isinf(high - low):
        value, low, high = value / 2, low / 2, high / 2
    return min(places - 1, max(0, round((value - low) / (high - low) * (places - 1))))


def _cells(dots: set[tuple[int, int]], columns: int, height: int) -> list[str]:
    cells = [[0] * columns for _ in range(height)]
    for column, row in dots:
        cells[row // 4][column // 2] |= DOTS[row % 4][column % 2]
    return ["".join(chr(BRAILLE + bits) if bits else " " for bits in line) for line in cells]


def _stars(dots: set[tuple[int, int]], columns: int, height: int) -> list[str]:
    return ["".join("*" if (column, row) in dots else " " for column in range(columns)) for row in range(height)]


def write_picture(path: Path, title: str, curves: Mapping[str, Curve]) -> None:
    """Write the curves, one below the other, into a picture: PNG, or what the file's name says (.svg, .pdf).

    Raise `Refused` for a name that says something else, `ResourceFault` without matplotlib or where nothing can be
    written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        text = "a picture takes the library matplotlib, which is not installed: pip install 'lifl[plot]'; "
        raise ResourceFault(f"{text}without -o the curves are drawn in the terminal") from error
    kind = path.suffix.removeprefix(".").lower() or "png"
    figure = Figure(figsize=(PICTURE_INCHES[0], PICTURE_INCHES[1] * len(curves)), layout="constrained")
    if kind not in figure.canvas.get_supported_filetypes():
        raise Refused("bad-file", "-o", f"{path.name}: no picture is written as .{kind}; give a name like loss.png")
    for place, (name, curve) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(len(curves), 1, place)
        axes.plot([x for x, _ in curve], [y for _, y in curve], marker="." if len(curve) < 100 else "")
        axes.set_ylabel(_plain(name))
        axes.grid(alpha=0.3)
    axes.set_xlabel("round")
    figure.suptitle(_plain(title))
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, dpi=120)
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise ResourceFault(f"{path} cannot be written: {error.strerror}; give another file with -o") from error


def _plain(text: str) -> str:
    """Return a text that matplotlib shows as it is: it reads what is between two dollar signs as a formula."""
    return printable(text).replace("$", r"\$")
