"""`lifl explain`: what a refusal's code means, and what to do."""

from __future__ import annotations

import difflib
import json
import shutil
import textwrap

import click

from lifl.core.refusal_codes import CODES, TITLES
from lifl_cli.options import json_option
from lifl_cli.output import tell


def _codes(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [code for code in CODES if code.startswith(incomplete)]


@click.command()
@click.argument("code", required=False, shell_complete=_codes)
@json_option
def explain(code: str | None, as_json: bool) -> None:
    """Say what the code of a refusal means, and what to do.

    A refusal ends with its code: "Error: ... [unknown-job]".  Without one all codes are listed.
    """
    if code is None and as_json:
        lines = [{"code": each, **told._asdict()} for each, told in CODES.items()]
        click.echo(json.dumps({"codes": lines}, indent=2))
        return
    if code is None:
        columns = shutil.get_terminal_size().columns
        for title, codes in TITLES.items():
            listed = textwrap.fill(
                ", ".join(codes), columns, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
            )
            click.echo(f"{title}:\n{listed}\n")
        click.echo("lifl explain CODE says what one means.")
        return
    word = code.strip("[]")
    if word not in CODES:
        near = difflib.get_close_matches(word, CODES, n=1, cutoff=0.5)
        meant = f"; did you mean {near[0]}?" if near else "; `lifl explain` lists them"
        raise click.ClickException(f"{word!r:.80} is no code of a refusal{meant}")
    if as_json:
        click.echo(json.dumps({"code": word, **CODES[word]._asdict()}, indent=2))
        return
    means, mend = CODES[word]
    tell(f"{word}: {means}")
    tell(f"What to do: {mend}")
