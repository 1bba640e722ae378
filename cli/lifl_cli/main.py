"""The entry of `lifl`.

Each command lives in a module of its own that is imported only when the command runs; the help page is
printed from the table below.  So `lifl --help` loads click and nothing else, and stays fast.

Exit codes: 0 done; 1 refused or failed, with the reason on stderr; 2 the command line itself is wrong; 130 it was
interrupted (^C).  What was to be shown and could not be has failed, too; what was done has not (output.py).
"""

from __future__ import annotations

import sys

try:
    import difflib
    import importlib
    import os
    import signal
    from types import FrameType
    from typing import Any

    import click

    from lifl.core.errors import LiflError
    from lifl_cli import output
except KeyboardInterrupt:  # most of what a command takes to begin is this
    sys.stderr.write("interrupted: nothing was begun\n")
    raise SystemExit(130) from None

COMMANDS = {
    "up": ("lifl_cli.up", "Start lifld, the daemon of this machine."),
    "down": ("lifl_cli.down", "Stop lifld; everything it holds is released."),
    "submit": ("lifl_cli.submit", "Submit a training job described by a TOML file."),
    "init": ("lifl_cli.init", "Write a job's TOML file to begin with, from its model."),
    "plan": ("lifl_cli.plan", "Show how rounds are spread over the nodes; nothing is run."),
    "simulate": ("lifl_cli.simulate", "Train with virtual clients on this machine; compare two configs."),
    "jobs": ("lifl_cli.jobs", "List the jobs of the node."),
    "status": ("lifl_cli.status", "Show one job: its rounds with their receipts."),
    "history": ("lifl_cli.history", "Show a job's rounds with their metrics: table, CSV, JSON."),
    "plot": ("lifl_cli.plot", "Draw a job's metrics, in the terminal or a picture."),
    "export": ("lifl_cli.export", "Tell a job's metrics to MLflow, TensorBoard or wandb."),
    "trace": ("lifl_cli.trace", "Show when what happened in a round, in Perfetto."),
    "verify": ("lifl_cli.verify", "Check that a round's model is that of its updates."),
    "cancel": ("lifl_cli.cancel", "End a job; models already committed stay."),
    "pause": ("lifl_cli.pause", "Let a job begin no further round; its clients wait."),
    "resume": ("lifl_cli.resume", "Let a job go on that is paused, or over."),
    "edit": ("lifl_cli.edit", "Change a job's config, from its next round on."),
    "rm": ("lifl_cli.rm", "Forget a job that is over; its name is free."),
    "model": ("lifl_cli.model", "Copy a committed model to a file; look into models."),
    "top": ("lifl_cli.top", "Watch the node, its workers and its jobs live."),
    "web": ("lifl_cli.web", "Print a link to the node's page, for a browser."),
    "audit": ("lifl_cli.audit", "Show who joined, submitted, was refused, cancelled, revoked."),
    "nodes": ("lifl_cli.nodes", "List the nodes of the cluster, their load and their state."),
    "drain": ("lifl_cli.drain", "Let a node finish what it has and get nothing new."),
    "token": ("lifl_cli.token", "Let somebody join: make, list and revoke tokens."),
    "enroll": ("lifl_cli.enroll", "Get a certificate by a token, as a client, an operator or a reader."),
    "cert": ("lifl_cli.cert", "List, revoke and renew certificates; rotate the authority."),
    "store": ("lifl_cli.store", "Move the cluster's rows from one store to another."),
    "calibrate": ("lifl_cli.calibrate", "Find what this machine folds at a time, by real updates."),
    "backup": ("lifl_cli.backup", "Write the node's durable state to one file, also while it runs."),
    "restore": ("lifl_cli.restore", "Make a node's state folder of a backup."),
    "doctor": ("lifl_cli.doctor", "Say what this machine can and cannot do, and how to fix it."),
    "explain": ("lifl_cli.explain", "Say what the code of a refusal means, and what to do."),
    "support-bundle": ("lifl_cli.support_bundle", "Write what somebody needs to help to one file, without secrets."),
    "debug": ("lifl_cli.debug", "Write out what a node has decided on, to be replayed."),
    "completion": ("lifl_cli.completion", "Print what a shell sources to complete commands and jobs."),
}

SECTIONS = {"up": "A node", "submit": "Jobs", "top": "To watch", "nodes": "A cluster", "backup": "Care of a node"}
"""Of the help page, by the command that each begins with."""

SIZE_DIGITS_MAX = 4
"""Of COLUMNS and LINES."""


OF_JOBS = frozenset({"submit", "jobs", "status", "history", "plot", "export", "trace", "cancel", "model"})
REMOTE = OF_JOBS | {"pause", "resume", "edit", "rm", "verify", "nodes", "top", "web", "token", "cert"}
"""What works for a node of another machine (``--node``)."""


INTERRUPTED = "interrupted: a request that had reached the node may be done, and nothing else is left"
EXIT_INTERRUPTED = 130


class _Interrupted(BaseException):
    """By ^C; click would make exit code 1 of it."""


_came = False
HAS_TIMER = hasattr(signal, "setitimer")  # not on Windows
IMPORT_S = 0.02
"""So much later an interruption that came during an import comes again."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`, and know it, for another fault may be made of it.

    Not within an import, unless it comes twice: NumPy's prints a traceback of its own.
    """
    global _came
    again = _came and number == signal.SIGINT
    _came = True
    waits = HAS_TIMER and not again and _imports(frame)
    if HAS_TIMER:
        signal.setitimer(signal.ITIMER_REAL, IMPORT_S if waits else 0.0)
    if not waits:
        raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Return whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


class Commands(click.Group):
    """Loads a command's module on use; turns our errors into one line on stderr and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, (_module, text) in COMMANDS.items():
            sections.setdefault(SECTIONS.get(name, next(reversed(sections), "")), []).append((name, text))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        ctx.meta[output.ASKS_JSON] = "--json" in args
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            meant = f"did you mean `lifl {near[0]}`?" if near else "`lifl --help` lists them"
            raise click.UsageError(f"there is no command {args[0]!r:.80}; {meant}")
        name, command, rest = super().resolve_command(ctx, args)
        if ctx.params.get("node") and name not in REMOTE:
            able = ", ".join(sorted(REMOTE))
            raise click.UsageError(f"`lifl {name}` works on the node's own machine; with --node there are: {able}")
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            output.tell_error(ctx, "usage" if isinstance(error, click.UsageError) else "failed", "", error.message)
            raise
        except click.exceptions.Exit:
            raise
        except (KeyboardInterrupt, Exception) as error:
            if _came or isinstance(error, KeyboardInterrupt):
                output.tell_error(ctx, "interrupted", "", INTERRUPTED)
                raise _Interrupted from None
            if isinstance(error, LiflError | OSError):
                raise output.failure(ctx, error) from error
            raise


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
    try:
        output.guard(was_closed=not set_up_process())
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
            signal.signal(signal.SIGINT, _interrupt)
            if HAS_TIMER:
                signal.signal(signal.SIGALRM, _interrupt)
        cli(prog_name="lifl")
    except SystemExit as end:  # click always ends so
        sys.exit(output.ended(end.code if isinstance(end.code, int) else 0))
    except (_Interrupted, KeyboardInterrupt):
        click.echo(f"\n{INTERRUPTED}" if sys.stderr.isatty() else INTERRUPTED, err=True)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
