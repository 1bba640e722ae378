"""What a command shows, and what becomes of it when standard output is closed, full, or a pipe that nobody reads.

Whatever is written there, by click, by rich or by us, passes one `Stream`, which raises nothing: it keeps the first
fault, and drops what comes after it.  `ended` makes an exit code of that: a command that was to show something has
failed.  One that did something says so by `did`: what is done is done, whoever hears of it.
"""

from __future__ import annotations

import io
import json
import select
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from lifl_cli.render.figures import folded, printable, printable_lines

PROGRESS_BYTES_MIN = 16 << 20
"""What is smaller is there before a bar is read."""
ASKS_JSON = "lifl.json"
"""In a context's `meta`: whether the command was given --json."""


class Stream(io.FileIO):
    """Standard output or error as a file that can always be written; `fault` says why something was lost."""

    def __init__(self, fd: int, *, was_closed: bool = False) -> None:
        super().__init__(fd, "w", closefd=False)
        self.fault = ""
        self._was_closed = was_closed
        self._goes_on = fd != 1
        """A log may have a gap for as long as the disk is full; a document may not."""

    def write(self, data: Any, /) -> int:
        """Write some of the data, waiting where others have made the pipe one that does not; return how much."""
        if self._was_closed:
            self.fault = "it is closed"
        elif self._goes_on or not self.fault:
            try:
                while (count := super().write(data)) is None:
                    select.select([], [self], [])
                return count
            except OSError as error:
                self.fault = self.fault or error.strerror or str(error)
        return len(data)


_stdout: Stream | None = None
_is_told = False


def guard(*, was_closed: bool) -> None:
    """Put a `Stream` behind standard output and error; both are open, and what `was_closed` is standard output."""
    global _stdout
    _stdout = Stream(1, was_closed=was_closed)
    for name, stream in (("stdout", _stdout), ("stderr", Stream(2))):
        before = getattr(sys, name)
        text = io.TextIOWrapper(io.BufferedWriter(stream), before.encoding, before.errors)
        text.reconfigure(line_buffering=before.line_buffering)
        setattr(sys, name, text)


def is_lost() -> bool:
    """Return whether something that was shown could not be written: who watches need not go on."""
    return _stdout is not None and bool(_stdout.fault)


def done(what: str) -> None:
    """Have the command have done its work: what it could not show until here is told on standard error, no more."""
    global _is_told
    sys.stdout.flush()
    if is_lost() and not _is_told:
        _is_told = True
        click.echo(f"warning: {_why()}; {what}", err=True)


def tell(line: str, indent: int = 4) -> None:
    """Show a line for people; on a narrow terminal what does not fit goes on below it, so far indented."""
    for piece in folded(line, shutil.get_terminal_size().columns, indent):
        click.echo(piece)


def did(what: str, shown: str | None = None) -> None:
    """Show what the command did (as `shown`, if that is given): it is done, also when that cannot be shown."""
    click.echo(what if shown is None else shown)
    done(what)


def ended(code: int) -> int:
    """Return the exit code of a command that ended with `code`, once all that it shows is written."""
    sys.stdout.flush()
    if not is_lost() or _is_told:
        return code
    click.echo(f"Error: {_why()}", err=True)
    return code or 1


def _why() -> str:
    return printable(f"standard output cannot be written: {_stdout.fault if _stdout is not None else ''}")


@contextmanager
def progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yield what is told how many bytes more are done; a bar shows it, where somebody sees it and it takes a while."""
    if total_bytes < PROGRESS_BYTES_MIN or not sys.stderr.isatty():
        yield lambda _nbytes: None
        return
    with click.progressbar(length=total_bytes, label=what, file=sys.stderr, show_eta=True) as bar:
        yield bar.update


def failure(ctx: click.Context, error: Exception) -> click.ClickException:
    """Return what ends a command that has failed: its line on standard error; with --json an object on output, too."""
    from lifl.core.errors import ConfigError, Refused

    text, field, code = str(error), "", ""
    if isinstance(error, Refused):
        code, field = error.code, error.field
    elif isinstance(error, ConfigError):
        code, field = "bad-config", error.path
    elif isinstance(error, OSError):
        text = (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    tell_error(ctx, code or "failed", field, text)
    return click.ClickException(printable_lines(text) + (f" [{code}]" if code else ""))


def tell_error(ctx: click.Context, code: str, field: str, text: str) -> None:
    """Print an error as an object to standard output, if the command was given --json."""
    if ctx.meta.get(ASKS_JSON):
        click.echo(json.dumps({"error": {"code": code, "field": field, "text": text}}))
