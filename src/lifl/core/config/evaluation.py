"""How a job's models are evaluated: the section `evaluation`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lifl.core.config.users_code import check_function
from lifl.core.errors import ConfigError
from lifl.core.fields import Seconds
from lifl.core.limits import CLIENTS_PER_ROUND_MAX, ROUNDS_MAX, RULE_CHARS_MAX


class EvaluationSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """After each `every` committed rounds some clients get the model, and tell metrics of it.

    Those are `clients` of them, or a `fraction` (neither given: all) of those who are here and can evaluate.  The next
    round begins when all of them have told, and at `deadline_s` at the latest.
    `server`, ``module:function``, is given the model too, on the node that has it, and returns metrics; ``module`` is
    imported from `aggregation.rule_folder`.
    """

    every: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS_MAX)] = 1
    clients: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX)] | msgspec.UnsetType = msgspec.UNSET
    fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] | msgspec.UnsetType = msgspec.UNSET
    deadline_s: Seconds = 60.0
    server: Annotated[str, msgspec.Meta(min_length=1, max_length=RULE_CHARS_MAX)] | msgspec.UnsetType = msgspec.UNSET

    @property
    def share(self) -> float:
        """The part of the clients that evaluates where no number is given."""
        return 1.0 if isinstance(self.fraction, msgspec.UnsetType) else self.fraction

    def has(self, number: int) -> bool:
        """Return whether the model of a round is one that is evaluated."""
        return number > 0 and number % self.every == 0


def check_evaluation(section: EvaluationSection) -> None:
    """Raise `ConfigError` for keys that exclude each other, and for what names no function."""
    if isinstance(section.clients, int) and isinstance(section.fraction, float):
        raise ConfigError("evaluation.fraction", "give it, or evaluation.clients, and not both")
    if isinstance(section.server, str):
        check_function(section.server, "evaluation.server")
