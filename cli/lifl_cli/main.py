"""The entry of `lifl`.

Each command lives in a module of its own that is imported only when the command runs; the help page is
printed from the table below.  So `lifl --help` loads click and nothing else, and stays fast.

Exit codes: 0 done; 1 refused or failed, with the reason on stderr; 2 the command line itself is wrong.  What was to be
shown and could not be has failed, too; what was done has not (output.py).
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from lifl.core.errors import LiflError
from lifl_cli import output
from lifl_cli.render.figures import printable_lines

COMMANDS = {
    "up": ("lifl_cli.up", "Start lifld, the daemon of this machine."),
    "down": ("lifl_cli.down", "Stop lifld; everything it holds is released."),
    "submit": ("lifl_cli.submit", "Submit a training job described by a TOML file."),
    "jobs": ("lifl_cli.jobs", "List the jobs of the node."),
    "status": ("lifl_cli.status", "Show one job: its rounds with their receipts."),
    "cancel": ("lifl_cli.cancel", "End a job; models already committed stay."),
    "model": ("lifl_cli.model", "Copy a committed model to a safetensors file."),
    "nodes": ("lifl_cli.nodes", "List the nodes of the cluster, their load and their state."),
    "drain": ("lifl_cli.drain", "Let a node finish what it has and get nothing new."),
    "plan": ("lifl_cli.plan", "Show how rounds are spread over the nodes; nothing is run."),
    "top": ("lifl_cli.top", "Watch the node, its workers and its jobs live."),
    "audit": ("lifl_cli.audit", "Show who joined, submitted, was refused, cancelled, revoked."),
    "token": ("lifl_cli.token", "Let somebody join: make, list and revoke tokens."),
    "enroll": ("lifl_cli.enroll", "Get a certificate by a token, as a client, an operator or a reader."),
    "cert": ("lifl_cli.cert", "List, revoke and renew certificates; rotate the authority."),
    "store": ("lifl_cli.store", "Move the cluster's rows from one store to another."),
    "backup": ("lifl_cli.backup", "Write the node's durable state to one file, also while it runs."),
    "restore": ("lifl_cli.restore", "Make a node's state folder of a backup."),
    "debug": ("lifl_cli.debug", "Write out what a node has decided on, to be replayed."),
    "doctor": ("lifl_cli.doctor", "Say what this machine can and cannot do, and how to fix it."),
}

SIZE_DIGITS_MAX = 4
"""Of COLUMNS and LINES."""


REMOTE = frozenset({"submit", "jobs", "status", "cancel", "model", "nodes", "top", "token", "cert"})
"""What works for a node of another machine (``--node``)."""


class Commands(click.Group):
    """Loads a command's module on use; turns our errors into one line on stderr and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if ctx.params.get("node") and name not in REMOTE:
            able = ", ".join(sorted(REMOTE))
            raise click.UsageError(f"`lifl {name}` works on the node's own machine; with --node there are: {able}")
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LiflError as error:
            raise click.ClickException(printable_lines(error)) from error
        except OSError as error:
            about = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(printable_lines(f"{about}{error.strerror or error}")) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lifl", prog_name="lifl")
@click.option("--node", metavar="HOST:PORT", help="Ask the node with this control address, on another machine.")
@click.option("--identity", metavar="DIR", help="As whom: an identity folder.  [default: that of `lifl enroll`]")
def cli(node: str | None, identity: str | None) -> None:
    """LIFL: the aggregation tier of federated learning, event-driven and in shared memory."""


def set_up_process() -> bool:
    """Have the process as all commands take it to be; return whether it had a standard output.

    Standard input and outputs are open: else the next file that is opened, be it the database, would get what is
    printed.  What is made is never closed to its owner, whatever the umask says.  A terminal's size that is none, or is
    beyond any, counts as not given: at a width of 0 nothing would be printed.
    """
    had_output = True
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            had_output &= name != "stdout"
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115
    os.umask(os.umask(0o077) & 0o077)
    for name in ("COLUMNS", "LINES"):
        text = os.environ.get(name, "1")
        if not (text.isascii() and text.isdecimal() and len(text) <= SIZE_DIGITS_MAX and int(text)):
            del os.environ[name]
    return had_output


def main() -> None:
    """Run the command line: the console script."""
    output.guard(was_closed=not set_up_process())
    try:
        cli(prog_name="lifl")
    except SystemExit as end:  # click always ends so
        sys.exit(output.ended(end.code if isinstance(end.code, int) else 0))


if __name__ == "__main__":
    main()
