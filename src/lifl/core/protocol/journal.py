"""What a node's `lifld` and its journal process say to each other; to the engine these are effects and events.

The *journal* of a job's epoch is a file that has the updates which were accepted for it on this node, each synced to
the disk before its client is told ACCEPTED.  `place` is where an update lies in that file.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from lifl.core.fields import Count, KeyBytes, Message, Metrics, Name, Text, Weight
from lifl.core.limits import BRANCH_UPDATES_MAX, STORED_PER_FRAME_MAX

Places = Annotated[tuple[Count, ...], msgspec.Meta(max_length=BRANCH_UPDATES_MAX)]


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """An update in a journal: whose it is, what goes with it, and where it lies."""

    client: Name
    weight: Weight
    metrics: Metrics
    place: Count


# ---- lifld → journal ---------------------------------------------------------------------------------------------


class ListJournals(Message, frozen=True):
    """Asks for what earlier lives have left: answered by JournalFound for each, in pages, then JournalsListed."""


class StoreUpdate(Message, frozen=True):
    """Write the sealed update `key` to the journal of the epoch, durably: answered by UpdateStored.

    Until that answer the object must stay.
    """

    number: Count
    epoch: Count
    key: KeyBytes


class LoadUpdate(Message, frozen=True):
    """Read the update at `place` into the object `key`, and seal it: answered by UpdateLoaded."""

    number: Count
    epoch: Count
    place: Count
    key: KeyBytes


class DropUpdates(Message, frozen=True):
    """Forget these updates of a journal; none named: all of it.  Answered by UpdatesDropped.

    What still waits to be written there is answered before.
    """

    number: Count
    epoch: Count
    places: Places = ()


ToJournal = ListJournals | StoreUpdate | LoadUpdate | DropUpdates

# ---- journal → lifld ---------------------------------------------------------------------------------------------


class JournalFound(Message, frozen=True):
    """A part of what a journal has; more may follow for the same epoch."""

    number: Count
    epoch: Count
    stored: Annotated[tuple[Stored, ...], msgspec.Meta(max_length=STORED_PER_FRAME_MAX)]


class JournalsListed(Message, frozen=True):
    """That was all; `fault` says what could not be read."""

    fault: Text = ""


class UpdateStored(Message, frozen=True):
    """The update is on the disk, at `place`; or (none) its journal was dropped before it was."""

    key: KeyBytes
    place: Count | None


class UpdatesDropped(Message, frozen=True):
    """The next DropUpdates is done with."""


class UpdateLoaded(Message, frozen=True):
    """The object is sealed, or (`error`) the update cannot be read."""

    key: KeyBytes
    error: Text = ""


class JournalPaused(Message, frozen=True):
    """Updates cannot be written now, because of `text`; it is tried again.  Empty: it goes on."""

    text: Text = ""


FromJournal = JournalFound | JournalsListed | UpdateStored | UpdatesDropped | UpdateLoaded | JournalPaused
