"""docs/json.md as a table, and whether what a command printed with --json is what stands there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parents[1] / "docs/json.md"
GLOBAL = ("--node", "--identity")
"""Options, each with a value, that may stand before a command."""
Command = tuple[str, ...]


class Promise(NamedTuple):
    """What stands at a place (such as ``jobs[].queue``) of what is printed: keys that are there, and that may be."""

    at: str
    always: frozenset[str]
    may: frozenset[str]


@cache
def promises() -> dict[Command, list[Promise]]:
    """By the words and options that tell a command from others."""
    found: dict[Command, list[Promise]] = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or len(cells) != 3 or "`" not in cells[2]:
            continue
        if cells[0]:
            command = tuple(word for word in cells[0].strip("`").split()[1:] if re.fullmatch(r"-*[a-z-]+", word))
            here = found.setdefault(command, [])
        names = [name.removesuffix("[]") for name in re.findall(r"`([^`]+)`", cells[2])]
        if not re.match(r"as ", cells[2]) and "and by the event" not in cells[2]:
            always = frozenset(name for name in names if not name.endswith("?"))
            here.append(Promise(cells[1].strip("`"), always, frozenset(name.rstrip("?") for name in names)))
    return found


def command_of(arguments: Sequence[str]) -> Command | None:
    """The command of the page that a command line is; None: it has none."""
    words = list(arguments)
    while words and words[0] in GLOBAL:
        del words[:2]
    able = [
        command
        for command in promises()
        if (names := [word for word in command if word[0] != "-"]) == words[: len(names)] and set(command) <= set(words)
    ]
    return max(able, key=len, default=None)


def places(told: Any, path: str) -> Iterator[Any]:
    """What stands at a place, each of a list; nothing where there is none."""
    name, _, rest = path.partition(".")
    bare = name.removesuffix("[]")
    inner = told if not bare else told.get(bare) if isinstance(told, dict) else None
    for each in inner if name.endswith("[]") and isinstance(inner, list) else [inner]:
        yield from places(each, rest) if rest else [each]


def unknown_keys(arguments: Sequence[str], printed: str) -> list[str]:
    """What the page does not tell of what a command printed; each line of it is an object, or all of it is one."""
    command = command_of(arguments)
    if command is None:
        return [f"docs/json.md does not have `lifl {' '.join(arguments[:2])}`"]
    try:
        told = [json.loads(printed)]
    except ValueError:
        told = [json.loads(line) for line in printed.splitlines()]
    wrong = []
    for promise in promises()[command]:
        for at in (at for each in told if "event" not in each for at in places(each, promise.at)):
            if isinstance(at, dict) and (more := at.keys() - promise.may):
                wrong.append(f"{' '.join(command)}, {promise.at or 'the whole'}: {', '.join(sorted(more))}")
    return wrong
