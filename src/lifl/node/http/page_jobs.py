"""What a page brings to the node and fetches from it: files of jobs, to submit or to plan; models, and traces.

A job's file is read and checked here, in the door's box, as the command line does it for a node on another machine;
what remains is a request of the command line (`visits.py`), as which it is refused or done.  A model comes and goes in
the pieces in which it does so for a command line elsewhere; nothing of it stays here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from lifl.core.config.from_elsewhere import of_the_node
from lifl.core.config.job import JobConfig, parse_job
from lifl.core.config.parse import table_of
from lifl.core.coordinator.spans import round_line, trace_events
from lifl.core.errors import ConfigError, Refused
from lifl.core.fields import Path
from lifl.core.limits import (
    CONFIG_FILE_BYTES_MAX,
    COUNT_MAX,
    EDITS_MAX,
    MODEL_PIECE_BYTES,
    ROUNDS_MAX,
    WEB_MOVES_MAX,
    WEB_SUBMIT_BYTES_MAX,
)
from lifl.core.planning.plan import Plan, PlanRequest
from lifl.core.planning.shown import drawn_first, options_of_rounds, plan_shown
from lifl.core.protocol import cli as om
from lifl.node.http.visits import Secrets, Visits
from lifl.node.http.wire import JSON, ClientGone, Exchange, Problem

SUBMIT_S = 60.0
"""`lifld` has a new job's folder, row and model within this time, and one that it replaces ended."""
NO_FILE = "names a file of your machine: choose the model's file, or give an absolute path on the node"
T = TypeVar("T")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A job's file, as somebody has written it.

    `model`: where the model lies that was brought before (with `check`: the name of the file that will be), empty: none
    was.  `check`: nothing is submitted yet.
    """

    text: str
    overrides: list[str] = []
    model: str = ""
    replace: bool = False
    check: bool = False


class _TraceOf(msgspec.Struct, forbid_unknown_fields=True):
    """A round of a job; `attempt` None: the last one."""

    job: Path
    round: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_MAX)]
    attempt: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)] | None = None


class _Checked(NamedTuple):
    """`model`: an example's file; empty: `config` names a model, or `wants_model`."""

    config: JobConfig
    states: tuple[str, ...]
    model: bytes
    wants_model: bool


class PageJobs:
    """Answers what pages bring and fetch."""

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._moving = 0

    @contextmanager
    def _place(self, secrets: Secrets, question: type[om.FromCli]) -> Iterator[None]:
        """Have a place among those who bring or fetch, for who may.  Raise `Refused`.

        Who may not is refused before it gets one: else whoever looks could keep all of them by bodies that come slowly.
        """
        self._visits.check_may(secrets, question)
        if self._moving >= WEB_MOVES_MAX:
            text = f"{WEB_MOVES_MAX} pages bring files or fetch models at this moment, the most that may: try again"
            raise Refused("quota", "page", text)
        self._moving += 1
        try:
            yield
        finally:
            self._moving -= 1

    async def submit(self, exchange: Exchange, secrets: Secrets) -> None:
        """Submit a job by its file, or check that.  Raise `Refused`, `Problem`, `OSError`."""
        with self._place(secrets, om.SubmitJob):
            body = await exchange.read(WEB_SUBMIT_BYTES_MAX)
            file = _read(lambda: msgspec.json.decode(body, type=_File))
            found = await _checked(file)
            name = found.config.job.name
            if file.check:
                await exchange.answer(200, {"job": name, "wants_model": found.wants_model and not file.model})
                return
            config = await self._with_model(secrets, file, found)
            replace = file.replace or msgspec.UNSET
            asked = om.SubmitJob(msgspec.to_builtins(config), found.states, replace=replace)
            await exchange.answer(200, await self._visits.ask(secrets, asked, SUBMIT_S), kind=JSON)

    async def plan(self, exchange: Exchange, secrets: Secrets) -> None:
        """Tell how a round of a job would be planned now, by its file.  Raise `Refused`, `Problem`, `OSError`."""
        with self._place(secrets, om.PlanJob):
            body = await exchange.read(WEB_SUBMIT_BYTES_MAX)
            file = _read(lambda: msgspec.json.decode(body, type=_File))
            found = await _checked(file)
            config = await self._with_model(secrets, file, found)
            asked = om.PlanJob(msgspec.to_builtins(config), found.states)
            answer = await self._visits.ask(secrets, asked, SUBMIT_S)
            await exchange.answer(200, await asyncio.to_thread(_planned, found.config, answer), kind=JSON)

    async def _with_model(self, secrets: Secrets, file: _File, found: _Checked) -> JobConfig:
        """Return a job as the node may have it: an example's model is brought there.  Raise `Refused`."""
        if found.wants_model and not file.model:
            raise _refused(ConfigError("model.path", NO_FILE))
        if not found.model:
            return found.config
        path = await self._bring(secrets, found.model)
        return msgspec.structs.replace(
            found.config, model=msgspec.structs.replace(found.config.model, path=path, example="")
        )

    async def _bring(self, secrets: Secrets, model: bytes) -> str:
        """Bring a model that was made here to the node; return where it is."""
        digest, offset = hashlib.sha256(model).hexdigest(), 0
        while True:
            piece = model[offset : offset + MODEL_PIECE_BYTES]
            found = await self._visits.ask(secrets, om.PutModel(digest, offset, piece, len(model)))
            if found["path"]:
                return str(found["path"])
            offset = found["received"]

    async def take_piece(self, exchange: Exchange, secrets: Secrets) -> None:
        """Take a piece of a model's file.  Raise `Refused`, `Problem`, `OSError`."""
        with self._place(secrets, om.PutModel):
            asked = {"offset": 0, "total_bytes": 0, **exchange.arguments()}
            data = await exchange.read(MODEL_PIECE_BYTES)
            piece = _read(lambda: msgspec.convert(asked | {"data": data}, om.PutModel, strict=False))
            await exchange.answer(200, await self._visits.ask(secrets, piece))

    async def send_model(self, exchange: Exchange, secrets: Secrets) -> None:
        """Send the model of a committed round as a file, piece by piece.

        Its checksum is compared before the last piece goes, so that one that is damaged never comes to its end.  Raise
        `Refused`, `Problem`, `OSError`.
        """
        from lifl.shm.checksum import StreamChecksum

        with self._place(secrets, om.ReadModel):
            arguments = exchange.arguments()
            asked = _read(lambda: msgspec.convert({"round": "", **arguments}, om.ReadModel, strict=False))
            found, checksum = await self._visits.ask(secrets, om.ReadModel(asked.job, asked.round)), StreamChecksum()
            about = await self._visits.ask(secrets, om.JobStatus(asked.job, 0, round=asked.round, trees=False))
            digest = next((line["digest"] for line in about["rounds"] if line["path"]), "")
            nbytes, offset = found["bytes"], 0
            await exchange.begin(200, nbytes, {"Content-Type": "application/octet-stream"})
            while offset < nbytes:
                piece = found["data"]
                checksum.update(piece)
                offset += len(piece)
                is_last = offset >= nbytes
                if not piece or (is_last and digest and f"{checksum.finish():016x}" != digest):
                    raise ClientGone(f"the model of round {asked.round} of job {asked.job} is damaged, or was removed")
                await exchange.send(memoryview(piece))
                if not is_last:
                    found = await self._visits.ask(secrets, om.ReadModel(asked.job, asked.round, offset))

    async def send_trace(self, exchange: Exchange, secrets: Secrets) -> None:
        """Send what happened in a round, and when, as the file that `lifl trace` writes.

        Raise `Refused`, `Problem`, `OSError`.
        """
        arguments = exchange.arguments()
        asked = _read(lambda: msgspec.convert(arguments, _TraceOf, strict=False))
        about = await self._visits.ask(secrets, om.JobStatus(asked.job, round=asked.round))
        await exchange.answer(200, await asyncio.to_thread(_traced, asked, about["rounds"]), kind=JSON)


def _planned(config: JobConfig, answer: dict[str, Any]) -> dict[str, Any]:
    """Return what `lifl plan --json` prints."""
    request, made = msgspec.convert(answer["request"], PlanRequest), msgspec.convert(answer["plan"], Plan)
    more = {"treatment": answer["treatment"], "options": options_of_rounds(config), "drawn": drawn_first(config)}
    return {"job": config.job.name, **plan_shown(request, made), **more}


def _traced(asked: _TraceOf, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the round as a trace.  Raise `Refused`."""
    return trace_events(asked.job, round_line(rounds, asked.job, asked.round, asked.attempt))


def _read(decoded: Callable[[], T]) -> T:
    """Return what was asked.  Raise `Problem` for what is none."""
    try:
        return decoded()
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise Problem(400, "protocol", f"that cannot be asked by the page: {error}", "body") from None


def _refused(error: ConfigError) -> Refused:
    return Refused("bad-config", error.path, str(error))


async def _checked(file: _File) -> _Checked:
    """Return the job of a file.  Raise `Refused`."""
    try:
        return await asyncio.to_thread(_job_of, file)  # a long one takes a while
    except ConfigError as error:
        raise _refused(error) from None


def _job_of(file: _File) -> _Checked:
    """Return the job of a file, checked as far as the node need not be asked.  Raise `ConfigError`."""
    from lifl.rules.load import states_of

    if len(file.text.encode(errors="replace")) > CONFIG_FILE_BYTES_MAX:
        raise ConfigError("", f"it is longer than {CONFIG_FILE_BYTES_MAX} bytes; is it a job's file?")
    if len(file.overrides) > EDITS_MAX:
        raise ConfigError("", f"at most {EDITS_MAX} keys are set beside the file; write them into it")
    try:
        table = table_of(file.text)
    except (ValueError, RecursionError) as error:  # not TOML, numbers and nesting without end
        raise ConfigError("", f"it is not TOML: {error}") from error
    brought = [f"model.path={json.dumps(file.model, ensure_ascii=False)}"] if file.model else []
    config = of_the_node(parse_job(table, [*file.overrides, *brought]))
    clients_file = config.selection.clients_file
    if clients_file and not str(clients_file).startswith("/"):
        text = "names a file of your machine: write them into selection.clients, or give an absolute path on the node"
        raise ConfigError("selection.clients_file", text)
    model = config.model
    wants_model = bool(model.path) and not model.path.startswith("/")
    return _Checked(config, states_of(config, "/"), _example(model.example, model.seed), wants_model)


def _example(name: str, seed: int) -> bytes:
    """Return the file of an example model; empty for no name.  Raise `ConfigError`."""
    if not name:
        return b""
    from safetensors.numpy import save

    from lifl.examples import make_model

    return bytes(save(make_model(name, seed)))
