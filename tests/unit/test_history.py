"""`lifl history` and `lifl plot` out of what a node answers: the rows, the columns, the curves."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lifl_cli import history, plot, rounds
from lifl_cli.render.charts import BRAILLE, text_chart, write_picture
from lifl_cli.render.long_tables import long_lines
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lifl.core.errors import Refused, ResourceFault
from lifl.core.protocol.cli import JobStatus

RECEIPT = {
    "selected": 3,
    "accepted": 2,
    "counted": 2,
    "weight": 7.0,
    "bytes_in": 10,
    "bytes_out": 20,
    "duration_s": 1.5,
    "last_accepted_to_commit_s": 0.25,
    "cpu_s": {"workers": 0.5, "lifld": 0.25},
}


def line(number: int, status: str = "committed", **more: Any) -> dict[str, Any]:
    receipt = RECEIPT | more.pop("receipt", {}) if status == "committed" else None
    at = 1000.0 + number if status == "committed" else None
    return {
        "round": number,
        "attempt": 1,
        "status": status,
        "reason": "",
        "committed_unix_s": at,
        "metrics": {"loss": 1 / number},
        "receipt": receipt,
    } | more


class Answers:
    """A node with these rounds, which tells of so many in a frame."""

    def __init__(self, lines: list[dict[str, Any]], a_frame: int = 100) -> None:
        self._lines = lines
        self._a_frame = a_frame

    def ask(self, asked: JobStatus) -> dict[str, Any]:
        if asked.job != "j":
            raise Refused("unknown-job", "job", f"this node has no job {asked.job!r}; it has: j")
        before = [line for line in self._lines if (line["round"], line["attempt"]) < tuple(asked.before)]
        fit = min(asked.last, self._a_frame)
        shown = before[-fit:] if fit else []
        more = (shown[0]["round"], shown[0]["attempt"]) if fit < asked.last and len(shown) < len(before) else None
        return {"job": {"committed": len(self._lines)}, "rounds": shown, "more": more}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command on a node with these rounds; returns its exit code and what it printed."""

    def run(command: Any, lines: list[dict[str, Any]], *arguments: str, a_frame: int = 100) -> tuple[int, str]:
        @contextmanager
        def daemon_at(_state_dir: Path) -> Iterator[Answers]:
            yield Answers(lines, a_frame)

        for module in (history, plot):
            monkeypatch.setattr(module, "daemon_at", daemon_at)
        done = CliRunner().invoke(command, ["j", *arguments], terminal_width=80)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    return run


SPREAD = {"mean": 0.5, "min": 0.25, "max": 0.75, "std": 0.1, "clients": 2}
EVALUATED = {"clients": 2, "selected": 3, "metrics": {"loss": SPREAD}}


def test_history_reads_all_pages_and_puts_the_rounds_in_order(shown: Any) -> None:
    lines = [line(number) for number in range(1, 8)]
    _, text = shown(history.history, lines, "--json", a_frame=3)
    rows = json.loads(text)["rounds"]
    assert [row["round"] for row in rows] == list(range(1, 8))
    assert (rows[0]["cpu_s"], rows[0]["duration_s"], rows[0]["metrics"]) == (0.75, 1.5, {"loss": 1.0})
    _, text = shown(history.history, lines, "--json", "--last", "4", a_frame=3)
    assert [row["round"] for row in json.loads(text)["rounds"]] == [4, 5, 6, 7]


def test_csv_has_a_column_for_each_metric_of_any_round_and_a_row_for_each_attempt(shown: Any) -> None:
    lines = [line(1), line(2, "failed", reason='no "quorum", alas', metrics={}), line(3, evaluation=EVALUATED)]
    lines[2]["metrics"]["=größe, %"] = 2.0
    _, text = shown(history.history, lines, "--csv")
    first, second, third = csv.DictReader(io.StringIO(text))
    assert (first["metrics.loss"], first["metrics.=größe, %"], first["committed_unix_s"]) == ("1.0", "", "1001.0")
    assert (second["status"], second["reason"], second["counted"]) == ("failed", 'no "quorum", alas', "")
    assert (third["metrics.=größe, %"], third["evaluation.loss.mean"], third["evaluation.loss.std"]) == (
        "2.0",
        "0.5",
        "0.1",
    )


def test_each_clients_metrics_where_the_job_keeps_them(shown: Any) -> None:
    kept = line(2, receipt={"clients": {"a": {"loss": 1.0}, "b": {"loss": 3.0, "n": 2.0}}})
    _, text = shown(history.history, [line(1), kept], "--clients", "--csv")
    assert text.splitlines()[0] == "round,attempt,client,metrics.loss,metrics.n"
    assert [row["client"] for row in csv.DictReader(io.StringIO(text))] == ["a", "b"]
    assert "metrics.per_client" in shown(history.history, [line(1)], "--clients")[1]


def test_the_table_says_what_was_measured_and_a_job_without_rounds_that_it_has_none(shown: Any) -> None:
    _, text = shown(history.history, [line(1, evaluation=EVALUATED)])
    assert "loss 1  evaluated: loss 0.5" in text
    assert "2/3" in text
    assert shown(history.history, []) == (0, "job j has no round that is over\n")


@pytest.mark.parametrize("clients", [False, True])
def test_of_many_rounds_the_table_has_the_last_and_says_how_many_there_are(shown: Any, clients: bool) -> None:
    many = [line(number, receipt={"clients": {"a": {"loss": 1.0}}}) for number in range(1, history.ROUNDS_SHOWN + 2)]
    more = ["--clients"] if clients else []
    _, text = shown(history.history, many, *more)
    first, *rest, last = text.splitlines()[1:]
    assert (first.split()[0], rest[-1].split()[0], len(rest) + 1) == ("2", "101", history.ROUNDS_SHOWN)
    assert "101 rounds are committed" in last
    for whole in (shown(history.history, many[1:], *more), shown(history.history, many, "--last", "101", *more)):
        assert "committed;" not in whole[1]
    assert len(shown(history.history, many, "--csv", *more)[1].splitlines()) == 102
    assert len(json.loads(shown(history.history, many, "--json")[1])["rounds"]) == 101


@pytest.mark.parametrize("width", [40, 60, 160])
def test_a_long_table_is_what_rich_would_print(width: int) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("round", "status", "metrics"):
        table.add_column(column, overflow="fold", no_wrap=column == "round")
    for number in range(8):
        table.add_row(str(number * 100), Text("committed", "green"), Text("loss 0.1  größe 9 " + "abc def " * number))
    table.add_row("900", "failed\n twice", "")
    by_rich = Console(file=io.StringIO(), width=width, highlight=False)
    by_rich.print(table)
    assert isinstance(by_rich.file, io.StringIO)
    wanted = [each.rstrip() for each in by_rich.file.getvalue().splitlines()]
    assert list(long_lines(table, by_rich)) == wanted


@pytest.mark.parametrize("width", [1, 5, 12, 25])
def test_a_long_table_has_all_its_text_at_any_width(width: int) -> None:
    table = Table(box=None)
    for column in ("a", "b"):
        table.add_column(column)
    words = ("größe\u4e2d", "x" * 70, "")
    for word in words:
        table.add_row(word, Text(word))
    table.add_row("", Text(""))
    lines = list(long_lines(table, Console(width=width)))
    assert sorted("".join("".join(lines).split())) == sorted("ab" + "".join(words) * 2)


def test_of_a_row_that_cannot_be_read_the_rest_is_shown(shown: Any) -> None:
    code, text = shown(history.history, [line(1) | {"round": 1, "receipt": None, "metrics": None, "reason": "damaged"}])
    assert code == 0
    assert "damaged" in text


def test_a_curve_in_the_terminal_begins_high_and_ends_low() -> None:
    drawn = text_chart("loss", [(1, 10.0), (2, 5.0), (3, 0.0)], width=40, height=4)
    assert drawn[0] == "loss  0"
    assert drawn[1].startswith("    10 │")
    assert drawn[4].startswith("     0 │")
    assert ord(drawn[1][8]) > BRAILLE, "the first value is at the top left"
    assert ord(drawn[4][-1]) > BRAILLE, "the last one at the bottom right"
    assert len(drawn[4]) == 40
    assert drawn[5].split() == ["1", "3"]


@pytest.mark.parametrize(
    "values", [[1.0], [3.0, 3.0], [1e308, -1e308], [0.0, math.nan, 1.0], [math.inf, 2.0], [5e-324, 0.0]]
)
@pytest.mark.parametrize("width", [1, 40, 300])
@pytest.mark.parametrize("braille", [True, False])
def test_any_values_are_drawn_within_the_width(values: list[float], width: int, braille: bool) -> None:
    drawn = text_chart("m", list(enumerate(values, 1)), width, 5, braille=braille)
    assert any(character == "*" or ord(character) > BRAILLE for row in drawn for character in row)
    assert max(map(len, drawn)) <= max(width, 26)


def test_values_that_are_no_numbers_alone_are_told() -> None:
    assert text_chart("m", [(1, math.nan)], 40, 5) == ["m", "  no value that is finite"]


def test_plot_draws_all_metrics_or_those_that_are_named(shown: Any) -> None:
    lines = [line(1), line(2, "failed"), line(3, evaluation=EVALUATED)]
    _, text = shown(plot.plot, lines)
    assert [word for word in ("evaluation.loss  0.5", "loss  0.3333") if word in text] == [
        "evaluation.loss  0.5",
        "loss  0.3333",
    ]
    _, text = shown(plot.plot, lines, "round.duration_s")
    assert text.startswith("round.duration_s  1.5\n")


def test_a_metric_that_no_round_has_is_refused_with_those_there_are(shown: Any) -> None:
    with pytest.raises(Refused, match="there are: loss, and round"):
        shown(plot.plot, [line(1)], "accuracy")
    with pytest.raises(Refused, match="its clients sent none"):
        shown(plot.plot, [line(1, metrics={})])
    with pytest.raises(Refused, match="no round is committed yet"):
        shown(plot.plot, [])


def test_of_many_metrics_a_few_are_drawn(shown: Any) -> None:
    many = {f"m{number:03}": 1.0 for number in range(40)}
    _, text = shown(plot.plot, [line(1, metrics=many)])
    assert sum(row.startswith("m0") for row in text.splitlines()) == plot.CURVES_MAX


def test_a_picture_without_matplotlib_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ResourceFault, match=r"pip install 'lifl\[plot\]'"):
        write_picture(tmp_path / "x.png", "job j", {"loss": [(1, 1.0)]})


def test_names_of_scalars_are_one_for_each_figure() -> None:
    row = rounds.row_of(line(2, evaluation=EVALUATED))
    assert (
        rounds.scalars(row).items()
        >= {
            "loss": 0.5,
            "evaluation.loss": 0.5,
            "evaluation.loss.max": 0.75,
            "round.cpu_s": 0.75,
            "round.counted": 2.0,
        }.items()
    )


def test_what_the_server_found_is_in_rows_columns_curves_and_the_table(
    shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a metric that clients measured too, the server's value counts, as for `checkpoint.keep` and `job.stop`."""
    monkeypatch.setenv("COLUMNS", "160")
    found = EVALUATED | {"server": {"metrics": {"distance": 0.125, "loss": 9.0}}}
    lines = [line(1, evaluation=found), line(2, evaluation={**found, "metrics": {}, "server": {"fault": "no"}})]
    first, second = csv.DictReader(io.StringIO(shown(history.history, lines, "--csv")[1]))
    assert (first["evaluation.distance.server"], first["evaluation.loss.server"]) == ("0.125", "9.0")
    assert (first["evaluation.loss.mean"], second["evaluation.loss.mean"]) == ("0.5", "")
    assert "evaluated: distance 0.125  loss 9" in shown(history.history, lines)[1]
    scalars = rounds.scalars(rounds.row_of(lines[0]))
    assert (scalars["evaluation.distance"], scalars["evaluation.loss"]) == (0.125, 9.0)
    assert (scalars["evaluation.loss.mean"], scalars["evaluation.loss.max"]) == (0.5, 0.75)
    assert shown(plot.plot, lines, "evaluation.distance")[0] == 0
