"""The order to have a worker call a user's function, and the report of what it has returned (`commands.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from lifl.core.fields import Count, Message, RuleName, Seconds, Text, Word
from lifl.core.limits import CALL_ANSWER_BYTES_MAX, CALL_BYTES_MAX

Given = Annotated[bytes, msgspec.Meta(max_length=CALL_BYTES_MAX)]
"""What a function is given, packed; what that is depends on the key that names it (`worker/call.py`)."""
Answer = Annotated[bytes, msgspec.Meta(max_length=CALL_ANSWER_BYTES_MAX)]
"""What it has returned, packed."""


CallKey = Literal["selection.strategy", "job.stop"]
"""The key that names such a function: one call of each is made at a time."""
SELECTS: CallKey = "selection.strategy"
STOPS: CallKey = "job.stop"
CALLED: tuple[CallKey, ...] = (SELECTS, STOPS)


class CallFunction(Message, frozen=True):
    """Home: call the user's function that the job's `key` names.  The answer is FunctionReturned, with this `call`."""

    number: Count
    call: Count
    key: CallKey
    function: RuleName
    given: Given
    deadline_s: Seconds


class FunctionReturned(Message, frozen=True):
    """What the function of a CallFunction has returned; else `fault` says why it has returned nothing."""

    number: Count
    call: Count
    key: Word
    answer: Answer = b""
    fault: Text = ""
