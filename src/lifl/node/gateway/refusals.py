"""What a gateway tells `lifld` of refusals, for the audit log: each once, then how often (`core/audit.py::Tally`).

So who asks for what it may not have, again and again, costs one message now and one later.  Answers of every day are
left out: a client that comes late to a round is told so, and has done nothing that it may not.
"""

from __future__ import annotations

import asyncio

from lifl.core.audit import Note, Tally
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.node.link import Link

OF_EVERY_DAY = frozenset({"round-over", "wrong-round", "not-selected", cm.USE_GATEWAY})


class Refusals:
    """Tells `lifld` over `link`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._tally = Tally()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, who: str, client: str, refusal: cm.Refusal) -> None:
        """Note that `who`, as `client` (empty: it has not said so), was told no."""
        if refusal.code in OF_EVERY_DAY:
            return
        about: dict[str, str | int] = {"client": client, "job": refusal.job, "code": refusal.code}
        if refusal.code != "protocol":
            about["field"] = refusal.field
        for note in self._tally.add(Note("client.refused", who, about, refusal.text), self._loop.time()):
            self._tell(note)
        if self._timer is None and self._tally.due_s is not None:
            self._timer = self._loop.call_at(self._tally.due_s, self._flush)

    def _flush(self) -> None:
        """Tell what has been counted."""
        self._timer = None
        for note in self._tally.flush():
            self._tell(note)

    def _tell(self, note: Note) -> None:
        about = {name: str(value) for name, value in note.about.items()}
        self._link.send(gm.ClientRefused(note.who, count=note.count, text=note.text[:TEXT_CHARS_MAX], **about))
