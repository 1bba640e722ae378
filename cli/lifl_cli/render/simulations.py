"""What `lifl simulate` draws: bars while it runs, and two simulations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from lifl.core.protocol.cli import Event
from lifl_cli.render.figures import measured_text, seconds_text
from lifl_cli.render.tables import cell
from lifl_cli.simulated import Simulation


class Bars:
    """The rounds of each simulation, and the updates of the round at hand; lines are printed above."""

    def __init__(self, simulations: Sequence[Simulation]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(highlight=False), transient=True)
        self._bars: dict[int, tuple[TaskID, TaskID]] = {}
        for each in simulations:
            named = f"{cell(each.config.job.name)}  "
            rounds = self._progress.add_task(f"{named}rounds", total=each.config.job.rounds, start=False)
            updates = self._progress.add_task(f"{named}updates", total=None, start=False)
            self._bars[id(each)] = rounds, updates

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, simulation: Simulation, event: Event) -> None:
        """Take what the node tells of a simulation."""
        rounds, updates = self._bars[id(simulation)]
        match event.name:
            case "job.running":
                self._progress.start_task(rounds)
            case "round.opened":
                self._progress.reset(updates, total=event.fields["goal"])
            case "update.accepted":
                self._progress.advance(updates)
            case "round.committed":
                self._progress.advance(rounds)
            case "job.over":
                self._progress.stop_task(rounds)
                self._progress.stop_task(updates)


def comparison(simulations: Sequence[Simulation]) -> Table:
    """Return a table with a row for each round, and a column for each simulation."""
    table = Table(box=None, pad_edge=False)
    table.add_column("round", justify="right")
    for each in simulations:
        table.add_column(cell(each.file), overflow="fold", ratio=1)
    for number in range(1, max(len(each.rounds) for each in simulations) + 1):
        table.add_row(str(number), *(_round(each, number) for each in simulations))
    ends = [f"{each.status} {each.reason}".strip() for each in simulations]
    for label, texts in (
        ("ended", ends),
        ("took", [seconds_text(each.took_s) for each in simulations]),
        ("failed", [f"{each.failures} trainers" for each in simulations]),
    ):
        table.add_row(label, *(cell(text) for text in texts))
    return table


def _round(simulation: Simulation, number: int) -> str:
    found = next((each for each in simulation.rounds if each["round"] == number), None)
    if found is None:
        return "-"
    goal, counted = simulation.config.selection.clients_per_round, found["counted"]
    return measured_text(found) + (f"  {counted} of {goal}" if counted != goal else "")
