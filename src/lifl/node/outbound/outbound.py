"""`lifld`'s side of the models that go to a store elsewhere (`checkpoint.upload`): what waits, and is tried again.

A round never waits for it: its model is sent when it is committed.  Of each job one model is sent at a time, in order;
what the store does not take is tried again after a pause that doubles, from `UPLOAD_RETRY_S` to `UPLOAD_RETRY_S_MAX`.
Up to `UPLOADS_WAITING_MAX` models wait, and stay here meanwhile; beyond it the oldest is given up, and that is said.
The process that sends is started for the first of them, and ends when there is none.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lifl.core import effects as fx
from lifl.core.errors import Refused, ResourceFault
from lifl.core.limits import UPLOAD_RETRY_S, UPLOAD_RETRY_S_MAX, UPLOADS_WAITING_MAX
from lifl.core.protocol import outbound as om
from lifl.node import folders
from lifl.node.children import Child
from lifl.node.keeper import models_in
from lifl.node.outbound.main import SENT

log = logging.getLogger("lifl.outbound")

LIBRARIES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""What fsspec needs for some schemes."""


def check_library(scheme: str) -> None:
    """Raise `Refused` when what a scheme needs is not installed."""
    missing = [name for name in ("fsspec", LIBRARIES.get(scheme, "fsspec")) if importlib.util.find_spec(name) is None]
    if missing:
        text = f"{scheme}:// needs the library {missing[-1]}, which is not installed here: pip install 'lifl[s3]'"
        raise Refused("missing-library", "checkpoint.upload", text)


class Waiting:
    """What waits of one job, the oldest first; the first one is being sent, or tried again later."""

    def __init__(self, job: str, url: str) -> None:
        self.job = job
        self.url = url
        self.kept: fx.KeepModels | None = None  # what was said last of the files that stay
        self.models: list[om.SendModel] = []
        self.sending: om.SendModel | None = None
        self.sent = -1
        self.given_up = 0
        self.fault = ""
        self.retry_s = UPLOAD_RETRY_S
        self.timer: asyncio.TimerHandle | None = None


class _Sender(Child):
    """The process; another one is started only while something waits."""

    wanted: Callable[[], bool] = staticmethod(lambda: False)

    def _start_again(self) -> None:
        if self.wanted():
            super()._start_again()


class Outbound:
    """The models of a node, whose folder is `state`; `passed` are descriptors that the process inherits."""

    def __init__(self, state: Path, passed: Sequence[int]) -> None:
        self._state = state
        self._jobs: dict[int, Waiting] = {}
        self._loop = asyncio.get_running_loop()
        told = (self._heard, self._ended, self._broken)
        self._child = _Sender("lifl.node.outbound.main", [], passed, om.FromOutbound, *told, self._loop.time)
        self._child.wanted = lambda: any(job.sending for job in self._jobs.values())
        self._closed = False
        self.freed: Callable[[fx.KeepModels], None] = lambda _kept: None
        """Told when a model need not stay any more for being sent, with what was said last of those that stay."""

    # ---- what is to be sent ------------------------------------------------------------------------------------------

    def keep(self, effect: fx.KeepModels) -> None:
        """Send the model of a round that was just committed; or those that an earlier life has not sent."""
        if not effect.upload:
            return
        job = self._jobs.setdefault(effect.number, Waiting(effect.job, effect.upload))
        job.kept = effect
        folder = folders.local(self._state, effect.folder)
        if effect.fresh >= 0:
            self._add(job, effect, effect.fresh, [str(folders.local(self._state, path)) for path in effect.files])
        else:
            there, sent = models_in(folder), _sent(folder)
            left = [number for number in sorted(there) if sent < number <= effect.kept.committed]
            for number in left[-UPLOADS_WAITING_MAX:]:
                self._add(job, effect, number, [str(path) for path in there[number][:2]])
        self._go_on(job)

    def _add(self, job: Waiting, effect: fx.KeepModels, number: int, files: list[str]) -> None:
        message = om.SendModel(effect.number, effect.job, number, effect.upload, tuple(files))
        job.models = [model for model in job.models if model.round != number] + [message]
        while len(job.models) > UPLOADS_WAITING_MAX:
            gone = next(model for model in job.models if model is not job.sending)
            job.models.remove(gone)
            job.given_up += 1
            log.warning("upload.given-up job=%s round=%d %d others wait", job.job, gone.round, UPLOADS_WAITING_MAX)

    def forget(self, number: int) -> None:
        """Send nothing more of a job that is removed."""
        job = self._jobs.pop(number, None)
        if job is not None and job.timer is not None:
            job.timer.cancel()

    def let_go(self, number: int) -> None:
        """Forget a job that is known no more; what waits to be sent is sent all the same."""
        if not self.needed(number):
            self.forget(number)

    def needed(self, number: int) -> set[int]:
        """Return the rounds of a job whose files are still to be sent."""
        job = self._jobs.get(number)
        return {model.round for model in job.models} if job is not None else set()

    # ---- the process -------------------------------------------------------------------------------------------------

    def _go_on(self, job: Waiting) -> None:
        if job.sending is not None or job.timer is not None or not job.models or self._closed:
            return
        job.sending = job.models[0]
        if not self._child.pid:
            try:
                self._child.start()
            except OSError as error:  # no descriptor, no memory or no process number is left
                self._failed(job, f"the process that uploads cannot be started: {error}")
                return
        self._child.send(job.sending)

    def _heard(self, message: Any) -> None:
        job = self._jobs.get(message.number)
        if job is None or job.sending is None or job.sending.round != message.round:
            return
        sending, job.sending = job.sending, None
        if isinstance(message, om.ModelUnsent) and not message.gone:
            self._failed(job, message.text)
            return
        job.models = [model for model in job.models if model is not sending]
        if isinstance(message, om.ModelUnsent):
            job.given_up += 1
            log.warning("upload.given-up job=%s round=%d %s", job.job, message.round, message.text)
        else:
            if job.fault:
                log.warning("upload.goes_on job=%s round=%d", job.job, message.round)
            job.sent, job.fault, job.retry_s = message.round, "", UPLOAD_RETRY_S
        if not job.models and job.kept is not None:
            self.freed(job.kept)
        self._go_on(job)

    def _failed(self, job: Waiting, why: str) -> None:
        """Try again later."""
        if not job.fault:
            log.warning("upload.waits job=%s round=%d %s; it is tried again", job.job, job.models[0].round, why)
        job.sending, job.fault = None, why
        job.timer = self._loop.call_later(job.retry_s, self._retry, job)
        job.retry_s = min(2 * job.retry_s, UPLOAD_RETRY_S_MAX)

    def _retry(self, job: Waiting) -> None:
        job.timer = None
        self._go_on(job)

    def _ended(self) -> None:
        if self._child.wanted():
            log.warning("outbound.ended %s", self._child.last_words() or "without a word")
            self._loop.call_soon(self._say_again)

    def _say_again(self) -> None:
        self._child.send(*(job.sending for job in self._jobs.values() if job.sending is not None))

    def _broken(self, fault: ResourceFault) -> None:
        """Let everything wait: that this process ends again and again is no reason for the node to end."""
        for job in self._jobs.values():
            if job.sending is not None:
                job.retry_s = UPLOAD_RETRY_S_MAX
                self._failed(job, str(fault))

    # ---- what is shown -----------------------------------------------------------------------------------------------

    def shown(self, number: int) -> dict[str, Any] | None:
        """Return what `lifl status` and `lifl top` say of a job's uploads; None: there are none."""
        job = self._jobs.get(number)
        if job is None:
            return None
        waiting = [model.round for model in job.models]
        return {"url": job.url, "sent": job.sent, "waiting": waiting, "given_up": job.given_up, "fault": job.fault}

    def stop(self, timeout_s: float) -> None:
        """End the process; the next life sends what it has not."""
        self._closed = True
        for job in self._jobs.values():
            if job.timer is not None:
                job.timer.cancel()
        self._child.stop(timeout_s)


def _sent(folder: Path) -> int:
    """Return the round of a job that was sent last; -1: none."""
    try:
        return int((folder / SENT).read_text()[:16])
    except (OSError, ValueError):
        return -1
