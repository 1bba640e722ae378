"""From a table, as TOML gave it, to a frozen and checked object; every refusal names the dotted path of the key.

Overrides (``section.key=value``, the value in TOML's syntax) are laid over the table; keys that do not exist are
refused with the nearest one that does; msgspec checks types and ranges.  What joins several keys is checked by the
object's own module.  Files, the environment and the machine are not looked at here: that is the caller's business.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, get_args

import msgspec

from lifl.core.errors import ConfigError
from lifl.core.fields import CLIENT_PATTERN_RULE, LABEL_RULE, NAME_RULE
from lifl.core.limits import OPTIONS_DEPTH_MAX

C = TypeVar("C", bound=msgspec.Struct)
TABLES_DEPTH_MAX = OPTIONS_DEPTH_MAX + 2
"""Options stand in a key of a section."""


KEY_PARTS_MAX = 32
"""Of a dotted key: more than any table is deep."""
_QUOTED = re.compile(r"""\"[^"]*"?|'[^']*'?""")
_NOT_OF_KEYS = re.compile(r"[^\w.\t -]")


def table_of(text: str) -> dict[str, Any]:
    """Return the table of a TOML file.  Raise `ValueError` for what is none, `RecursionError`.

    A key of many parts is refused before it is read: `tomllib` takes memory and time with the square of their number,
    gigabytes for a line of 50 kB.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") >= KEY_PARTS_MAX and _key_parts(line) > KEY_PARTS_MAX:
            raise ValueError(f"a key has more than {KEY_PARTS_MAX} parts (at line {number})")
    return tomllib.loads(text)


def _key_parts(line: str) -> int:
    """Return how many parts a key has at most that stands in a line."""
    if "\\" in line or '"""' in line or "'''" in line:  # what is quoted cannot be told by looking at the line
        return line.count(".") + 1
    chunks = _NOT_OF_KEYS.split(_QUOTED.sub("x", line))
    return max(sum(bool(part.strip()) for part in chunk.split(".")) for chunk in chunks)


def overridden(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    table = _copied(data)
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        keys = path.split(".")
        if not equals or not all(keys):
            raise ConfigError("", f"the override {override!r} is not of the form section.key=value")
        here = table
        for depth, key in enumerate(keys[:-1], start=1):
            below = here.setdefault(key, {})
            if not isinstance(below, dict):
                raise ConfigError(path, f"{'.'.join(keys[:depth])} is a value, so nothing can be set within it")
            here = below
        here[keys[-1]] = _toml_value(text.strip(), path)
    return table


def _toml_value(text: str, path: str) -> Any:
    """Return `text` as TOML's value, or as a string without quotes when it is none."""
    try:
        table = table_of(f"value = {text}")
    except (ValueError, RecursionError) as error:  # not TOML; numbers and nesting without end
        if text[:1] in ('"', "'", "[", "{"):
            raise ConfigError(path, f"{text!r} is not a TOML value: {error}") from error
        return text
    # A line break within the text would add keys of its own.
    return table["value"] if set(table) == {"value"} else text


def _copied(data: Mapping[str, Any], depth: int = 1) -> dict[str, Any]:
    if depth > TABLES_DEPTH_MAX:
        raise ConfigError("", f"a table is nested deeper than {TABLES_DEPTH_MAX} levels")
    return {key: _copied(value, depth + 1) if isinstance(value, Mapping) else value for key, value in data.items()}


def convert(table: Mapping[str, Any], kind: type[C]) -> C:
    for path, value in _leaves(table, ""):
        if isinstance(value, str) and not is_utf8(value):
            raise ConfigError(path, f"{value!r:.80} is not UTF-8, and cannot be sent to others; use another name")
    _check_keys(table, kind)
    try:
        config = msgspec.convert(table, type=kind)
    except msgspec.ValidationError as error:
        raise _config_error(str(error), table, kind) from error
    for path, value in _leaves(table, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(path, f"{value} is not a finite number")
    return config


def is_utf8(text: str) -> bool:
    """Return whether a text can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_keys(table: Mapping[str, Any], kind: type[msgspec.Struct]) -> None:
    """Refuse the first key of `table` that `kind` does not have."""
    known = known_keys(kind)
    sections = [path for path, is_section in known.items() if is_section]
    for key, value in table.items():
        if key not in known:
            raise _unknown_key(key, known)
        if key not in sections:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(key, f"is a section: write its keys under [{key}]")
        _check_inner(key, value, known)


def _check_inner(path: str, table: Mapping[str, Any], known: Mapping[str, bool]) -> None:
    """Refuse the first key of a section, or of a table in it, that is not known."""
    for inner, value in table.items():
        at = f"{path}.{inner}"
        if at not in known:
            raise _unknown_key(at, known)
        if known[at] and isinstance(value, Mapping):
            _check_inner(at, value, known)


@cache
def known_keys(kind: type[msgspec.Struct]) -> Mapping[str, bool]:
    """Return the dotted keys of `kind`, each with whether it is a section."""
    known = {}
    for field in msgspec.structs.fields(kind):
        hint, name = _table_of(field.type), field.encode_name
        known[name] = is_section = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
        if is_section:
            known |= {f"{name}.{below}": inner for below, inner in known_keys(hint).items()}
    return known


def _table_of(hint: Any) -> Any:
    """Return the type of a key; of one that may be left out, and is a table, that of the table."""
    tables = [part for part in get_args(hint) if isinstance(part, type) and issubclass(part, msgspec.Struct)]
    return tables[0] if tables else hint


def _unknown_key(path: str, known: Mapping[str, bool]) -> ConfigError:
    last = path.rpartition(".")[2]
    section = path.rpartition(".")[0]
    here = [name for name in known if name.rpartition(".")[0] == section] or list(known)
    # The right name in a wrong section first, then the nearest spelling in this one, and in any.
    found = [name for name in known if name.rpartition(".")[2] == last]
    for names in (here, list(known)):
        near = difflib.get_close_matches(last, [name.rpartition(".")[2] for name in names], 1, 0.6)
        found = found or [name for name in names if near and name.rpartition(".")[2] == near[0]]
    hint = f"did you mean {found[0]}?" if found else f"known here: {', '.join(here)}"
    return ConfigError(path, f"unknown key; {hint}")


_AT = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_LABELS_AT = re.compile(
    r"(?:matching|`str` of length) .* - at (?:`key` in )?`\$\.(placement\.nodes|labels)(?:\[\.\.\.\])?`$", re.DOTALL
)
_MISSING = re.compile(r"Object missing required field `(.*)`$")


def _config_error(text: str, table: Mapping[str, Any], kind: type[msgspec.Struct]) -> ConfigError:
    """Return msgspec's complaint as ours: with the dotted path and the value given."""
    if (labels := _LABELS_AT.search(text)) is not None:
        return ConfigError(labels[1], LABEL_RULE)
    at = _AT.search(text)
    path = at[1] if at else ""
    problem = text[: at.start()] if at else text
    missing = _MISSING.match(problem)
    if missing:
        return ConfigError(f"{path}.{missing[1]}" if path else missing[1], "is missing and has no default")
    value: Any = table
    path = path.partition("[...]")[0]  # some value of a table
    for key in path.replace("[", ".[").split("."):
        value = _part(value, key)
    if problem.startswith("Invalid enum value"):
        return ConfigError(path, f"{value!r:.80} is none of {', '.join(_choices(kind, path))}")
    if "matching regex" in problem and path.startswith("selection.clients"):
        return ConfigError(path, f"is no name or pattern of clients: {CLIENT_PATTERN_RULE}")
    if "matching regex" in problem and path == "model.from":
        return ConfigError(path, f"{value!r:.80} is no job's name, nor NAME@ROUND")
    if "matching regex" in problem and (path.endswith("]") or "\0" in str(value)):
        return ConfigError(path, "has characters that cannot be printed")
    if "matching regex" in problem:
        return ConfigError(path, f"{value!r:.80} is no name: {NAME_RULE}")
    problem = problem.replace("`", "")
    hint = '; write it in quotes ("...")' if problem.startswith("Expected str, got") else ""
    return ConfigError(path, f"{problem[:1].lower()}{problem[1:]} (given: {value!r:.80}){hint}")


def _choices(kind: Any, path: str) -> tuple[str, ...]:
    """Return what the key at `path` may be, where that is one of a few words."""
    for key in path.split("."):
        kind = next((each for each in get_args(kind) if hasattr(each, "__struct_fields__")), kind)  # it may be left out
        kind = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}[key]
    words = [word for each in get_args(kind) for word in (get_args(each) or (each,))]
    return tuple(word for word in words if isinstance(word, str))


def _leaves(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield what is no table and no list, with its path; keys, too, as far as they are no UTF-8."""
    if depth > TABLES_DEPTH_MAX:
        raise ConfigError(f"{path:.80}", f"is nested deeper than {TABLES_DEPTH_MAX} levels")
    if isinstance(value, Mapping):
        for key, below in value.items():
            if not is_utf8(str(key)):
                yield path or str(key), str(key)
            yield from _leaves(below, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from _leaves(below, f"{path}[{index}]", depth + 1)
    else:
        yield path, value


def _part(value: Any, key: str) -> Any:
    """Return what stands under a key of a table, or under "[index]" of a list; None: there is nothing."""
    if isinstance(value, list) and key.startswith("["):
        return value[int(key[1:-1])]
    return value.get(key) if isinstance(value, Mapping) else None
