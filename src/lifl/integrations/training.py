"""What the callbacks of training loops share: a client's rounds, while another library runs the epochs.

A round's model is put into the module before the round's first epoch, and the module is submitted after its last one.
Then the next round is waited for, so that the loop knows before it begins another epoch whether there is one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from lifl.client import Client, Round
from lifl.core.errors import LocalFault
from lifl.core.fields import MetricName
from lifl.core.limits import METRICS_MAX
from lifl.core.protocol.update_check import is_text

log = logging.getLogger("lifl.client")


class TrainingRounds:
    """The rounds of `client`, of `epochs_per_round` epochs each.

    `weight` is that of each update; None: as many as the training set has examples.
    """

    def __init__(self, client: Client, weight: float | None, epochs_per_round: int) -> None:
        if isinstance(epochs_per_round, bool) or not isinstance(epochs_per_round, int) or epochs_per_round < 1:
            raise LocalFault(f"epochs_per_round={epochs_per_round!r}: give a whole number, 1 or more")
        self.round: Round | None = None
        self._client = client
        self._weight = weight
        self._epochs_per_round = epochs_per_round
        self._epochs = 0
        self._rounds: Iterator[Round] = iter(())
        self._left_out: set[str] = set()

    def begin(self, loader: Any, processes: int) -> bool:
        """Wait for the first round; return whether there is one.

        Raise `LocalFault` where several processes train one module, and where `loader` does not tell how many examples
        there are; and as `Client.rounds`.
        """
        if processes != 1:
            text = f"{processes} processes train one module; a client is one process: let each site have one"
            raise LocalFault(text)
        if self._weight is None:
            self._weight = _examples(loader)
        self._rounds = self._client.rounds()
        return self._next()

    def epoch_begins(self, module: Any, optimizers: Iterable[Any]) -> None:
        """Before a round's first epoch put its model into the module, and let the optimisers begin anew.

        Raise `LocalFault` when the model does not fit the module.
        """
        if self.round is None or self._epochs:
            return
        state = self.round.state_dict(module)
        try:
            module.load_state_dict(state, strict=not self.round.trainable)
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise LocalFault(f"the model of job {self.round.job!r} does not fit the module: {why}") from error
        for optimizer in optimizers:
            optimizer.state.clear()

    def ends_with_epoch(self) -> bool:
        """Return whether the epoch that runs is its round's last one."""
        return self.round is not None and self._epochs + 1 == self._epochs_per_round

    def epoch_ended(self, module: Any, metrics: Mapping[str, Any], goes_on: bool) -> bool:
        """After a round's last epoch submit the module, and wait for the next round unless the loop ends anyway.

        Return whether there is another epoch to train.  Raise as `Round.submit` and `Client.rounds`.
        """
        if self.round is None:
            return False
        self._epochs += 1
        if self._epochs < self._epochs_per_round:
            return True
        assert self._weight is not None
        self.round.submit(module, self._weight, self._taken(metrics))
        self.round = None
        return goes_on and self._next()

    def _next(self) -> bool:
        self._epochs = 0
        self.round = next(self._rounds, None)
        return self.round is not None

    def _taken(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics that an update may have; say once of each other one that it is left out."""
        taken: dict[str, float] = {}
        for name, value in metrics.items():
            number = _number(name, value)
            if number is not None and len(taken) < METRICS_MAX:
                taken[name] = number
            elif name not in self._left_out:
                self._left_out.add(name)
                log.warning("metric.left_out job=%s name=%a value=%.40r", self._client.job, name, value)
        return taken


def _number(name: str, value: Any) -> float | None:
    try:
        msgspec.convert(name, type=MetricName)
        number = math.nan if is_text(value) else float(value)
    except Exception:  # noqa: BLE001 - of whatever was logged
        return None
    return number if math.isfinite(number) else None


def _examples(loader: Any) -> float:
    try:
        return float(len(loader.dataset))
    except (AttributeError, TypeError):
        text = "the training set does not tell how many examples it has; give that as weight="
        raise LocalFault(text) from None
