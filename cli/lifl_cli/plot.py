"""`lifl plot`: the curves of a job's metrics over its rounds."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lifl.core.errors import Refused
from lifl.core.limits import ROUNDS_MAX
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import OutputFile, json_option, state_option
from lifl_cli.output import did
from lifl_cli.render.charts import BRAILLE, Curve, text_chart, write_picture
from lifl_cli.render.figures import printable
from lifl_cli.rounds import history, scalars

ROWS_OF_A_CHART = 8
CURVES_MAX = 16
"""Curves that are drawn when none is named; their names are told in the order of the alphabet."""


@click.command()
@click.argument("job", shell_complete=job_names)
@click.argument("metrics", nargs=-1, metavar="[METRIC]...")
@click.option("--last", type=click.IntRange(1, ROUNDS_MAX), metavar="N", help="The last N rounds.  [default: all]")
@click.option("-o", "--output", type=OutputFile(in_place=True), help="Write a picture: FILE.png, .svg or .pdf.")
@json_option
@state_option
def plot(
    job: str, metrics: Sequence[str], last: int | None, output: str | None, as_json: bool, state_dir: Path
) -> None:
    """Draw a job's metrics, in the terminal or a picture.

    METRIC is a client's metric as loss, evaluation.loss for what an evaluation found, or round.duration_s and other
    figures of `lifl history`; none given: all metrics.
    """
    with daemon_at(state_dir) as daemon:
        rows = history(daemon, job, ROUNDS_MAX if last is None else last)
    curves = curves_of(job, rows, metrics)
    if output is not None:
        write_picture(Path(output), f"job {job}", curves)
        names = ", ".join(printable(name) for name in curves)
        shown = json.dumps({"job": job, "file": output, "metrics": list(curves)}) if as_json else None
        did(f"{output}: {names} of job {job}", shown)
        return
    if as_json:
        click.echo(json.dumps({"job": job, "curves": curves}, indent=2))
        return
    width = shutil.get_terminal_size().columns
    for name, curve in curves.items():
        for line in text_chart(name, curve, width, ROWS_OF_A_CHART, braille=_has_braille()):
            click.echo(line)


def curves_of(job: str, rows: Sequence[dict[str, Any]], wanted: Sequence[str]) -> dict[str, Curve]:
    """Return the curves with these names, or those of all metrics.  Raise `Refused` for a name that no round has."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["status"] == "committed" and row["round"] is not None:
            for name, value in scalars(row).items():
                found.setdefault(name, []).append((row["round"], value))
    metrics = sorted(name for name in found if not name.startswith("round."))
    for name in wanted:
        if name not in found:
            there = ", ".join(map(printable, metrics)) or "none yet"
            text = f"no committed round of job {job} has {printable(name)}; there are: {there}, and round.duration_s"
            raise Refused("unknown-metric", "METRIC", f"{text} and the other figures of `lifl history {job}`")
    if not wanted and not metrics:
        text = "its clients sent none" if found else "no round is committed yet"
        raise Refused("unknown-metric", "job", f"job {job} has no metrics: {text}; `lifl plot {job} round.duration_s`")
    return {name: found[name] for name in dict.fromkeys(wanted or metrics[:CURVES_MAX])}


def _has_braille() -> bool:
    """Return whether standard output can take braille."""
    try:
        chr(BRAILLE).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
