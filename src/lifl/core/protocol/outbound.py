"""What a node's `lifld` and its outbound process say to each other: which models go to a store elsewhere."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lifl.core.fields import Count, Message, Name, Path, Text
from lifl.core.limits import UPLOAD_URL_CHARS_MAX

Files = Annotated[tuple[Path, ...], msgspec.Meta(max_length=2)]
"""The model's, and that of the rule's states where there is one."""


class SendModel(Message, frozen=True):
    """Bring the files of a round to ``URL/JOB/``, the model's last: answered by ModelSent or ModelUnsent."""

    number: Count
    job: Name
    round: Count
    url: Annotated[str, msgspec.Meta(max_length=UPLOAD_URL_CHARS_MAX)]
    files: Files


ToOutbound = SendModel


class ModelSent(Message, frozen=True):
    """The files are there."""

    number: Count
    round: Count


class ModelUnsent(Message, frozen=True):
    """They are not, because of `text`; `gone`: a file is not here, and another try is of no use."""

    number: Count
    round: Count
    text: Text
    gone: bool = False


FromOutbound = ModelSent | ModelUnsent
