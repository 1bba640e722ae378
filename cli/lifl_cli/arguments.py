"""A request that `lifld` would not understand is not sent: the argument at fault is named, with what it may be.

What may be is said by the types of the request's fields, so a new request brings its own words.
"""

from __future__ import annotations

import re
from typing import Any

import click
import msgspec
from msgspec import inspect

from lifl.core.errors import Refused

SHOWN_CHARS_MAX = 40
_AT = re.compile(r"at `\$\.(\w+)(?:\[(\d+)\])?")


def refusal(request: msgspec.Struct, error: msgspec.ValidationError) -> Refused:
    """Return the refusal of a request in which msgspec has found `error`."""
    found = _AT.search(str(error))
    if found is None:
        kind = type(request).__name__
        return Refused("bad-request", kind, f"no {kind} can be like that: {error}")
    name, value = found[1], getattr(request, found[1])
    if found[2] is not None:
        value = value[int(found[2])]
    shown = f"{value!r:.{SHOWN_CHARS_MAX}}" + ("..." if len(repr(value)) > SHOWN_CHARS_MAX else "")
    allowed = _allowed(type(request), name, value) or str(error).partition(" - at")[0]
    return Refused("bad-request", name, f"{_argument(name)}: it may be {allowed}; this is {shown}")


def _argument(field: str) -> str:
    """Return how the command line calls the argument that has become this field."""
    context = click.get_current_context(silent=True)
    for parameter in context.command.params if context is not None else ():
        if parameter.name == field:
            return parameter.metavar or field.upper() if isinstance(parameter, click.Argument) else parameter.opts[0]
    return field.upper()


def _allowed(kind: type[msgspec.Struct], field: str, value: Any) -> str:
    """Return what a field may be, if that has words; of a list what each may be, when `value` is one of its texts."""
    (told,) = [each.type for each in msgspec.structs.fields(kind) if each.name == field]
    info = inspect.type_info(told)
    if isinstance(info, inspect.VarTupleType | inspect.ListType):
        if not isinstance(value, str):
            return f"given at most {info.max_length} times"
        info = info.item_type
    if isinstance(info, inspect.Metadata):
        if info.extra_json_schema and (text := info.extra_json_schema.get("description")):
            return str(text)
        info = info.type
    if isinstance(info, inspect.StrType) and info.max_length is not None:
        return f"{info.min_length or 0} to {info.max_length} characters"
    return ""
