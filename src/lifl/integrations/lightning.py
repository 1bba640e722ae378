"""Lightning: a callback with which `Trainer.fit` takes part in a job.

    with Client("127.0.0.1:7433", job="mine", client="site-3") as client:
        Trainer(max_epochs=-1, callbacks=[LiflCallback(client)]).fit(module, data)

`fit` ends with the job.  Update and metrics are what module and `self.log` have when a round's last epoch, its
validation included, has ended.
"""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ImportError(f"LiflCallback needs Lightning: pip install 'lifl[lightning]' ({error})") from error

from lifl.client import Client, Round
from lifl.integrations.training import TrainingRounds


class LiflCallback(Callback):  # type: ignore[misc]
    """Takes part in the rounds of `client`'s job, each of `epochs_per_round` epochs.

    The job's model has the names of the module's `state_dict`.  At a round's start it is put into the module, and the
    optimisers' state (such as momentum) is dropped; learning rates go on.  `weight` is that of each update; without it,
    the number of examples of the training set.

    The trainer's run raises `LocalFault` when the module is trained by several processes, or is another than the job's
    model; and as `Client.rounds` and `Round.submit`.
    """

    def __init__(self, client: Client, weight: float | None = None, epochs_per_round: int = 1) -> None:
        self._rounds = TrainingRounds(client, weight, epochs_per_round)

    @property
    def round(self) -> Round | None:
        """The round that is trained, with its number and options; None where there is none."""
        return self._rounds.round

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first round."""
        if not self._rounds.begin(trainer.train_dataloader, trainer.world_size):
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the round's model."""
        self._rounds.epoch_begins(pl_module, trainer.optimizers)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Submit, and wait for the next round."""
        last: Any = trainer.max_epochs
        goes_on = not trainer.should_stop and (last in (None, -1) or trainer.current_epoch + 1 < last)
        if not self._rounds.epoch_ended(pl_module, trainer.callback_metrics, goes_on):
            trainer.should_stop = True
