"""`lifl completion`: what a shell sources so that it completes commands, options and names of jobs."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from lifl.core.errors import LiflError

VARIABLE = "_LIFL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what a shell sources to complete commands and jobs.

    \b
    bash   eval "$(lifl completion bash)"   in ~/.bashrc
    zsh    eval "$(lifl completion zsh)"    in ~/.zshrc
    fish   lifl completion fish > ~/.config/fish/completions/lifl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click has all of SHELLS"
    script = kind(context.find_root().command, {}, "lifl", VARIABLE)
    # What `source` does before is to run bash for its version; all that LIFL runs on have one that is new enough.
    click.echo(script.source_template % script.source_vars())


def job_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the node's jobs that begin so; none when no node answers."""
    from lifl.core.protocol.cli import ListJobs
    from lifl_cli.daemon_client import daemon_at
    from lifl_cli.state import DEFAULT_STATE_DIR, absolute

    try:
        with context, daemon_at(Path(context.params.get("state_dir") or absolute(DEFAULT_STATE_DIR))) as daemon:
            jobs = daemon.ask(ListJobs())["jobs"]
    except (LiflError, OSError):
        return []
    return [job["name"] for job in jobs if job["name"].startswith(incomplete)]
