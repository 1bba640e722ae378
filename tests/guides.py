"""The documentation as what it tells its reader to do: each page is a shell script, run in an empty folder.

A page's fenced blocks are run in their order: `sh` as it stands; of `console` the commands, `b$ COMMAND` on the host b,
which has a home of its own; `python` as a program; what has a `title="FILE"` is written to that file.  All of a page is
one shell, so a later block has the variables of those before it.  A block within an HTML comment is run, too, and not
seen by the reader: it makes what the page takes to be there.  `<!-- not run: REASON -->` above a block leaves it out,
but where a test makes what that reason says is missing.
Each page but the first one begins with the files that the first one writes.

A script is alone on its machine: it has a network (a loopback, with the addresses that the pages name), processes, a
/proc and a /dev/shm of its own, and what it leaves ends with it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FIRST = ROOT / "docs/start.md"
PAGE_TIMEOUT_S = 600.0
RUN = {"sh", "console", "python"}
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?$')
NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
PROMPT = re.compile(r"^(\w+)\$ (.*)$")
PRELUDE = f"""
set -euo pipefail
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
for host in 1 2 3 4 5 6; do ip address add 10.0.0.$host/24 dev lo; done
export HOME=/dev/shm/home
mkdir -p $HOME /dev/shm/empty
cd /dev/shm/empty
on() {{ mkdir -p /dev/shm/$1; HOME=/dev/shm/$1 bash -euo pipefail -c "$2"; }}
trap 'code=$?; [ $code = 0 ] || echo "$at: exit code $code" >&2' EXIT
REPOSITORY={ROOT}
"""


class Block(NamedTuple):
    """A fenced block: where it begins, what it is, and why it is not run (empty: it is)."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    not_run: str

    @property
    def place(self) -> str:
        """PAGE:LINE."""
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = iter(enumerate(page.read_text().splitlines(), start=1))
    before = ""
    for number, line in lines:
        if opened := FENCE.match(line):
            inside = []
            for _number, each in lines:
                if each == "```":
                    break
                inside.append(each)
            reason = NOT_RUN.match(before)
            text = "\n".join(inside)
            yield Block(page, number, opened[1], opened[2] or "", text, reason[1] if reason else "")
        before = line


def script(page: Path, made: Mapping[str, str] | None = None) -> str:
    """A page as a script.

    `made` has, by the reasons of blocks that are not run, what makes the reason void; these blocks are run behind it.
    """
    first = [] if page == FIRST else [block for block in blocks(FIRST) if block.title]
    lines = [PRELUDE, *map(_steps, first), "" if page == FIRST else "python first_model.py"]
    left = dict(made or {})
    for block in blocks(page):
        lines.append(left.pop(block.not_run, ""))
        lines.append(_steps(block._replace(not_run="") if block.not_run in (made or {}) else block))
    return "\n".join(lines)


def run(page: Path, made: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Does all that a page tells; its last line of standard error names the block that failed."""
    alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    told = ("LIFL_STATE", "LIFL_IDENTITY", "XDG_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    return subprocess.run(
        [*alone, "bash", "-c", script(page, made)],
        env=plain | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PAGE_TIMEOUT_S,
    )


def _steps(block: Block) -> str:
    """A block as lines of the script."""
    at = f'at="{block.place}"\n'
    if block.not_run or not (block.title or block.language in RUN):
        return ""
    if block.language == "sh" and not block.title:
        return at + block.text
    if block.language == "console":
        return at + _on_hosts(block.text)
    name = block.title or f"{block.page.stem}_{block.line}.py"
    written = f"{at}cat > {name} <<'END OF BLOCK'\n{block.text}\nEND OF BLOCK\n"
    return written if block.title else f"{written}python {name}"


def _on_hosts(text: str) -> str:
    """The commands of a console as lines of the script: those of one host that follow each other are one shell."""
    found = [each for each in map(PROMPT.match, text.replace("\\\n", " ").splitlines()) if each]
    by_host = groupby(found, key=lambda each: each[1])
    return "\n".join(f"on {host} {shlex.quote(chr(10).join(each[2] for each in lines))}" for host, lines in by_host)
