"""Where metrics go beyond LIFL: MLflow, TensorBoard, Weights & Biases (offline), each behind the same few calls.

A tracker keeps the mark of what it was told last, so whoever tells it goes on from there, after whatever end: MLflow in
a tag of the run, the others in a file beside what they have written.  What was told and not marked is told once more,
with the same step, time and value, which says nothing new.  The libraries are imported here and only when they are
used; none of their exceptions leaves.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lifl.core.errors import LiflError, RemoteFault, ResourceFault

MLFLOW_ADDRESS = "http://127.0.0.1:5000"
"""Where MLflow's own server listens when it is told nothing."""
PROJECT = "lifl"
"""The experiment in MLflow, the project in Weights & Biases."""
METRICS_OF_A_REQUEST = 1_000
"""What MLflow takes at a time."""
PARAM_CHARS_MAX = 500
PARAMS_OF_A_REQUEST = 100
MARK = "lifl.round"
"""The tag, or the file, of the mark."""
HTTP_TIMEOUT_S = 10
HTTP_RETRIES_MAX = 1


class TrackerAway(RemoteFault):
    """A tracker cannot be reached, or does not take what it is told: it is to be tried again."""


class Run(NamedTuple):
    """What a job is to a tracker: its `name`, an `identity` that no other job has, and its config."""

    name: str
    identity: str
    config: Mapping[str, Any]


class Point(NamedTuple):
    """What is told of one round: its number, when it was committed, and values by name."""

    step: int
    unix_s: float
    values: dict[str, float]


class Tracker(Protocol):
    """One run of one tracker."""

    def mark(self) -> str:
        """Return the mark of what was told last; empty: nothing was.  Raise `LiflError`."""

    def tell(self, points: Sequence[Point], mark: str) -> None:
        """Tell some rounds, in order, then keep the mark.  Raise `LiflError`."""

    def end(self) -> None:
        """Tell that no more rounds come, and write out what is not yet written.  Raise `LiflError`."""


def run_of(job: Mapping[str, Any], config: Mapping[str, Any]) -> Run:
    """Return the run of a job, out of JobStatus; a name may be used again, but not with the same time of submission."""
    identity = hashlib.sha256(f"{job['name']}\n{job['submitted_unix_s']!r}".encode()).hexdigest()[:16]
    return Run(job["name"], identity, config)


@contextmanager
def _ours(what: str, where: str) -> Iterator[None]:
    """Turn whatever a library raises into an error of ours; what it prints goes to standard error."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except LiflError:
        raise
    except ImportError as error:
        text = f"{what} is not installed for {os.environ.get('VIRTUAL_ENV') or 'this Python'}"
        raise ResourceFault(f"{text}: pip install 'lifl[{what}]' ({error})") from error
    except Exception as error:
        told = str(error) or type(error).__name__
        raise TrackerAway(f"{what} at {where} did not take it: {told.splitlines()[0]:.300}") from error


class MlflowRun:
    """A run in the experiment `PROJECT` of an MLflow server."""

    def __init__(self, run: Run, address: str) -> None:
        self._address = address or MLFLOW_ADDRESS
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(HTTP_TIMEOUT_S)
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(HTTP_RETRIES_MAX)
        with _ours("mlflow", self._address):
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(self._address)
            found = self._client.get_experiment_by_name(PROJECT)
            experiment = found.experiment_id if found is not None else self._client.create_experiment(PROJECT)
            runs = self._client.search_runs([experiment], f"tags.`lifl.job` = '{run.identity}'", max_results=1)
            self._run = runs[0] if runs else self._begin(run, experiment)
        self._id = self._run.info.run_id

    def _begin(self, run: Run, experiment: str) -> Any:
        from mlflow.entities import Param

        made = self._client.create_run(experiment, run_name=run.name, tags={"lifl.job": run.identity})
        params = [Param(name, value[:PARAM_CHARS_MAX]) for name, value in _flat(run.config)]
        for begin in range(0, len(params), PARAMS_OF_A_REQUEST):
            self._client.log_batch(made.info.run_id, params=params[begin : begin + PARAMS_OF_A_REQUEST])
        return made

    def mark(self) -> str:
        """Return the mark."""
        return str(self._run.data.tags.get(MARK, ""))

    def tell(self, points: Sequence[Point], mark: str) -> None:
        """Tell some rounds."""
        with _ours("mlflow", self._address):
            from mlflow.entities import Metric

            told = [
                Metric(_mlflow_name(name), value, round(point.unix_s * 1000), point.step)
                for point in points
                for name, value in point.values.items()
            ]
            for begin in range(0, len(told), METRICS_OF_A_REQUEST):
                self._client.log_batch(self._id, metrics=told[begin : begin + METRICS_OF_A_REQUEST])
            self._client.set_tag(self._id, MARK, mark)

    def end(self) -> None:
        """Say that the job is over."""
        with _ours("mlflow", self._address):
            self._client.set_terminated(self._id)


def _mlflow_name(name: str) -> str:
    """Return a metric's name as MLflow takes it: letters and digits of any script, ``_-. :``, ``/`` as in a path."""
    found = "".join(c if c.isalnum() or c in "_-. /:" else "_" for c in name)
    is_path = posixpath.normpath(found) == found and not found.startswith(("/", "."))
    return found if is_path else found.replace("/", "_").lstrip(".") or "_"


class _Folder:
    """The folder of a run whose last round is noted in a file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        folder.mkdir(parents=True, exist_ok=True)

    def mark(self) -> str:
        with suppress(OSError, ValueError):
            return (self.path / MARK).read_text().strip()
        return ""

    def keep(self, mark: str) -> None:
        partial = self.path / f".{MARK}.{os.getpid()}"
        partial.write_text(f"{mark}\n")
        partial.replace(self.path / MARK)


class TensorBoardRun:
    """A folder of events below the one that `tensorboard --logdir` is given."""

    def __init__(self, run: Run, address: str) -> None:
        self._where = address
        with _ours("tensorboard", address):
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._event, self._summary = Event, Summary
            self._folder = _Folder(Path(address) / f"{run.name}-{run.identity[:6]}")
            self._writer = EventFileWriter(str(self._folder.path))

    def mark(self) -> str:
        """Return the mark."""
        return self._folder.mark()

    def tell(self, points: Sequence[Point], mark: str) -> None:
        """Tell some rounds, at the times at which they were committed."""
        with _ours("tensorboard", self._where):
            for point in points:
                values = [self._summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
                summary = self._summary(value=values)
                self._writer.add_event(self._event(step=point.step, wall_time=point.unix_s, summary=summary))
            self._writer.flush()
            self._folder.keep(mark)

    def end(self) -> None:
        """Write out what is not yet written."""
        with _ours("tensorboard", self._where):
            self._writer.close()


class WandbRun:
    """A run of Weights & Biases in a folder, to be brought elsewhere by `wandb sync`: nothing leaves this machine."""

    def __init__(self, run: Run, address: str) -> None:
        self._where = address
        with _ours("wandb", address):
            import wandb

            self._folder = _Folder(Path(address) / f"{run.name}-{run.identity[:6]}")
            self._run = wandb.init(
                mode="offline",
                project=PROJECT,
                id=run.identity,
                name=run.name,
                dir=str(self._folder.path),
                resume="allow",
                config=dict(run.config),
                settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            )

    def mark(self) -> str:
        """Return the mark."""
        return self._folder.mark()

    def tell(self, points: Sequence[Point], mark: str) -> None:
        """Tell some rounds."""
        with _ours("wandb", self._where):
            for point in points:
                self._run.log(point.values | {"committed_unix_s": point.unix_s}, step=point.step)
            self._folder.keep(mark)

    def end(self) -> None:
        """Write out what is not yet written."""
        with _ours("wandb", self._where):
            self._run.finish()


TRACKERS: dict[str, Callable[[Run, str], Tracker]] = {
    "mlflow": MlflowRun,
    "tensorboard": TensorBoardRun,
    "wandb": WandbRun,
}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of a config, dotted, with their values as texts."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", (), []):
            yield _mlflow_name(f"{prefix}{key}"), str(value)
