"""What docs/cli.md, docs/config.md and docs/refusals.md say, out of the code.

`make limits` writes them, tests/unit/test_reference.py holds that they are so.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from lifl_cli.main import cli
from limits_page import hints, is_struct, limit_text, metas, table

from lifl.core import fields
from lifl.core.config.job import JobConfig
from lifl.core.config.node import NodeConfig
from lifl.core.refusal_codes import TITLES

ROOT = Path(__file__).parents[1]
CLI_PAGE, CONFIG_PAGE, CODES_PAGE = (ROOT / "docs" / name for name in ("cli.md", "config.md", "refusals.md"))
HEAD = """# The command line

Each command with what it takes; `lifl COMMAND --help` says the same. Made out of the code by `make limits`.
Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 the command line itself is wrong; 130 it
was interrupted (^C). What the texts and numbers may be stands in [limits](limits.md#arguments-of-the-command-line).
"""

CONFIG_HEAD = """# Config files

Every key of a job's file (`lifl submit FILE`) and of a node's (`lifl up --config FILE`), in TOML. Made out of the code
by `make limits`. A key that is not here, a wrong type and what is beyond a limit are refused by their path, with the
nearest key that there is; `--set section.key=value` lays a value over a job's file, and each key of a node is a flag of
[`lifl up`](cli.md#lifl-up). Paths are relative to the file. `configs/` of the repository has files that run as they
are.
"""
PATTERN = re.compile(r"`(\\A.*\\Z)` characters")
NAME = "letters, digits, `.`, `_`, `:` and `-`, of which a letter or digit comes first"
PATTERNS = {
    typing.get_args(fields.ConfigPath)[1].pattern: "",
    typing.get_args(fields.Name)[1].pattern: f": {NAME}",
    typing.get_args(fields.ModelSource)[1].pattern: f": {NAME}; then `@` and a round, or nothing",
    typing.get_args(fields.LabelName)[1].pattern: ": an identifier, and no word of conditions (`and`, `client`, ...)",
    typing.get_args(fields.UserName)[1].pattern: ": the name of an account",
}
"""What the patterns of texts mean."""
JOB_HEAD = "What a key is for is said below its section's title; without a default it has to be given."


def commands(group: click.Group, path: str = "lifl") -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def cli_page() -> str:
    """The page of all commands."""
    parts = [HEAD, "## lifl\n", options(cli)]
    for path, command in commands(cli):
        parts.append(f"{'#' * min(path.count(' ') + 1, 3)} {path}\n")
        parts.append(f"    {' '.join([path, *command.collect_usage_pieces(click.Context(command))])}\n")
        parts.append(said(command))
        parts.append(options(command))
    return "\n".join(part for part in parts if part)


def said(command: click.Command) -> str:
    """A command's help, a paragraph a line; what stands as it is (`\\b`) as code."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    shown = []
    for paragraph in paragraphs:
        lines = paragraph.removeprefix("\b\n").splitlines()
        as_it_is = paragraph.startswith("\b\n")
        shown.append("\n".join(f"    {line}" for line in lines) if as_it_is else " ".join(map(str.strip, lines)))
    return "\n\n".join(shown) + "\n"


def options(command: click.Command) -> str:
    """The table of a command's options, without `--help`."""
    context = click.Context(command)
    records = [each.get_help_record(context) for each in command.get_params(context) if isinstance(each, click.Option)]
    rows = [(f"`{names}`", text) for names, text in filter(None, records) if "--help" not in names]
    return table(("option", "does"), rows) if rows else ""


def config_page() -> str:
    """The page of all keys."""
    parts = [CONFIG_HEAD, "## A job's file\n", f"{JOB_HEAD}\n"]
    for name, hint in hints(JobConfig).items():
        section = plain(hint)
        parts += [f"### {name}\n", prose(section), keys(section, f"{name}.")]
    return "\n".join([*parts, "## A node's file\n", prose(NodeConfig), keys(NodeConfig)])


def plain(kind: Any) -> Any:
    """A type without its limits, and without that it may be absent."""
    base, _held = metas(kind)
    given = [each for each in getattr(base, "__args__", ()) if is_struct(each)]
    return given[0] if given and not is_struct(base) else base


def prose(section: type) -> str:
    """A section's docstring; a sentence's lines are one."""
    text = inspect.cleandoc(section.__doc__ or "").replace("``", "`")
    return "\n\n".join(" ".join(paragraph.splitlines()) for paragraph in text.split("\n\n")) + "\n"


def keys(section: type, prefix: str = "") -> str:
    """The table of a section's keys."""
    given = {each.encode_name: each for each in msgspec.structs.fields(section)}
    rows = []
    for name, hint in hints(section).items():
        below = plain(hint)
        limit = "a table: " + ", ".join(f"`{each}`" for each in hints(below)) if is_struct(below) else None
        rows.append((f"`{prefix}{name}`", default(given[name]), limit or in_words(limit_text(hint, name))))
    return table(("key", "default", "may be"), rows)


def in_words(limit: str) -> str:
    """A limit whose pattern, if it has one, is said in words."""
    return PATTERN.sub(lambda found: f"characters{PATTERNS[found[1]]}", limit)


def default(field: Any) -> str:
    """What a key is when it is not given."""
    value = field.default if field.default is not msgspec.NODEFAULT else None
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return "to be given"
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is None or value is msgspec.UNSET or value == "":
        return "none"
    return f"`{json.dumps(msgspec.to_builtins(value))}`"


CODES_HEAD = """# Refusals

What each code means, and what to do; `lifl explain CODE` says the same. Made out of the code by `make limits`. One
on the command line ends with its code in brackets; in Python it is `Refused.code`, by HTTP `code` of the answer. What
it is about stands in its text, and in `Refused.field`.
"""


def codes_page() -> str:
    """The page of all codes of refusals."""
    parts = [CODES_HEAD]
    for title, codes in TITLES.items():
        rows = [(f"`{code}`", means, mend) for code, (means, mend) in codes.items()]
        parts += [f"## {title}\n", table(("code", "means", "what to do"), rows)]
    return "\n".join(parts)


if __name__ == "__main__":
    CODES_PAGE.write_text(codes_page())
    CONFIG_PAGE.write_text(config_page())
    CLI_PAGE.write_text(cli_page())
