"""What `lifld` and gateway say of a model that is so small that the gateway keeps a copy, and sends it by itself."""

from __future__ import annotations

from lifl.core.fields import Count, Message, Name


class ModelChanged(Message, frozen=True):
    """lifld → gateway: the job's model is another one from here on, or none; a copy of the last one is to go."""

    job: Name


class ModelServed(Message, frozen=True):
    """Gateway → lifld: so many bytes of the job's model went to clients, from its copy."""

    job: Name
    sent_bytes: Count
