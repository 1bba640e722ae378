"""transformers: a callback with which `Trainer.train` takes part in a job.

    with Client("127.0.0.1:7433", job="mine", client="site-3") as client:
        Trainer(model, args, train_dataset=data, callbacks=[LiflCallback(client)]).train()

`train` ends with the job, or with the epochs or steps that its arguments name.  What is logged and evaluated at an
epoch's end is so before the update leaves, so that its figures go along as metrics.
"""

from __future__ import annotations

from typing import Any

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(f"LiflCallback needs transformers: pip install 'lifl[transformers]' ({error})") from error

from lifl.client import Client, Round
from lifl.integrations.training import TrainingRounds


class LiflCallback(TrainerCallback):  # type: ignore[misc]
    """Takes part in the rounds of `client`'s job, each of `epochs_per_round` epochs.

    The job's model has the names of the model's `state_dict`, or with `job.trainable` those of its adapters.  At a
    round's start it is put into the model, and the optimiser's state (such as its moments) is dropped; the schedule of
    the learning rate goes on.  `weight` is that of each update; without it, the number of examples of the training set.

    `Trainer.train` raises `LocalFault` when the model is trained by several processes, or is another than the job's;
    and as `Client.rounds` and `Round.submit`.
    """

    def __init__(self, client: Client, weight: float | None = None, epochs_per_round: int = 1) -> None:
        self._rounds = TrainingRounds(client, weight, epochs_per_round)
        self._logged: dict[str, Any] = {}
        self._evaluated = False

    @property
    def round(self) -> Round | None:
        """The round that is trained, with its number and options; None where there is none."""
        return self._rounds.round

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the first round."""
        if not self._rounds.begin(kwargs["train_dataloader"], args.world_size):
            control.should_training_stop = True

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from the round's model."""
        self._logged = {}
        self._rounds.epoch_begins(kwargs["model"], [kwargs["optimizer"]])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """With a round's last step have logged, and evaluated, what would be with the epoch's end."""
        if self._rounds.ends_with_epoch() and state.epoch is not None and state.epoch == int(state.epoch):
            control.should_log = True
            if args.eval_strategy == "epoch":
                control.should_evaluate = self._evaluated = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep what is logged."""
        self._logged |= kwargs.get("logs") or {}

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Submit, and wait for the next round."""
        if self._evaluated:
            control.should_evaluate = self._evaluated = False
        goes_on = not control.should_training_stop and state.global_step < state.max_steps
        if not self._rounds.epoch_ended(kwargs["model"], self._logged, goes_on):
            control.should_training_stop = True
