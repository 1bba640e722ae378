"""Each command that a document tells to give is one: its words lead to a command, which has its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from lifl_cli.main import cli

ROOT = Path(__file__).parents[2]
MADE = {"cli.md", "config.md", "limits.md", "refusals.md"}
"""Pages made out of the code."""
PAGES = sorted([ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.name not in MADE)])
SPAN = re.compile(r"`(lifl [^`\n]+)`")
LINE = re.compile(r"^(?: {4}|\t)?(?:\w+[$#] |\$ |# )?(?:sudo )?(lifl [a-z-].*)$")
PLACEHOLDER = re.compile(r"[\[\]|]|\.\.\.|…")


def told(page: Path) -> Iterator[str]:
    """The commands of a page: its spans, and the lines of its blocks."""
    text = page.read_text().replace(" \\\n", " ")
    yield from SPAN.findall(text)
    inside = False
    for line in text.splitlines():
        inside ^= line.startswith("```")
        found = LINE.match(line)
        if found and (inside or line.startswith(("    ", "\t"))):
            yield found[1]


def words(command: str) -> list[str]:
    """The words of a command as it is told, without redirections and what may be left out."""
    plain = PLACEHOLDER.sub(" ", re.split(r" +#| +>|&&|;| \| ", command.replace("\\|", "|"))[0])
    return shlex.split(plain)[1:]


def problem(command: str) -> str:
    """What is wrong with a command; empty: nothing."""
    group: click.Command = cli
    left = words(command)
    context = click.Context(group)
    names: set[str] = {"--help", "-h"}
    while left:
        word = left.pop(0)
        names |= {name for each in group.params for name in each.opts}
        if word.startswith("-"):
            option, _equals, _value = word.partition("=")
            if option not in names and option != "-":
                return f"{group.name} has no {option}"
            takes = next((each for each in group.params if option in each.opts), None)
            if isinstance(takes, click.Option) and not takes.is_flag and not _equals and left:
                left.pop(0)
        elif isinstance(group, click.Group):
            below = group.get_command(context, word)
            if below is None and word.isupper():
                return ""  # any command
            if below is None and not group.invoke_without_command:
                return f"{group.name} has no command {word}"
            group = below or group
            names |= {name for each in group.params for name in each.opts}
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_that_a_page_tells_is_one(page: Path) -> None:
    wrong = [f"{command!r}: {text}" for command in told(page) if (text := problem(command))]
    assert not wrong


def test_what_is_no_command_is_found() -> None:
    assert problem("lifl fly").endswith("no command fly")
    assert problem("lifl up --fast").endswith("no --fast")
    assert problem("lifl --node HOST:PORT COMMAND") == ""
    assert problem("lifl submit mine.toml --watch  # and see") == ""


def test_the_pages_tell_commands() -> None:
    assert sum(1 for page in PAGES for _ in told(page)) > 100
