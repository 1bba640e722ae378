"""A round, as a trainer has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from lifl.client.books import Books, is_evaluation
from lifl.client.evaluation import told
from lifl.client.home import Home
from lifl.client.outcomes import Submission
from lifl.client.stream import Progress
from lifl.client.tensors import Array, Tensors, as_metrics, as_weight
from lifl.client.torch_tensors import HasState, as_state_dict
from lifl.core.errors import LocalFault
from lifl.core.protocol import client as cm
from lifl.core.protocol.update_check import check_evaluated
from lifl.core.schema import Layout, TensorSpec


class Party(Protocol):
    """What takes part in the round (`Client`)."""

    client: str
    _books: Books
    _home: Home

    def _layout_of(self, tensors: tuple[TensorSpec, ...]) -> Layout: ...

    def _fetch_model(self, round_: Round) -> dict[str, Array]: ...

    def _submit(
        self, round_: Round, tensors: Tensors, weight: float, metrics: Mapping[str, float], progress: Progress | None
    ) -> Submission: ...

    def _decline(self, round_: Round, reason: str) -> None: ...


class Round:
    """One round that this client was selected for.

    `number` counts from 1; `deadline_s` is how many seconds were left when the node selected; `options` are the job's
    `client.options`.  Its `kind` is ``train``, or ``evaluate`` for clients that say they do: then `model` is what round
    `number` has committed, and `report` is to be called in the place of `submit`.
    """

    def __init__(self, client: Party, selected: cm.Selected) -> None:
        self.job = selected.job
        self.number = selected.round
        self.deadline_s = selected.deadline_s
        self.options = selected.options
        self.kind = "evaluate" if is_evaluation(selected) else "train"
        self.layout = client._layout_of(selected.tensors)
        self.trainable = () if isinstance(selected.trainable, msgspec.UnsetType) else selected.trainable
        self._client = client
        self._declined = False
        self._model: dict[str, Array] | None = None

    @property
    def model(self) -> dict[str, Array]:
        """The model to start from: name → writable array.

        Of `Client.rounds` with `models=False` it is fetched when first asked for.  Then it raises `RoundEnded` when the
        round ended meanwhile, `NodeUnreachable`, and `ResourceFault` when there is no memory for it.
        """
        if self._model is None:  # no cached_property: before Python 3.12 one of them is locked for all rounds
            self._model = self._client._fetch_model(self)
        return self._model

    def state_dict(self, module: HasState | None = None) -> dict[str, Any]:
        """Return the model as torch tensors, over the memory of `model`: for a module's `load_state_dict`.

        Give the `module` itself when some of its weights are tied: they have one name in the model's file, and all of
        theirs here.  Raise as `model`, and `LocalFault` where torch is not installed.
        """
        return as_state_dict(self.model, module)

    def submit(
        self,
        tensors: Tensors,
        weight: float,
        metrics: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> Submission:
        """Send this client's update and return when the node has ACCEPTED it, or the round is over.

        `tensors` has the model's names, dtypes and shapes: a dict of arrays, a torch module or its `state_dict`, or the
        path of a safetensors file.  Of a job with `job.trainable` some tensors may be missing, and what is not one of
        the job's is left out.  It must not change until the next round begins.  `weight` is usually the number of
        examples; `metrics` are averaged with it.  `progress(sent_bytes, all_bytes)` is called while it is sent.

        That the round ended without this update is no error: the `Submission` says that it does not count, and why.
        If the round is tried again the update is sent again, without training.  An update that was accepted stays: who
        submits another for the round gets the first one's answer.  Raise `Refused`, naming the field, when the update
        cannot be taken, and `NodeUnreachable`.
        """
        return self._client._submit(self, tensors, weight, metrics or {}, progress)

    def report(self, metrics: Mapping[str, float], weight: float) -> Submission:
        """Tell what this client measured of the model that it was to evaluate; return whether the node has taken it.

        `weight` is usually the number of examples: metrics are averaged with it.  Raise `Refused`, naming the field,
        when it cannot be taken, and `NodeUnreachable`.
        """
        if self.kind != "evaluate":
            raise LocalFault(f"round {self.number} is to be trained: `submit` takes its metrics, with the tensors")
        found = cm.Evaluated(self.job, self.number, as_weight(weight), as_metrics(metrics))
        check_evaluated(found, self._client.client)
        return told(self._client._home, self._client._books, found)

    def decline(self, reason: str = "") -> None:
        """Take no part in this round: another client is selected at once, and `reason` is seen on the node.

        The client goes on to the next round that it is selected for.
        """
        self._client._decline(self, reason)
        self._declined = True

    @property
    def committed(self) -> bool | None:
        """True: this client's update is in a durable model.  False: it is in none.  None: not known yet."""
        return self._client._books.fates.get(self.number)
