"""A user's trainer: a function, found by its name and called for one client of one round; and two beside it.

    def train(tensors, *, client, round, options):
        return tensors, weight, metrics

    def evaluate(tensors, *, client, round, options):
        return metrics, weight

    def properties(client):
        return {"labels": {"region": "eu"}, "examples": 1200, "device": "gpu"}

`tensors` is the round's model (name → writable NumPy array, its own), `client` a number from 0, `round` one from 1, and
`options` are the job's `client.options`.  It returns the update as `Round.submit` takes it (a dict of arrays, a torch
module or its `state_dict`), its weight and its metrics.  It is called in processes of its own, in several at a time,
and for any client in any of them: what it keeps in its module is that process's.  Where the job has evaluations
`tensors` is what `round` has committed.  A client's properties are asked for once, before it takes part.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from lifl.client.properties import properties_of
from lifl.client.tensors import Array, Update, as_number
from lifl.core.errors import ConfigError, LiflError, LocalFault
from lifl.core.fields import Properties
from lifl.core.limits import RULE_CHARS_MAX, TEXT_CHARS_MAX
from lifl.core.schema import Layout, TensorSpec

Trainer = Callable[..., Any]
PROPERTIES = frozenset({"labels", "examples", "device"})
"""What a client may say of itself."""
TRACE_LINES_MAX = 60
"""Lines of a traceback that are shown, the last ones."""


class Functions(NamedTuple):
    """The user's, each ``module:function``; of those that are empty there is none."""

    train: str
    evaluate: str = ""
    properties: str = ""


OPTIONS = Functions("--trainer", "--evaluator", "--properties")
"""Where each is given."""


class Training(NamedTuple):
    """What one client is to train: the model's tensors; an update may lack some where there are `trainable`.

    With `evaluates` it is to evaluate the model that the round has committed.
    """

    client: int
    round: int
    options: dict[str, Any]
    tensors: tuple[TensorSpec, ...]
    trainable: tuple[str, ...]
    evaluates: bool = False

    @property
    def model(self) -> int:
        """The round that has committed the model."""
        return self.round if self.evaluates else self.round - 1


class Trained(NamedTuple):
    """What came of it; of an evaluation there are no tensors."""

    tensors: dict[str, Array]
    weight: float
    metrics: dict[str, float]


class TrainerFailed(LiflError):
    """A function of the user's raised something, returned what it must not, or ended its process.

    `trace` has the lines of the traceback, the user's alone.
    """

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace

    def __reduce__(self) -> tuple[type[TrainerFailed], tuple[str, str]]:
        """Return how it goes from process to process."""
        return TrainerFailed, (str(self), self.trace)


def find(trainer: str, option: str = OPTIONS.train) -> Trainer:
    """Return the function ``module:function`` that is given by `option`.  Raise `ConfigError`."""
    module, _, name = trainer.partition(":")
    if len(trainer) > RULE_CHARS_MAX or not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", trainer):
        raise ConfigError(option, f"{trainer!r:.80} is not MODULE:FUNCTION, such as train:train")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except BaseException as error:  # a user's module may raise anything
        text = f"{trainer} cannot be imported: {_said(error)}; it is looked for in the working folder"
        raise ConfigError(option, text) from error
    if not callable(found):
        raise ConfigError(option, f"{trainer} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def import_all(functions: Functions) -> tuple[str, str, str]:
    """Return which option names a function that cannot be had, why, and the traceback; nothing: all can."""
    for option, function in zip(OPTIONS, functions, strict=True):
        try:
            if function or option == OPTIONS.train:
                find(function, option)
        except ConfigError as error:
            cause = error.__cause__
            return option, error.problem, trace_of(cause) if cause is not None else ""
    return "", "", ""


def done(functions: Functions, model: dict[str, Array], training: Training) -> Trained:
    """Train, or evaluate.  Raise `TrainerFailed`, `ConfigError`."""
    if training.evaluates:
        return evaluate(find(functions.evaluate, OPTIONS.evaluate), model, training)
    return train(find(functions.train), model, training)


def _called(function: Trainer, model: dict[str, Array], training: Training) -> Any:
    try:
        return function(model, client=training.client, round=training.round, options=training.options)
    except BaseException as error:  # a user's function may raise anything
        raise TrainerFailed(_said(error), trace_of(error)) from error


def evaluate(evaluator: Trainer, model: dict[str, Array], training: Training) -> Trained:
    """Call an evaluator, and look at what it returns.  Raise `TrainerFailed`."""
    found = _called(evaluator, model, training)
    if not (isinstance(found, tuple) and len(found) == 2):
        kind = f"a tuple of {len(found)}" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise TrainerFailed(f"it returned {kind}, not (metrics, weight)")
    metrics, weight = found
    try:
        return Trained({}, as_number(weight, "bad-weight", "weight", "the weight"), _numbers(metrics))
    except LiflError as error:
        raise TrainerFailed(str(error)) from error


def said_of(function: str, count: int) -> list[Properties | None]:
    """Return what so many clients say of themselves.  Raise `ConfigError`."""
    option, asked = OPTIONS.properties, find(function, OPTIONS.properties)
    found: list[Properties | None] = []
    for client in range(count):
        try:
            said = asked(client)
        except BaseException as error:
            raise ConfigError(option, f"{function}({client}) raised {_said(error)}") from error
        if not isinstance(said, Mapping) or said.keys() - PROPERTIES:
            text = f"{function}({client}) returned {said!r:.80}, not a dict of {', '.join(sorted(PROPERTIES))}"
            raise ConfigError(option, text)
        try:
            about = said.get("labels"), said.get("examples"), said.get("device", "")
            found.append(properties_of(*about, evaluate=False))
        except LocalFault as fault:
            raise ConfigError(option, f"{function}({client}): {fault}") from fault
    return found


def train(trainer: Trainer, model: dict[str, Array], training: Training) -> Trained:
    """Call a trainer, and look at what it returns.  Raise `TrainerFailed`."""
    found = _called(trainer, model, training)
    if not (isinstance(found, tuple) and len(found) == 3):
        kind = f"a tuple of {len(found)}" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise TrainerFailed(f"it returned {kind}, not (tensors, weight, metrics)")
    tensors, weight, metrics = found
    try:
        update = Update(Layout(training.tensors), tensors, trainable=training.trainable)
        numbers = _numbers(metrics)
        return Trained(_named(update), as_number(weight, "bad-weight", "weight", "the weight"), numbers)
    except LiflError as error:
        raise TrainerFailed(str(error)) from error


def _named(update: Update) -> dict[str, Array]:
    """Return what is in an update: those that stand for tensors that it lacks are left out."""
    lacks = 0 if isinstance(update.absent, msgspec.UnsetType) else int.from_bytes(update.absent, "little")
    named = enumerate(zip(update.layout.tensors, update.arrays, strict=True))
    return {tensor.name: array for index, (tensor, array) in named if not lacks >> index & 1}


def _numbers(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        raise TrainerFailed(f"its metrics are a {type(metrics).__name__}, not a dict of name and number")
    return {str(name): as_number(value, "bad-metric", "metrics", f"metric {name}") for name, value in metrics.items()}


def trace_of(error: BaseException) -> str:
    """Return the traceback of what the user's code has raised, without our own frames and those of an import before it.

    Where nothing of the user's was run, as a module is not there, there is none: what is wrong is said without it.
    """
    trace, ours = error.__traceback__, (sys.modules[__name__].__file__, importlib.__file__)
    while trace is not None and (
        (place := trace.tb_frame.f_code.co_filename) in ours or place.startswith("<frozen importlib")
    ):
        trace = trace.tb_next
    if trace is None and not isinstance(error, SyntaxError):
        return ""
    lines = "".join(traceback.format_exception(type(error), error, trace)).splitlines()
    shown = [line for line in lines if "importlib._bootstrap" not in line]
    return "\n".join(shown[-TRACE_LINES_MAX:])


def _said(error: BaseException) -> str:
    """Return what an exception of the user's says, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = sys.modules[__name__].__file__
    where = next((f" ({frame.filename}:{frame.lineno})" for frame in reversed(frames) if frame.filename != ours), "")
    return f"{type(error).__name__}: {error}{where}"[:TEXT_CHARS_MAX]
