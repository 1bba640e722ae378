"""The types of the fields that messages and configurations are made of, each with its limits."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lifl.core.limits import (
    ABSENT_BYTES_MAX,
    ADDRESS_CHARS_MAX,
    ARENA_BYTES_MAX,
    CAPACITY_MAX,
    CHECKPOINT_FILES_MAX,
    CHECKSUM_CHARS_MAX,
    CLIENTS_LISTED_MAX,
    CLIENTS_PER_ROUND_MAX,
    CONDITION_CHARS_MAX,
    CONFIG_PATH_CHARS_MAX,
    COUNT_MAX,
    DEADLINE_S_MAX,
    DIGEST_BYTES,
    DTYPE_CHARS_MAX,
    FIELD_CHARS_MAX,
    GATEWAYS_TOLD_MAX,
    INCARNATION_MAX,
    KNOWN_WORD_CHARS_MAX,
    KNOWN_WORDS_MAX,
    LABEL_CHARS_MAX,
    LABEL_VALUE_CHARS_MAX,
    LABELS_MAX,
    METRIC_NAME_CHARS_MAX,
    METRICS_MAX,
    NAME_CHARS_MAX,
    PATH_CHARS_MAX,
    PATTERN_CHARS_MAX,
    PATTERNS_MAX,
    PID_MAX,
    REAL_MAX,
    RETRY_AFTER_S_MAX,
    REVOKED_TICKETS_MAX,
    ROUND_METRICS_MAX,
    RULE_CHARS_MAX,
    SCHEMA_BYTES_MAX,
    SECRET_CHARS_MAX,
    STATES_MAX,
    SUSPECTS_MAX,
    TENSORS_MAX,
    TEXT_CHARS_MAX,
    TRAINABLE_PATTERNS_MAX,
    TRAINABLE_TENSORS_MAX,
    WHO_CHARS_MAX,
    WORD_CHARS_MAX,
    WORKERS_MAX,
)
from lifl.core.schema import DTYPE_BYTES, Place, Segment, TensorSpec, Treated

# Patterns end in \Z: `$` also matches before a final newline.
NAME_RULE = f"letters, digits and ._:- , a letter or digit first, at most {NAME_CHARS_MAX}"
Name = Annotated[
    str,
    msgspec.Meta(
        min_length=1, max_length=NAME_CHARS_MAX, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._:-]*\Z", description=NAME_RULE
    ),
]
"""A job's or client's name."""
ModelSource = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=NAME_CHARS_MAX + 8,
        pattern=r"\A[A-Za-z0-9][A-Za-z0-9._:-]*(@[0-9]{1,7})?\Z",
        description="a job's name, or NAME@ROUND",
    ),
]
"""Another job's name, or ``NAME@ROUND``."""
CLIENT_PATTERN_RULE = f"{NAME_RULE}; `*` stands for any text"
_UNPRINTABLE = (
    r"\x00-\x1f\x7f-\xa0\xad"  # control characters, the blank and the hyphen that are not seen
    r"\u061c\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb"  # others' blanks, signs of direction
    r"\ud800-\udfff\U000e0000-\U000e0fff"  # halves of characters, tags
)
_PRINTABLE = rf"\A[^{_UNPRINTABLE}]+\Z"
MetricName = Annotated[str, msgspec.Meta(min_length=1, max_length=METRIC_NAME_CHARS_MAX, pattern=_PRINTABLE)]
METRIC_NAME_RULE = f"1 to {METRIC_NAME_CHARS_MAX} printable characters"
Real = Annotated[float, msgspec.Meta(ge=-REAL_MAX, le=REAL_MAX)]
"""Any finite number."""
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=REAL_MAX)]
Weight = Annotated[float, msgspec.Meta(gt=0, le=REAL_MAX)]
FoldSize = Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX)]
"""Updates of one fold."""
RuleName = Annotated[str, msgspec.Meta(min_length=1, max_length=RULE_CHARS_MAX)]
Capacity = Annotated[float, msgspec.Meta(ge=0, le=CAPACITY_MAX)]
Metrics = Annotated[dict[MetricName, Real], msgspec.Meta(max_length=METRICS_MAX)]
RoundMetrics = Annotated[dict[MetricName, Real], msgspec.Meta(max_length=ROUND_METRICS_MAX)]
"""Of a round: the means of what its clients measured."""
AnnouncedMetrics = Annotated[dict[MetricName, float], msgspec.Meta(max_length=METRICS_MAX)]
"""As a client announces them: `protocol/update_check.py` looks at the values, and names the metric."""
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
Secret = Annotated[str, msgspec.Meta(max_length=SECRET_CHARS_MAX)]
"""What shows that a node was told of something."""
Who = Annotated[str, msgspec.Meta(max_length=WHO_CHARS_MAX)]
"""Who is at the other end of a connection, for the audit log."""
DtypeName = Annotated[str, msgspec.Meta(max_length=DTYPE_CHARS_MAX)]
_TensorPattern = Annotated[str, msgspec.Meta(min_length=1, max_length=PATTERN_CHARS_MAX, pattern=_PRINTABLE)]
TensorPatterns = Annotated[tuple[_TensorPattern, ...], msgspec.Meta(max_length=PATTERNS_MAX)]
TrainablePatterns = Annotated[tuple[_TensorPattern, ...], msgspec.Meta(max_length=TRAINABLE_PATTERNS_MAX)]
ClientPattern = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=NAME_CHARS_MAX,
        pattern=r"\A[A-Za-z0-9*][A-Za-z0-9._:*-]*\Z",
        description=CLIENT_PATTERN_RULE,
    ),
]
"""A client's name, or a pattern of names."""
ClientPatterns = Annotated[tuple[ClientPattern, ...], msgspec.Meta(min_length=1, max_length=CLIENTS_LISTED_MAX)]
Suspects = Annotated[tuple[Name, ...], msgspec.Meta(max_length=SUSPECTS_MAX)]
Tensors = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=TENSORS_MAX)]
PackedTensors = Annotated[bytes, msgspec.Meta(max_length=SCHEMA_BYTES_MAX)]
"""The same as `Layout.packed` has them: whoever has unpacked them once knows them again."""
Word = Annotated[str, msgspec.Meta(max_length=WORD_CHARS_MAX)]
"""A code, a status or a role; or a name, or nothing."""
_KnownWord = Annotated[str, msgspec.Meta(max_length=KNOWN_WORD_CHARS_MAX, pattern=r"\A[a-z-]*\Z")]
KnownWords = Annotated[tuple[_KnownWord, ...], msgspec.Meta(max_length=KNOWN_WORDS_MAX)]
"""What a peer or client knows beyond version 1, a word for each; one that the other does not know means nothing."""
FieldPath = Annotated[str, msgspec.Meta(max_length=FIELD_CHARS_MAX)]
Address = Annotated[str, msgspec.Meta(max_length=ADDRESS_CHARS_MAX)]
Gateways = Annotated[tuple[Address, ...], msgspec.Meta(max_length=GATEWAYS_TOLD_MAX)]
"""Addresses of gateways, HOST:PORT."""
Path = Annotated[str, msgspec.Meta(max_length=PATH_CHARS_MAX)]
ConfigPath = Annotated[str, msgspec.Meta(max_length=CONFIG_PATH_CHARS_MAX, pattern=r"\A[^\x00]*\Z")]
UserName = Annotated[str, msgspec.Meta(max_length=WORD_CHARS_MAX, pattern=r"\A([A-Za-z_][A-Za-z0-9_.-]*)?\Z")]
"""An account of the machine; empty: none is named."""
StateNames = Annotated[tuple[Name, ...], msgspec.Meta(max_length=STATES_MAX)]
Segments = Annotated[tuple[Segment, ...], msgspec.Meta(max_length=len(DTYPE_BYTES))]
Treatment = Annotated[tuple[Treated, ...], msgspec.Meta(max_length=TENSORS_MAX)]
Places = Annotated[tuple[Place, ...], msgspec.Meta(max_length=TRAINABLE_TENSORS_MAX)]
Absent = Annotated[bytes, msgspec.Meta(max_length=ABSENT_BYTES_MAX)]
"""Which of a job's tensors an update lacks (`contribution.absent_bits`)."""
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Integer = Annotated[int, msgspec.Meta(ge=-COUNT_MAX, le=COUNT_MAX)]
Bits64 = Annotated[int, msgspec.Meta(ge=0)]
"""64 bits, each value of which has a meaning: a node's number, a checksum.  The wire has no larger numbers."""
Incarnation = Annotated[int, msgspec.Meta(ge=0, le=INCARNATION_MAX)]
ArenaBytes = Annotated[int, msgspec.Meta(ge=0, le=ARENA_BYTES_MAX)]
WorkersMax = Annotated[int, msgspec.Meta(ge=0, le=WORKERS_MAX)]
Pid = Annotated[int, msgspec.Meta(ge=0, le=PID_MAX)]
"""A process; 0: none."""
ExitStatus = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
"""As waitpid has it."""
TaskSeconds = Annotated[float, msgspec.Meta(ge=0, le=DEADLINE_S_MAX)]
"""What one task has taken: those of a branch, together, are within `COST_S_MAX`."""
Seconds = Annotated[float, msgspec.Meta(gt=0, le=DEADLINE_S_MAX)]
SecondsLeft = Annotated[float, msgspec.Meta(ge=-DEADLINE_S_MAX, le=DEADLINE_S_MAX)]
"""Until a deadline, which may have passed."""
RetryAfter = Annotated[float, msgspec.Meta(ge=0, le=RETRY_AFTER_S_MAX)]
"""Seconds."""
RoundOrNone = Annotated[int, msgspec.Meta(ge=-1, le=COUNT_MAX)]
"""A round's number; -1: of no round."""
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
"""A schema's (`schema.Layout.digest`), for those who have the tensors."""
Digests = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=CHECKSUM_CHARS_MAX)], ...],
    msgspec.Meta(max_length=CHECKPOINT_FILES_MAX),
]
"""Of a checkpoint's files, the model's and the states' as far as there are any: checksums as hexadecimal digits."""
KeyBytes = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
AnyKey = Annotated[bytes, msgspec.Meta(max_length=16)]
"""A key, or nothing."""
StateKeys = Annotated[dict[Name, KeyBytes], msgspec.Meta(max_length=STATES_MAX)]


LABEL_RULE = (
    f"a label's name is letters, digits and _ , no digit first, at most {LABEL_CHARS_MAX}, and none of the words "
    f"of conditions; its value is at most {LABEL_VALUE_CHARS_MAX} printable characters"
)
LABEL_PATTERN = (
    r"\A(?!(and|or|not|in|is|if|else|for|True|False|None|lambda|client|device|examples)\Z)[A-Za-z_][A-Za-z0-9_]*\Z"
)
LabelName = Annotated[str, msgspec.Meta(min_length=1, max_length=LABEL_CHARS_MAX, pattern=LABEL_PATTERN)]
LabelValue = Annotated[
    str, msgspec.Meta(max_length=LABEL_VALUE_CHARS_MAX, pattern=rf"\A[^{_UNPRINTABLE}]*\Z", description=LABEL_RULE)
]
NodeLabels = Annotated[dict[LabelName, LabelValue], msgspec.Meta(max_length=LABELS_MAX)]
"""What a node says of itself, for jobs that go to such nodes alone."""
ConditionText = Annotated[str, msgspec.Meta(min_length=1, max_length=CONDITION_CHARS_MAX)]
"""A condition on what clients say of themselves (`config/condition.py`)."""


class Properties(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a client says of itself: labels, its number of examples, the class of its device.

    `evaluates`: it takes part in evaluations, too.
    """

    labels: Annotated[dict[LabelName, LabelValue], msgspec.Meta(max_length=LABELS_MAX)] = {}
    examples: Count | msgspec.UnsetType = msgspec.UNSET
    device: LabelValue = ""
    evaluates: bool = False


class Ticket(msgspec.Struct, frozen=True):
    """What a ticket shows (`trust/ticket.py`): its credential, and until when it is good."""

    credential: Secret
    expires_unix_s: Count


class RevokedTicket(msgspec.Struct, frozen=True, array_like=True):
    """Tickets that count no more: of `client`, for `fold` (0: its standing ones)."""

    fold: Count
    client: Name


RevokedTicketList = Annotated[tuple[RevokedTicket, ...], msgspec.Meta(max_length=REVOKED_TICKETS_MAX)]


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True, forbid_unknown_fields=True):
    """The base of all messages; the tag is the class's name."""
