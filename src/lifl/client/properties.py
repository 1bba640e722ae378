"""What a client says of itself when it joins."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import msgspec

from lifl.core.errors import LocalFault
from lifl.core.fields import LABEL_RULE, Properties
from lifl.core.limits import LABELS_MAX


def properties_of(
    labels: Mapping[str, str] | None, examples: int | None, device: str, evaluate: bool
) -> Properties | None:
    """Return what is said; None: nothing.  Raise `LocalFault`, naming what cannot be."""
    if not labels and examples is None and not device and not evaluate:
        return None
    try:
        said: dict[str, object] = {"labels": dict(labels or {}), "device": device, "evaluates": bool(evaluate)}
        if examples is not None:
            said["examples"] = operator.index(examples)  # an integer of numpy's, too
        return msgspec.convert(said, Properties)
    except (TypeError, ValueError) as error:
        text = f"labels={labels!r:.200}, examples={examples!r:.40}, device={device!r:.80}: {LABEL_RULE}; at most"
        raise LocalFault(f"{text} {LABELS_MAX} labels; examples are a whole number, 0 or more ({error})") from error
