"""Tables of what is in a model, and of how two differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from lifl_cli.render.figures import size_text
from lifl_cli.render.tables import cell


def info_view(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what is shown of a model's file."""
    yield cell(f"{found['file']}: {len(found['tensors'])} tensors, {found['elements']} elements, {_size(found)}")
    yield cell(f"digest {found['digest']}, norm {_number(found['norm'])}")
    for name, value in sorted(found["metadata"].items()):
        yield cell(f"{name} = {value}")
    table = Table(box=None, pad_edge=False)
    for column in ("tensor", "dtype", "shape", "bytes", "norm"):
        table.add_column(column, overflow="fold")
    for line in found["tensors"]:
        odd = f"{line['not_finite']} are NaN or infinite" if line["not_finite"] else _number(line["norm"])
        shape = "x".join(map(str, line["shape"])) or "scalar"
        table.add_row(cell(line["name"]), line["dtype"], shape, str(line["bytes"]), odd)
    yield table


def diff_view(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what is shown of how two models differ."""
    for what in ("added", "removed"):
        for name in found[what]:
            yield cell(f"{what}  {name}")
    for line in found["changed"]:
        yield cell(f"changed  {line['name']}: {line['before']} is {line['after']}")
    table = Table(box=None, pad_edge=False)
    for column in ("tensor", "max abs", "relative", "changed"):
        table.add_column(column, overflow="fold")
    for line in found["tensors"]:
        share = f"{100 * line['changed_share']:.4g} %"
        table.add_row(cell(line["name"]), _number(line["max_abs"]), _number(line["relative"]), share)
    yield table


def _size(found: Mapping[str, Any]) -> str:
    return size_text(found["bytes"])


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"
