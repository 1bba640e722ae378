"""Evaluations of a job's committed models by its clients: some get the model, and tell metrics of it.

One begins when a round is committed that is to be evaluated, and the next round begins when it is over: when all who
were selected have told, have declined or are gone, or at its deadline.  So the model is there as long as it is asked
for, no client has two things to do at once, and a job can be stopped by what was found.  No evaluation fails a job: one
that nobody can make, or of which nothing comes, is over.

It is kept in memory: one that runs when the coordinator ends is *left*, and made anew in the next life.  That begins
when as many clients are back as a round needs, and at the latest after its own deadline; where none of them can
evaluate, its round's row says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from lifl.core import effects as fx
from lifl.core.config.evaluation import EvaluationSection
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import NodeTable
from lifl.core.coordinator.presence import Connection, Presence
from lifl.core.coordinator.selection import Selection
from lifl.core.limits import REAL_MAX, ROUND_METRICS_MAX
from lifl.core.planning.draw import drawn
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution
from lifl.core.protocol.evaluations import EvaluateModel, ModelEvaluated
from lifl.core.turn import Turn

LEFT_OUT = "the coordinator ended while it ran, and no client that can evaluate was back in time"


class Running:
    """The books of one evaluation, of the model of round `number`."""

    def __init__(self, number: int, attempt: int, began_at_s: float, deadline_at_s: float) -> None:
        self.number = number
        self.began_at_s = began_at_s
        self.attempt = attempt
        self.deadline_at_s = deadline_at_s
        self.selected: dict[str, None] = {}
        self.told: dict[str, Contribution] = {}
        self.declined: dict[str, None] = {}
        self.server: dict[str, Any] | None = None  # what the user's function has found; None: it is waited for


class Evaluation:
    """The evaluations of one job, one at a time; `done` is the last round whose evaluation is over."""

    def __init__(self, spec: JobSpec, turn: Turn, nodes: NodeTable, presence: Presence, selection: Selection) -> None:
        self._spec = spec
        self._nodes = nodes
        self._turn = turn
        self._presence = presence
        self._selection = selection
        self.current: Running | None = None
        self.done = 0
        self._left = 0  # the round whose evaluation an earlier life has left
        self._left_until_s = math.inf
        self._last: tuple[int, frozenset[str]] = (0, frozenset())  # the last one, and who has told something in it

    @property
    def _section(self) -> EvaluationSection | None:
        section = self._spec.config.evaluation
        return None if isinstance(section, msgspec.UnsetType) else section

    def is_due(self, number: int) -> bool:
        """Return whether the model of a round is to be evaluated before another round begins."""
        section = self._section
        return section is not None and number > self.done and section.has(number)

    # ---- it goes on in another life ----------------------------------------------------------------------------------

    def resume(self, committed: int, evaluated: bool) -> None:
        """Take up what an earlier life has left; `evaluated`: the evaluation of the last round is over."""
        self.done = committed if evaluated else 0
        self._left = committed if self.is_due(committed) else 0

    @property
    def is_left(self) -> bool:
        """Whether an earlier life has left one that is not made yet."""
        return self._left > 0

    def waits(self) -> bool:
        """Return whether one that an earlier life has left waits for its clients to come back."""
        section = self._section
        if not self._left or section is None:
            return False
        if self._left_until_s == math.inf:
            self._left_until_s = self._turn.now + section.deadline_s
        enough = self._selection.selectable >= self._spec.config.selection.clients_per_round
        return not enough and self._turn.now < self._left_until_s

    # ---- it begins and ends ----------------------------------------------------------------------------------------

    def begin(self, number: int, attempt: int) -> None:
        """Have the model of the round, which is committed, evaluated; where nobody can, that is over at once."""
        section, config = self._section, self._spec.config
        if section is None or self.current is not None:
            return
        said, apart = self._presence.said(self._spec.name), self._presence.apart(self._spec.name)
        able = [client for client, each in said.items() if each.evaluates and client not in apart]
        function, left = config.server_function, self._left == number
        self._left, self._left_until_s = 0, math.inf
        if not able and not function:
            self.done = number
            self._publish("evaluation.none", round=number)
            if left:
                row = {"evaluation": {**summary({}, 0), "fault": LEFT_OUT}}
                self._turn.emit(fx.SaveEvaluation(self._spec.name, number, attempt, row))
            return
        wanted = section.clients if isinstance(section.clients, int) else math.ceil(section.share * len(able))
        seed = f"{config.selection.seed}/{number}/evaluation"
        evenly = msgspec.structs.replace(config.selection, strategy=msgspec.UNSET)
        self.current = Running(number, attempt, self._turn.now, self._turn.now + section.deadline_s)
        if function:
            order = EvaluateModel(self._spec.number, number, function, section.deadline_s)
            self._turn.order(self._nodes.home, order)
        else:
            self.current.server = {}
        for client in drawn(able, wanted, seed, evenly, said, {}):
            self.current.selected[client] = None
            self._invite(self.current, client)
        self._publish("evaluation.began", round=number, selected=len(self.current.selected))

    def _invite(self, running: Running, client: str) -> None:
        spec, here = self._spec, self._presence.of(self._spec.name)[client]
        left_s = max(running.deadline_at_s - self._turn.now, 0.0)
        options = self._selection.changed_options(running.number, client)
        about = (spec.name, running.number, left_s, (), spec.layout.data_bytes, options)
        self._presence.select(here, cm.Selected(*about, kind="evaluate"))

    def _missing(self, running: Running) -> set[str]:
        """Return who is to tell something yet."""
        return running.selected.keys() - running.told.keys() - running.declined.keys()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is waited for."""
        running, present = self.current, self._presence.of(self._spec.name)
        if running is None:
            return False
        if self._turn.now >= running.deadline_at_s:
            return True
        return running.server is not None and not any(each in present for each in self._missing(running))

    def finish(self) -> tuple[int, int, dict[str, Any]]:
        """End the running evaluation; return its round, that one's attempt, and what was found."""
        running = self.current
        assert running is not None
        self.current, self.done = None, running.number
        self._last = (running.number, frozenset(running.told))
        self._presence.tell_all(self._spec.name, sorted(self._missing(running)), self._too_late(running.number))
        found = summary(running.told, len(running.selected))
        if running.server is None:
            running.server = {"fault": f"it did not end within {running.deadline_at_s - running.began_at_s:g} s"}
        if running.server:
            found["server"] = running.server
        self._publish("evaluation.over", round=running.number, **found)
        return running.number, running.attempt, found

    def drop(self) -> None:
        """End the running evaluation without a result: the job is over."""
        self.current, self._left, self._left_until_s = None, 0, math.inf

    def next_timer(self) -> float:
        """Return when it is over at the latest; infinity: none runs."""
        return self.current.deadline_at_s if self.current is not None else self._left_until_s

    # ---- clients ---------------------------------------------------------------------------------------------------

    def joined(self, client: str) -> None:
        """Ask a client again that has come (again) and has told nothing yet."""
        running = self.current
        if running is not None and client in self._missing(running):
            self._invite(running, client)

    def take(self, here: Connection, event: gm.ClientEvaluated) -> None:
        """Take what a client has found, once, and answer."""
        running, client, number = self.current, event.client, event.round
        if self._last[0] == number and client in self._last[1]:
            self._presence.send(here, cm.Accepted(self._spec.name, number))
        elif running is None or running.number != number:
            self._presence.send(here, self._too_late(number))
        elif client not in running.selected:
            text = f"client {client!r} is not selected to evaluate round {number} of job {self._spec.name!r}"
            self._presence.send(here, cm.Refusal("not-selected", "client", text, self._spec.name, number))
        else:
            running.declined.pop(client, None)
            running.told.setdefault(client, Contribution(client, event.weight, event.metrics))
            self._selection.note_loss(client, running.told[client].metrics)
            self._presence.send(here, cm.Accepted(self._spec.name, number))

    def model_evaluated(self, report: ModelEvaluated) -> None:
        """Note what the user's function has found."""
        if self.current is not None and self.current.number == report.round and self.current.server is None:
            self.current.server = {"fault": report.fault} if report.fault else {"metrics": report.metrics}

    def decline(self, event: gm.ClientDeclined) -> None:
        """Note that a client does not evaluate."""
        running = self.current
        if running is not None and running.number == event.round and event.client in self._missing(running):
            running.declined[event.client] = None

    def _too_late(self, number: int) -> cm.Refusal:
        text = f"the evaluation of round {number} of job {self._spec.name!r} is over"
        return cm.Refusal(cm.EVALUATION_OVER, "round", text, self._spec.name, number)

    def _publish(self, name: str, **fields: Any) -> None:
        self._turn.emit(fx.Publish(name, self._spec.name, fields))

    def faults(self) -> Iterator[str]:
        """Yield what cannot be."""
        running = self.current
        if running is None:
            return
        if strange := (running.told.keys() | running.declined.keys()) - running.selected.keys():
            yield f"clients {sorted(strange)} have evaluated, and were not selected"
        if running.number <= self.done:
            yield f"round {running.number} is being evaluated, and was"


def values_of_evaluation(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics by which a job may stop: the clients' means, and first what the user's function found."""
    means = {name: figures["mean"] for name, figures in found["metrics"].items()}
    return means | dict(found.get("server", {}).get("metrics", {}))


def summary(told: Mapping[str, Contribution], selected: int) -> dict[str, Any]:
    """Return what an evaluation found: of each metric its mean by weight, least, greatest, and standard deviation."""
    values: dict[str, list[tuple[float, float]]] = {}
    for member in told.values():
        for name, value in member.metrics.items():
            values.setdefault(name, []).append((value, member.weight))
    shown = sorted(values, key=lambda name: (-len(values[name]), name))[:ROUND_METRICS_MAX]
    metrics = {name: _spread(values[name]) for name in sorted(shown)}
    return {"clients": len(told), "selected": selected, "metrics": metrics}


def _spread(values: list[tuple[float, float]]) -> dict[str, float]:
    """Return the figures of one metric, of values with their weights, each of which may be near the end of float64."""
    heaviest = max(weight for _value, weight in values)
    total = math.fsum(weight / heaviest for _value, weight in values)
    parts = [(value, weight / heaviest / total) for value, weight in values]
    least, greatest = min(value for value, _ in values), max(value for value, _ in values)
    mean = min(max(math.fsum(value * part for value, part in parts), least), greatest)
    scale = max(abs(least), abs(greatest)) or 1.0
    std = scale * math.sqrt(math.fsum(part * (value / scale - mean / scale) ** 2 for value, part in parts))
    return {"mean": mean, "min": least, "max": greatest, "std": min(std, REAL_MAX), "clients": len(values)}
